"""Images of a tilt series in one frame, stretched by 1 / cos(tilt) across the tilt axis.

A pose's numbers have the signs of `exposure.Exposure`; see `inverse.slab` for what stretched images
have in common.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tem_taichi.device import as_tensor

_WIDEST = 2.2
"""Of a stretched image, in images."""
_EDGE = 0.12
"""Of a window's soft edges, in sides of the image."""
_FINE = 2.4
"""Samples of the finest detail."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """Where stretched images are sampled, and their frequencies that are used."""

    shape: tuple[int, int]
    """Samples along and across the axis."""
    step: float
    """[A]"""
    rows: Tensor
    """Numbers of the frequencies in the flattened real transform, (m,)."""
    across: Tensor
    """[1/A], (m,)"""
    along: Tensor
    """[1/A], (m,)"""
    share: float
    """Of the frequencies there are over those that are used."""


def lattice(extent: tuple[float, float], steepest: float, resolution: float, coarsest: float,
            most: int) -> Lattice:
    """For images up to a tilt.

    Args:
        extent: of the images along and across the axis [A].
        steepest: cosine of the highest tilt.
        resolution: finest detail [A].
        coarsest: detail [A].
        most: frequencies; of more, some are left out evenly.
    """
    from scipy.fft import next_fast_len

    step = resolution / _FINE
    long, wide = 1.1 * extent[0], 1.1 * extent[1] * min(_WIDEST, 1 / steepest)
    ny, nx = (int(next_fast_len(max(8, math.ceil(length / step)))) for length in (long, wide))
    along = torch.fft.fftfreq(ny, step, dtype=torch.float64)[:, None].expand(ny, nx // 2 + 1)
    across = torch.fft.rfftfreq(nx, step, dtype=torch.float64).expand(ny, nx // 2 + 1)
    far = along.square() + across.square()
    # Each pair of conjugates once.
    used = (far < resolution**-2) & (far > coarsest**-2) & ((across > 0) | (along > 0))
    used &= (across < 0.5 / step - 1e-9) & (along.abs() < 0.5 / step - 1e-9)
    rows = torch.nonzero(used.flatten()).flatten()
    count = len(rows)
    if count > most:
        rows = rows[torch.linspace(0, count - 1, most).long()]
    return Lattice((ny, nx), step, as_tensor(rows).long(),
                   as_tensor(across.flatten()[rows]), as_tensor(along.flatten()[rows]),
                   count / len(rows))


def places(poses: Mapping[str, Tensor], across: Tensor, along: Tensor,
           cut: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Where points of the stretched frame lie in the images, from the images' middle.

    Args:
        poses: shift_x, shift_y [A], tilt_angle, axis_angle [deg], each (n,).
        across: of the points [A], (...).
        along: of the points [A], (...).
        cut: middle of the images less that of the frames that they were cut from, x and y [A].

    Returns:
        x and y [A], (n, ..., 2); differentiable in the poses.
    """
    tilt, axis = (torch.deg2rad(poses[name]) for name in ("tilt_angle", "axis_angle"))
    cosine, c, s = torch.cos(tilt), torch.cos(axis), torch.sin(axis)
    shape = (-1, *(1 for _ in range(across.ndim)))
    cosine, c, s = (one.reshape(shape) for one in (cosine, c, s))
    # The tilt axis runs through the frame's middle, the images' lies elsewhere.
    u = cosine * (across + cut[0] * c + cut[1] * s)
    v = along - cut[0] * s + cut[1] * c
    return torch.stack([c * u - s * v + poses["shift_x"].reshape(shape) - cut[0],
                        s * u + c * v + poses["shift_y"].reshape(shape) - cut[1]], dim=-1)


@dataclass(frozen=True, eq=False)
class Stretch:
    """Images that can be sampled in the stretched frame.

    Each is seen through a window of its own that moves with it: what is in it stays the same in
    all poses, and a shift is nothing but a phase.
    """

    images: Tensor
    """In their windows, (n, ny, nx)."""
    windows: Tensor
    """(n, ny, nx)"""
    mass: Tensor
    """Sum of a window's squares over the samples, (n,)."""
    overlap: Tensor
    """Of the windows, relative to the roots of their masses, (n, n)."""
    pixel: float
    """[A]"""
    cut: tuple[float, float]
    """Of `places` [A]."""
    lattice: Lattice

    def coefficients(self, poses: Mapping[str, Tensor]) -> Tensor:
        """Of the lattice's frequencies, over the root of the window's mass; complex (m, n).

        White noise has in them the variance that it has in samples. Differentiable in the poses.
        """
        points = _points(poses, self.images.shape, self.pixel, self.cut, self.lattice)
        sampled = torch.nn.functional.grid_sample(
            self.images[:, None], points, mode="bicubic", align_corners=True)[:, 0]
        spectra = torch.fft.rfft2(sampled).flatten(1)[:, self.lattice.rows]
        return (spectra / self.mass.sqrt()[:, None]).T


def _points(poses: Mapping[str, Tensor], images: torch.Size, pixel: float,
            cut: tuple[float, float], grid: Lattice) -> Tensor:
    """Of the lattice in the images, as grid_sample counts."""
    ny, nx = grid.shape
    along = as_tensor(torch.arange(ny) - ny // 2)[:, None] * grid.step
    across = as_tensor(torch.arange(nx) - nx // 2) * grid.step
    along, across = torch.broadcast_tensors(along, across)
    sizes = as_tensor([float(n) for n in reversed(images[1:])])
    return 2 * (places(poses, across, along, cut) / pixel + (sizes / 2).floor()) / (sizes - 1) - 1


def stretch(images: Tensor, weights: Tensor, pixel: float, cut: tuple[float, float],
            poses: Mapping[str, Tensor], grid: Lattice) -> Stretch:
    """Images in windows with soft edges, less their mean there.

    Args:
        images: (n, ny, nx), without what is finer than is used.
        weights: of the pixels, 0 = left out, (n, ny, nx).
        pixel: [A].
        cut: of `places` [A].
        poses: by which windows are kept within the lattice.
        grid: where images are sampled.
    """
    windows = weights
    for axis, n in ((1, images.shape[1]), (2, images.shape[2])):
        place = torch.arange(n) + 0.5
        near = (torch.minimum(place, n - place) / (_EDGE * n)).clamp(max=1)
        rise = as_tensor(torch.sin(torch.pi / 2 * near).square())
        windows = windows * (rise[:, None] if axis == 1 else rise)
    windows = _even(windows, poses, pixel, cut, grid)
    mean = (images * windows).sum((1, 2)) / windows.sum((1, 2)).clamp(min=1e-6)
    seen = torch.nn.functional.grid_sample(
        windows[:, None], _points(poses, images.shape, pixel, cut, grid),
        align_corners=True)[:, 0].flatten(1).double()
    products = seen @ seen.T
    mass = products.diagonal().clamp(min=1e-6)
    return Stretch(
        images=(images - mean[:, None, None]) * windows, windows=windows, mass=mass.to(images),
        overlap=products / (mass[:, None] * mass).sqrt(), pixel=pixel, cut=cut, lattice=grid)


def _even(windows: Tensor, poses: Mapping[str, Tensor], pixel: float, cut: tuple[float, float],
          grid: Lattice) -> Tensor:
    """Windows no wider than the lattice, even along and across the tilt axis.

    Of others, what they show in common would change as the axis turns, in favour of one that lies
    along an edge of the image.
    """
    ny, nx = windows.shape[1:]
    y = as_tensor(torch.arange(ny) - ny // 2)[:, None] * pixel
    x = as_tensor(torch.arange(nx) - nx // 2) * pixel
    middle = places(poses, x.new_zeros(()), x.new_zeros(()), cut)[:, None, None]
    tilt, axis = (torch.deg2rad(poses[name])[:, None, None] for name in (
        "tilt_angle", "axis_angle"))
    c, s = torch.cos(axis), torch.sin(axis)
    u, v = (c * (x - middle[..., 0]) + s * (y - middle[..., 1]),
            c * (y - middle[..., 1]) - s * (x - middle[..., 0]))
    sizes = as_tensor([float(nx), float(ny)])
    out = windows
    for across, along in ((1, -1), (-1, 1), (-1, -1)):
        there = torch.stack([c * across * u - s * along * v, s * across * u + c * along * v],
                            dim=-1) + middle
        points = 2 * (there / pixel + (sizes / 2).floor()) / (sizes - 1) - 1
        out = torch.minimum(out, torch.nn.functional.grid_sample(
            windows[:, None], points, align_corners=True)[:, 0])
    far = (u / torch.cos(tilt)).abs() / (grid.shape[1] * grid.step / 2)
    return out * torch.sin(torch.pi / 2 * ((0.98 - far) / (2 * _EDGE)).clamp(0, 1)).square()
