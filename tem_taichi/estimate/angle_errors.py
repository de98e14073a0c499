"""Errors of tilt angles in a fit to values at those tilts, marginalised.

A tilt that is off by an unknown angle moves its value by the curve's slope there: deviations have
the variance s^2 + (d T)^2, T the slope. Neither s nor d is known; their ratio is averaged over
with a prior that is uniform in its logarithm, and the parameters are integrated out.
"""

from dataclasses import dataclass

import numpy as np

_RATIOS = np.exp(np.linspace(-12.0, 10.0, 23))
"""Of the variances (d T)^2, in the mean over tilts, and s^2: from none of it to all."""
_ROUNDING = 1e-12
"""Least chi2 of a tilt, relative: without any noise, rounding has a say."""


@dataclass(frozen=True)
class Marginal:
    """What is left when the errors of the angles are averaged over.

    Attributes:
        shift: of the parameters, (p,).
        covariance: of the parameters, (p, p).
        noise: s^2, in squared deviations.
        angles: d^2, in squared deviations over squared slopes by the angle.
        chi2: sum of squared deviations over the variances, for s = 1.
    """

    shift: np.ndarray
    covariance: np.ndarray
    noise: float
    angles: float
    chi2: float


def marginalise(deviations: np.ndarray, slopes: np.ndarray, turn: np.ndarray,
                known: bool) -> Marginal:
    """Weighted least squares with errors of values and of angles, averaged over their ratio.

    Args:
        deviations: of the values from the curve, in their errors, (n,).
        slopes: of the curve by the parameters, in errors, (n, p).
        turn: of the curve by the tilt angle, in errors over the angle's unit, (n,).
        known: whether the errors are, or larger by a common factor; any factor otherwise.
    """
    free = len(deviations) - slopes.shape[1]
    size = float(np.mean(turn**2)) or 1.0
    variance = 1 + _RATIOS[:, None] * turn**2 / size  # (ratios, n)
    weighted = slopes / variance[..., None]
    inverse = np.linalg.pinv(slopes.T @ weighted, rcond=1e-12, hermitian=True)
    shifts = np.einsum("jab,jnb,n->ja", inverse, weighted, deviations)
    chi2 = ((deviations - shifts @ slopes.T) ** 2 / variance).sum(axis=1) + _ROUNDING * free
    scale = np.maximum(chi2 / free, 1.0) if known else chi2 / free
    # Integrated over the parameters, at the likeliest s^2.
    odds = (np.linalg.slogdet(inverse)[1] - np.log(variance).sum(axis=1)
            - free * np.log(scale) - chi2 / scale) / 2
    share = np.exp(odds - odds.max())
    share /= share.sum()
    shift = share @ shifts
    away = shifts - shift
    return Marginal(
        shift, np.einsum("j,jab->ab", share * scale, inverse) + (share[:, None] * away).T @ away,
        float(share @ scale), float(share @ (scale * _RATIOS)) / size, float(share @ chi2))
