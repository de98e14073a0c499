"""Whether the rings follow the phase that was stated, and how far a fit depends on its range.

The same rings are fitted with one thing different each time: with spherical aberration and phase
free, as those of an overfocus, and up to other resolutions. All on averages over sectors, in
which a fit takes some milliseconds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tem_taichi.device import as_tensor
from tem_taichi.estimate import ctf_curves, ctf_model, ctf_search
from tem_taichi.estimate.ctf_model import UNIT, Basis, Elements, Lens, Rings
from tem_taichi.estimate.ctf_search import Sectors

_PHASE, _SPHERICAL = 3, 4  # places among the lens's parameters
_RANGES = (0.7, 0.8, 1.0, 1.25, 1.6, 2.0)  # finest resolutions, of the one asked for
_SIGNIFICANT = 4.0  # standard errors by which two values differ
_KNOWN, _TURNED = 10.0, 14.0  # [deg]; amplitude contrasts off by 0.2 turn the rings by 12
_LEAD = 5.0  # log-likelihood
_FACTORS, _SLACK = (0.55, 1.36), 0.1  # of Cs, and [mm]: single real spectra want 0.61 of the stated
_MOVED = 0.03  # of the defocus
_SMOOTH = 0.05  # of the rings' own gain
_FINER = 2  # pieces of a smooth spectrum in place of one, which follow three rings or less
_PHASES, _STARTS = 12, 2  # phases to begin with, and places that are refined
_LEAST_RINGS = 3.5  # half rings within a range that is tried


@dataclass(frozen=True)
class Checks:
    """What other fits of the same rings say."""

    spherical_aberration: float
    """That the rings want where it and a constant phase are free [mm]."""
    spherical_error: float
    """Its standard error [mm]."""
    stiff: float
    """The same for the stated phase, which is known better and moves with the phase [mm]."""
    stiff_error: float
    """Its standard error [mm]."""
    phase: float
    """Constant phase beyond the stated one, within +- 90 [deg]."""
    phase_error: float
    """Its standard error [deg]."""
    overfocus: float
    """Log-likelihood of an overfocus over that of the fit."""
    plate: float
    """The most likely phase shift [deg], at any defocus, within +- 90."""
    plate_gain: float
    """Its log-likelihood over that of the fit."""
    even: float
    """Log-likelihood of rings at equal distances in k, of any phase, over that of the fit."""
    smooth: float
    """Log-likelihood of a smooth spectrum that bends twice as often over that of the fit."""
    shares: tuple[float, float, float, float]
    """The model's share of the errors of mean defocus, of both components of half the
    astigmatism [A], and of the phase shift [rad]."""


def examine(sectors: Sectors, found: Rings, variances: Sequence[float], lens: Lens, basis: Basis,
            free: Sequence[int], noise: float, finest: float, seen: float) -> Checks:
    """Fit the same rings under other assumptions.

    Args:
        sectors: of the flattened spectrum, over all frequencies that were prepared.
        found: the fit.
        variances: of its lens's first four parameters [A^2, rad^2], statistical.
        lens: as stated.
        basis: splines over those frequencies.
        free: parameters of the lens that were fitted.
        noise: variance of power over model, times the elements that share it.
        finest: resolution asked for [A].
        seen: resolution to which rings are seen [A], inf if nowhere.
    """
    cells = ctf_search.cells(sectors)
    begin = replace(ctf_model.start(basis, contrast=0.1), lens=found.lens)
    used = _upto(cells, 1 / min(max(seen, _RANGES[0] * finest), finest))
    begin = ctf_model.maximise(used, begin, lens, basis)[0]
    plain, _ = ctf_model.maximise(used, begin, lens, basis, free)
    turned, turned_error = _freed(used, plain, lens, basis, _with(free, _PHASE), noise)
    bent, bent_error = _freed(used, turned, lens, basis, _with(free, _PHASE, _SPHERICAL), noise)
    stiff, stiff_error = _freed(used, plain, lens, basis, _with(free, _SPHERICAL), noise)
    given = lens.spherical_aberration / 1e7
    phase = float(turned.lens[_PHASE] - (found.lens[_PHASE] if _PHASE in free else 0.0))
    ranges = _ranges(cells, found, lens, basis, free, noise, finest, seen)
    # Elsewhere: far from the fit, and to the resolution asked for, where its rings may be lost.
    some = _only(sectors, 1 / finest)
    whole = ctf_search.cells(some)
    here = ctf_model.maximise(whole, plain, lens, basis, free)[1]
    other = Lens(lens.wavelength, -lens.spherical_aberration, -lens.lag)
    shifted, gain = _elsewhere(some, whole, found, lens, basis, _with(free, _PHASE))
    over = _elsewhere(some, whole, found, other, basis, free)[1]
    even = _even(some, whole, found, lens, basis, _with(free, _PHASE))
    smooth = _smooth(whole, basis)
    plate = 0.0 if _PHASE in free else _degrees(float(shifted.lens[_PHASE]))
    return Checks(spherical_aberration=given + float(bent.lens[_SPHERICAL]),
                  spherical_error=float(bent_error[_SPHERICAL]),
                  stiff=given + float(stiff.lens[_SPHERICAL]),
                  stiff_error=float(stiff_error[_SPHERICAL]), phase=_degrees(phase),
                  phase_error=math.degrees(float(turned_error[_PHASE])),
                  overfocus=(over - here) / noise, plate=plate, plate_gain=(gain - here) / noise,
                  even=(even - here) / noise, smooth=(smooth - here) / noise,
                  shares=_shares(found, variances, ranges))


def _smooth(cells: Elements, basis: Basis) -> float:
    """Log-likelihood of a spectrum without rings whose mean may bend twice as often."""
    finer = ctf_model.make_basis(*basis.limits, finer=_FINER)
    return ctf_model.maximise(cells, ctf_model.start(finer), Lens(0, 0, 0), finer,
                              contrast=False)[1]


def _even(sectors: Sectors, cells: Elements, found: Rings, lens: Lens, basis: Basis,
          free: Sequence[int]) -> float:
    """Log-likelihood of rings cos(a k + b), as balls and blurs with edges make.

    They are those of a lens without aberration at the root of k.
    """
    low, high = basis.limits
    start = math.sqrt(low * high)
    table = len(basis.mean) - 1
    k = torch.linspace(start, high, table + 1, dtype=torch.float64)**2 / high
    place = ((k - low) / (high - low) * table).round().long().clamp(0, table)
    place = place.to(basis.mean.device)
    warped = Basis(start, high, basis.mean[place], basis.contrast[place])
    return _elsewhere(sectors._replace(k=(sectors.k * high).sqrt()),
                      replace(cells, k=(cells.k * high).sqrt()), found,
                      Lens(lens.wavelength, 0, 0), warped, free)[1]


def _elsewhere(sectors: Sectors, cells: Elements, found: Rings, lens: Lens, basis: Basis,
               free: Sequence[int]) -> tuple[Rings, float]:
    """The most likely rings of another lens, or phase, within half and twice the defocus."""
    defocus, cosine, sine, phase = ctf_model.in_angstrom(found.lens)
    phases = torch.arange(_PHASES) * (math.pi / _PHASES) if _PHASE in free else [phase]
    starts = ctf_search.search(
        [(sectors, 0.0)], lens, (max(0.5 * defocus, 300.0), 2 * max(defocus, 300.0)),
        [(cosine, sine)], as_tensor(phases), _STARTS)
    fits = [(found, -math.inf)]
    for one in starts:
        begin = ctf_model.maximise(cells, ctf_model.start(basis, *one), lens, basis)[0]
        fits.append(ctf_model.maximise(cells, begin, lens, basis, free))
    return max(fits, key=lambda fit: fit[1])


def _degrees(phase: float) -> float:
    """A phase of rings [rad] within +- 90 deg."""
    return math.degrees((phase + math.pi / 2) % math.pi - math.pi / 2)


def _ranges(cells: Elements, found: Rings, lens: Lens, basis: Basis, free: Sequence[int],
            noise: float, finest: float, seen: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Parameters and variances of fits up to other resolutions."""
    fits = []
    for part in _RANGES:
        highest = 1 / max(part * finest, min(seen, finest))
        used = _upto(cells, highest)
        k = np.array([float(cells.k.min()), highest])
        if len(used.k) < 100 or ctf_curves.half_rings(k, found, lens) < _LEAST_RINGS:
            continue
        begin = replace(ctf_model.start(basis, contrast=0.1), lens=found.lens)
        begin = ctf_model.maximise(used, begin, lens, basis)[0]
        rings, error = _freed(used, begin, lens, basis, free, noise)
        fits.append((rings.lens, error**2))
    return fits


def _shares(found: Rings, variances: Sequence[float],
            fits: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[
                float, float, float, float]:
    """Root mean square of what the fits differ by beyond their noise.

    The variance of the difference of a fit and one to part of the same data is the difference of
    their variances.
    """
    scale = torch.tensor([UNIT, UNIT, UNIT, 1.0], dtype=torch.float64)
    own = torch.tensor(list(variances), dtype=torch.float64)
    excess = [(((lens - found.lens)[:4].double().cpu() * scale)**2
               - (variance[:4].double().cpu() - own).abs()) for lens, variance in fits]
    if not excess:
        return 0.0, 0.0, 0.0, 0.0
    mean = torch.stack(excess).mean(dim=0).clamp(min=0).sqrt().tolist()
    return mean[0], mean[1], mean[2], mean[3]


def _freed(cells: Elements, begin: Rings, lens: Lens, basis: Basis, free: Sequence[int],
           noise: float) -> tuple[Rings, torch.Tensor]:
    """The most likely parameters and the lens's standard errors [A, rad, mm], (5,)."""
    rings = ctf_model.maximise(cells, begin, lens, basis, free)[0]
    return rings, ctf_model.standard_errors(cells, rings, lens, basis, free, noise)


def _with(free: Sequence[int], *more: int) -> tuple[int, ...]:
    return tuple(sorted({*free, *more}))


def _only(sectors: Sectors, highest: float) -> Sectors:
    inside = sectors.k <= highest
    return Sectors(sectors.residual[:, inside], sectors.weight[:, inside], sectors.k[inside])


def _upto(cells: Elements, highest: float) -> Elements:
    inside = cells.k <= highest
    return Elements(cells.power[inside], cells.k[inside], cells.cosine[inside],
                    cells.sine[inside], cells.weight[inside])


def doubts(checks: Checks, lens: Lens, defocus: float, error: float,
           gain: float, stated: bool = True) -> list[str]:
    """Reasons not to trust a fit.

    Args:
        checks: of the fit.
        lens: as stated.
        defocus: the fit's mean [A].
        error: its statistical standard error [A].
        gain: log-likelihood of its rings over none.
        stated: whether phase, aberration and range are judged, not only whether there are rings.
    """
    given, wanted = lens.spherical_aberration / 1e7, checks.spherical_aberration
    low, high = (factor * given + sign * _SLACK for factor, sign in zip(
        _FACTORS, (-1, 1), strict=True))
    moved = checks.shares[0]
    rings = [text for text, found in (
        (f"a smooth spectrum that bends twice as often explains as much, {checks.smooth:+.0f} in "
         "log-likelihood", checks.smooth > -max(2 * _LEAD, _SMOOTH * gain)),
        ("rings at equal distances, as balls or a blur make, explain as much, "
         f"{checks.even:+.0f} in log-likelihood", checks.even > -_LEAD)) if found]
    return rings if not stated else [*rings, *(text for text, found in (
        (f"the phase of the rings is known within {checks.phase_error:.0f} deg only: they are too "
         f"few or too weak to tell a CTF", not checks.phase_error < _KNOWN),
        (f"the rings are turned by {checks.phase:.0f} +- {checks.phase_error:.0f} deg in phase (a "
         "phase plate? then phase_shift must be looked for)",
         abs(checks.phase) > max(_TURNED, _SIGNIFICANT * checks.phase_error)),
        (f"a phase shift of {checks.plate:.0f} deg at another defocus explains the rings better by "
         f"{checks.plate_gain:.0f} in log-likelihood (then phase_shift must be looked for)",
         abs(checks.plate) > _TURNED and checks.plate_gain > _LEAD),
        (f"the rings are rather those of an overfocus, by {checks.overfocus:.0f} in log-likelihood",
         checks.overfocus > _LEAD),
        (f"the rings want a spherical aberration of {wanted:.2f} +- {checks.spherical_error:.2f} "
         f"mm, not {given:g} mm (is the pixel size or the voltage wrong?)",
         any(abs(value - given) > _SIGNIFICANT * deviation and not low <= value <= high
             for value, deviation in ((wanted, checks.spherical_error),
                                      (checks.stiff, checks.stiff_error)))
         and not low <= wanted <= high),
        (f"the defocus moves by {moved / defocus:.0%} with the highest frequency used",
         moved > max(_MOVED * defocus, _SIGNIFICANT * error))) if found)]
