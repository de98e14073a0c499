"""Which leaves an octree needs: leaves split into eight, and eight merged into one.

Splitting keeps the field: the children's samples are the parent's trilinear interpolation, which
has its kinks at samples of theirs. Merging takes the samples nearest to the children in the mean
square and loses what is between them (`loss_of_merging`). Values are resampled as they are, so that
what is positive by a softplus takes its inverse afterwards; a merge may go below the children's
least value and is kept from it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi.specimen.octree import Octree, Tree

_OCTANTS = np.array(list(itertools.product((0, 1), repeat=3)))
"""Of a parent, z, y, x."""
_GAIN = 1 / 16
"""Of a squared error of linear interpolation, where samples are half as far apart: h^4."""


@lru_cache(maxsize=32)
def _finer(samples: int, fine: int) -> NDArray[np.float64]:
    """Linear interpolation from samples to others over the same length, (fine, samples)."""
    places = np.linspace(0, samples - 1, fine)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(samples)), 0)


@lru_cache(maxsize=32)
def _coarser(samples: int, fine: int) -> NDArray[np.float64]:
    """Samples whose interpolation is nearest to others in the mean square, (samples, fine)."""
    return np.asarray(np.linalg.pinv(_finer(samples, fine)), np.float64)


def _along_all(values: Tensor, matrix: NDArray[np.float64]) -> Tensor:
    """A matrix applied along the three axes of cubes (n, z, y, x)."""
    m = torch.as_tensor(matrix).to(values)
    return torch.einsum("nzyx,az,by,cx->nabc", values, m, m, m)


def children(values: Tensor) -> Tensor:
    """Samples of the eight children of leaves, (n, 8, g, g, g), of those of leaves (n, g, g, g)."""
    g = values.shape[1]
    fine = _along_all(values, _finer(g, 2 * g - 1))
    return torch.stack([fine[:, z:z + g, y:y + g, x:x + g]
                        for z, y, x in _OCTANTS * (g - 1)], dim=1)


def parents(values: Tensor) -> Tensor:
    """Samples of the parents of eight children (n, 8, g, g, g) that are nearest to them.

    In the mean square of the children's nodes; never below the least of the eight.
    """
    n, _, g = values.shape[:3]
    total = values.new_zeros((n, 2 * g - 1, 2 * g - 1, 2 * g - 1))
    count = torch.zeros_like(total[:1])
    for number, (z, y, x) in enumerate(_OCTANTS * (g - 1)):
        place = (slice(None), slice(z, z + g), slice(y, y + g), slice(x, x + g))
        total[place] += values[:, number]
        count[place] += 1
    found = _along_all(total / count, _coarser(g, 2 * g - 1))
    return torch.maximum(found, values.amin((1, 2, 3, 4))[:, None, None, None])


def _mean_square(tree: Tree, which: Sequence[int] | NDArray[np.int64], left: Tensor
                 ) -> NDArray[np.float64]:
    """Integral of squares over leaves, by their samples (n, ...) [V^2 A^3]."""
    sides = tree.spacing * tree.steps[which] * (tree.samples - 1)
    return left.square().flatten(1).mean(1).double().cpu().numpy() * sides**3


def deviation(field: Octree) -> NDArray[np.float64]:
    """Integral of the squared deviation from each leaf's mean [V^2 A^3], (n,).

    The published error of a leaf (Wang et al. 2023): it calls smooth slopes errors, too.
    """
    every = np.arange(len(field.tree.leaves))
    values = field.values.detach()
    return _mean_square(field.tree, every, values - values.mean((1, 2, 3), keepdim=True))


def detail(field: Octree) -> NDArray[np.float64]:
    """Integral of the square of what each leaf would lose with half the samples [V^2 A^3], (n,).

    The error of linear interpolation at twice the spacing, of which a 16th is expected here.
    """
    g = field.tree.samples
    half = (g + 2) // 2
    values = field.values.detach()
    matrix = _finer(half, g) @ _coarser(half, g)
    return _mean_square(field.tree, np.arange(len(values)), values - _along_all(values, matrix))


@dataclass(frozen=True)
class Change:
    """What an update does to a tree."""

    split: tuple[int, ...]
    """Numbers of leaves."""
    merge: tuple[tuple[int, ...], ...]
    """Numbers of the eight children of each parent, in the order z, y, x."""

    def __bool__(self) -> bool:
        return bool(self.split or self.merge)


def siblings(tree: Tree) -> list[tuple[int, ...]]:
    """Leaves by eight that have one parent."""
    found: dict[tuple[int, ...], dict[int, int]] = {}
    for number, (level, *place) in enumerate(tree.leaves.tolist()):
        if level > 0:
            z, y, x = place
            octant = z % 2 * 4 + y % 2 * 2 + x % 2
            found.setdefault((level, z // 2, y // 2, x // 2), {})[octant] = number
    return [tuple(group[n] for n in range(8)) for group in found.values() if len(group) == 8]


def loss_of_merging(field: Octree, groups: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
    """Integral of the squared difference of merged leaves from their children [V^2 A^3].

    Args:
        field: the octree.
        groups: of `siblings`.
    """
    if not groups:
        return np.zeros(0)
    values = field.values.detach()[torch.as_tensor(groups)]
    left = (children(parents(values)) - values).flatten(0, 1)
    return _mean_square(field.tree, np.array(groups).flatten(), left).reshape(-1, 8).sum(1)


def chosen(field: Octree, most: int, errors: NDArray[np.float64] | None = None) -> Change:
    """The splits and merges that leave the least error within a number of leaves.

    An integer programme: a leaf that is split gains what `detail` expects of finer samples; eight
    that are merged lose `loss_of_merging`.

    Args:
        field: the octree.
        most: leaves that it may have.
        errors: of the leaves, in the place of `detail`.

    Raises:
        ValueError: if even merging all that can be merged leaves more.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    tree = field.tree
    errors = detail(field) if errors is None else errors
    groups = siblings(tree)
    n, m = len(tree.leaves), len(groups)
    gains = errors * _GAIN * (1 - _GAIN)
    cost = np.concatenate([-gains, loss_of_merging(field, groups)])
    # Units would be the solver's tolerance.
    cost = cost / max(np.abs(cost).max(), 1e-300)
    most_of = np.concatenate([(tree.leaves[:, 0] < tree.depth).astype(float), np.ones(m)])
    leaves = np.concatenate([np.full(n, 7.0), np.full(m, -7.0)])
    rows = [LinearConstraint(leaves[None], -np.inf, most - n)]
    if m:
        either = np.zeros((8 * m, n + m))
        for number, group in enumerate(groups):
            for place, leaf in enumerate(group):
                either[8 * number + place, [leaf, n + number]] = 1
        from scipy.sparse import csr_matrix

        rows.append(LinearConstraint(csr_matrix(either), -np.inf, 1))
    found = milp(cost, integrality=np.ones(n + m), bounds=Bounds(0, most_of), constraints=rows)
    if found.x is None:
        raise ValueError(f"most={most}: must be no less than one update can leave of the {n} "
                         "leaves")
    taken = found.x > 0.5
    # What gains nothing is left as it is.
    split = np.flatnonzero(taken[:n] & (gains > 0))
    return Change(tuple(split.tolist()), tuple(
        group for group, yes in zip(groups, taken[n:], strict=True) if yes))


def changed(field: Octree, change: Change) -> Octree:
    """An octree with some leaves split and some merged; the others go first, as they are.

    Args:
        field: the octree.
        change: what to do.

    Raises:
        ValueError: if a leaf is already of the largest level or in two parts of the change, or
            eight have not one parent.
    """
    tree, values = field.tree, field.values.detach()
    merged = [leaf for group in change.merge for leaf in group]
    gone = [*change.split, *merged]
    if len(set(gone)) < len(gone):
        raise ValueError("change: must name each leaf once")
    if not set(change.merge) <= set(siblings(tree)):
        raise ValueError("change: must merge the eight children of one parent, in their order")
    kept = np.setdiff1d(np.arange(len(tree.leaves)), gone)
    leaves, parts = [tree.leaves[kept]], [values[torch.as_tensor(kept)]]
    if change.split:
        old = tree.leaves[list(change.split)]
        if (old[:, 0] >= tree.depth).any():
            raise ValueError(f"change: leaves of level depth={tree.depth} cannot be split")
        new = np.empty((len(old), 8, 4), old.dtype)
        new[..., 0] = old[:, :1] + 1
        new[..., 1:] = 2 * old[:, None, 1:] + _OCTANTS
        leaves.append(new.reshape(-1, 4))
        parts.append(children(values[list(change.split)]).flatten(0, 1))
    if change.merge:
        old = tree.leaves[[group[0] for group in change.merge]]
        leaves.append(np.concatenate([old[:, :1] - 1, old[:, 1:] // 2], axis=1))
        parts.append(parents(values[torch.as_tensor(change.merge)]))
    return Octree(replace(tree, leaves=np.concatenate(leaves)), torch.cat(parts))
