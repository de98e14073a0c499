"""Which slices of a view are in work at once, and which are not there at all."""

import math
from typing import NamedTuple

import torch

from tem_taichi.specimen.view import Sparse, Specimen, View

_GROUP = 6
"""Slices held at once; of very many slices more, as the root of their number, since on the way
back a slice needs ten times the memory of the wave that is kept for each group."""

_ROOM = 6 * 3500**2
"""Pixels of all slices that are held at once without gradients, if that is two at least."""

WHOLE = 16
"""Up to so many slices the way back starts from all of them: faster, and no more memory."""


class Group(NamedTuple):
    """Slices that are in work at once."""

    first: int
    """Number of the first."""
    size: int
    """How many."""
    gap: int
    """Empty slices behind them, which are one propagation."""


def group_size(n_slices: int, pixels: int = 0) -> int:
    """Slices held at once: of large ones fewer, but the two that one transform makes.

    Args:
        n_slices: in all.
        pixels: of each; 0 = whatever they take.
    """
    size = max(_GROUP, math.isqrt(n_slices // 10))
    return max(2, min(size, _ROOM // pixels)) if pixels else size


def groups_of(specimen: Specimen, view: View) -> list[Group]:
    """The slices of a view that may hold something, in order; none of them is in two groups.

    Args:
        specimen: if it is `Sparse`, slices that it says to be empty are left out.
        view: of it.
    """
    filled = list(range(view.n_slices))
    if isinstance(specimen, Sparse):
        filled = [n for n, there in enumerate(specimen.filled(view).tolist()) if there]
    whole = torch.is_grad_enabled() and len(filled) <= WHOLE
    # On the way back fewer groups take less memory, since a wave is kept for each.
    pixels = 0 if torch.is_grad_enabled() else math.prod(view.shape)
    at_once = WHOLE if whole else group_size(len(filled), pixels)
    groups: list[Group] = []
    for n, following in zip(filled, [*filled, view.n_slices][1:], strict=True):
        gap = following - n - 1
        if groups and groups[-1].gap == 0 and groups[-1].size < at_once:
            groups[-1] = Group(groups[-1].first, groups[-1].size + 1, gap)
        else:
            groups.append(Group(n, 1, gap))
    return groups
