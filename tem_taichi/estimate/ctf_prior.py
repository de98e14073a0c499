"""How the defocus changes from image to image of a tilt series, and how much, as the data tell.

The defoci are D_t = z + f_t + s_t: f_t is independent of image to image (focus and stage are set
anew), of a width f; s_t wanders with the tilt angle, by a width s per 3 degrees (the stage is not
eucentric, the specimen not flat); nothing is assumed of z. Both widths are those that make the data
likely, averaged over the likelihood of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tem_taichi.estimate.ctf_model import UNIT

FREE = (1.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0)
"""Widths f that are tried [A]."""
SMOOTH = (0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
"""Widths s that are tried [A]."""
_PAIRS = [(free, smooth) for free in FREE for smooth in SMOOTH]
_STEP = 3.0  # [deg]
_NOTHING = 1e-9  # information [1 / (1000 A)^2] of an image without rings


@dataclass(frozen=True)
class Defoci:
    """What is known of the defoci of a series."""

    mean: Tensor
    """[A], (images,), double."""
    covariance: Tensor
    """[A^2], (images, images)."""
    free: float
    """Mean of the width f [A]."""
    smooth: float
    """Mean of the width s [A]."""


def precision(angles: ArrayLike, free: float, smooth: float) -> tuple[Tensor, float]:
    """Of the prior of the defoci, which says nothing of their mean.

    Args:
        angles: tilts [deg], (images,).
        free: width f [A].
        smooth: width s [A].

    Returns:
        The matrix [1 / (1000 A)^2] and the logarithm of its determinant, but for the mean.
    """
    left, log_determinant = _precisions(_covariances(angles, [(free, smooth)]))
    return left[0], float(log_determinant[0])


def widths(angles: ArrayLike, information: Tensor, score: Tensor,
           defocus: Tensor) -> tuple[float, float]:
    """The most likely f and s [A].

    Args:
        angles: tilts [deg].
        information: of the data on the defoci [1 / (1000 A)^2], (images, images).
        score: derivative of the log-likelihood at `defocus`.
        defocus: [1000 A].
    """
    likely = _likelihoods(angles, information, score, defocus)
    best = max(likely, key=lambda pair: likely[pair][0])
    return best


def posterior(angles: ArrayLike, information: Tensor, score: Tensor, defocus: Tensor) -> Defoci:
    """Mean and covariance of the defoci, averaged over the widths; arguments as `widths`."""
    likely = _likelihoods(angles, information, score, defocus)
    values = np.array([value for value, *_ in likely.values()])
    weights = np.exp(values - values.max())
    weights /= weights.sum()
    means = torch.stack([mean for _, mean, _ in likely.values()])
    part = torch.as_tensor(weights)
    mean = part @ means
    away = means - mean
    covariance = torch.stack([w * (one + torch.outer(d, d)) for w, (_, _, one), d in zip(
        part, likely.values(), away, strict=True)]).sum(dim=0)
    free, smooth = np.array(list(likely)).T @ weights
    return Defoci(mean * UNIT, covariance * UNIT**2, float(free), float(smooth))


def _covariances(angles: ArrayLike, pairs: Sequence[tuple[float, float]]) -> Tensor:
    """Of the defoci for some widths f and s [(1000 A)^2], (pairs, images, images)."""
    steps = torch.as_tensor(np.asarray(angles, dtype=np.float64)) / _STEP
    steps = steps - steps[steps.abs().argmin()]
    same = (steps[:, None] * steps) > 0
    wander = torch.where(same, torch.minimum(steps[:, None].abs(), steps.abs()), 0.0)
    free, smooth = torch.tensor(pairs, dtype=torch.float64).T[..., None, None] / UNIT
    return free**2 * torch.eye(len(steps), dtype=torch.float64) + smooth**2 * wander


def _precisions(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Their inverses without the mean, and the logarithms of the determinants but for it."""
    inverse = torch.linalg.inv(covariances)
    onto = inverse.sum(dim=1)
    total = onto.sum(dim=1)
    left = inverse - onto[:, :, None] * onto[:, None] / total[:, None, None]
    return left, torch.logdet(inverse) - total.log()


def _likelihoods(angles: ArrayLike, information: Tensor, score: Tensor,
                 defocus: Tensor) -> dict[tuple[float, float], tuple[float, Tensor, Tensor]]:
    """Of each pair of widths: log-likelihood, and mean and covariance of the defoci [1000 A]."""
    symmetric = (information + information.T) / 2
    values, vectors = torch.linalg.eigh(symmetric)
    data = (vectors * values.clamp(min=_NOTHING)) @ vectors.T
    middle = defocus.mean()
    away = defocus - middle  # the prior doesn't know of it
    prior, log_determinant = _precisions(_covariances(angles, _PAIRS))
    factor = torch.linalg.cholesky(data + prior)
    target = data @ away + score
    means = torch.cholesky_solve(target[:, None].expand(len(_PAIRS), -1, -1), factor)[..., 0]
    # Log of the integral of exp(score d - d data d / 2) times the prior.
    likely = 0.5 * (means @ target + log_determinant
                    - 2 * factor.diagonal(dim1=1, dim2=2).log().sum(dim=1))
    found = zip(likely.tolist(), means + middle, torch.cholesky_inverse(factor), strict=True)
    return dict(zip(_PAIRS, found, strict=True))
