"""Tomograms from a tilt series by linear methods: functions of images, and of how they see a grid.

Images are line integrals [1], such as `contrast` gives; tomograms are then per length [1/A]: what
each A of the way takes from the beam, relative to the mean of the image, matter positive.
"""

import torch
from torch import Tensor

from tem_taichi.arguments import check_number, to_field
from tem_taichi.device import as_tensor
from tem_taichi.specimen.rays import Rays, back_project, project, smear

_SEEN = 1e-3
"""Part of the longest way through the grid below which a ray tells nothing of it."""
_NEAR = 2**16
"""Voxels of some fields that the nearest memory holds."""
_INNER = 4
"""Steps for the total variation in each iteration; they go on from those of the one before."""


def contrast(images: Tensor) -> Tensor:
    """What is missing of each image's mean, relative to it: 1 - I / mean.

    Args:
        images: (n, ny, nx).

    Returns:
        The same shape; 0 for an image whose mean is not positive, which tells nothing.
    """
    mean = images.mean(dim=(1, 2), keepdim=True)
    return torch.where(mean > 0, 1 - images / torch.where(mean > 0, mean, 1.0), 0.0)


def weighted_back_projection(images: Tensor, rays: Rays, resolution: float = 0.0) -> Tensor:
    """Sum of the images back along their rays, weighted by |k| across the tilt axis.

    volume(r) = sum_i step_i q_i(r), with q_i the image times |k . across| and step_i the angle
    [rad] that it stands for, half way to its neighbours (Kak & Slaney 1988, ch. 3).

    Args:
        images: (n, ny, nx), taken as 0 beyond their edges.
        rays: how they see the grid; the tilt axis is that about which their beams turn.
        resolution: [A] of details of which half is left, by a Gaussian; 0 = all.

    Returns:
        (nz, ny, nx), in the images' unit per A.

    Raises:
        ValueError: if the images are not those of the rays.
    """
    check_number("resolution", resolution, "A", 0.0)
    images = to_field("images", images)
    axis, steps = _axis_and_steps(rays)
    ny, nx = rays.shape
    padded = tuple(_room(n) for n in rays.shape)
    ky = torch.fft.fftfreq(padded[0], rays.pixel, dtype=images.dtype, device=images.device)
    kx = torch.fft.rfftfreq(padded[1], rays.pixel, dtype=images.dtype, device=images.device)
    fall = torch.exp(-0.6931 * resolution**2 * (kx**2 + ky[:, None]**2))
    filtered = torch.empty_like(images)
    for n, image in enumerate(images):
        along = (rays.rotations[n, :2] @ axis).to(images)
        along = along / along.norm()
        across = (kx * along[1] - ky[:, None] * along[0]).abs()
        spectrum = torch.fft.rfft2(image, s=padded) * across * fall * steps[n]
        filtered[n] = torch.fft.irfft2(spectrum, s=padded)[:ny, :nx]
    return smear(filtered, rays)


def _room(n: int) -> int:
    """Twice the pixels, so that filters do not reach round, of small factors."""
    from scipy.fft import next_fast_len

    return int(next_fast_len(2 * n, real=True))


def _axis_and_steps(rays: Rays) -> tuple[Tensor, Tensor]:
    """Axis about which the beams turn in the grid's frame, and the angle [rad] of each image."""
    beams = rays.rotations[:, 2].detach()
    if len(beams) < 2:
        return beams.new_tensor([0.0, 1.0, 0.0]), beams.new_ones(1)
    # The direction that is least in all beams.
    axis = torch.linalg.eigh((beams.T @ beams).double())[1][:, 0].to(beams)
    up = beams.sum(0) - (beams.sum(0) @ axis) * axis
    up = up / up.norm()
    angles = torch.atan2(beams @ torch.linalg.cross(axis, up), beams @ up)
    order = torch.argsort(angles)
    middles = (angles[order][1:] + angles[order][:-1]) / 2
    ends = 2 * angles[order][[0, -1]] - middles[[0, -1]]
    steps = torch.empty_like(angles)
    steps[order] = torch.cat([ends[:1], middles, ends[1:]]).diff()
    return axis, steps


class Sirt:
    """Simultaneous iterative reconstruction (Gilbert 1972), with or without total variation.

    volume <- volume + C A' R (images - A volume), R and C one over the sums of A's rows and
    columns: Landweber's iteration in weights in which it cannot diverge. With a strength of the
    total variation each iteration ends with steps towards the volume v near this one of least
    |v - volume|^2 / 2 + strength TV(v) (Chambolle 2004), which go on from iteration to iteration.
    """

    def __init__(self, images: Tensor, rays: Rays, *, weights: Tensor | None = None,
                 tv: float = 0.0, positive: bool = False, levels: bool = False) -> None:
        """The volume is 0.

        Args:
            images: line integrals (n, ny, nx).
            rays: how they see the grid.
            weights: of the pixels, not negative, (n, ny, nx): 0 = leave out; None = 1.
            tv: strength of the total variation in each iteration, in the images' unit per A: by
                so much a voxel may be moved for each of its neighbours.
            positive: whether what falls below 0 is set to 0.
            levels: whether each image may lie higher or lower as a whole than the volume's, as
                those do that are known relative to their mean.

        Raises:
            ValueError: if the images are not those of the rays.
        """
        check_number("tv", tv, "1/A", 0.0)
        self.images, self.rays = to_field("images", images), rays
        self.tv, self.positive, self.levels = tv, positive, levels
        with torch.no_grad():
            through = project(torch.ones(rays.grid, dtype=self.images.dtype,
                                         device=self.images.device), rays)
            seen = through > _SEEN * through.max()
            self._rows = torch.where(seen, 1 / torch.where(seen, through, 1.0), 0.0)
            if weights is not None:
                self._rows = self._rows * as_tensor(weights)
            sums = back_project(seen.to(self.images) if weights is None
                                else seen * as_tensor(weights), rays)
            there = sums > _SEEN * sums.max()
            self._columns = torch.where(there, 1 / torch.where(there, sums, 1.0), 0.0)
        self.volume = torch.zeros_like(self._columns)
        self._dual: list[Tensor] | None = None

    def step(self) -> float:
        """One iteration.

        Returns:
            Mean square of what the images differed from the volume's before it, weighted.
        """
        with torch.no_grad():
            left = self.images - project(self.volume, self.rays)
            if self.levels:
                # In the weights in which squares are summed: the iteration stays one that falls.
                left -= (left * self._rows).sum((1, 2), keepdim=True) / self._rows.sum(
                    (1, 2), keepdim=True).clamp(min=1e-30)
            misfit = float((left.square() * (self._rows > 0)).sum() / (self._rows > 0).sum())
            self.volume += self._columns * back_project(left * self._rows, self.rays)
            if self.tv > 0:
                self._even()
            if self.positive:
                self.volume.clamp_(min=0)
        return misfit

    def state(self) -> dict[str, Tensor]:
        """What changes, for `resume`."""
        return {"volume": self.volume, **{
            f"dual{n}": part for n, part in enumerate(self._dual or [])}}

    def resume(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state` of a run with the same images and settings."""
        dual = [state[f"dual{n}"] for n in range(3) if f"dual{n}" in state]
        # In the order in memory that projections take without a copy.
        self.volume.copy_(state["volume"])
        self._dual = [torch.empty_like(self.volume).copy_(part) for part in dual] or None

    def _even(self) -> None:
        """Some steps towards the volume of least total variation near this one."""
        if self._dual is None:
            self._dual = [torch.zeros_like(self.volume) for _ in range(3)]
        given, count = self.volume.clone(), len(self.volume)
        step = max(1, _NEAR // self.volume[0].numel())
        slabs = [slice(first, min(first + step, count)) for first in range(0, count, step)]
        for _ in range(_INNER):
            for slab in slabs:
                _divergence(given, self._dual, slab, self.volume)
            for slab in slabs:
                _turn(self._dual, self.volume, slab, self.tv)
        for slab in slabs:
            _divergence(given, self._dual, slab, self.volume)


def _turn(dual: list[Tensor], volume: Tensor, slab: slice, strength: float) -> None:
    """Turn a slab of the dual field towards the volume's gradient; no longer than the strength."""
    parts = [part[slab] for part in dual]
    here = volume[slab.start:slab.stop + 1]  # and the next plane, where there is one
    squares = torch.zeros_like(parts[0])
    for axis, (part, values) in enumerate(zip(parts, (here, volume[slab], volume[slab]),
                                              strict=True)):
        change = values.diff(dim=axis)
        # 12 is the largest eigenvalue of the divergence of the gradient.
        part.narrow(axis, 0, change.shape[axis]).add_(change, alpha=1 / 12)
        squares.addcmul_(part, part)
    squares.sqrt_().div_(strength).clamp_(min=1)
    for part in parts:
        part.div_(squares)


def _divergence(given: Tensor, dual: list[Tensor], slab: slice, out: Tensor) -> None:
    """Write a slab of what is given plus the divergence: of differences to the next, 0 at the last.

    Slabs are few enough voxels to stay in the nearest memory.
    """
    total = torch.add(given[slab], dual[0][slab], out=out[slab])
    first = max(slab.start - 1, 0)
    total[first + 1 - slab.start:].sub_(dual[0][first:slab.stop - 1])
    for axis in (1, 2):
        part, n = dual[axis][slab], given.shape[axis]
        total.add_(part)
        total.narrow(axis, 1, n - 1).sub_(part.narrow(axis, 0, n - 1))


def sirt(images: Tensor, rays: Rays, iterations: int, **settings: object) -> Tensor:
    """Volume after some iterations of `Sirt`.

    Args:
        images: line integrals (n, ny, nx).
        rays: how they see the grid.
        iterations: how many.
        settings: of `Sirt`.

    Returns:
        (nz, ny, nx), in the images' unit per A.
    """
    run = Sirt(images, rays, **settings)  # type: ignore[arg-type]
    for _ in range(iterations):
        run.step()
    return run.volume
