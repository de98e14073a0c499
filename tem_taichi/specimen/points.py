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

_ROOM = 1 << 26
"""Numbers in all grids that are held at once, if these are of one slice at least."""

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
    amounts, curves = kind.once(("points", tuple(layers), view.pixel_size, solvent, current()),
                                lambda: _curves_of(kind, tuple(layers), view.pixel_size, solvent))
    factors = {name: [looked_up(curve, squared).mul_(common) for curve in some]
               for name, some in curves.items()}
    count = len(next(iter(layers.values())))
    at_once = max(1, _ROOM // (amounts.shape[1] * math.prod(view.shape)))
    for begin in range(0, count, at_once):
        here = min(at_once, count - begin)
        grids = torch.zeros((here, *view.shape, amounts.shape[1]), dtype=amounts.dtype,
                            device=amounts.device)
        spread_on_slices(grids, kind.positions.detach().contiguous(), amounts, frames, depth=depth,
                         first_slice=first + begin, n_slices=view.n_slices)
        for n, grid in enumerate(grids):
            channels = iter(grid.unbind(-1))
            for name, some in factors.items():
                spectrum = torch.fft.rfft2(next(channels)).mul_(some[0])
                for factor in some[1:]:
                    spectrum += torch.fft.rfft2(next(channels)).mul_(factor)
                layers[name][begin + n] += torch.fft.irfft2(spectrum, s=view.shape)


def _curves_of(
    kind: Kind, names: Sequence[str], pixel_size: float, solvent: Solvent
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`scattering_curves` of each name that a kind has: all amounts (n, m), the curves of each."""
    parts = {name: parts_of(kind, name, solvent) for name in names}
    there = {name: some for name, some in parts.items() if some}
    amounts, curves = scattering_curves(list(there.values()), pixel_size)
    return amounts, dict(zip(there, curves, strict=True))


def memory_of_points(kind: Kind, shape: tuple[int, int]) -> float:
    """Bytes that it takes to draw a kind as points in single precision.

    Args:
        kind: of particle.
        shape: (ny, nx) of the slices.
    """
    fields = 1 + (kind.displaced is not None) + (kind.absorbing is not None)
    return 4.0 * (_CURVES * fields * len(kind.positions)
                  + max(_ROOM, _CURVES * fields * math.prod(shape)))
