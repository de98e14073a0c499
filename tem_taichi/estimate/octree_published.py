"""Octrees of small grids as Wang et al. (2023) fit them.

No law of the noise, no lens, every image, strengths as given; RMSProp of what a softplus makes
values of. At first images have half the size, and every few passes leaves are split and merged;
then the tree stays and all pixels count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.octree_fit import Grown
from tem_taichi.estimate.octree_prior import Priors
from tem_taichi.estimate.octree_tree import Growth, coarser, halvings, on_tree, tree_of, updated
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram import Step
from tem_taichi.inverse.minimise import Optimiser, Values, minimise_parts
from tem_taichi.specimen.faces import Faces
from tem_taichi.specimen.octree import Octree, Tree, project_octree

_START = -2.0
"""Of the free numbers; softplus(-2) = 0.13 units."""
_LEAST = 1e-4
"""Softplus below which resampled values have no inverse of their own, in units."""


@dataclass(frozen=True)
class Schedule:
    """How the values are found."""

    coarse: int = 15
    """Passes through all images at half their size, while the tree changes."""
    fine: int = 10
    """Passes through all images after that."""
    updates: int = 3
    """Of the tree."""
    rate: float = 0.01
    """Length of a step of the free numbers."""
    batch: int = 1
    """Images a step, which share one writing of the finest grid."""
    priors: Priors = field(default_factory=Priors)
    method: str = "rmsprop"
    """Of `Optimiser`."""

    def __post_init__(self) -> None:
        for name in ("coarse", "fine", "updates", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")


def log_normalised(images: Tensor) -> Tensor:
    """log(I / max) / log(min / max) of all images: 0 where brightest, 1 where darkest.

    Args:
        images: (n, ny, nx), positive.

    Raises:
        ValueError: if a pixel is not positive, or all are the same.
    """
    low, high = images.min(), images.max()
    if not (low > 0 and high > low):
        raise ValueError(f"images: from {float(low):g} to {float(high):g}: must be positive and "
                         "not all the same")
    return torch.log(images / high) / torch.log(low / high)


def _free(values: Tensor, unit: float) -> Tensor:
    """The softplus's inverse."""
    y = (values / unit).clamp(min=_LEAST)
    return y + torch.log(-torch.expm1(-y))


def _field(tree: Tree, free: Tensor, unit: float) -> Octree:
    return Octree(tree, torch.nn.functional.softplus(free) * unit)


def published(series: Series, growth: Growth, schedule: Schedule, step: Step, kept: Kept) -> Grown:
    """As the paper.

    Args:
        series: images of logarithms already taken, from 0 to 1: `log_normalised`, or line integrals
            over their largest; pixels of weight 0 are left out.
        growth: of the tree; updates and smaller are those of the paper, half the size.
        schedule: of the fit.
        step: called after each step with the number of steps and how many there will be.
        kept: from where an interrupted run goes on.

    Returns:
        The field in the images' unit per A.
    """
    whole = tree_of(series, growth)
    unit = 1 / (series.rays.voxel * max(series.rays.grid))
    half = halvings(series, replace(growth, smaller=1))
    tree, n = coarser(whole, half), whole.samples
    free = as_tensor(torch.full((len(tree.leaves), n, n, n), _START))
    numbers, total = [], 0
    small = series.coarser() if half else series
    rounds = schedule.updates
    for number in range(rounds):
        passes = schedule.coarse * (number + 1) // rounds - schedule.coarse * number // rounds
        if passes:
            free, steps = _passed(small, tree, free, unit, schedule, passes, step,
                                  kept, f"coarse {number}")
            total += steps
        now = _field(tree, free, unit)
        if number == rounds - 1 and half:
            now = Octree(coarser(tree, -1), now.values)
        now = updated(now, growth.leaves)
        tree, free = now.tree, _free(now.values, unit)
        numbers.append(len(tree.leaves))
    free, steps = _passed(series, tree, free, unit, schedule, schedule.fine, step, kept, "fine")
    return Grown(_field(tree, free, unit), total + steps, tuple(numbers),
                 schedule.priors.variation)


def _passed(series: Series, tree: Tree, free: Tensor, unit: float, schedule: Schedule, passes: int,
            step: Step, kept: Kept, name: str) -> tuple[Tensor, int]:
    """Free numbers after some passes through all images, and steps."""
    seen = on_tree(series, tree)
    weights = (seen.weights > 0).to(seen.images)
    faces, count = Faces(tree), len(seen.images)

    def terms(values: Values, which: Sequence[int]) -> Iterator[Tensor]:
        rows = list(which)
        parts = project_octree(_field(tree, values["leaves"], unit), seen.rays.some(rows))
        left = (parts - seen.images[rows]) * weights[rows]
        yield left.square().sum() / 2 * (count / len(rows))
        yield schedule.priors.cost(tree, faces, values["leaves"], int(weights.sum()))

    steps = passes * -(-count // schedule.batch)
    how = Optimiser(schedule.method, steps, rate=schedule.rate, batch=schedule.batch,
                    betas=(0.9, 0.99), patience=steps)
    found = minimise_parts(terms, {"leaves": free}, list(range(count)), optimiser=how,
                           progress=lambda n, *_: step(n, steps), state_file=kept.state(name))
    return found.values["leaves"], found.steps
