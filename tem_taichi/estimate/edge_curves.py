"""Curves M(w) with M(0) = 1 through what the pixels near an edge say of them."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.optimize import least_squares
from scipy.special import chdtrc

from tem_taichi.estimate.noise_curves import EXPECTED, mixture, shaped_mtf

_STARTS = ((0.5, 0.3, 2.5, 3.5), (0.7, 0.3, 3.0, 6.0), (0.5, 0.5, 1.5, 5.0))
"""a, b, log alpha and log beta from which the five parameters are sought."""
_DEPARTURES = np.logspace(-1.5, 0.5, 5)
"""How far a free curve may depart from the five-parameter form: by 0.65 of this at the end of its
range (standard deviation)."""
_TURN = 0.02
"""Frequency [cycles/pixel] above which departures of the second sort are smooth in log w."""


@dataclass(frozen=True, eq=False)
class EdgeLikelihood:
    """Gaussian log-likelihood of the MTF's values m at knots[1:], pull.m - m.precision.m / 2.

    Attributes:
        knots: frequencies (n + 1,) [cycles/pixel], the first one 0, where the MTF is 1.
        precision: (n, n).
        pull: (n,).
        scatter: (n, n), covariance of the pull from the scatter between stretches of the edge;
            the precision itself if the noise is what the weights take it for.
    """

    knots: np.ndarray
    precision: np.ndarray
    pull: np.ndarray
    scatter: np.ndarray

    def covariance(self, posterior: np.ndarray) -> np.ndarray:
        """Posterior covariance (n, n), its part that is due to noise as the scatter has it."""
        return posterior + posterior @ (self.scatter - self.precision) @ posterior


    def misfit(self, at_knots: np.ndarray) -> float:
        """Probability of data so far from a curve of four free numbers if it were right."""
        values, vectors = np.linalg.eigh(self.precision)
        kept = values > 1e-6 * values[-1]  # the pixels may leave a direction of the knots open
        values, vectors = values[kept], vectors[:, kept]
        away = vectors.T @ at_knots[1:] - vectors.T @ self.pull / values
        # The scatter says how far the weights are from the noise.
        noise = np.einsum("ik,ij,jk->k", vectors, self.scatter, vectors) / values
        return float(chdtrc(len(values) - 4, (values * away**2).sum() / noise.mean()))


@dataclass(frozen=True, eq=False)
class EdgeCurve:
    """An MTF.

    Attributes:
        values: (k,) at the frequencies asked for.
        deviation: (k,), standard deviations.
        at_knots: values (n + 1,) at the likelihood's knots.
        parameters: a, b, c, alpha, beta of `curves.mtf_parametric`; None of a free curve.
    """

    values: np.ndarray
    deviation: np.ndarray
    at_knots: np.ndarray
    parameters: tuple[float, ...] | None = None


def knots(highest: float) -> np.ndarray:
    """Frequencies from 0 to highest, 0.007 apart at 0 and a 14th of w at high w."""
    count = int(np.ceil(14 * np.arcsinh(10 * highest)))
    return np.sinh(np.linspace(0, np.arcsinh(10 * highest), count + 1)) / 10


def splines(at: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Matrix (len(w), len(at)) from values at knots to those of the cubic spline through them."""
    return CubicSpline(at, np.eye(len(at)))(w)


def five_numbers(data: EdgeLikelihood, w: np.ndarray) -> EdgeCurve:
    """The five-parameter form, c of either sign, the weak prior of `noise_curves` included."""
    shape, slopes, posterior = _most_probable(data)
    noise = slopes.T @ (data.scatter - data.precision) @ slopes
    spread = posterior + posterior @ noise @ posterior
    a, b = (float(own) for own in shape[:2])
    own = _slopes(w, shape)
    return EdgeCurve(_values(w, shape), _deviation(own, spread), _values(data.knots, shape),
                     (a, b, 1 - a - b, *np.exp(shape[2:]).tolist()))


def smooth_curve(data: EdgeLikelihood, w: np.ndarray) -> EdgeCurve:
    """A curve of any smooth shape.

    It is a five-parameter curve plus an integrated Wiener process (Wahba 1978), a Gaussian prior.
    The departure's strength is integrated out by marginal likelihood. Two sorts have equal shares:
    one as smooth in w everywhere, one in log w.
    """
    shape, slopes, _ = _most_probable(data)
    centre, error = np.array(EXPECTED).T
    # The five-parameter form's prior, linear about the best of its curves.
    expected = _values(data.knots[1:], shape) + slopes @ (centre - shape)
    family = slopes * error**2 @ slopes.T
    pull = data.pull - data.precision @ expected
    sorts = []
    for place in (data.knots[1:], np.log1p(data.knots[1:] / _TURN)):
        evidence, models = [], []
        for strength in _DEPARTURES:
            prior = family + strength**2 * _wiener(place / place[-1])
            values, vectors = np.linalg.eigh(prior)
            root = vectors * np.sqrt(np.clip(values, 0, None))
            gain = np.eye(len(root)) + root.T @ data.precision @ root
            posterior = root @ np.linalg.solve(gain, root.T)
            models.append((posterior @ pull, data.covariance(posterior)))
            evidence.append((pull @ posterior @ pull - np.linalg.slogdet(gain)[1]) / 2)
        sorts.append(mixture(models, evidence))
    mean, spread = mixture(sorts)
    at_knots = np.append(1, expected + mean)
    basis = splines(data.knots, w)
    return EdgeCurve(basis @ at_knots, _deviation(basis[:, 1:], spread), at_knots)


def _wiener(place: np.ndarray) -> np.ndarray:
    """Covariance of an integrated Wiener process on [0, 1], 0 at 0, of slope variance 0.3 there."""
    low, high = np.minimum.outer(place, place), np.maximum.outer(place, place)
    return low**2 * (3 * high - low) / 6 + 0.3 * low * high


def _most_probable(data: EdgeLikelihood) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape (4,) of greatest posterior density, slopes (n, 4) of M there, covariance (4, 4)."""
    centre, error = np.array(EXPECTED).T
    # The pixels may leave a direction of the knots open.
    values, vectors = np.linalg.eigh(data.precision)
    kept = values > 1e-10 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    root = (vectors * np.sqrt(values)).T
    target = vectors.T @ data.pull / np.sqrt(values)
    w = data.knots[1:]

    def residuals(shape: np.ndarray) -> np.ndarray:
        return np.append(root @ _values(w, shape) - target, (shape - centre) / error)

    def slopes(shape: np.ndarray) -> np.ndarray:
        return np.vstack([root @ _slopes(w, shape), np.diag(1 / error)])

    found = min((least_squares(residuals, start, jac=slopes, x_scale="jac") for start in _STARTS),
                key=lambda one: one.cost)
    return found.x, _slopes(w, found.x), np.linalg.inv(found.jac.T @ found.jac)


def _values(w: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return shaped_mtf(torch.tensor(w), torch.tensor(shape)).numpy()


def _slopes(w: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Derivatives (len(w), 4) of the MTF in its free numbers, by central differences."""
    return np.stack([_values(w, shape + step) - _values(w, shape - step)
                     for step in 1e-5 * np.eye(4)], axis=1) / 2e-5


def _deviation(slopes: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return np.sqrt(np.clip(np.einsum("ki,ij,kj->k", slopes, spread, slopes), 0, None))
