"""Slices of granular ice and of a film of carbon about particles."""

import math

import torch

from tem_taichi.device import as_tensor, number, present
from tem_taichi.physics import Value
from tem_taichi.specimen.filling import fills
from tem_taichi.specimen.ice import ice_fields, mean_potential
from tem_taichi.specimen.layer import Ice
from tem_taichi.specimen.view import View

_FAINT = 1e-4
"""Of the filled part: its root has no gradient at zero."""


def added(layer: torch.Tensor, other: torch.Tensor | None, factor: Value) -> torch.Tensor:
    """Layer + other factor, in place of the first where gradients are off.

    Args:
        layer: overwritten then.
        other: None = nothing.
        factor: of the other.
    """
    if other is None:
        return layer
    if torch.is_grad_enabled():
        return layer + other * factor
    return layer.add_(other, alpha=number(factor))


def with_structure(
    potential: torch.Tensor, ice: Ice, view: View, first: int, taken: torch.Tensor | None
) -> torch.Tensor:
    """Slices with the random potential of the ice, where particles leave it room, and of a film.

    Args:
        potential: slices (count, ny, nx) [V A], overwritten.
        ice: granular, or with a film.
        view: how it lies.
        first: number of the first slice.
        taken: part of each column that particles take, (count, ny, nx), overwritten.

    Returns:
        (count, ny, nx) [V A] relative to the ice's mean.
    """
    thickness = view.slice_thickness
    entrances = [view.entrance + (first + n) * thickness for n in range(len(potential))]
    out = list(potential.unbind())
    for material in ["ice"] + (["carbon"] if present(ice.layer.carbon_thickness) else []):
        parts = fills(ice.layer, view.rotation, view.shape, view.pixel_size, entrances, thickness,
                      material, view.shift)
        there = [n for n, part in enumerate(parts)
                 if not (isinstance(part, float) and part == 0.0)]
        if material == "carbon":
            mean = thickness * (mean_potential("carbon") - ice.potential)
            for n in there:
                out[n] = added(out[n], as_tensor(parts[n]), mean)
        if not present(ice.granularity):
            continue
        # Slices begin at multiples of their thickness: the same number for whatever is around.
        fields = ice_fields(view.shape, view.pixel_size,
                            [round(entrances[n] / thickness) for n in there], seed=ice.seed,
                            stream=view.stream, material=material)
        strength = ice.granularity * math.sqrt(thickness)
        for n, field in zip(there, fields, strict=True):
            less = taken[n] if taken is not None and material == "ice" else None
            amplitude = _amplitude(parts[n], less)
            if torch.is_grad_enabled():
                out[n] = out[n] + amplitude * strength * field
            else:
                out[n].addcmul_(as_tensor(amplitude), field, value=number(strength))
    return torch.stack(out) if torch.is_grad_enabled() else potential


def _amplitude(part: torch.Tensor | float, taken: torch.Tensor | None) -> torch.Tensor | float:
    """Root of the filled part, less what particles take: the variance goes with the molecules."""
    if taken is None and isinstance(part, float):
        return part / math.sqrt(part + _FAINT)
    if torch.is_grad_enabled():
        part = (part if taken is None else part - taken).clamp(0, 1)  # type: ignore[union-attr]
        return part / (part + _FAINT).sqrt()
    part = (part if taken is None else taken.neg_().add_(part)).clamp_(0, 1)  # type: ignore[union-attr]
    return part.mul_((part + _FAINT).rsqrt_())
