"""Estimate a detector from flat background: noise power spectrum, and what follows from it.

Flat images show the noise power spectrum (NPS), not the MTF: NPS = gain^2 electrons MTF^2 / DQE.
One of the three is found from the other two, so that an MTF needs an assumption about the DQE,
which the result names. Mean and variance alone cannot tell gain from DQE(0) either.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate.crops import RingSpectrum, plain, ring_spectrum
from tem_taichi.estimate.flatness import doubts_of_flatness
from tem_taichi.estimate.noise_curves import (
    FiveParameters,
    LogCurve,
    five_parameters,
    free_curve,
    mixture,
)
from tem_taichi.estimate.power_curves import power_curve
from tem_taichi.noise.curves import Curve, check_positive, evaluate, is_scalar, numbers
from tem_taichi.noise.detector import Detector

FREQUENCIES = np.arange(182) / 256
"""Where curves are given [cycles/pixel]: from 0 to the corner of a two-dimensional transform."""
_SIGMAS = 1.96  # two-sided 95 % of a normal law
_WIDER = 1.2
"""Bands of a free curve: they hold 0.90 of a curve that bends more in one place than in others,
and 0.95 when widened so (100 simulated sets of 6 crops of 64^2)."""
_SUSPECT = 0.01
_CREDIBLE = 0.05, 1.1
"""Range of a camera's DQE at low frequency, with 10 % for a gain that is not quite known."""
_AGREES = 0.7, 2.5
"""Range of the DQE that the noise below 0.1 cycles/pixel shows over the given one: the widest
measured point spread, Falcon 2's, leaves 0.545 of the power there, which makes it 1.8."""


@dataclass(frozen=True)
class Known:
    """What is known or assumed of the camera beforehand.

    Attributes:
        kind: "integrating" assumes that noise is blurred by the MTF as the signal is, so that
            NPS ~ MTF^2; "counting" or None assume nothing of the sort.
        gain: counts per incident electron; None if the counts have no known scale.
        electrons: mean electrons per pixel; None takes the crops' mean counts over the gain.
        dqe: DQE(0), or a table (frequencies, DQE(w)), which gives the MTF of any camera.
        mtf: known MTF, five numbers or a table, which gives DQE(w).
    """

    kind: str | None = None
    gain: float | None = None
    electrons: float | None = None
    dqe: Curve = None
    mtf: Curve = None

    def __post_init__(self) -> None:
        if self.kind not in (None, "integrating", "counting"):
            raise ValueError(f"kind={self.kind!r}: must be integrating, counting or None")
        for name, unit in (("gain", "counts per electron"), ("electrons", "e-/pixel")):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name), unit)
        if self.mtf is not None and self.route != "dqe":
            raise ValueError("mtf: is given, so kind must not be integrating, and dqe not a table")
        Detector(kind="integrating" if self.kind == "integrating" else "counting",
                 mtf=self.mtf, dqe=self.dqe)

    @property
    def route(self) -> str:
        """What follows from the NPS: "mtf", "dqe" (for a known MTF) or "nps", nothing else."""
        if self.kind == "integrating" or (self.dqe is not None and not is_scalar(self.dqe)):
            return "mtf"
        return "nps" if self.mtf is None else "dqe"

    @property
    def scale_known(self) -> bool:
        """Whether NPS(0) is known, and with it MTF(0) = 1 a constraint."""
        return self.route == "mtf" and self.gain is not None and self.dqe is not None


@dataclass(frozen=True, eq=False)
class Band:
    """A curve with its uncertainty, all (n,).

    Attributes:
        w: frequency [cycles/pixel].
        values: the estimate.
        lower: end of the 95 % interval at each frequency.
        upper: its other end.
    """

    w: np.ndarray
    values: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def rows(self) -> list[list[float]]:
        """Rows [frequency, value], as in a configuration's mtf_table."""
        return [[round(float(w), 6), round(float(value), 6)]
                for w, value in zip(self.w, self.values, strict=True)]


@dataclass(frozen=True, eq=False)
class NoiseFit:
    """What flat background says of a camera.

    Attributes:
        nps: noise power spectrum [counts^2].
        mtf: modulation transfer function, or None where nothing makes the NPS one.
        dqe: DQE(w) for a known MTF and gain, else None.
        parameters: a, b, c, alpha, beta of `curves.mtf_parametric`, or None of a free curve or
            where there is no MTF.
        misfit: probability of data so far from the five-parameter form if it held; None for a
            free curve. Below 0.01 the bands enclose the free curve's too.
        assumptions: what the result rests on, one sentence each.
        warnings: what speaks against it, one sentence each.
        rings: the measured spectrum, for a picture.
        known: what was known.
    """

    nps: Band
    mtf: Band | None
    dqe: Band | None
    parameters: tuple[float, ...] | None
    misfit: float | None
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
    rings: RingSpectrum = field(repr=False)
    known: Known = field(repr=False)

    def to_config(self) -> dict[str, Any]:
        """Mapping for `series.camera.detector_from_config`; read `assumptions` beside it.

        Its noise has the measured spectrum in every case. Its MTF is the measured or the given
        one, or 1 where there is neither; its DQE absorbs what is not known.
        """
        if self.mtf is not None:
            given = self.known.dqe
            scalar = given is None or is_scalar(given)
            if self.known.gain is not None:
                gain = self.known.gain
            else:  # such that mean and noise at w = 0 come out
                at_zero = 1.0 if given is None else float(_at(given, np.zeros(1))[0])
                gain = float(self.nps.values[0]) * at_zero / _signal(self.rings, self.known)
            curve = ({"mtf_table": self.mtf.rows()} if self.parameters is None
                     else {"mtf": list(self.parameters)})
            dqe = given if scalar else np.array(numbers(given)).tolist()
            kind = self.known.kind or "counting"
            return {"kind": kind, "gain": gain, "dqe": dqe, **curve}
        mtf = _at(self.known.mtf, self.nps.w)
        signal = _signal(self.rings, self.known)
        # NPS = gain signal MTF^2 / DQE, with no DQE above 1.
        least = float((self.nps.values / (signal * mtf**2)).min())
        gain = min(self.known.gain or least, least)
        dqe = np.clip(gain * signal * mtf**2 / self.nps.values, 1e-6, 1)
        own = self.known.mtf
        return {"kind": "counting", "gain": gain, "dqe": [self.nps.w.tolist(), dqe.tolist()],
                "mtf": None if own is None else np.array(numbers(own)).tolist()}


def estimate_noise(crops: np.ndarray | Tensor | Sequence[np.ndarray], known: Known | None = None,
                   *, form: str = "free", taper: float = 0.1, order: int = 1,
                   shared: bool = True) -> NoiseFit:
    """Estimate a camera's noise power spectrum, and MTF or DQE as far as `known` allows.

    The spectrum includes whatever scatters in the background, granular ice among it.

    Args:
        crops: (n, ny, nx) of flat background [counts], sides >= 32; three or more where pixels
            have gain errors. `crops.pick_background` cuts them.
        known: what is known of the camera; None is nothing.
        form: "free", a smooth curve as rough as the data ask for, monotone if it is an MTF; or
            "parametric", the five numbers of `curves.mtf_parametric`.
        taper: fraction of each side over which edges fade; 0 for periodic, simulated crops.
        order: of the polynomial that is removed from each crop, 0 to 2.
        shared: whether the crops may share an image (gain errors of the same pixels), which is
            removed; False for simulated crops, of which it would waste one.

    Raises:
        ValueError: if an argument is not allowed, or the crops are too few, too small, constant
            or not finite.
    """
    known = known or Known()
    if form not in ("free", "parametric"):
        raise ValueError(f"form={form!r}: must be free or parametric")
    rings = ring_spectrum(crops, taper=taper, order=order, shared=shared)
    if (known.gain is not None or known.route == "dqe") and _signal(rings, known) <= 0:
        raise ValueError(f"crops: have a mean of {rings.mean:g} counts, so electrons must be given")
    factor = _log_factor(rings, known)
    offset, base = (np.interp(w, FREQUENCIES, factor) for w in (rings.w, FREQUENCIES))
    known_scale = known.scale_known
    # The NPS needs its absolute level, an MTF of unknown scale only the shape.
    level = free_curve(rings, offset, FREQUENCIES, known_scale=known_scale)
    if known_scale:
        # Between the two the data cannot tell.
        other = power_curve(rings, offset, FREQUENCIES)
        level = LogCurve(*mixture([(one.mean, one.covariance) for one in (level, other)]))
    curve = level if known_scale or known.route != "mtf" else free_curve(
        rings, offset, FREQUENCIES, known_scale=False, relative=True)
    nps = _band(level, 2, base)
    fitted, mtf, dqe = None, None, None
    if known.route == "mtf":
        mtf = falling(_band(curve, 1))
    if form == "parametric":
        guess = np.interp(rings.w, FREQUENCIES, np.exp(level.mean))
        fitted = five_parameters(rings, offset, FREQUENCIES, guess, known_scale=known_scale)
        nps = _parametric_band(fitted, nps, base, 2)
        mtf = None if mtf is None else _parametric_band(fitted, mtf, np.zeros(1), 1)
    if known.route == "dqe" and known.gain is not None:
        dqe = _inverse(nps, known.gain * _signal(rings, known) * _at(known.mtf, nps.w) ** 2)
    return NoiseFit(nps=nps, mtf=mtf, dqe=dqe,
                    parameters=None if fitted is None or mtf is None else fitted.parameters,
                    misfit=None if fitted is None else fitted.misfit,
                    assumptions=_assumptions(rings, known, fitted),
                    warnings=_warnings(crops, rings, known, fitted), rings=rings, known=known)


def _signal(rings: RingSpectrum, known: Known) -> float:
    """Mean counts, gain times electrons."""
    if known.electrons is not None and known.gain is not None:
        return known.gain * known.electrons
    return rings.mean


def _at(curve: Curve, w: np.ndarray) -> np.ndarray:
    return numbers(evaluate(curve, as_tensor(w)))


def _log_factor(rings: RingSpectrum, known: Known) -> np.ndarray:
    """Log of the NPS over the squared curve to be found, at FREQUENCIES."""
    dqe = _at(known.dqe, FREQUENCIES) if known.route == "mtf" else np.ones(len(FREQUENCIES))
    if known.scale_known:
        return np.log(float(known.gain or 1) * _signal(rings, known) / dqe)
    return np.log(np.average(rings.power, weights=rings.weight) / dqe)


def _band(curve: LogCurve, power: int, log_factor: np.ndarray | float = 0.0) -> Band:
    """exp(log_factor) M^power."""
    middle = log_factor + power * curve.mean
    half = _WIDER * _SIGMAS * power * np.sqrt(np.clip(np.diag(curve.covariance), 0, None))
    return Band(FREQUENCIES, *(np.exp(np.clip(middle + shift, -80, 80))
                               for shift in (0, -half, half)))


def falling(band: Band) -> Band:
    """The nearest falling curves from at most 1.

    If the truth falls, this brings the estimate nearer to it and keeps it in the band wherever
    it was (Chernozhukov et al. 2009).
    """
    return Band(band.w, *(np.clip(isotonic_regression(values, increasing=False).x, 0, 1)
                          for values in (band.values, band.lower, band.upper)))


def _parametric_band(fitted: FiveParameters, free: Band, log_factor: np.ndarray,
                     power: int) -> Band:
    factor = np.exp(log_factor + (fitted.log_scale if power == 2 else 0))
    ends = [factor * np.clip(fitted.curve + shift * _SIGMAS * fitted.deviation, 0, None) ** power
            for shift in (-1, 1)]
    if fitted.misfit < _SUSPECT:
        ends = [np.minimum(ends[0], free.lower), np.maximum(ends[1], free.upper)]
    return Band(free.w, factor * np.abs(fitted.curve) ** power, ends[0], ends[1])


def _inverse(band: Band, numerator: np.ndarray) -> Band:
    return Band(band.w, numerator / band.values, numerator / band.upper, numerator / band.lower)


def _assumptions(rings: RingSpectrum, known: Known,
                 fitted: FiveParameters | None) -> tuple[str, ...]:
    """What to tell the reader."""
    lines = ["The noise is the background's: detector and ice together, the same in every "
             "direction."]
    lines.append({
        "nps": "Only the noise power spectrum is measured: flat images do not show the MTF. "
               "The configuration's MTF is 1 and its DQE absorbs the noise's colour.",
        "dqe": "The MTF is the given one; DQE(w) follows from it and the gain.",
        "mtf": "The MTF follows from the given DQE(w), which is taken as exact." if (
            known.dqe is not None and not is_scalar(known.dqe)) else
               "The detector is assumed to integrate, without other noise: NPS ~ MTF^2. A "
               "counting camera's NPS is not its MTF.",
    }[known.route])
    if known.route == "mtf":
        lines.append("MTF(0) = 1 by the given gain and DQE(0)." if known.scale_known else
                     "The scale is unknown: MTF(0) = 1 is extrapolated from the lowest "
                     "frequencies.")
    elif known.gain is None:
        lines.append("The gain is unknown: the DQE's scale is not measured.")
    if not rings.shared_removed:
        lines.append("Nothing that crops share was removed: gain errors of pixels count as noise.")
    if rings.dispersion.max() > 1:
        lines.append("The crops differ more than equal noise would; bands are widened by up to "
                     f"{np.sqrt(rings.dispersion.max()):.1f}.")
    return tuple(lines)


def _warnings(crops: np.ndarray | Tensor | Sequence[np.ndarray], rings: RingSpectrum, known: Known,
              fitted: FiveParameters | None) -> tuple[str, ...]:
    """What speaks against the fit."""
    lines = list(doubts_of_flatness(plain("crops", crops), rings))
    if fitted is not None and fitted.misfit < _SUSPECT:
        lines.append("The five-parameter form does not fit (p = "
                     f"{fitted.misfit:.0e}): use form=free.")
    if known.gain is not None:
        slow = rings.w < 0.1
        efficiency = known.gain * _signal(rings, known) / np.average(
            rings.power[slow], weights=rings.weight[slow])
        if known.scale_known:
            given = float(_at(known.dqe, np.zeros(1))[0])
            if not _AGREES[0] < efficiency / given < _AGREES[1]:
                lines.append(f"Below 0.1 cycles/pixel the noise is that of a DQE of "
                             f"{efficiency:.2g}, not {given:.2g}: gain, electrons or DQE are not "
                             "those of these crops, or they have an offset or are not flat.")
        elif known.route != "mtf" and not _CREDIBLE[0] < efficiency < _CREDIBLE[1]:
            lines.append(f"Below 0.1 cycles/pixel the DQE would be {efficiency:.2g}, which no "
                         "camera has: gain and electrons are not those of these crops, or they are "
                         "not flat.")
    return tuple(lines)
