"""A tomogram as an octree of small grids, refined where the images ask for it.

The field, nowhere below 0, whose images are the most probable, with the priors of `octree_prior`.
Images of a quarter and of half the size come first, on a tree as coarse, which is split and merged
after each; then the tree stays, and total variation gives back in rounds the contrast that it takes
(`inverse.rounds`), as many as explain images held out best. All images are made in one projection,
and steps are quasi-Newton's (`inverse.accelerated`). Wang et al. (2023) fit such trees otherwise:
`octree_published`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.octree_model import (
    gradient,
    metric_of,
    misfit,
)
from tem_taichi.estimate.octree_prior import LeafPrior, Ratios
from tem_taichi.estimate.octree_tree import Growth, coarser, halvings, on_tree, tree_of, updated
from tem_taichi.estimate.tilt_images import Series, held_out
from tem_taichi.estimate.tomogram import Step, iterate, stopped
from tem_taichi.estimate.tomogram_model import Explained, typical_slope
from tem_taichi.inverse.accelerated import Accelerated
from tem_taichi.inverse.rounds import Rounds
from tem_taichi.specimen.octree import Octree, Tree, packed

Imaging = Callable[[Series, Sequence[int]], Explained]
"""Of all images of a series, on a tree and of some size, those of some numbers."""

_CORNER = 0.02
"""Differences of neighbouring nodes that cost their square rather than themselves, in units."""
_SMALL, _LAST = 3e-4, 5
"""Of all that a fit lessened its loss by: what it does in so many steps where it ends."""
_STRENGTH, _OF_ROUNDS = 0.5, 4.0
"""Of the priors while the tree grows, and of the total variation in each round after that, in what
noise does to the slope by a node."""
_STEPS = 24
"""Of a round: to end it by its own progress gives nothing here."""


@dataclass(frozen=True)
class Settings:
    """Of the fit."""

    growth: Growth = field(default_factory=Growth)
    steps: int = 120
    """At most, with a tree and a strength."""
    ratios: Ratios = field(default_factory=Ratios)
    strength: float | None = None
    """Of the priors, in what noise does to the slope by a node, of a fit to its end; None = by
    rounds."""
    rounds: int = 50
    """At most; as many where nothing is held out."""
    every: int = 8
    """One image of so many is held out; 0 = none."""
    unit: float = 1.0
    """Of the field, where a value is about 1."""

    def __post_init__(self) -> None:
        for name in ("steps", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")


@dataclass(frozen=True, eq=False)
class Grown:
    """What was found."""

    field: Octree
    steps: int
    """In all."""
    leaves: tuple[int, ...]
    """Number after each update."""
    strength: float
    """Of the total variation: in what noise does to the slope by a node, or as published."""
    held_out: tuple[float, ...] = ()
    """Misfit of the images held out after each round, over that of an even field, which comes
    first."""
    rounds: int = 0
    """With all images."""

    @property
    def file(self) -> bytes:
        """What `specimen.octree.load` reads."""
        return packed(self.field)


class _Fit:
    """Values of leaves by a series; counts steps."""

    def __init__(self, series: Series, imaging: Imaging, settings: Settings, step: Step,
                 kept: Kept) -> None:
        self.series, self.imaging, self.settings, self.kept = series, imaging, settings, kept
        self.steps, self._step = 0, step
        numbers = list(range(len(series.images)))
        self.shown, self.hidden = (held_out(series, settings.every) if settings.every
                                   else (numbers, []))
        self.every = numbers

    def images(self, tree: Tree, which: Sequence[int]) -> Explained:
        """Some images, as coarse as the tree."""
        series = self.series
        while series.rays.pixel < 0.75 * self.pixel(tree):
            series = series.coarser()
        return self.imaging(on_tree(series, tree), which)

    def pixel(self, tree: Tree) -> float:
        """Of images for a tree."""
        return self.series.rays.pixel * 2**(self.whole.depth - tree.depth)

    @property
    def whole(self) -> Tree:
        """Of which all trees are parts."""
        return tree_of(self.series, self.settings.growth)

    def solved(self, name: str, start: Octree, strength: float, which: Sequence[int]) -> Octree:
        """Values of a tree that explain some images best."""
        tree, settings = start.tree, self.settings

        def compute() -> Tensor:
            images = self.images(tree, which)
            by_voxel = tree.spacing / self.whole.spacing
            prior = LeafPrior(tree, strength * typical_slope(images),
                              _CORNER * settings.unit * by_voxel, settings.unit, settings.ratios)

            def slope(values: Tensor) -> tuple[float, Tensor]:
                total, found = gradient(images, tree, values)
                cost, way = prior.slope(values)
                return total + cost, found.add_(way)

            metric = metric_of(images, tree, settings.unit).plus(prior.curvature())
            run = Accelerated(slope, start.values, metric, positive=True)

            def more(losses: list[float]) -> bool:
                ends = len(losses) > _LAST + 1 and (
                    losses[-1 - _LAST] - losses[-1] <= _SMALL * (losses[1] - losses[-1]))
                return len(losses) <= settings.steps and not ends

            losses = iterate(run, more, lambda values: run.loss,
                             lambda done: self._step(done, settings.steps), self.kept.state(name))
            self.steps += len(losses) - 1
            return run.volume

        return Octree(tree, self.kept.picture(name, start.values, compute))

    def rounds(self, tree: Tree, which: Sequence[int]) -> Rounds:
        """Of values of a tree that explain some images, from a field of 0."""
        settings, images = self.settings, self.images(tree, which)
        unit = typical_slope(self.images(tree, self.every))

        def prior(strength: float, ratios: Ratios) -> LeafPrior:
            return LeafPrior(tree, strength * unit, _CORNER * settings.unit, settings.unit, ratios)

        ties, variation = prior(_STRENGTH, settings.ratios), prior(_OF_ROUNDS, Ratios(boundary=0))

        def misfit_and_ties(values: Tensor) -> tuple[float, Tensor]:
            total, slope = gradient(images, tree, values)
            cost, way = ties.ties(values)
            return total + cost, slope.add_(way)

        metric = metric_of(images, tree, settings.unit).plus(
            ties.curvature() + variation.curvature())
        return Rounds(misfit_and_ties, variation.variation, self.empty(tree), metric,
                      positive=True, small=0.0, steps=_STEPS)

    def by_rounds(self, tree: Tree) -> tuple[Octree, int, tuple[float, ...]]:
        """Values of a tree by all images, their rounds, and what was left of those held out."""
        left = None
        if self.hidden:
            hidden = self.images(tree, self.hidden)
            even = misfit(hidden, tree, self.empty(tree))

            def left(values: Tensor) -> float:
                return misfit(hidden, tree, values) / even

        values, number, curve = stopped(
            lambda shown: self.rounds(tree, self.shown if shown else self.every), left,
            self.settings.rounds, self._step, self.kept)
        # Those of an interrupted run as well.
        self.steps += _STEPS * (number + max(len(curve) - 1, 0))
        return Octree(tree, values), number, curve

    def empty(self, tree: Tree) -> Tensor:
        """Values of a field of 0."""
        n = tree.samples
        return as_tensor(torch.zeros((len(tree.leaves), n, n, n)))


def fitted(series: Series, imaging: Imaging, settings: Settings, step: Step, kept: Kept) -> Grown:
    """The field whose images are the most probable.

    Args:
        series: images and the grid.
        imaging: what explains them: of all images of the series, on the tree's finest grid and of
            some size, and the numbers of those that are meant.
        settings: of the fit.
        step: called after each step with the number of steps and how many there will be at most,
            with this tree and strength.
        kept: from where an interrupted run goes on.
    """
    fit = _Fit(series, imaging, settings, step, kept)
    growth = settings.growth
    times = halvings(series, growth)
    tree = coarser(fit.whole, times)
    now = Octree(tree, fit.empty(tree))
    given = settings.strength
    strength = _STRENGTH if given is None else given
    numbers: list[int] = []
    for left in range(times, 0, -1):
        for number in range(growth.updates):
            now = fit.solved(f"grow {left} {number}", now, strength, fit.shown)
            after = updated(now, growth.leaves)
            if after is now or number == growth.updates - 1:
                break
            now = after
            numbers.append(len(now.tree.leaves))
        now = updated(Octree(coarser(now.tree, -1), now.values), growth.leaves)
        numbers.append(len(now.tree.leaves))
    # What small images cannot show yet, or where there are none.
    for number in range(growth.depth - growth.start - times):
        now = updated(fit.solved(f"grow 0 {number}", now, strength, fit.shown), growth.leaves)
        numbers.append(len(now.tree.leaves))
    if given is not None:
        last = fit.solved("all", now, given, fit.every)
        return Grown(last, fit.steps, tuple(numbers), given)
    last, rounds, curve = fit.by_rounds(now.tree)
    return Grown(last, fit.steps, tuple(numbers), _OF_ROUNDS, curve, rounds)
