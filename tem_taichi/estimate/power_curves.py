"""A smooth MTF of known scale through a ring spectrum, drawn over the logarithm of frequency.

g(log w) = log(-log M) is a power law of the loss where it is straight: of slope 2 at low frequency
for any point spread of finite width, less for long tails. M < 1 and M(0) = 1 hold by themselves,
and what is well measured at some frequency bounds the loss at all lower ones. The curve beside it,
`noise_curves.free_curve`, is smooth over frequency itself; neither is right for every camera.
"""

import numpy as np
from scipy.interpolate import BSpline

from tem_taichi.estimate.crops import RingSpectrum
from tem_taichi.estimate.noise_curves import HIGHEST, LogCurve, mixture

_LOWEST = 2.0**-11
"""Frequency [cycles/pixel] below which the loss counts as constant: of no crop's reach."""
_KNOTS = 80
_TURN = 0.1
"""Frequency [cycles/pixel] from which knots are spaced evenly in w, below it in log w."""
_BENDS = np.array([1.0, 4.0, 16.0, 64.0, 256.0])
"""Inverse variances of the slope's changes, per unit of log w: 4 is 0.4 an octave."""
_TRENDS = (-2.0, 0.0, 2.0)
"""Powers of 10 by which these change from _MIDDLE to four times that: features of a pixel's size
are independent of long tails."""
_MIDDLE = 0.03
_PULLS = (0.4, 2.0, 8.0)
"""Inverse variances, per unit of log w, of the slope about _SLOPE."""
_SLOPE = 1.3
_TABLE_END = 0.48
"""Measured tables end near 0.5 cycles/pixel; beyond, bends cost a hundredth."""


def power_curve(rings: RingSpectrum, offset: np.ndarray, w: np.ndarray) -> LogCurve:
    """MTF below 1 of any shape, smooth over the logarithm of frequency.

    The likelihood is that of `noise_curves`. How much the slope of g bends, at low and at high
    frequency, and how near it keeps to a usual one, is integrated out by marginal likelihood
    (Laplace's approximation with Fisher's information).

    Args:
        rings: the spectrum.
        offset: log of the spectrum at M = 1, at the rings' frequencies.
        w: where the curve is wanted [cycles/pixel].

    Returns:
        log M, exactly 0 at w = 0.
    """
    basis = _splines(rings.w)
    start = _power_law(rings, offset)
    evidence, models = [], []
    for precision, pull in _priors(basis.shape[1]):
        start, hessian, loss = _most_probable(rings, offset, basis, precision, pull, start)
        # The prior's own constant: its determinant, and its exponent at 0.
        evidence.append(0.5 * (np.linalg.slogdet(precision)[1] - np.linalg.slogdet(hessian)[1]
                               - pull @ np.linalg.solve(precision, pull)) - loss)
        models.append((start, np.linalg.inv(hessian)))
    mean, spread = mixture(models, evidence)
    wanted = _splines(w)
    loss = np.exp(np.clip(wanted @ mean, -40, 6)) * (w > 0)
    slopes = wanted * loss[:, None]
    return LogCurve(-loss, slopes @ spread @ slopes.T)


def _place(w: np.ndarray) -> np.ndarray:
    """From 0 to 1, the coordinate in which knots are even."""
    w = np.clip(w, _LOWEST, HIGHEST)
    return (np.log(w / _LOWEST) + (w - _LOWEST) / _TURN) / (
        np.log(HIGHEST / _LOWEST) + (HIGHEST - _LOWEST) / _TURN)


def _splines(w: np.ndarray) -> np.ndarray:
    knots = np.arange(-3, _KNOTS + 4) / _KNOTS
    return BSpline.design_matrix(np.clip(_place(w), 0, 1 - 1e-9), knots, 3).toarray()


def _power_law(rings: RingSpectrum, offset: np.ndarray) -> np.ndarray:
    """Coefficients of the likeliest -log M = strength (w / 0.25)^power on a coarse grid."""
    strength, power = (grid.ravel()[:, None] for grid in np.meshgrid(
        np.logspace(-3, 1.5, 19), [0.5, 1, 1.5, 2]))
    log_square = -2 * strength * (rings.w / 0.25) ** power
    loss = (rings.weight * (rings.power * np.exp(-offset - log_square) + log_square)).sum(axis=1)
    best = int(loss.argmin())
    grid = np.geomspace(_LOWEST, HIGHEST, 4000)
    centres = np.interp(np.arange(-1, _KNOTS + 2) / _KNOTS, _place(grid), grid)
    return np.log(strength[best]) + power[best] * np.log(centres / 0.25)


def _priors(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Precisions of the coefficients and their products with the mean, stiff ones first."""
    log_w = np.linspace(np.log(1.05 * _LOWEST), np.log(0.999 * HIGHEST), 500)
    step = log_w[1] - log_w[0]
    values = _splines(np.exp(log_w))
    slope, bend = np.diff(values, axis=0) / step, np.diff(values, n=2, axis=0) / step**2
    ends = np.diff(_splines(np.array([0.004, 0.00408])), axis=0) / np.log(1.02)
    middle = _splines(np.array([0.25]))
    # Weak: a slope of 1.3 +- 0.7 at 0.004, M(0.25) from 0.03 to 0.93 within one deviation.
    weak = ends.T @ ends / 0.7**2 + middle.T @ middle / 2**2 + 1e-6 * np.eye(count)
    second = np.diff(np.eye(count), n=2, axis=0)
    weak += 0.01 * second.T @ second  # for splines between two points of the grid above
    towards = (ends * _SLOPE / 0.7**2 - 0.7 * middle / 2**2)[0]
    octaves = np.clip((log_w[1:-1] - np.log(_MIDDLE)) / np.log(4), 0, 1)
    past = np.where(log_w[1:-1] > np.log(_TABLE_END), 0.01, 1.0)
    found = []
    for pull in _PULLS:
        level = weak + pull * step * slope.T @ slope
        for trend in _TRENDS:
            rough = bend.T * (step * past * 10 ** (trend * octaves)) @ bend
            found += [(level + strength * rough,
                       towards + pull * _SLOPE * step * slope.sum(axis=0))
                      for strength in _BENDS[::-1]]
    return found


def _most_probable(rings: RingSpectrum, offset: np.ndarray, basis: np.ndarray,
                   precision: np.ndarray, pull: np.ndarray,
                   start: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients of greatest posterior density, the information there, and its negative log."""
    power = rings.power * np.exp(-offset)

    def at(own: np.ndarray) -> tuple[np.ndarray, float]:
        log_square = -2 * np.exp(np.clip(basis @ own, -40, 6))
        fit = rings.weight @ (power * np.exp(-log_square) + log_square)
        return log_square, float(fit + 0.5 * own @ precision @ own - pull @ own)

    own = start
    log_square, loss = at(own)
    for _ in range(40):
        slopes = basis * log_square[:, None]
        hessian = slopes.T * rings.weight @ slopes + precision
        step = np.linalg.solve(hessian, slopes.T @ (
            rings.weight * (1 - power * np.exp(-log_square))) + precision @ own - pull)
        length = min(1, 1.5 / np.abs(step).max())
        while (trial := at(own - length * step))[1] > loss and length > 1e-3:
            length /= 2
        gain = loss - trial[1]
        if gain < 1e-4:
            break
        own, (log_square, loss) = own - length * step, trial
    return own, hessian, loss
