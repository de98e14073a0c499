"""The likelihood of a tilt series' poses at one resolution, whatever the specimen is.

The specimen is integrated out (`inverse.slab`), so that no volume can take an error of the poses
into itself. The spectra of what images share and of their noise are found from the images
themselves, by steps of expectation and maximisation (Dempster et al. 1977).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate.stretched import Stretch, lattice, places, stretch
from tem_taichi.estimate.strips import strips_of
from tem_taichi.inverse.slab import Slab, depth_information, displacement_information

_RINGS = 20
"""Of the spectra, up to the finest detail."""
_UNSEEN = 1e6
"""Noise where an image has nothing, relative to the largest there is."""
_QUIET = 0.2
"""Least noise, relative to what an image's highest frequencies say."""
_FALL = 0.3
"""Width of the edge beyond the highest frequency, relative to it."""
_MEMORY = 3.5e7
"""Numbers of a covariance at most: frequencies beyond are thinned out."""


@dataclass(frozen=True, eq=False)
class Views:
    """Images of a tilt series as they are aligned."""

    images: Tensor
    """Line integrals, as of `tomography.contrast`, (n, ny, nx)."""
    weights: Tensor
    """Of the pixels, 0 = left out, (n, ny, nx)."""
    noise: Tensor
    """Variance of each image's white noise, (n,)."""
    pixel: float
    """[A]"""
    thickness: float
    """Of the specimen [A]."""
    cut: tuple[float, float] = (0.0, 0.0)
    """See `tilt_images.Grid` [A]."""


def low_passed(images: Tensor, pixel: float, finest: float) -> Tensor:
    """Without what is finer, (n, ny, nx)."""
    ny, nx = images.shape[1:]
    ky, kx = torch.fft.fftfreq(ny, pixel)[:, None], torch.fft.rfftfreq(nx, pixel)
    above = (ky.square() + kx.square()).sqrt().to(images) * finest - 1
    return torch.fft.irfft2(torch.fft.rfft2(images) * (1 - above / _FALL).clamp(0, 1), s=(ny, nx))


class Shared:
    """What the images of a series have in common at one resolution."""

    def __init__(self, views: Views, poses: Mapping[str, Tensor], resolution: float) -> None:
        """Spectra of images whose poses are nearly right.

        Args:
            views: the images.
            poses: shift_x, shift_y [A], tilt_angle, axis_angle [deg], each (n,).
            resolution: finest detail that is used [A].
        """
        ny, nx = views.images.shape[1:]
        axis = torch.deg2rad(poses["axis_angle"].detach().double().mean())
        c, s = abs(float(torch.cos(axis))), abs(float(torch.sin(axis)))
        self.extent = ((ny * c + nx * s) * views.pixel, (nx * c + ny * s) * views.pixel)
        tilts = torch.deg2rad(poses["tilt_angle"].detach().double())
        self.cosines, self.tangents = torch.cos(tilts), torch.tan(tilts)
        grid = lattice(self.extent, float(self.cosines.min()), resolution, min(self.extent) / 3,
                       int(_MEMORY / len(tilts)**2))
        self.stretch: Stretch = stretch(low_passed(views.images, views.pixel, resolution),
                                        views.weights, views.pixel, views.cut, poses, grid)
        q, v = grid.across.double()[:, None], grid.along.double()[:, None]
        self.frequency = ((q / self.cosines).square() + v.square()).sqrt()
        self.seen = self.frequency < 1 / resolution
        self.place = (self.frequency * resolution * _RINGS).clamp(max=_RINGS)
        self.noise = (views.noise.double() * (views.pixel / grid.step)**2
                      / self.cosines).expand_as(self.frequency)
        self.thickness, self.resolution = views.thickness, resolution
        # Of the lattice's coefficients, so many are independent.
        self.independent = grid.share * float(self.stretch.mass.min()) / (
            grid.shape[0] * grid.shape[1])
        self.loud = torch.ones(_RINGS + 1, dtype=torch.float64, device=q.device)
        values = self.values(poses)
        excess = (values.abs().square() - self.noise) * self.cosines**2
        self.common = self._in_rings(excess, 1 / self.cosines**4)
        self.common = self.common.clamp(min=1e-4 * float(self.common.max().clamp(min=1e-30)))
        self.learn(poses)

    def values(self, poses: Mapping[str, Tensor], window: Tensor | None = None) -> Tensor:
        """Coefficients of the stretched images, (m, n) complex; differentiable in the poses.

        Args:
            poses: of the images.
            window: through which they are seen as well, (n, ny, nx).
        """
        seen = self.stretch
        if window is not None:
            seen = replace(seen, images=seen.images * window)
        found = seen.coefficients(poses)
        return torch.where(self.seen, found, 0).to(torch.complex128)

    def learn(self, poses: Mapping[str, Tensor], times: int = 3) -> None:
        """Spectra of signal and noise anew, as the images have them at some poses.

        Args:
            poses: of the images.
            times: steps towards them.
        """
        values = torch.view_as_real(self.values(poses))
        for again in range(times + 1):
            slab = self._slab()
            signal = slab.signal(self.tangents)
            inverse = torch.linalg.inv(signal + torch.diag_embed(slab.noise))
            if again == times:
                break
            solved = inverse @ values
            left = ((slab.noise[..., None] * solved).square().sum(-1) + slab.noise
                    - slab.noise**2 * inverse.diagonal(dim1=1, dim2=2))
            shared = ((signal @ solved).square().sum(-1) + signal.diagonal(dim1=1, dim2=2)
                      - ((signal @ inverse) * signal).sum(-1))
            self.loud = self._in_rings(left / self.noise, torch.ones_like(left)).clamp(min=_QUIET)
            self.common = self._in_rings(shared * self.cosines**2, 1 / self.cosines**2)
        self.slab, self.signal, self.inverse = slab, signal, inverse

    def _in_rings(self, numbers: Tensor, weights: Tensor) -> Tensor:
        """Means in rings; those without any have their neighbour's."""
        rings = self.place.round().long()[self.seen]
        sums = [torch.zeros_like(self.loud).index_add_(0, rings, one[self.seen])
                for one in (numbers * weights, weights.expand_as(numbers))]
        known = torch.nonzero(sums[1] > 0).flatten()
        own = torch.arange(_RINGS + 1, device=known.device)
        near = known[(own[:, None] - known).abs().argmin(1)]
        return (sums[0] / sums[1])[near]

    def _along(self, curve: Tensor) -> Tensor:
        low = self.place.long().clamp(max=_RINGS - 1)
        return curve[low] + (curve[low + 1] - curve[low]) * (self.place - low)

    def _slab(self) -> Slab:
        noise = self.noise * self._along(self.loud)
        amplitude = self._along(self.common).clamp(min=0).sqrt() / self.cosines
        grid = self.stretch.lattice
        return Slab(grid.across.double(), grid.along.double(),
                    torch.where(self.seen, amplitude, 0.0),
                    torch.where(self.seen, noise, _UNSEEN * float(noise.max())),
                    self.stretch.overlap, self.thickness)

    def loss(self, poses: Mapping[str, Tensor], window: Tensor | None = None) -> Tensor:
        """Minus the log of the images' probability density but for a constant; differentiable.

        Args:
            poses: where tilt_angle asks for a gradient the covariance depends on it.
            window: through which the images are seen; None = all of them.
        """
        values = torch.view_as_real(self.values(poses, window))
        if not poses["tilt_angle"].requires_grad:
            return self.independent * (values * (self.inverse @ values)).sum()
        tangents = torch.tan(torch.deg2rad(poses["tilt_angle"].double()))
        factor = torch.linalg.cholesky(self.slab.covariance(tangents))
        solved = torch.linalg.solve_triangular(factor, values, upper=False)
        windows = self.stretch.windows
        part = 1.0 if window is None else float(
            (windows * window).square().sum() / windows.square().sum())
        return self.independent * (solved.square().sum()
                                   + 2 * part * factor.diagonal(dim1=1, dim2=2).log().sum())

    def slopes(self, poses: dict[str, Tensor], free: Sequence[str]) -> Tensor:
        """Of the loss by strips of the field, (strips, k, n).

        Args:
            poses: where.
            free: names of the k kinds of numbers.
        """
        found = []
        for window in strips_of(self.stretch.windows, self.stretch.pixel, poses):
            ours = {name: value.detach().clone().requires_grad_(name in free)
                    for name, value in poses.items()}
            slopes = torch.autograd.grad(self.loss(ours, window), [ours[name] for name in free])
            found.append(torch.stack(slopes).double())
        return torch.stack(found)

    def information(self, poses: Mapping[str, Tensor], free: Sequence[str],
                    observed: bool = False) -> Tensor:
        """Fisher's, of kinds of numbers of each image, (k, n, k, n).

        Args:
            poses: where.
            free: names of the kinds.
            observed: whether displacements have the curvature of these images in the place of
                that which images have on average.
        """
        values = self.values(poses) if observed else None
        each = displacement_information(self.slab, self.signal, self.inverse, values)
        moves = torch.stack([self._moves(poses, name) for name in free])
        found = torch.einsum("kaec,abcd,lbed->kalb", moves, each, moves) / moves.shape[2]
        radian = torch.pi / 180
        rates = {"tilt_angle": radian * self.slab.across[:, None].expand_as(self.frequency),
                 "axis_angle": radian * self.slab.along[:, None] * self.tangents * self.cosines}
        turned = [name for name in free if name in rates]
        if turned:
            which = torch.tensor([free.index(name) for name in turned], device=found.device)
            deep = depth_information(self.slab, self.tangents, self.inverse,
                                     torch.stack([rates[name] for name in turned]))
            for a, one in enumerate(which):
                found[one, :, which] += deep[a].movedim(1, 0).movedim(0, 1)
        return self.independent * found

    def _moves(self, poses: Mapping[str, Tensor], name: str) -> Tensor:
        """How a number moves four points whose squares have the mean of the field's, (n, 4, 2)."""
        long, wide = (length / 2 / 3**0.5 for length in self.extent)
        across, along = as_tensor([wide, wide, -wide, -wide]), as_tensor([long, -long, long, -long])
        step = 0.1
        ahead, behind = (places({**poses, name: poses[name] + by}, across, along,
                                self.stretch.cut).detach() for by in (step, -step))
        x, y = ((ahead - behind) / (2 * step)).double().unbind(-1)
        axis = torch.deg2rad(poses["axis_angle"].detach().double())[:, None]
        c, s = torch.cos(axis), torch.sin(axis)
        return torch.stack([(c * x + s * y) / self.cosines[:, None], c * y - s * x], dim=-1)

    def gains(self, poses: Mapping[str, Tensor]) -> Tensor:
        """By how many nats each image is more probable as the others predict it than by itself.

        Args:
            poses: of the images.

        Returns:
            (n,); each is held out of what predicts it.
        """
        values = self.values(poses)
        solved = (self.inverse @ torch.view_as_real(values)).square().sum(-1)
        spread = self.inverse.diagonal(dim1=1, dim2=2)
        alone = self.signal.diagonal(dim1=1, dim2=2) + self.slab.noise
        gain = (values.abs().square() / alone + alone.log() - solved / spread + spread.log())
        return self.independent * torch.where(self.seen, gain, 0.0).sum(0)
