"""The most probable specimen behind projections, where its spectrum is known.

Its images are H(A s u) + noise of variance 1: A projects, H shrinks each image's coefficients to
the amplitudes that its signal has relative to the noise, s is the specimen's standard deviation
from place to place, and u are independent normal numbers. By the projection theorem a spectrum of
the specimen that is the same in all directions is such a factor of its images. The mean over all u
that explain the images is the minimum of |images - H A s u|^2 + |u|^2: conjugate gradients
(Hestenes & Stiefel 1952).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tem_taichi.specimen.rays import Rays, back_project, project

_TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
"""Over which powers of voxels are averaged along each axis: a Gaussian of one voxel."""


@dataclass(frozen=True, eq=False)
class Views:
    """How images see a field of independent numbers."""

    rays: Rays
    """Of images wider than those recorded by `pad` pixels on all sides, so that no filter reaches
    round."""
    amplitudes: Tensor
    """H of each coefficient of the wider images' rfft2, (n, ny, nx // 2 + 1)."""
    pad: int

    def seen(self, field: Tensor) -> Tensor:
        """Images of a field, each relative to its mean.

        Args:
            field: (nz, ny, nx).

        Returns:
            (n, ny, nx).
        """
        images = self._shrunk(project(field, self.rays))
        ny, nx = self.rays.shape
        return _level(images[:, self.pad:ny - self.pad, self.pad:nx - self.pad])

    def spread(self, images: Tensor) -> Tensor:
        """The adjoint of `seen`.

        Args:
            images: (n, ny, nx).

        Returns:
            (nz, ny, nx).
        """
        wide = torch.nn.functional.pad(_level(images), (self.pad,) * 4)
        return back_project(self._shrunk(wide), self.rays)

    def _shrunk(self, images: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(images) * self.amplitudes, s=images.shape[-2:])


def _level(images: Tensor) -> Tensor:
    return images - images.mean((1, 2), keepdim=True)


def posterior_mean(images: Tensor, views: Views, deviation: Tensor | None = None,
                   start: Tensor | None = None, iterations: int = 10) -> Tensor:
    """The mean of the fields that explain some images.

    Args:
        images: with noise of variance 1 in each pixel, (n, ny, nx); their means tell nothing.
        views: how they see the field.
        deviation: of the field's numbers before any image is seen, (nz, ny, nx); None = 1.
        start: a field to begin with; None = 0.
        iterations: of conjugate gradients.

    Returns:
        (nz, ny, nx).
    """
    with torch.no_grad():
        def scaled(field: Tensor) -> Tensor:
            return field if deviation is None else field * deviation

        def normal(free: Tensor) -> Tensor:
            return scaled(views.spread(views.seen(scaled(free)))) + free

        left = scaled(views.spread(images))
        free = torch.zeros_like(left)
        if start is not None:
            free = start if deviation is None else torch.where(
                deviation > 0, start / deviation.clamp(min=1e-30), 0.0)
            left = left - normal(free)
        way, square = left, left.square().sum()
        for _ in range(iterations):
            if not float(square) > 0:
                break
            curved = normal(way)
            step = square / (way * curved).sum()
            free = free + step * way
            left = left - step * curved
            before, square = square, left.square().sum()
            way = left + square / before * way
        return scaled(free)


def deviations(field: Tensor) -> Tensor:
    """Standard deviation about each voxel of a field, relative to that of all.

    Args:
        field: (nz, ny, nx).

    Returns:
        The same shape; 1 everywhere for a field of 0.
    """
    power = field.square()
    for axis in range(3):
        power = _averaged(power, axis)
    mean = power.mean()
    return (power / mean).sqrt() if float(mean) > 0 else torch.ones_like(field)


def _averaged(field: Tensor, axis: int) -> Tensor:
    """Mean over neighbours along an axis, of those that are there."""
    n = field.shape[axis]
    total, weight = torch.zeros_like(field), field.new_zeros(n)
    for place, tap in enumerate(_TAPS):
        move = place - len(_TAPS) // 2
        length = n - abs(move)
        if length > 0:
            to, of = max(0, move), max(0, -move)
            total.narrow(axis, to, length).add_(field.narrow(axis, of, length), alpha=tap)
            weight[to:to + length] += tap
    return total / weight.reshape([-1 if along == axis else 1 for along in range(3)])
