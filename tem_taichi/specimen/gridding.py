"""Stages between places off a grid and values on it: spread points, sample planes, add patches."""

import taichi as ti
import torch

from tem_taichi.bridge import differentiable, launch
from tem_taichi.kernels import points
from tem_taichi.kernels.volumes import (
    BAND,
    add_patches,
    add_patches_adjoint,
    sampling_kernels,
    spread_kernel,
)
from tem_taichi.specimen.taps import least_aliases

SPREADING = least_aliases(4, 2.25, 4)
"""Puts scatterers on a grid that is 1.5 times as fine as the wave's, whose band is 2/3 of that."""
POINTS = least_aliases(6, 1.5, 5)
"""Puts scatterers on slices of the wave's own grid, whose band is 2/3 of it: aliases 3e-5."""
SAMPLING = least_aliases(4, 2.0, 4)
"""Reads spectra of twofold padded volumes."""

NARROWEST = 2 * points.BAND
"""Pixels that slices for points must have in each direction."""

_AT_ONCE = 1 << 21
"""Points in work at once."""


def spread(
    places: torch.Tensor, amounts: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """Points on grids, each as the kernel SPREADING; without a gradient.

    Args:
        places: x, y, z of each [voxel], (n, 3), at least half the kernel's width inside.
        amounts: of each on each grid, (m, n).
        shape: (nz, ny, nx).

    Returns:
        Volumes (m, nz, ny, nx).
    """
    nz, ny, _ = shape
    volumes = torch.zeros((len(amounts), *shape), dtype=places.dtype, device=places.device)
    planes = torch.arange(nz + 1, device=places.device)
    for begin in range(0, len(places), _AT_ONCE):
        part = places[begin:begin + _AT_ONCE]
        y, z = (part[:, axis].floor().int() for axis in (1, 2))
        key, order = torch.sort(z * ny + y, stable=True)
        part = part[order]
        start = torch.searchsorted(key, (planes + SPREADING.width // 2 - 1) * ny).int()
        for volume, amount in zip(volumes, amounts, strict=True):  # all would be many to count
            launch(spread_kernel(SPREADING.taps), part,
                   amount[None, begin:begin + _AT_ONCE][:, order], start, volume[None])
    return volumes


def look_up(
    amounts: torch.Tensor, kind: torch.Tensor, weight: torch.Tensor, broadening: torch.Tensor,
    rows: torch.Tensor, ends: torch.Tensor, table: torch.Tensor, column: int = 0,
) -> None:
    """Add to amounts what a table says of each scatterer; without a gradient.

    Args:
        amounts: (n, .), to columns of which it is added.
        kind: of each, integers (n,).
        weight: factor of each, (n,).
        broadening: of each, (n,).
        rows: of the table for each kind, integers (kinds,).
        ends: broadenings at the first and the last step of each row, (rows, 2).
        table: values (rows, steps, m), linear between the steps.
        column: the first of m.
    """
    for begin in range(0, len(kind), _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        launch(points.look_up, kind[part].int().contiguous(), weight[part].contiguous(),
               broadening[part].contiguous(), rows.int(), ends.contiguous(), table.contiguous(),
               column, amounts[part])


def spread_on_slices(
    grids: torch.Tensor, positions: torch.Tensor, amounts: torch.Tensor, frames: torch.Tensor,
    *, first_slice: int, n_slices: int, depth: str,
) -> None:
    """Add points to slices, each as the kernel POINTS; without a gradient.

    Args:
        grids: slices first_slice, first_slice + 1, ... of n_slices, (count, ny, nx, m) with a value
            of each amount, added to; periodic, as wide as two bands at least.
        positions: of a particle's points [A], (n, 3).
        amounts: of each, (n, m).
        frames: take positions (x, y, z, 1) of each copy to its column, row and depth in slices,
            (copies, 3, 4). Points whose nearest pixel is outside the field are left out.
        first_slice: see grids.
        n_slices: see grids.
        depth: of `depth.depth_weights`.
    """
    count, ny, nx, m = grids.shape
    n, device = len(positions), grids.device
    bands = ny // points.BAND
    at_once = max(1, (_AT_ONCE // 2) // n)
    size = min(n, _AT_ONCE // 2)
    room = min(at_once, len(frames)) * size
    places, sorted_ones = (torch.empty((room, k), dtype=grids.dtype, device=device)
                           for k in (3, 3 + m))
    band = torch.empty(room, dtype=torch.int32, device=device)
    numbers = torch.empty((points.CHUNKS, bands), dtype=torch.int32, device=device)
    smooth = int(depth == "smooth")
    for begin in range(0, n, size):
        part = positions[begin:begin + size]
        for copies in frames.split(at_once):
            k = len(copies) * len(part)
            numbers.zero_()
            launch(points.place, part, copies.contiguous(), ny, nx, first_slice, count,
                   POINTS.width // 2 - 1, places[:k], band[:k], numbers)
            # By band and then by chunk, which is the order of the points.
            ends = numbers.T.flatten().cumsum(0, dtype=torch.int32)
            following = (ends - numbers.T.flatten()).reshape(bands, -1)
            start = torch.cat([following[:, 0], ends[-1:]])
            launch(points.arrange, places[:k], band[:k], amounts, begin, len(part),
                   following.T.contiguous(), sorted_ones)
            for turn in range(3 if bands % 2 and bands > 1 else 2):
                launch(points.spread_kernel(POINTS.taps, m), sorted_ones, start, turn, n_slices,
                       smooth, first_slice, count, ny, nx, grids.view(-1, m))


@ti.ad.grad_replaced
def _sample(frames, places, spectra, depths, square, out):  # type: ignore[no-untyped-def]
    channels, *shape, _ = spectra.shape
    launch(sampling_kernels(SAMPLING.taps, channels).sample, frames, places, spectra.reshape(-1),
           depths, *shape, square, out)


@ti.ad.grad_for(_sample)
def _sample_adjoint(frames, places, spectra, depths, square, out):  # type: ignore[no-untyped-def]
    channels, *shape, _ = spectra.shape
    copies, _, planes, size = out.shape[:4]
    rows = torch.empty((copies, planes, size, 11), dtype=out.dtype, device=out.device)
    launch(sampling_kernels(SAMPLING.taps, channels).adjoint, frames, places, spectra.reshape(-1),
           depths, *shape, square, out.grad, rows)
    total = rows.sum((1, 2))
    if frames.grad is not None:
        frames.grad += total[:, :9].reshape(frames.shape)
    if places.grad is not None:
        places.grad += total[:, 9:]


def sample(
    spectra: torch.Tensor, frames: torch.Tensor, places: torch.Tensor, depths: torch.Tensor,
    size: int, radius: float = 0.5,
) -> torch.Tensor:
    """Planes of spectra, turned and shifted; differentiable in frames and places.

    Args:
        spectra: as `volumes.padded_spectrum` makes them, (channels, nz, ny, nx, 2).
        frames: what one step of the patch's frequency along its x, y and z is in samples of the
            spectra, (copies, 3, 3).
        places: shift of each copy along x and y [pixel], (copies, 2).
        depths: steps along z at which planes are taken, (planes,).
        size: P of the patch, even.
        radius: beyond which frequencies are zero [cycles/pixel].

    Returns:
        Complex (copies, channels, planes, P, P // 2 + 1), coefficients of an irfft2.
    """
    shape = (len(frames), len(spectra), len(depths), size, size // 2 + 1, 2)
    out = torch.empty(shape, dtype=spectra.dtype, device=spectra.device)
    out = differentiable(_sample, out, frames.contiguous(), places.contiguous(), spectra, depths,
                         (radius * size) ** 2)
    return torch.view_as_complex(out)


@ti.ad.grad_replaced
def _add(patches, weight, source, index, corner, window_x, window_y, out):  # type: ignore[no-untyped-def]
    count, ny = out.shape[:2]
    margin = (len(window_y) - ny) // 2
    lead = patches.shape[1] + margin
    rows = ny + 2 * lead
    key, order = torch.sort(index.long() * rows + (corner[:, 1] + lead).clamp(0, rows - 1),
                            stable=True)
    start = torch.searchsorted(key, torch.arange(count * rows + 1, device=key.device)).int()
    launch(add_patches, patches, *(t[order].contiguous() for t in (weight, source, corner)),
           start, window_x, window_y, margin, -(-ny // BAND), out)


@ti.ad.grad_for(_add)
def _add_adjoint(patches, weight, source, index, corner, window_x, window_y, out):  # type: ignore[no-untyped-def]
    order = torch.argsort(source, stable=True)
    first = torch.searchsorted(source[order].contiguous(),
                               torch.arange(len(patches) + 1, device=source.device)).int()
    by_weight = torch.zeros_like(weight)
    by_patch = torch.zeros_like(patches) if patches.grad is None else patches.grad
    launch(add_patches_adjoint, patches, weight[order], first, index[order].contiguous(),
           corner[order].contiguous(), window_x, window_y, (len(window_y) - out.shape[1]) // 2,
           out.grad, by_patch, by_weight)
    if weight.grad is not None:
        weight.grad[order] += by_weight


def add(
    out: torch.Tensor, patches: torch.Tensor, weight: torch.Tensor, source: torch.Tensor,
    index: torch.Tensor, corner: torch.Tensor, windows: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Add patches to slices; differentiable in patches and weights.

    Args:
        out: slices (n_slices, ny, nx), added to; periodic.
        patches: (n, P, P).
        weight: factor of each addition, (m,).
        source: number of its patch, integers (m,).
        index: of its slice, integers (m,).
        corner: column and row of the patch's first pixel, integers (m, 2); any value.
        windows: factors of columns and rows from as far before the first to as far behind the
            last, by which patches are cut.

    Returns:
        out.
    """
    if not len(weight):
        return out
    return differentiable(_add, out, patches.contiguous(), weight.contiguous(), source.int(),
                          index.int(), corner.int().contiguous(), *windows)
