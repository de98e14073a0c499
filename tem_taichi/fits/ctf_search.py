"""Coarse search for the defocus that explains the rings of a flattened power spectrum."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.fits.ctf_model import Elements, Lens

SECTORS = 24
"""Of half a turn."""
_BANDS = 8  # of radius, each with a ring contrast of its own
_STEP = 0.8  # of the rings' phase 2 chi between neighbouring defoci [rad], at the highest k
_APART = math.ceil(2 * math.pi / _STEP)  # steps between two candidates
_ANGLES = 12  # of the astigmatism, over half a turn
_STRENGTHS = 4  # of the astigmatism, from none to the largest


class Sectors(NamedTuple):
    """Spectrum averaged over bins of direction and radius."""

    residual: Tensor
    """Means of (power / smooth power - 1), (sectors, radii)."""
    weight: Tensor
    """Number of elements, (sectors, radii)."""
    k: Tensor
    """Root of the mean of |k|^2 over a radius [1/A], (radii,)."""


class Candidate(NamedTuple):
    """A defocus worth refining."""

    defocus: float
    """Mean of the principal defoci [A]."""
    cosine: float
    """Half of U - V times the cosine of twice the angle [A]."""
    sine: float
    """The same with the sine [A]."""
    phase_shift: float
    """[rad]"""
    contrast: float
    """Of the rings."""


def bin_sectors(residual: Tensor, k: Tensor, twice_azimuth: Tensor, width: float) -> Sectors:
    """Average a flattened spectrum over sectors and rings.

    Args:
        residual: (n,) power divided by its smooth radial part, less 1.
        k: (n,) [1/A].
        twice_azimuth: (n,) twice the angle from +x towards +y [rad].
        width: of a ring [1/A].
    """
    radius = ((k - k.min()) / width).long()
    radii = int(radius.max()) + 1
    sector = ((twice_azimuth / (2 * math.pi)) % 1 * SECTORS).long().clamp(max=SECTORS - 1)
    index = sector * radii + radius

    def summed(values: Tensor) -> Tensor:
        empty = values.new_zeros(SECTORS * radii)
        return empty.index_add(0, index, values).view(SECTORS, radii)

    weight = summed(torch.ones_like(residual))
    squared = summed(k**2).sum(dim=0) / weight.sum(dim=0).clamp(min=1)
    return Sectors(summed(residual) / weight.clamp(min=1), weight, squared.sqrt())


def cells(sectors: Sectors) -> Elements:
    """The bins that hold anything as elements of a flattened spectrum."""
    twice = (torch.arange(SECTORS) + 0.5) * (2 * math.pi / SECTORS)
    filled = sectors.weight > 0
    cosine, sine = (as_tensor(x)[:, None].expand(filled.shape)[filled]
                    for x in (torch.cos(twice), torch.sin(twice)))
    return Elements(1 + sectors.residual[filled], sectors.k.expand(filled.shape)[filled], cosine,
                    sine, sectors.weight[filled])


def search(sectors: Sectors, lens: Lens, defocus: tuple[float, float], astigmatism: float,
           phase_shifts: Tensor, most: int) -> list[Candidate]:
    """The most likely defoci of rings -cos 2 (chi - lag) of any contrast in each band of radius.

    A sector whose defocus is D correlates with the rings like a Fourier transform over |k|^2, so
    that one table over D and sectors serves all astigmatisms. Squares of the correlations, added
    over bands, rank as log-likelihoods do.

    Args:
        sectors: the flattened spectrum.
        lens: constants.
        defocus: lowest and highest mean defocus [A].
        astigmatism: largest U - V [A].
        phase_shifts: to try [rad], (p,).
        most: number of candidates to return, at least a cycle of the rings apart.
    """
    reach = astigmatism / 2
    step = _STEP / (2 * math.pi * lens.wavelength * float(sectors.k[-1]) ** 2)
    margin = math.ceil(reach / step)
    inside = math.ceil((defocus[1] - defocus[0]) / step) + 1
    grid = defocus[0] + as_tensor(torch.arange(-margin, inside + margin)) * step
    table = _correlations(sectors, grid, lens)
    weight = torch.stack([part.sum() for part in _bands(sectors.weight)])[:, None]
    turn = torch.polar(torch.ones_like(phase_shifts), -2 * phase_shifts)
    pairs = _astigmatisms(reach)
    middle = (torch.arange(SECTORS) + 0.5) * (2 * math.pi / SECTORS)
    gains = []
    for cosine, sine in pairs:
        away = cosine * torch.cos(middle) + sine * torch.sin(middle)
        first = [margin + round(float(d) / step) for d in away]
        total = torch.stack([table[s, at:at + inside] for s, at in enumerate(first)]).sum(dim=0)
        ring = (total[..., None] * turn).real.clamp(min=0)  # (defocus, bands, phases)
        gains.append((ring**2 / weight).sum(dim=1))
    best, choice = torch.stack(gains, dim=1).flatten(start_dim=1).max(dim=1)
    found: list[Candidate] = []
    for _ in range(most):
        top = int(best.argmax())
        if not best[top] > 0:
            break
        cosine, sine = pairs[int(choice[top]) // len(phase_shifts)]
        contrast = 2 * math.sqrt(float(best[top] / weight.sum()))
        found.append(Candidate(float(grid[margin + top]), cosine, sine,
                               float(phase_shifts[int(choice[top]) % len(phase_shifts)]),
                               min(max(contrast, 0.01), 0.8)))
        best[max(0, top - _APART):top + _APART + 1] = -1.0
    return found


def _astigmatisms(reach: float) -> list[tuple[float, float]]:
    """Half of U - V up to `reach`, times cos and sin of twice the angle."""
    return [(0.0, 0.0)] + [
        (reach * s / _STRENGTHS * math.cos(turn), reach * s / _STRENGTHS * math.sin(turn))
        for s in range(1, _STRENGTHS + 1) if reach > 0
        for turn in (2 * math.pi * i / _ANGLES for i in range(_ANGLES))]


def _bands(values: Tensor) -> tuple[Tensor, ...]:
    return torch.tensor_split(values, _BANDS, dim=-1)


def _correlations(sectors: Sectors, grid: Tensor, lens: Lens) -> Tensor:
    """Correlation (sectors, defocus, bands) of the residual with -exp 2i(chi - lag), complex.

    Its real part is that with -cos; a phase shift p turns it by exp(-2ip).
    """
    parts = []
    for k, residual, weight in zip(_bands(sectors.k), _bands(sectors.residual),
                                   _bands(sectors.weight), strict=True):
        # The mean of a band is the background's.
        centred = weight * (residual - (weight * residual).sum() / weight.sum())
        chi = math.pi * lens.wavelength * k**2 * (
            lens.spherical_aberration * lens.wavelength**2 / 2 * k**2 - grid[:, None])
        ring = torch.polar(torch.ones_like(chi), 2 * (chi - lens.lag))
        parts.append(-(centred.to(ring.dtype) @ ring.T))
    return torch.stack(parts, dim=-1)
