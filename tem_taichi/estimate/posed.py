"""Images of a volume whose shifts change, and the gradient by them, without moving the projector.

Interpolation of a projector follows its grid: moved by parts of a voxel, images lose sharpness, and
detail as fine as voxels stays behind. Here the grid lies along the tilt axis, rays keep their
places on it, and an image is turned and moved after it has been projected, by phases in Fourier
space: a turn is three shears (Unser, Thevenaz and Yaroslavsky, IEEE Trans. Image Process. 4, 1371,
1995). Both change nothing of an image but where it is.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram_model import Model
from tem_taichi.specimen.lattice import Rays
from tem_taichi.specimen.rays import back_project, project

_STEP = 1.0
"""For differences that are slopes [A]."""


def turn_of(axis: float) -> float:
    """By how much a grid is turned for one of its axes to lie along the tilt axis [deg].

    Args:
        axis: of the tilts [deg].
    """
    return (axis + 45) % 90 - 45


def upright(series: Series, axis: float, reach: float) -> tuple[Series, tuple[int, int]]:
    """A series on a grid along the tilt axis, turned by `turn_of`.

    Args:
        series: images and the grid of the specimen's frame.
        axis: of the tilts, from +y [deg].
        reach: how far images may be moved beyond where they are stated [A].

    Returns:
        The series, shifted no more than by whole pixels, and the pixels beside the images that the
        turn and the reach need along y and x.
    """
    turn = turn_of(axis)
    rays, pixel = series.rays, series.rays.pixel
    frame = _turned(turn)
    shifts = rays.shifts.double().cpu() @ frame[:2, :2]
    # As many whole pixels as keep what is left within reach.
    whole = (shifts / pixel).round() * pixel * float(shifts.abs().max() > reach)
    c, s = (abs(float(frame[n, 0])) for n in range(2))
    wide = [math.ceil(n * c + other * s - 1e-6) for n, other in zip(
        rays.shape, rays.shape[::-1], strict=True)]
    more = math.ceil(2 * reach / pixel)
    margin = math.ceil(math.hypot(*series.margin)) * rays.voxel / pixel
    across = 1 if abs((axis - turn + 90) % 180 - 90) < 45 else 0
    ny, nx = (math.ceil((n + 2 * more + 2 * margin * (way == across)) * pixel / rays.voxel)
              for way, n in enumerate(wide))
    rotations = frame.T @ rays.rotations.double().cpu() @ frame
    placed = Rays(as_tensor(rotations), as_tensor(whole), (rays.grid[0], ny, nx), rays.voxel,
                  rays.shape, pixel)
    room = [more + (after - n + 1) // 2 for after, n in zip(wide, rays.shape, strict=True)]
    return replace(series, rays=placed, margin=(0, 0)), (room[0], room[1])


def _turned(angle: float) -> Tensor:
    """About z, counter-clockwise."""
    c, s = (f(math.radians(angle)) for f in (math.cos, math.sin))
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)


class Posed:
    """A model of images whose shifts change."""

    def __init__(self, model: Model, series: Series, axis: float, reach: float) -> None:
        """At the poses that are stated.

        Args:
            model: of what `upright` makes of the series, with its room.
            series: in the specimen's frame.
            axis: of `upright` [deg].
            reach: of `upright` [A].
        """
        self.model, rays, angle = model, model.rays, math.radians(turn_of(axis))
        c, s = math.cos(angle), math.sin(angle)
        there = rays.shifts @ as_tensor([[c, s], [-s, c]]).to(rays.shifts)
        self.left = series.rays.shifts - there
        self.ky, self.kx = (as_tensor(_frequencies(n, rays.pixel)) for n in rays.shape)
        self.ky_whole = as_tensor(_frequencies(rays.shape[0], rays.pixel, whole=True))
        y, x = (as_tensor((torch.arange(n, dtype=torch.float64) - n // 2) * rays.pixel)
                for n in rays.shape)
        self.aside = _phases(-math.tan(angle / 2) * y[:, None] * self.kx)
        self.along = _phases(s * x[:, None] * self.ky)
        self.window = as_tensor(torch.outer(*(
            _fall(n, max(1, round(reach / rays.pixel))) for n in rays.shape)))

    def placed(self, parts: Tensor, changes: Tensor) -> Tensor:
        """Projections where the images see them; differentiable.

        Args:
            parts: of the series of `upright`, (n, ny, nx).
            changes: of the shifts [A], along x and y, (2, n).
        """
        parts = _sheared(parts * self.window, self.aside)
        parts = _sheared(parts.transpose(1, 2), self.along).transpose(1, 2)
        parts = _sheared(parts, self.aside)
        x, y = (self.left.T + changes)[:, :, None]
        phases = _phases(y[..., None] * self.ky_whole[:, None] + x[..., None] * self.kx)
        return torch.fft.irfft2(torch.fft.rfft2(parts) * phases, s=parts.shape[1:])

    def gradient(self, volume: Tensor, changes: Tensor) -> tuple[float, Tensor, Tensor]:
        """Minus the log of the images' probability, and its gradients by the volume and shifts.

        Args:
            volume: (nz, ny, nx) [V].
            changes: as of `placed`.
        """
        with torch.no_grad():
            made = project(volume, self.model.rays)
        free = [one.detach().requires_grad_() for one in (made, changes)]
        with torch.enable_grad():
            placed = self.placed(*free)
        misfit, slopes = self.model.explained(placed.detach())
        by, by_changes = torch.autograd.grad(placed, free, slopes)
        with torch.no_grad():
            return misfit, back_project(by, self.model.rays), by_changes

    def information(self, volume: Tensor, changes: Tensor) -> Tensor:
        """Fisher's on the shifts of each image, were the volume known.

        Args:
            volume: (nz, ny, nx) [V].
            changes: as of `placed`.

        Returns:
            [1/A^2], (2, 2, n).
        """
        slopes = []
        with torch.no_grad():
            parts = project(volume, self.model.rays)
            for way in torch.eye(2).to(changes) * _STEP / 2:
                ends = [self.model.of_projections(self.placed(parts, changes + side * way[:, None]))
                        for side in (1, -1)]
                slopes.append((ends[0] - ends[1]).mul_(self.model.weights / _STEP).flatten(1))
            return torch.stack([torch.stack([(one * other).sum(1) for other in slopes])
                                for one in slopes]).double().cpu()


def _sheared(images: Tensor, phases: Tensor) -> Tensor:
    """Each row (n, ny) moved along x."""
    return torch.fft.irfft(torch.fft.rfft(images, dim=2) * phases, n=images.shape[2], dim=2)


def _phases(turns: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)


def _frequencies(n: int, pixel: float, whole: bool = False) -> Tensor:
    """Of a real transform, or the whole one; 0 for the last, whose sign is not known."""
    found = (torch.fft.fftfreq if whole else torch.fft.rfftfreq)(n, pixel, dtype=torch.float64)
    if n % 2 == 0:
        found[n // 2] = 0
    return found


def _fall(n: int, edge: int) -> Tensor:
    """1, and from there to 0 at either end."""
    place = torch.arange(n, dtype=torch.float64)
    inward = torch.minimum(place, n - 1 - place) / edge
    return torch.sin(torch.pi / 2 * inward.clamp(max=1)).square()
