"""Whether the rings of a tilt series agree with what was stated, and how certain its fit is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tem_taichi.estimate import ctf_fit, ctf_prior, ctf_solve
from tem_taichi.estimate.ctf_cut import up_to
from tem_taichi.estimate.ctf_fit import CtfFit
from tem_taichi.estimate.ctf_model import UNIT, Basis, Lens
from tem_taichi.estimate.ctf_refine import Found
from tem_taichi.estimate.ctf_search import CtfSearch
from tem_taichi.estimate.ctf_solve import Normal

_LEAD = 10.0  # log-likelihood by which the best defocus must lead
_PARTS = (0.7, 0.8, 0.9)  # of the highest frequency, to which fits are repeated
_SIGNIFICANT = 5.0  # standard errors that tell two values apart
_SLOPE = 0.1  # by which the heights may be off: specimens are not flat
_TURNED = 14.0  # [deg], as `ctf_checks`
_FACTORS, _SLACK = (0.55, 1.36), 0.1  # of Cs, and [mm], as `ctf_checks`
_MOVED = 0.03  # of the defocus
_NOTHING = 1e-9  # information where there are no rings


@dataclass(frozen=True)
class Stated:
    """What the rings want of each number that is stated, all others as stated; and its error."""

    slope: tuple[float, float]
    """Factor of the heights across the images, 1 as stated; -1 would be the opposite tilts."""
    phase: tuple[float, float]
    """Constant phase beyond the stated one [deg]; inf if it was fitted."""
    spherical: tuple[float, float]
    """Cs [mm]."""
    by_contrast: float
    """Change of the defocus where the amplitude contrast is larger by 0.01 [A]."""


def stated(found: Found, angles: Sequence[float], lens: Lens, basis: Basis,
           free: Sequence[int]) -> Stated:
    """What one step of scoring says.

    Args:
        found: the fit.
        angles: tilts [deg].
        lens: constants.
        basis: splines.
        free: which of the shared lens's parameters were fitted.
    """
    near = ctf_solve.normal(found.series, found.joint, lens, basis, found.noise, free, stated=True)
    whole, score, images = _with_prior(near, angles, found.widths), near.score.clone(), len(angles)
    score[:images] -= ctf_prior.precision(angles, *found.widths)[0] @ found.joint.defocus
    count = len(whole) - 3
    values = []
    for n in range(3):
        some = torch.tensor([*range(count), count + n])
        part = whole[some[:, None], some]
        part[-1, -1] += _NOTHING  # of level images alone the slope can't be told
        inverse = torch.linalg.inv(part)
        values.append((float(inverse[-1] @ score[some]), math.sqrt(max(float(inverse[-1, -1]), 0))))
    onto = torch.linalg.solve(whole[:count, :count], whole[:count, count + 1])
    # The lag of the amplitude contrast acts as a phase shift does.
    lag = 0.01 / max(math.cos(lens.lag), 1e-3)
    slope, phase, spherical = values
    return Stated(
        slope=(1 + slope[0], slope[1]),
        phase=(0.0, math.inf) if 2 in free else (math.degrees(phase[0]), math.degrees(phase[1])),
        spherical=(lens.spherical_aberration / 1e7 + spherical[0], spherical[1]),
        by_contrast=-float(onto[:images].mean()) * UNIT * lag)


def shared_errors(near: Normal, angles: Sequence[float], widths: tuple[float, float],
                  free: Sequence[int]) -> Tensor:
    """Standard errors of the shared lens's four parameters [A, A, rad, 1].

    Args:
        near: the maximum.
        angles: tilts [deg].
        widths: of the defoci's prior [A].
        free: which of the parameters were fitted.
    """
    errors = torch.zeros(4, dtype=torch.float64)
    inverse = torch.linalg.inv(_with_prior(near, angles, widths))
    errors[list(free)] = inverse.diagonal()[-len(free):].clamp(min=0).sqrt()
    return errors * torch.tensor([UNIT, UNIT, 1.0, 1.0], dtype=torch.float64)


def model_errors(found: Found, angles: Sequence[float], lens: Lens, basis: Basis,
                 free: Sequence[int], errors: Tensor) -> list[float]:
    """Of the mean defocus and of the shared lens's parameters: what the range moves them by.

    The variance of the difference of a fit and one to part of the same data is the difference of
    their variances; what is beyond is the model's.

    Args:
        found: the fit.
        angles: tilts [deg].
        lens: constants.
        basis: splines.
        free: which of the shared lens's parameters were fitted.
        errors: of these.
    """
    precision = ctf_prior.precision(angles, *found.widths)[0]
    own = _errors(ctf_solve.normal(found.series, found.joint, lens, basis, found.noise, free),
                  precision, errors)
    scale = torch.tensor([UNIT, UNIT, 1.0, 1.0], dtype=torch.float64)
    excess = []
    for part in _PARTS:
        series = [up_to(one, part * basis.highest) for one in found.series]
        joint, _ = ctf_solve.maximise(series, found.joint, lens, basis, precision, found.noise,
                                      free, steps=6)
        near = ctf_solve.normal(series, joint, lens, basis, found.noise, free)
        some = _errors(near, precision, shared_errors(near, angles, found.widths, free))
        moved = torch.cat([(joint.defocus - found.joint.defocus).mean()[None] * UNIT,
                           (joint.lens - found.joint.lens).double().cpu() * scale])
        excess.append(moved**2 - (some**2 - own**2).abs())
    return torch.stack(excess).mean(dim=0).clamp(min=0).sqrt().tolist()


def doubts_of(found: Found, whole: CtfFit, defocus: tuple[float, float], gain: float, known: Stated,
              lens: Lens, moved: float, search: CtfSearch) -> list[str]:
    """Reasons not to trust a series.

    Args:
        found: the fit.
        whole: of the average of all images, itself with doubts of its rings.
        defocus: mean of the images, and its error [A].
        gain: log-likelihood over that of no rings.
        known: what the rings want.
        lens: constants.
        moved: what the range moves the defocus by [A].
        search: where it was looked for.
    """
    given = lens.spherical_aberration / 1e7
    low, high = _FACTORS[0] * given - _SLACK, _FACTORS[1] * given + _SLACK
    (slope, slope_error), (phase, phase_error) = known.slope, known.phase
    wanted, wanted_error = known.spherical
    return [*whole.doubts, *(text for text, true in (
        (f"the rings of all images gain {gain:.0f} in log-likelihood, less than "
         f"{ctf_fit.RINGS:g}", not gain >= ctf_fit.RINGS),
        (f"another defocus is only {found.lead:.0f} less likely for all images",
         not found.lead >= _LEAD),
        (f"the images' average has a defocus of {whole.defocus:.0f} A, all images together one of "
         f"{defocus[0]:.0f} A", abs(whole.defocus - defocus[0])
         > _SIGNIFICANT * math.hypot(defocus[1], whole.errors[0])),
        (f"the defocus of {defocus[0]:.0f} A is known within {defocus[1]:.0f} A only",
         not defocus[1] < _MOVED * defocus[0]),
        (f"defocus {defocus[0]:.0f} A is outside of {search.defocus[0]:g} to "
         f"{search.defocus[1]:g} A", not search.defocus[0] <= defocus[0] <= search.defocus[1]),
        (f"the rings want heights across the images {slope:.2f} +- {slope_error:.2f} times those "
         "of the angles (are angles, axis and pixel size right, and is the specimen flat?)",
         abs(slope - 1) > max(_SIGNIFICANT * slope_error, _SLOPE)),
        (f"the rings are turned by {phase:.0f} +- {phase_error:.0f} deg in phase (a phase plate? "
         "then phase_shift must be looked for)",
         abs(phase) > max(_TURNED, _SIGNIFICANT * phase_error)),
        (f"the rings want a spherical aberration of {wanted:.2f} +- {wanted_error:.2f} mm, not "
         f"{given:g} mm (is the pixel size or the voltage wrong?)",
         abs(wanted - given) > _SIGNIFICANT * wanted_error and not low <= wanted <= high),
        (f"the defocus moves by {moved / max(defocus[0], 1):.0%} with the highest frequency used",
         moved > _MOVED * defocus[0])) if true)]


def _with_prior(near: Normal, angles: Sequence[float], widths: tuple[float, float]) -> Tensor:
    whole, images = near.information.clone(), len(angles)
    whole[:images, :images] += ctf_prior.precision(angles, *widths)[0]
    return whole + _NOTHING * torch.eye(len(whole), dtype=torch.float64)


def _errors(near: Normal, precision: Tensor, errors: Tensor) -> Tensor:
    """Standard errors of the mean defocus [A], and the given ones."""
    images = len(precision)
    information, _ = ctf_solve.reduced(near, images)
    covariance = torch.linalg.inv(information + precision
                                  + _NOTHING * torch.eye(images, dtype=torch.float64))
    return torch.cat([covariance.mean().clamp(min=0).sqrt()[None] * UNIT, errors])
