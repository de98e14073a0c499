"""How far two laws are from each other, by their probabilities of the same bins."""

import torch
from torch import Tensor


def jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    """Jensen and Shannon's divergence [bit]: 0 for the same laws, 1 for laws that never meet.

    Args:
        one: probabilities of bins, (..., n), not negative; each row is scaled to 1.
        other: the same.

    Returns:
        (...)
    """
    p, q = _scaled(one), _scaled(other)
    mean = (p + q) / 2
    return (_relative(p, mean) + _relative(q, mean)) / 2


def bhattacharyya(one: Tensor, other: Tensor) -> Tensor:
    """Bhattacharyya's coefficient, 1 for the same laws, 0 for laws that never meet.

    Its distance is minus its logarithm. Arguments of `jensen_shannon`.
    """
    return (_scaled(one) * _scaled(other)).sqrt().sum(-1)


def _scaled(law: Tensor) -> Tensor:
    if not bool((law >= 0).all()) or not bool((law.sum(-1) > 0).all()):
        raise ValueError("probabilities: must not be negative, and not all 0 in a row")
    return law / law.sum(-1, keepdim=True)


def _relative(p: Tensor, mean: Tensor) -> Tensor:
    """Kullback and Leibler's divergence from the mean of both [bit]."""
    return torch.where(p > 0, p * torch.log2(p / torch.where(p > 0, mean, 1.0)), 0.0).sum(-1)
