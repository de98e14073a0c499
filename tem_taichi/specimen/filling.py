"""How much of each slice of an image ice and carbon fill, pixel by pixel."""

import math
from collections.abc import Sequence
from dataclasses import replace

import taichi as ti
import torch

from tem_taichi.arguments import check_array, to_field
from tem_taichi.bridge import differentiable, launch
from tem_taichi.checks import check, one_of
from tem_taichi.device import as_tensor, current, number
from tem_taichi.grid import check_pixel_size
from tem_taichi.kernels import fill as kernels
from tem_taichi.specimen.ice_shape import (
    IceShape,
    has_film,
    highest,
    is_lens,
    is_slab,
    part_inside,
    relief_range,
    steps_of,
)

_ROWS = 1 << 18
"""Rays whose gradient is taken at once: bounds its memory."""


@ti.ad.grad_replaced
def _fill(numbers, relief, spacing, shape, material, pixel_size, entrances, depth, out):  # type: ignore[no-untyped-def]
    if is_slab(shape):  # nor a film
        launch(kernels.fill_slab, numbers, as_tensor(entrances), depth, pixel_size, out)
        return
    launch(kernels.fill, numbers, relief, float(spacing), int(shape.relief is not None),
           as_tensor(entrances), depth, steps_of(shape, depth), pixel_size,
           int(has_film(shape)), int(material == "carbon"), out)


@ti.ad.grad_for(_fill)
def _fill_adjoint(numbers, relief, spacing, shape, material, pixel_size, entrances, depth, out):  # type: ignore[no-untyped-def]
    """By torch, some rows at a time: fits of the ice are rare, and its numbers few."""
    ny, nx = out.shape[1:]
    with torch.enable_grad():
        known, knots, apart = (one.detach().requires_grad_() for one in (numbers, relief, spacing))
        here, rotation = _of_numbers(known, is_lens(shape))
        if shape.relief is not None:
            here = replace(here, relief=knots[0], relief_heights=knots[1], relief_spacing=apart)
        x, y = (axis - by for axis, by in zip(_axes(ny, nx, pixel_size), known[18:], strict=True))
        for rows in torch.arange(ny, device=out.device).split(max(1, _ROWS // nx)):
            for n, z0 in enumerate(entrances):
                part = part_inside(here, material, rotation, x[None, :], y[rows, None],
                                   as_tensor(z0), depth)
                if part.requires_grad:
                    found = torch.autograd.grad(part, (known, knots, apart), out.grad[n, rows],
                                                retain_graph=True, allow_unused=True)
                    for own, more in zip((numbers, relief, spacing), found, strict=True):
                        if own.grad is not None and more is not None:
                            own.grad += more


def _axes(ny: int, nx: int, pixel_size: float) -> tuple[torch.Tensor, torch.Tensor]:
    device = current()
    x, y = ((torch.arange(n, dtype=device.dtype, device=device.torch_device) - n // 2) * pixel_size
            for n in (nx, ny))
    return x, y


def _numbers(shape: IceShape, rotation: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """What `kernels.fill` wants to know."""
    edge = shape.thickness if shape.edge_thickness is None else shape.edge_thickness
    lens = is_lens(shape)
    values = (shape.thickness, edge if lens else shape.thickness,
              shape.hole_radius if lens else 1.0, shape.centre_x, shape.centre_y, shape.slope_x,
              shape.slope_y, shape.carbon_thickness, shape.carbon_edge)
    return torch.cat([torch.stack([as_tensor(value) for value in values]),
                      as_tensor(rotation).reshape(9), shift])


def _relief(shape: IceShape) -> torch.Tensor:
    """Its knots; of none any."""
    knots = shape.knots
    return (as_tensor(torch.ones(2, 2, 2)) if knots is None else knots).contiguous()


def _of_numbers(numbers: torch.Tensor, lens: bool) -> tuple[IceShape, torch.Tensor]:
    return IceShape(
        numbers[0], numbers[1], numbers[2] if lens else math.inf, numbers[3], numbers[4],
        slope_x=numbers[5], slope_y=numbers[6], carbon_thickness=numbers[7] if lens else 0.0,
        carbon_edge=numbers[8]), numbers[9:18].reshape(3, 3)


def _heights(
    shape: IceShape, rotation: torch.Tensor, shift: torch.Tensor, width: float, height: float,
    depth: float,
) -> list[float]:
    """Of a slice's points above the mid-plane: by its z, at z = 0, and how far others are off."""
    slope = (rotation[:, 2] - shape.slope_x * rotation[:, 0]
             - shape.slope_y * rotation[:, 1]).detach()
    # At once, since each number waits for a GPU.
    return torch.stack([slope[2], -(slope[:2] @ shift.detach()), slope.abs() @ as_tensor(
        [width / 2, height / 2, depth / 2])]).tolist()


def _known(
    shape: IceShape, heights: list[float], z0: float, depth: float, material: str
) -> float | None:
    """0 or 1 where a slice is all outside or inside in this field, None where it may be cut."""
    rise, origin, reach = heights
    middle = rise * (z0 + depth / 2) + origin
    edge = shape.thickness if shape.edge_thickness is None else shape.edge_thickness
    ends = [number(shape.thickness)] + ([number(edge)] if is_lens(shape) else [])
    thick = [end * factor for end in ends for factor in relief_range(shape)]
    if material == "carbon":
        thick = [0.0, number(shape.carbon_thickness)]
    slack = 1e-5 * (abs(middle) + reach)  # rounding in single precision
    if material == "carbon" and not has_film(shape):
        return 0.0
    slack += highest(shape)
    if abs(middle) - reach > max(thick) / 2 + slack:
        return 0.0
    if not has_film(shape) and abs(middle) + reach < min(thick) / 2 - slack:
        return 1.0
    return None


def fills(
    shape: IceShape,
    rotation: torch.Tensor,
    grid_shape: tuple[int, int],
    pixel_size: float,
    entrances: Sequence[float],
    depth: float,
    material: str = "ice",
    shift: torch.Tensor | None = None,
) -> list[torch.Tensor | float]:
    """Part of each pixel's column in some slices that lies in the ice, or in the carbon.

    Args:
        shape: of the ice and its hole.
        rotation: specimen to image frame, (3, 3).
        grid_shape: (ny, nx); the origin is at pixel (nx // 2, ny // 2).
        pixel_size: [A].
        entrances: where the slices begin, along the beam in the image's frame [A].
        depth: of each [A].
        material: "ice" or "carbon"; no point is in both.
        shift: of the image [A], (2,).

    Returns:
        For each slice a tensor (ny, nx) as of `fill`, or just 0.0 or 1.0 where it is wholly
        outside or inside.

    Raises:
        ValueError: for another material.
    """
    one_of("material", material, ("ice", "carbon"))
    pixel_size = check_pixel_size(pixel_size)
    shift = as_tensor([0.0, 0.0]) if shift is None else to_field("shift", shift)
    check_array("shift", shift, (2,), "A")
    ny, nx = grid_shape
    heights = _heights(shape, rotation, shift, (nx + 1) * pixel_size, (ny + 1) * pixel_size, depth)
    out = [_known(shape, heights, z0, depth, material) for z0 in entrances]
    cut = [n for n, part in enumerate(out) if part is None]
    if not cut:
        return out  # type: ignore[return-value]
    device = current()
    parts = differentiable(
        _fill, torch.empty((len(cut), ny, nx), dtype=device.dtype, device=device.torch_device),
        _numbers(shape, rotation, shift), _relief(shape), as_tensor(shape.relief_spacing), shape,
        material, pixel_size,
        [entrances[n] for n in cut], depth)
    found = iter(parts.unbind())
    return [next(found) if part is None else part for part in out]


def fill(
    shape: IceShape,
    rotation: torch.Tensor,
    grid_shape: tuple[int, int],
    pixel_size: float,
    z0: float,
    z1: float,
    material: str = "ice",
    shift: torch.Tensor | None = None,
) -> torch.Tensor:
    """Part of each pixel's column between two depths that lies in the ice, or in the carbon.

    Args:
        shape: of the ice and its hole.
        rotation: specimen to image frame, (3, 3).
        grid_shape: (ny, nx); the origin is at pixel (nx // 2, ny // 2).
        pixel_size: [A].
        z0: where the slice begins, along the beam in the image's frame [A].
        z1: where it ends [A], above z0.
        material: "ice" or "carbon"; no point is in both.
        shift: of the image [A], (2,).

    Returns:
        Tensor (ny, nx) from 0 to 1, along the ray through each pixel's centre; differentiable in
        the shape, the rotation and the shift. Over all slices it sums up to the path.

    Raises:
        ValueError: for another material, or z1 not above z0.
    """
    check(z1 > z0, "z1", z1, f"above z0={z0:g} [A]")
    part = fills(shape, rotation, grid_shape, pixel_size, [z0], z1 - z0, material, shift)[0]
    return part if isinstance(part, torch.Tensor) else as_tensor(part).expand(grid_shape)
