"""Counts drawn where the means are, from the numbers of a key."""

import torch

from tem_taichi.bridge import launch
from tem_taichi.device import as_tensor
from tem_taichi.kernels import counts as kernels
from tem_taichi.streams import Key


def poisson(mean: torch.Tensor, key: Key, kind: int = 0) -> torch.Tensor:
    """Poisson numbers, exact in distribution, from counter-based random numbers.

    Args:
        mean: of each, not negative, any shape.
        key: whose numbers.
        kind: which of its independent draws, 0 to 2^24 - 1.

    Returns:
        Whole numbers, of the means' shape and type; the same for the same key, kind and means.
    """
    low, high, _, number, stream = key.words(kind=kind)
    out = torch.empty_like(mean, memory_format=torch.contiguous_format)
    launch(kernels.poisson, low, high, number, stream, mean.contiguous().view(-1), out.view(-1))
    return out


def deposit(electrons: torch.Tensor, spread: float, key: Key, kind: int = 0) -> torch.Tensor:
    """Charge that whole numbers of electrons leave, in units of the mean charge of one.

    Args:
        electrons: any shape.
        spread: variance of the charge of one, 0 or more.
        key: whose numbers.
        kind: which of its independent draws, none that `poisson` had.

    Returns:
        Inverse Gaussian numbers of the electrons as mean and spread times them as variance.
    """
    if spread == 0:
        return electrons
    low, high, _, number, stream = key.words(kind=kind)
    out = electrons.clone(memory_format=torch.contiguous_format)
    launch(kernels.deposit, low, high, number, stream, as_tensor([spread]), out.view(-1))
    return out
