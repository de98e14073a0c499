"""The spherical aberration that the rings of a whole run want, and what it says of the metadata.

A pixel size too large by a factor s asks for Cs s^4 and for a defocus s^2 as large, a wavelength
too short by a factor s for Cs s^3 and s times the defocus; a wrong Cs hardly moves the defocus.
Their one number does not tell which of them is wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tem_taichi.estimate.ctf_fit import CtfFit
from tem_taichi.physics import wavelength

SIGNIFICANT = 3.0
"""Standard errors by which pooled and stated aberration must differ to be called different."""
FACTORS = 0.70, 1.36
"""Of the stated aberration: beyond them, by two standard errors, every fit is doubtful, as the
defocus may be off by 16 %; these are pixel sizes off by 8 %."""
_TOLD = 0.02
"""Relative standard error of the pixel size, above which one 10 % off could pass: Cs then is off by
34 to 46 %, less than 4 to 6 standard errors."""


@dataclass(frozen=True)
class Pooled:
    """Spherical aberration [mm] that several fits want."""

    value: float
    error: float
    """Standard error, from the fits' own or their scatter, whichever is larger."""
    count: int

    def pixel_error(self, stated: float) -> float:
        """Relative standard error of the pixel size that it tells; inf where Cs is zero."""
        return self.error / (4 * stated) if stated > 0 else math.inf


def pool(fits: Sequence[CtfFit]) -> Pooled | None:
    """Mean of the aberrations of fits, weighted with their inverse variances; None of none."""
    values, errors = np.array([(fit.spherical_aberration, fit.spherical_error) for fit in fits
                               if fit.spherical_error > 0]).reshape(-1, 2).T
    if not len(values):
        return None
    weight = 1 / errors**2
    mean = float(np.average(values, weights=weight))
    scatter = float(weight @ (values - mean)**2) / max(len(values) - 1, 1)
    return Pooled(mean, float(math.sqrt(max(scatter, 1) / weight.sum())), len(values))


def differs(pooled: Pooled, stated: float) -> bool:
    """Whether the rings want another aberration than the stated one [mm]."""
    return abs(pooled.value - stated) > SIGNIFICANT * pooled.error


def contradicts(pooled: Pooled, stated: float) -> bool:
    """Whether that is so large that no defocus is to be trusted."""
    low, high = (factor * stated for factor in FACTORS)
    return differs(pooled, stated) and not (
        low - 2 * pooled.error <= pooled.value <= high + 2 * pooled.error)


def verdict(pooled: Pooled, stated: float, pixel_size: float, voltage: float) -> str | None:
    """What is likely wrong with a run's metadata; None if the rings agree with them.

    Args:
        pooled: of the run.
        stated: Cs [mm].
        pixel_size: stated [A].
        voltage: stated [kV].
    """
    if not differs(pooled, stated):
        return None
    return (f"the rings of {pooled.count} fits together want a spherical aberration of "
            f"{pooled.value:.2f} +- {pooled.error:.2f} mm, not the stated {stated:g}: "
            + _causes(pooled, stated, pixel_size, voltage))


def assumption(pooled: Pooled, stated: float) -> str:
    """What the fits rest on: metadata that the rings can check only together, or not at all."""
    if pooled.pixel_error(stated) > _TOLD:
        known = "" if stated <= 0 else f" and tell it within {pooled.pixel_error(stated):.0%} only"
        return ("pixel size and voltage are as stated: the rings cannot check them, which want a "
                f"spherical aberration of {pooled.value:.2f} +- {pooled.error:.2f} mm{known}; "
                "defoci go with the square of the pixel size")
    return (f"the lens has Cs = {stated:g} mm: only then do rings that want {pooled.value:.2f} +- "
            f"{pooled.error:.2f} mm tell pixel size and voltage, the former within "
            f"{pooled.pixel_error(stated):.1%}")


def _causes(pooled: Pooled, stated: float, pixel_size: float, voltage: float) -> str:
    if pooled.value <= 0 or stated <= 0:
        return ("the pixel size, the voltage or Cs is wrong, the images are overfocused, or a "
                "phase plate was in")
    ratio = pooled.value / stated
    size, wave = pixel_size / ratio**0.25, wavelength(voltage) * ratio**(1 / 3)
    return (f"either the pixel size is {size:.4g} A instead of {pixel_size:.4g} (defoci then are "
            f"{1 / ratio**0.5 - 1:+.1%} of those given), or the voltage is {_voltage(wave):.0f} kV "
            f"instead of {voltage:g} ({ratio**(-1 / 3) - 1:+.1%}), or Cs is {pooled.value:.2f} mm "
            "(defoci then hold)")


def _voltage(wave: float) -> float:
    """Voltage [kV] of a wavelength [A]."""
    low, high = 1.0, 1e4
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if wavelength(middle) < wave else (middle, high)
    return low
