"""Maximum of the likelihood of a tilt series' rings, and the quadratic about it.

Fisher scoring. The means and strengths concern one image only and are eliminated image by image,
so that the matrix to solve is that of the defoci and of what is shared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tem_taichi.estimate import scoring
from tem_taichi.estimate.ctf_joint import (
    NOISE,
    STATED,
    STRENGTH,
    THICKNESS,
    Equations,
    Joint,
    Spectra,
    equations,
    log_likelihood,
    shared_prior,
)
from tem_taichi.estimate.ctf_model import Basis, Lens
from tem_taichi.estimate.ctf_search import SECTORS

_CONVERGED = 1e-3  # gain in log-likelihood


@dataclass(frozen=True)
class Normal:
    """The quadratic that the log-likelihood of defoci and shared parameters is near its maximum.

    Of the defoci [1000 A], the shared parameters that are fitted, and the stated ones where they
    are asked for: the factor of all heights, phase shift [rad], spherical aberration [mm].
    """

    information: Tensor
    """(p, p), double."""
    score: Tensor
    """(p,)"""
    scatter: Tensor
    """Of the scores of independent directions, about what `information` should be, (p, p)."""


def objective(series: Sequence[Spectra], joint: Joint, lens: Lens, basis: Basis,
              precision: Tensor, noise: float) -> float:
    """Log-likelihood over the noise, and log priors, less constants.

    Args:
        series: all images.
        joint: parameters.
        lens: constants.
        basis: splines.
        precision: of the defoci's prior [1 / (1000 A)^2], (images, images).
        noise: variance of the power over its model, times the elements that share it.
    """
    total = sum(float(log_likelihood(one, joint, t, lens, basis)) for t, one in enumerate(series))
    away = (float(joint.lens[3]) - float(torch.log(torch.tensor(THICKNESS[0])))) / THICKNESS[1]
    prior = (float(joint.defocus @ precision @ joint.defocus) + away**2
             + float((joint.strength / STRENGTH).square().sum())
             + float((joint.noise / NOISE).square().sum()))
    return total / noise - prior / 2


def maximise(series: Sequence[Spectra], joint: Joint, lens: Lens, basis: Basis, precision: Tensor,
             noise: float, free: Sequence[int] = (0, 1, 3), steps: int = 20) -> tuple[Joint, float]:
    """Most likely parameters by damped Fisher scoring.

    Args:
        series: all images.
        joint: where to start.
        lens: constants.
        basis: splines.
        precision: of the defoci's prior [1 / (1000 A)^2], (images, images).
        noise: variance of the power over its model, times the elements that share it.
        free: which of the shared lens's parameters to fit.
        steps: most steps.

    Returns:
        Parameters and their `objective`.
    """
    return scoring.climb(
        joint, lambda at: objective(series, at, lens, basis, precision, noise),
        lambda at: [equations(one, at, t, lens, basis, noise, free)
                    for t, one in enumerate(series)],
        lambda at, parts, damping: _stepped(parts, at, precision, free, damping),
        _CONVERGED, steps)


def normal(series: Sequence[Spectra], joint: Joint, lens: Lens, basis: Basis, noise: float,
           free: Sequence[int], stated: bool = False) -> Normal:
    """The quadratic about a maximum, without the defoci's prior.

    Args:
        series: all images.
        joint: the maximum.
        lens: constants.
        basis: splines.
        noise: variance of the power over its model, times the elements that share it.
        free: which of the shared lens's parameters were fitted.
        stated: whether what the user states is among the parameters.
    """
    images = len(series)
    shared = len(joint.contrast) + len(joint.noise) + len(free) + STATED * stated
    information = torch.zeros(images + shared, images + shared, dtype=torch.float64)
    scatter, score = information.clone(), information[0].clone()
    for t, one in enumerate(series):
        parts = equations(one, joint, t, lens, basis, noise, free, stated)
        place = torch.tensor([t, *range(images, images + shared)])
        onto = torch.linalg.solve(parts.information[:parts.own, :parts.own],
                                  parts.information[:parts.own, parts.own:])
        left = parts.information[parts.own:, parts.own:] - parts.information[
            parts.own:, :parts.own] @ onto
        effect = parts.by_sector[:, parts.own:] - parts.by_sector[:, :parts.own] @ onto
        # The noise of neighbouring directions is shared by elements at their border.
        after = effect.roll(-1, 0)
        spread = effect.T @ effect + effect.T @ after + after.T @ effect
        information[place[:, None], place] += left
        scatter[place[:, None], place] += spread
        score[place] += parts.score[parts.own:] - onto.T @ parts.score[:parts.own]
    prior = shared_prior(joint, free, stated)
    information[images:, images:] += torch.diag(prior[0])
    score[images:] += prior[1]
    return Normal(information, score, scatter)


def reduced(one: Normal, images: int) -> tuple[Tensor, Tensor]:
    """Information and score of the defoci alone, with all else at its best."""
    a, b = one.information[:images, images:], one.information[images:, images:]
    onto = torch.linalg.solve(b, torch.cat([a.T, one.score[images:, None]], dim=1))
    information = one.information[:images, :images] - a @ onto[:, :-1]
    return information, one.score[:images] - a @ onto[:, -1]


def noise_ratio(one: Normal, images: int) -> float:
    """The noise that the scores' scatter shows, over the one that was assumed."""
    scatter, information = (part.diagonal()[:images].sum() for part in (
        one.scatter, one.information))
    # Of the sectors, the fit has taken one degree from squares and two from neighbours' products.
    return float(scatter / information) / (1 - 3 / SECTORS)


def _stepped(parts: Sequence[Equations], joint: Joint, precision: Tensor, free: Sequence[int],
             damping: float) -> Joint:
    """One damped step of all parameters."""
    images, shared = len(parts), len(joint.contrast) + len(joint.noise) + len(free)
    whole = torch.zeros(images + shared, images + shared, dtype=torch.float64)
    score = whole[0].clone()
    prior = shared_prior(joint, free)
    whole[:images, :images] = precision
    whole[images:, images:] = torch.diag(prior[0])
    score[:images], score[images:] = -precision @ joint.defocus, prior[1]
    kept = []
    for t, one in enumerate(parts):
        # In units of each parameter's own information: weak ones move from the first step on. Not
        # of the defoci's prior, which would keep them all from moving together.
        information = one.information + damping * torch.diag(one.information.diagonal())
        own, place = one.own, torch.tensor([t, *range(images, images + shared)])
        onto = torch.linalg.solve(information[:own, :own], torch.cat(
            [information[:own, own:], one.score[:own, None]], dim=1))
        kept.append((place, onto))
        whole[place[:, None], place] += (information[own:, own:]
                                         - information[own:, :own] @ onto[:, :-1])
        score[place] += one.score[own:] - information[own:, :own] @ onto[:, -1]
    step = torch.linalg.solve(whole, score)
    inner = torch.stack([onto[:, -1] - onto[:, :-1] @ step[place] for place, onto in kept])
    inner, common = inner.to(joint.mean), step[images:].to(joint.lens)
    first, last = len(joint.contrast), len(joint.contrast) + len(joint.noise)
    lens = joint.lens.clone()
    lens[list(free)] += common[last:]
    return replace(joint, mean=joint.mean + inner[:, :-1], strength=joint.strength + inner[:, -1],
                   defocus=joint.defocus + step[:images], contrast=joint.contrast + common[:first],
                   noise=joint.noise + common[first:last], lens=lens)
