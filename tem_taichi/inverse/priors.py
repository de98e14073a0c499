"""Minus the log of prior densities, without their constants: functions of tensors.

A `Problem` takes one of all its values: `lambda v: total_variation(v["volume"], 0.1, 1.0)`.
"""

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.physics import Value

_NEAR = 2**17
"""Numbers of a field that are worked on at once."""


def gaussian(values: Tensor, mean: Value, sigma: Value) -> Tensor:
    """Independent normal numbers: sum [(x - mean) / sigma]^2 / 2."""
    return ((values - as_tensor(mean)) / as_tensor(sigma)).square().sum() / 2


def smooth(field: Tensor, sigma: Value) -> Tensor:
    """Neighbours along every axis differ by normal numbers: sum (x_i - x_j)^2 / (2 sigma^2).

    Args:
        field: image or volume.
        sigma: standard deviation of the differences, in the field's unit.
    """
    squares = sum(field.diff(dim=axis).square().sum() for axis in range(field.ndim))
    return as_tensor(squares) / (2 * as_tensor(sigma) ** 2)


def total_variation(field: Tensor, scale: Value, corner: Value) -> Tensor:
    """Laplace's law of gradients, rounded at 0: sum [sqrt(|grad|^2 + corner^2) - corner] / scale.

    Keeps edges that `smooth` would blur (Rudin, Osher and Fatemi 1992).

    Args:
        field: image or volume; what lies beyond its last voxel is equal to that voxel.
        scale: of the gradients, in the field's unit for a voxel.
        corner: below it a gradient costs its square; the same unit.
    """
    corner, squared = as_tensor(corner), torch.zeros_like(field)
    for axis in range(field.ndim):
        last = field.narrow(axis, field.shape[axis] - 1, 1)
        squared = squared + field.diff(dim=axis, append=last).square()
    return ((squared + corner**2).sqrt() - corner).sum() / as_tensor(scale)


def sparse(values: Tensor, scale: Value, corner: Value) -> Tensor:
    """Laplace's law about 0, rounded there: sum [sqrt(x^2 + corner^2) - corner] / scale."""
    corner = as_tensor(corner)
    return ((values.square() + corner**2).sqrt() - corner).sum() / as_tensor(scale)


def cells_variation(cells: Tensor, steps: Value, scale: Value, corner: Value) -> Tensor:
    """`total_variation` of a field on grids of different spacings, as an integral over them.

    integral [sqrt(|grad|^2 + corner^2) - corner] dV / scale, by the differences from each sample to
    the next: whatever is linear on a grid costs the same on finer ones.

    Args:
        cells: samples of each grid, (n, z, y, x), the outermost on its faces.
        steps: between samples of each grid, (n,); that of a voxel grid is 1.
        scale: of the gradients, in the field's unit for a step of 1.
        corner: as in `total_variation`.
    """
    steps, corner = as_tensor(steps).reshape(-1, 1, 1, 1), as_tensor(corner)
    first = cells[:, :-1, :-1, :-1]
    squared = ((cells[:, 1:, :-1, :-1] - first).square() + (cells[:, :-1, 1:, :-1] - first).square()
               + (cells[:, :-1, :-1, 1:] - first).square()) / steps**2
    return (steps**3 * ((squared + corner**2).sqrt() - corner)).sum() / as_tensor(scale)


def consistent(one: Tensor, other: Tensor, areas: Value, sigma: Value) -> Tensor:
    """Boundary consistency: what two neighbours say of their common face differs by normal numbers.

    integral (one - other)^2 dA / (2 sigma^2) over the faces (Wang et al. 2023).

    Args:
        one: values on the faces, as `specimen.faces.sides` gives them.
        other: of the neighbours at the same places.
        areas: for which each value stands; broadcasts against them.
        sigma: deviation of the difference over a face of 1, in the field's unit.
    """
    return (as_tensor(areas) * (one - other).square()).sum() / (2 * as_tensor(sigma) ** 2)


def non_local(cells: Tensor, others: Tensor, sigma: Value) -> Tensor:
    """Cross-node non-local consistency (CNLC; Wang et al. 2023).

    Each line of samples of a grid A, along its last axis, is like a mean of the lines of another
    grid B with the weights softmax(A B^T): sum |A - softmax(A B^T) B|^2 / (2 sigma^2).

    Args:
        cells: samples of some grids A, (n, z, y, x); of order 1, as the softmax has no scale.
        others: of as many grids B of the same shape.
        sigma: deviation of a sample from its mean, in the field's unit.
    """
    a, b = cells.flatten(1, 2), others.flatten(1, 2)
    like = torch.softmax(a @ b.transpose(1, 2), dim=-1) @ b
    return (a - like).square().sum() / (2 * as_tensor(sigma) ** 2)


def total_variation_slope(field: Tensor, scale: float, corner: float) -> tuple[float, Tensor]:
    """`total_variation` and its gradient, with the memory of a few fields and no graph.

    Args:
        field: image or volume.
        scale: as there.
        corner: as there.
    """
    value, slope = 0.0, torch.zeros_like(field)
    count = field.shape[0]
    planes = max(1, _NEAR // max(field[0].numel(), 1))
    for first in range(0, count, planes):
        value += _add_slope(field, slice(first, min(first + planes, count)), scale, corner, slope)
    return value / scale, slope


def _add_slope(field: Tensor, slab: slice, scale: float, corner: float, slope: Tensor) -> float:
    """Of some planes, few enough to stay in the nearest memory: their part, not yet scaled."""
    own, seen = field[slab], field[slab.start:slab.stop + 1]  # and the next plane, if there is one
    ways, length = [], torch.full_like(own, corner**2)
    for axis in range(field.ndim):
        way = (own if axis else seen).diff(dim=axis)
        length.narrow(axis, 0, way.shape[axis]).addcmul_(way, way)
        ways.append(way)
    length.sqrt_()
    value = float((length - corner).sum(dtype=torch.float64))
    length.mul_(scale)
    here = slope[slab.start:slab.stop + 1]
    for axis, way in enumerate(ways):
        n = way.shape[axis]
        way.div_(length.narrow(axis, 0, n))
        to = slope[slab] if axis else here
        to.narrow(axis, 0, n).sub_(way)
        to.narrow(axis, 1, n).add_(way)
    return value


def total_variation_curvature(field: Tensor, scale: float, corner: float) -> Tensor:
    """The most that `total_variation` is curved, at each coefficient of the field's `rfftn`.

    Args:
        field: image or volume.
        scale: as there.
        corner: as there.
    """
    total = torch.zeros(())
    for axis, n in enumerate(field.shape):
        k = torch.fft.rfftfreq(n) if axis == field.ndim - 1 else torch.fft.fftfreq(n)
        total = total[..., None] + 4 * torch.sin(torch.pi * k).square() if axis else (
            4 * torch.sin(torch.pi * k).square())
    return total.to(field) / (scale * corner)
