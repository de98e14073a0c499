"""Curves through a ring spectrum by Whittle's likelihood: a free smooth one, and five parameters.

Rings are taken as independent, the power P_k of ring k as Gamma with mean S(w_k) and relative
variance 1/n_k (Whittle 1953), so that  -log L = sum_k n_k [P_k / S_k + log S_k].
Both forms model S = exp(offset) M(w)^2, where exp(offset) is what is known of the scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import BSpline
from scipy.special import chdtrc
from torch import Tensor

from tem_taichi.estimate.crops import RingSpectrum
from tem_taichi.inverse.fisher import covariance
from tem_taichi.inverse.minimise import Optimiser, Values, minimise
from tem_taichi.noise.curves import mtf_parametric

HIGHEST = 0.7072
"""Frequency of the corners of a two-dimensional transform [cycles/pixel], rounded up."""
_KNOTS = 64
_STRENGTHS = np.logspace(0, 8, 13)
_TRENDS = (-1.0, -0.5, 0.0)
"""Powers of 10 by which the strength below rises from 0 to 0.25 cycles/pixel: curves may bend
more at low frequency."""
_SLOPE = 2.0
"""Standard deviation of d log M^2 / dw at 0: 0 for any point spread of finite width, up to 1.5 in
measured curves."""
_EXTRAPOLATIONS = (0.3, 20.0)
"""The same where the scale is unknown: one curve starts flat, the other at any slope."""
_BEND = 0.48
"""Measured tables of an MTF end near 0.5 cycles/pixel: beyond this a curve may bend more freely,
by a factor of 0.01 in the strength below."""
EXPECTED = ((0.5, 1.0), (0.3, 1.0), (2.5, 1.2), (3.5, 1.2))
"""Mean and standard deviation of a, b, log alpha and log beta: point spreads of about a pixel."""
_ORIGIN_ERROR = 0.01
"""How far M(0+) may be from 1 (standard deviation): some measured curves fall by a percent or
two below any frequency that a crop resolves."""


@dataclass(frozen=True, eq=False)
class LogCurve:
    """log M at some frequencies: mean (n,) and covariance (n, n)."""

    mean: np.ndarray
    covariance: np.ndarray


def free_curve(rings: RingSpectrum, offset: np.ndarray, w: np.ndarray, *,
               known_scale: bool, relative: bool = False) -> LogCurve:
    """Smooth curve M(w) of any shape.

    log M^2 is a cubic spline whose second differences are Gaussian with an unknown strength, as
    in P-splines (Eilers & Marx 1996). The strength is integrated out, each weighted by its
    marginal likelihood (Laplace), so that the data choose the smoothness and the covariance
    holds its uncertainty.

    Args:
        rings: the spectrum.
        offset: log of S at M = 1, at the rings' frequencies.
        w: where the curve is wanted [cycles/pixel].
        known_scale: whether M(0) is 1, within a percent.
        relative: whether to return M(w) / M(0), all that an unknown scale leaves.
    """
    wanted, origin = _splines(w), _splines(np.zeros(1))
    slopes = _EXTRAPOLATIONS if relative else (_SLOPE,)
    models = [_posterior(rings, offset, known_scale, slope) for slope in slopes]
    # Data cannot tell one extrapolation to 0 from the other: equal shares.
    mean, spread = mixture(models)
    shape = 0.5 * (wanted - origin if relative else wanted)
    total = shape @ spread @ shape.T
    return LogCurve(shape @ mean, total + _ORIGIN_ERROR**2 if relative else total)


def _posterior(rings: RingSpectrum, offset: np.ndarray, known_scale: bool,
               slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the spline's coefficients, strength and its trend integrated out."""
    basis, origin = _splines(rings.w), _splines(np.zeros(1))
    rise = (_splines(np.full(1, 1e-4)) - origin) / 1e-4
    pull = origin.T @ origin * known_scale / (2 * _ORIGIN_ERROR) ** 2 + rise.T @ rise / slope**2
    fisher = basis.T * rings.weight @ basis
    ridge = 1e-9 * np.trace(fisher) * np.eye(len(fisher))
    differences = np.diff(np.eye(basis.shape[1]), 2, axis=0)
    place = np.arange(len(differences)) * HIGHEST / _KNOTS
    target = np.log(np.maximum(rings.power, 1e-12 * rings.power.max())) - offset
    evidence, models = [], []
    for trend in _TRENDS:
        stiff = 10 ** (trend * (1 - 4 * np.minimum(place, 0.5)))
        stiff[place > _BEND] *= 0.01
        rough = differences.T * stiff @ differences
        coefficients = None
        for strength in _STRENGTHS[::-1]:
            prior = strength * rough + pull + ridge
            inverse = np.linalg.inv(fisher + prior)
            if coefficients is None:
                coefficients = inverse @ (basis.T @ (rings.weight * target))
            for _ in range(30):
                ratio = rings.power * np.exp(-offset - np.clip(basis @ coefficients, -60, 60))
                step = inverse @ (basis.T @ (rings.weight * (1 - ratio)) + prior @ coefficients)
                largest = max(np.abs(basis @ step).max(), 1e-300)
                coefficients = coefficients - step * min(1, 3 / largest)
                if largest < 1e-5:
                    break
            smooth = basis @ coefficients
            loss = (rings.weight * (rings.power * np.exp(-offset - smooth) + smooth)).sum()
            loss += 0.5 * coefficients @ prior @ coefficients
            evidence.append(0.5 * len(place) * np.log(strength) + 0.5 * np.log(stiff).sum()
                            + 0.5 * np.linalg.slogdet(inverse)[1] - loss)
            models.append((coefficients, inverse))
    return mixture(models, evidence)


def mixture(models: Sequence[tuple[np.ndarray, np.ndarray]],
            evidence: Sequence[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n,) and covariance (n, n) of several models, each a mean and a covariance.

    Args:
        models: of equal probability before the data.
        evidence: log of their marginal likelihoods; None if the data cannot tell them apart.
    """
    logs = np.zeros(len(models)) if evidence is None else np.array(evidence)
    share = np.exp(logs - logs.max())
    share /= share.sum()
    means, spreads = (np.array(part) for part in zip(*models, strict=True))
    mean = share @ means
    apart = means - mean
    return mean, np.tensordot(share, spreads, 1) + (apart.T * share) @ apart


@dataclass(frozen=True, eq=False)
class FiveParameters:
    """A fit of `curves.mtf_parametric`.

    Attributes:
        parameters: a, b, c, alpha, beta with a + b + c = 1.
        log_scale: log S at 0 less the offset; 0 if the scale was known.
        curve: values M (n,) and their standard deviations (n,) at the frequencies asked for.
        deviation: the latter.
        misfit: probability of so bad a fit if the form were right.
    """

    parameters: tuple[float, float, float, float, float]
    log_scale: float
    curve: np.ndarray
    deviation: np.ndarray
    misfit: float


def five_parameters(rings: RingSpectrum, offset: np.ndarray, w: np.ndarray, guess: np.ndarray, *,
                    known_scale: bool) -> FiveParameters:
    """Fit the five-parameter form, c of either sign.

    The likelihood has several valleys. Starts come from linear fits of a, b and c to the free
    curve on a grid of alpha and beta; the best three are followed to the bottom.

    Args:
        rings: the spectrum.
        offset: log of S at M = 1, at the rings' frequencies.
        w: where the curve is wanted [cycles/pixel].
        guess: the free curve M at the rings' frequencies.
        known_scale: whether M(0) is 1 exactly.
    """
    at, power, weight, log_base = (torch.tensor(array, dtype=torch.float64) for array in
                                   (rings.w, rings.power, rings.weight, offset))

    def log_spectrum(theta: Tensor) -> Tensor:
        # Where a trial curve crosses 0 the spectrum stays above it.
        return log_base + theta[4:].sum() + (shaped_mtf(at, theta).square() + 1e-10).log()

    def loss_of(theta: Tensor, power: Tensor) -> Tensor:
        ratio = power.log() - log_spectrum(theta)
        # Keeps a flat direction (a white spectrum has several) from running away.
        weak = ((theta[:4] - centre) / error).square().sum() / 2
        return (weight * (ratio.exp() - 1 - ratio)).sum() + weak

    def information(theta: Tensor) -> Tensor:
        """Covariance if the power were exactly the curve's: Fisher's, never negative."""
        expected = log_spectrum(theta).exp()
        return covariance(lambda values: loss_of(values["theta"], expected), {"theta": theta})

    centre, error = torch.tensor(EXPECTED, dtype=torch.float64).T
    starts = _starts(rings.w, guess, rings.weight, known_scale)
    found = []
    for start in starts:
        # In steps of the parameters' own errors the valley is round.
        frame = torch.linalg.cholesky(information(start))

        def loss(values: Values, start: Tensor = start, frame: Tensor = frame) -> Tensor:
            return loss_of(start + frame @ values["z"], power)

        result = minimise(loss, {"z": torch.zeros(len(start)).double()},
                          Optimiser(steps=100, tolerance=1e-7))
        found.append((result.loss, start + frame @ result.values["z"]))
    theta = min(found, key=lambda one: one[0])[1]
    shape, variance = theta[:4], information(theta)[:4, :4]
    frequencies = torch.tensor(w, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(lambda own: shaped_mtf(frequencies, own), shape)
    deviation = ((slope @ variance) * slope).sum(1).clamp(min=0).sqrt()
    a, b, alpha, beta = (float(number) for number in _natural(shape))
    residual = weight * (power / log_spectrum(theta).exp() - 1)
    return FiveParameters((a, b, 1 - a - b, alpha, beta),
                          float(theta[4:].sum()),
                          shaped_mtf(frequencies, shape).numpy(), deviation.numpy(),
                          _misfit(residual.numpy(), rings.weight, 4 + (not known_scale)))


def _splines(w: np.ndarray) -> np.ndarray:
    """Values (len(w), _KNOTS + 3) of cubic splines from 0 to HIGHEST."""
    place = np.linspace(0, 1, _KNOTS + 1)
    spacing = place[1]
    knots = np.concatenate([spacing * np.arange(-3, 0), place, 1 + spacing * np.arange(1, 4)])
    return BSpline.design_matrix(np.clip(w / HIGHEST, 0, 1 - 1e-9), knots, 3).toarray()


def _natural(shape: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, b, alpha and beta of a + b + c = 1."""
    return shape[0], shape[1], shape[2].exp(), shape[3].exp()


def shaped_mtf(w: Tensor, shape: Tensor) -> Tensor:
    """Five-parameter MTF from its four free numbers a, b, log alpha, log beta."""
    a, b, alpha, beta = _natural(shape)
    return mtf_parametric(w, a, b, 1 - a - b, alpha, beta)


def _starts(w: np.ndarray, guess: np.ndarray, weight: np.ndarray,
            known_scale: bool) -> list[Tensor]:
    widths = np.exp(np.linspace(0, np.log(3000), 14))
    weight = np.sqrt(weight) / np.maximum(guess, 0.02)  # the power's relative error is the same
    found = []
    for i, alpha in enumerate(widths):
        for beta in widths[i + 1:]:
            terms = np.stack([1 / (1 + alpha * w**2), 1 / (1 + beta * w**2), np.ones(len(w))], 1)
            target = guess
            if known_scale:  # a + b + c = 1
                target, terms = guess - terms[:, 2], terms[:, :2] - terms[:, 2:]
            solution = np.linalg.lstsq(terms * weight[:, None], target * weight, rcond=1e-8)[0]
            error = float((((terms @ solution - target) * weight) ** 2).sum())
            scale = 1.0 if known_scale else solution.sum()
            if scale > 0.3 and np.abs(solution).max() < 20:
                found.append((error, solution[:2] / scale, np.log([alpha, beta]), np.log(scale)))
    found.sort(key=lambda one: one[0])
    return [torch.tensor([*weights, *logs] + ([] if known_scale else [2 * scale]),
                         dtype=torch.float64) for _, weights, logs, scale in found[:3]]


def _misfit(residual: np.ndarray, weight: np.ndarray, parameters: int) -> float:
    """Probability of the residuals, summed over groups of rings, by chi-squared."""
    groups = np.array_split(np.arange(len(weight)), 24)
    squares = sum(residual[group].sum() ** 2 / weight[group].sum() for group in groups)
    return float(chdtrc(len(groups) - parameters, squares))
