"""Minus the log of prior densities, without their constants: functions of tensors.

A `Problem` takes one of all its values: `lambda v: total_variation(v["volume"], 0.1, 1.0)`.
"""

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.physics import Value


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
