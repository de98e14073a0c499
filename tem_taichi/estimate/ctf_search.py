"""Coarse search for the defocus that explains the rings of a flattened power spectrum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate.ctf_band import Band
from tem_taichi.estimate.ctf_model import Elements, Lens
from tem_taichi.instrument.optics import round_phase

SECTORS = 24
"""Of half a turn."""
_BANDS = 8  # of radius, each with a ring contrast of its own
_STEP = 0.8  # of the rings' phase 2 chi between neighbouring defoci [rad], at the highest k
_APART = math.ceil(2 * math.pi / _STEP)  # steps between two candidates
_PHASES = 12  # phase shifts tried over half a turn
_ANGLES = 12  # of the astigmatism, over half a turn
_STRENGTHS = 4  # of the astigmatism, from none to the largest


@dataclass(frozen=True)
class CtfSearch:
    """Where to look for the rings."""

    defocus: tuple[float, float] = (1500.0, 60000.0)
    """Lowest and highest mean defocus [A], positive = underfocus."""
    astigmatism: float = 1200.0
    """Largest U - V looked for [A]; the refinement may leave it."""
    resolution: tuple[float, float] = (30.0, 4.0)
    """Lowest and highest resolution fitted [A]; up to 0.7 of the latter where there are few rings.

    Beyond 4 A a lens's higher aberrations weigh more than what the rings there add."""
    phase_shift: bool = False
    """Whether to estimate a phase plate's shift, from 0 to 180 deg."""
    known: tuple[float, float] | None = None
    """U - V [A] and the angle of U [deg] where they are known; they are not fitted then."""

    @property
    def astigmatisms(self) -> list[tuple[float, float]]:
        """Halves of U - V times cos and sin of twice the angle [A], to begin with."""
        if self.known is None:
            return _astigmatisms(self.astigmatism)
        half, twice = self.known[0] / 2, 2 * math.radians(self.known[1])
        return [(half * math.cos(twice), half * math.sin(twice))]

    @property
    def free(self) -> tuple[int, ...]:
        """Which parameters of the lens are fitted: defocus, two of astigmatism, phase shift."""
        return (0, *((1, 2) if self.known is None else ()), *((3,) if self.phase_shift else ()))

    @property
    def phases(self) -> list[float]:
        """Phase shifts to begin with [rad]."""
        return [n * math.pi / _PHASES for n in range(_PHASES if self.phase_shift else 1)]

    def __post_init__(self) -> None:
        low, high = self.defocus
        if not (math.isfinite(low) and math.isfinite(high) and 0 < low < high):
            raise ValueError(f"defocus={self.defocus}: must be two positive numbers that rise [A]")
        if not 0 <= self.astigmatism < math.inf:
            raise ValueError(f"astigmatism={self.astigmatism}: must be zero or positive [A]")
        coarse, fine = self.resolution
        if not (math.isfinite(coarse) and 0 < fine < coarse):
            raise ValueError(f"resolution={self.resolution}: must be two positive numbers that "
                             "fall [A]")


def default_search(pixel_size: float) -> CtfSearch:
    """The search with resolutions that pixels of this size [A] leave rings between."""
    coarse, fine = CtfSearch.resolution
    return CtfSearch(resolution=(max(coarse, 6 * pixel_size), max(fine, 2 * pixel_size)))


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


def bin_sectors(band: Band) -> Sectors:
    """Average what is to be fitted of a spectrum over sectors and rings."""
    k = band.chosen.k
    radius = ((k - k.min()) / band.width).long()
    radii = int(radius.max()) + 1
    twice_azimuth = torch.atan2(band.chosen.sine, band.chosen.cosine)
    sector = ((twice_azimuth / (2 * math.pi)) % 1 * SECTORS).long().clamp(max=SECTORS - 1)
    index = sector * radii + radius
    residual = band.chosen.power - 1

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


def search(spectra: Sequence[tuple[Sectors, float]], lens: Lens, defocus: tuple[float, float],
           astigmatisms: Sequence[tuple[float, float]], phase_shifts: Tensor,
           most: int) -> list[Candidate]:
    """The most likely defoci of rings -cos 2 (chi - lag) of any contrast in each band of radius.

    A sector whose defocus is D correlates with the rings like a Fourier transform over |k|^2, so
    that one table over D and sectors serves all astigmatisms. Squares of the correlations, added
    over bands, rank as log-likelihoods do.

    Args:
        spectra: flattened spectra of equal frequencies, and how much larger than the mean
            defocus each one's is [A].
        lens: constants.
        defocus: lowest and highest mean defocus [A].
        astigmatisms: halves of U - V times cos and sin of twice the angle [A], to try.
        phase_shifts: to try [rad], (p,).
        most: number of candidates to return, at least a cycle of the rings apart.
    """
    grid, rings, weight = ring_sums(spectra, lens, defocus, astigmatisms)
    turn = torch.polar(torch.ones_like(phase_shifts), -2 * phase_shifts)
    # Of one astigmatism after the other: (defocus, bands, phases) is large.
    gains = [((one[..., None] * turn).real.clamp(min=0)**2 / weight[:, None]).sum(dim=1)
             for one in rings]
    best, choice = torch.stack(gains, dim=1).flatten(start_dim=1).max(dim=1)
    found: list[Candidate] = []
    for _ in range(most):
        top = int(best.argmax())
        if not best[top] > 0:
            break
        cosine, sine = astigmatisms[int(choice[top]) // len(phase_shifts)]
        contrast = 2 * math.sqrt(float(best[top] / weight.sum()))
        found.append(Candidate(float(grid[top]), cosine, sine,
                               float(phase_shifts[int(choice[top]) % len(phase_shifts)]),
                               min(max(contrast, 0.01), 0.8)))
        best[max(0, top - _APART):top + _APART + 1] = -1.0
    return found


def ring_sums(spectra: Sequence[tuple[Sectors, float]], lens: Lens,
              defocus: tuple[float, float], astigmatisms: Sequence[tuple[float, float]],
              step: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """What spectra have in common with the rings of each defocus, in bands of radius.

    Args:
        spectra: flattened spectra of equal frequencies, and how much larger than the mean
            defocus each one's is [A].
        lens: constants.
        defocus: lowest and highest mean defocus [A].
        astigmatisms: halves of U - V times cos and sin of twice the angle [A].
        step: between defoci [A]; None = an eighth of a ring at the highest frequency.

    Returns:
        Defoci (d,) [A]; sums (a, d, bands) of the residuals times -exp 2i(chi - lag), complex; and
        the number of elements in each band, (bands,).
    """
    reach = max(math.hypot(*pair) for pair in astigmatisms)
    step = step or defocus_step(float(spectra[0][0].k[-1]), lens)
    margin = math.ceil((reach + max(abs(offset) for _, offset in spectra)) / step)
    inside = math.ceil((defocus[1] - defocus[0]) / step) + 1
    grid = defocus[0] + as_tensor(torch.arange(-margin, inside + margin)) * step
    tables = [(_correlations(sectors, grid, lens), offset) for sectors, offset in spectra]
    weight = torch.stack([torch.stack([part.sum() for part in _bands(sectors.weight)])
                          for sectors, _ in spectra]).sum(dim=0)
    middle = (torch.arange(SECTORS) + 0.5) * (2 * math.pi / SECTORS)
    sums = []
    for cosine, sine in astigmatisms:
        away = cosine * torch.cos(middle) + sine * torch.sin(middle)
        sums.append(torch.stack([
            table[s, at:at + inside] for table, offset in tables
            for s, at in enumerate(margin + round((d + offset) / step) for d in away.tolist())
        ]).sum(dim=0))
    return grid[margin:margin + inside], torch.stack(sums), weight


def defocus_step(highest: float, lens: Lens) -> float:
    """Distance of two defoci [A] that an eighth of a ring at the highest frequency [1/A] makes."""
    return _STEP / (2 * math.pi * lens.wavelength * highest**2)


def _astigmatisms(largest: float) -> list[tuple[float, float]]:
    """Halves of U - V times cos and sin of twice the angle [A], up to the largest U - V."""
    reach = largest / 2
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
        chi = round_phase(k**2, grid[:, None], lens.spherical_aberration, lens.wavelength)
        ring = torch.polar(torch.ones_like(chi), 2 * (chi - lens.lag))
        parts.append(-(centred.to(ring.dtype) @ ring.T))
    return torch.stack(parts, dim=-1)
