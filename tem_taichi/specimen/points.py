"""Atoms of large particles as points: spread on slices by taps, their factors put on afterwards.

Where many scatterers fall on a pixel, a stencil of Gaussians for each is much work. As points they
cost 36 taps for each of the few curves whose sums their scattering factors are, and each curve a
transform of every slice. What comes out are the widened Gaussians of `splatting.splat`, for the
same `narrow`, without their aliases: 3e-5 from the sum over atoms, where those are up to 5e-4.
"""

import math
from collections.abc import Sequence

import torch

from tem_taichi.device import as_tensor, current
from tem_taichi.grid import frequencies, squared_frequencies
from tem_taichi.specimen.curves import looked_up, scattering_curves
from tem_taichi.specimen.gridding import POINTS, spread_on_slices
from tem_taichi.specimen.kinds import Kind, Solvent, parts_of
from tem_taichi.specimen.splatting import WIDENING
from tem_taichi.specimen.view import View

_ROOM = 1 << 25
"""Coefficients of all grids that are held at once, if these are of one slice at least."""

_CURVES = 4
"""That it takes, more or less."""


@torch.no_grad()
def add_points(
    layers: dict[str, torch.Tensor], kind: Kind, frames: torch.Tensor, view: View,
    first: int, depth: str, solvent: Solvent,
) -> None:
    """Add copies of a kind to slices, atom by atom; without a gradient.

    Args:
        layers: slices first, first + 1, ... of what `Kind` names, (count, ny, nx), added to.
        kind: of particle.
        frames: take its positions (x, y, z, 1) [A] to column, row and slice of each copy,
            (copies, 3, 4).
        view: its pixels and slices.
        first: number of the first slice.
        depth: of `depth.depth_weights`.
        solvent: what goes with them.
    """
    squared = squared_frequencies(view.shape, half=True)
    common = torch.exp(-WIDENING * squared)
    for axis, n in enumerate(view.shape):
        k = frequencies(n, half=axis == 1)
        common /= as_tensor(POINTS.transform(k.cpu().numpy())).reshape(
            (-1, 1) if axis == 0 else (1, -1))
    for name, layer in layers.items():
        parts = parts_of(kind, name, solvent)
        if not parts:
            continue
        amounts, curves = _curves_for(kind, name, parts, view.pixel_size, solvent)
        factors = [looked_up(curve, squared) * common for curve in curves]
        at_once = max(1, _ROOM // (len(curves) * squared.numel()))
        for begin, some in enumerate(layer.split(at_once)):
            grids = torch.zeros((len(curves), *some.shape), dtype=some.dtype, device=some.device)
            spread_on_slices(
                grids, kind.positions.detach().contiguous(), amounts, frames, depth=depth,
                first_slice=first + begin * at_once, n_slices=view.n_slices)
            for n, image in enumerate(some):
                spectrum = torch.fft.rfft2(grids[0, n]).mul_(factors[0])
                for grid, factor in zip(grids[1:, n], factors[1:], strict=True):
                    spectrum += torch.fft.rfft2(grid).mul_(factor)
                image += torch.fft.irfft2(spectrum, s=image.shape)


def _curves_for(
    kind: Kind, name: str, parts: Sequence, pixel_size: float, solvent: Solvent
) -> tuple[torch.Tensor, torch.Tensor]:
    """`scattering_curves` of what a kind has of a name, kept with it."""
    return kind.once((f"points of {name}", pixel_size, solvent, current()),
                     lambda: scattering_curves(parts, pixel_size))


def memory_of_points(kind: Kind, shape: tuple[int, int]) -> float:
    """Bytes that it takes to draw a kind as points in single precision.

    Args:
        kind: of particle.
        shape: (ny, nx) of the slices.
    """
    fields = 1 + (kind.displaced is not None) + (kind.absorbing is not None)
    return 4.0 * _CURVES * (fields * len(kind.positions) + 2 * max(
        _ROOM / _CURVES, math.prod(shape) / 2))
