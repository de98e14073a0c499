"""A tomogram as an octree of small grids, refined where the images ask for it (Wang et al. 2023).

At first the images are compared at half their size, and every few passes leaves are split and
merged; then the tree stays and all pixels count. Values are positive by a softplus. The priors are
total variation, agreement of neighbouring leaves on their faces, and likeness of their lines
(`inverse.priors`). `fitted` explains images by any instrument and the noise law of `tomogram_fit`,
with the strength chosen by images held out; `published` does as the paper: logarithms between the
darkest and the brightest pixel, squared differences, RMSProp, given strengths.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.tilt_images import Series, held_out
from tem_taichi.estimate.tomogram import Step
from tem_taichi.estimate.tomogram_fit import Brightened, Whitened
from tem_taichi.experiment import Experiment, Instrument
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.projection import Projection
from tem_taichi.inverse.minimise import Fit, Optimiser, Values
from tem_taichi.inverse.priors import cells_variation, consistent, non_local
from tem_taichi.inverse.problem import Problem, fit
from tem_taichi.specimen.faces import Faces
from tem_taichi.specimen.field import Sampled
from tem_taichi.specimen.octree import Octree, Tree, uniform
from tem_taichi.specimen.refinement import changed, chosen
from tem_taichi.specimen.view import Specimen
from tem_taichi.streams import Key

_START = -2.0
"""Of the free numbers; softplus(-2) = 0.13 units."""
_LEAST = 1e-4
"""Softplus below which resampled values have no inverse of their own, in units."""
_CORNER = 0.02
"""Differences of free numbers that cost their square rather than themselves."""
_PAIRS = 8
"""Leaves that are compared with another one in a step."""


@dataclass(frozen=True)
class Priors:
    """Strengths: what the mean over all leaves, faces and lines costs, in the images' mean square.

    They are of the free numbers, before the softplus, as published.
    """

    variation: float = 4e-4
    """Of the mean of |gradient| by finest sample."""
    boundary: float = 2e-4
    """Of the mean squared difference on common faces."""
    non_local: float = 1e-6
    """Of the mean squared difference from the means of another leaf's lines."""


WHITENED = Priors(0.1, 0.05, 1e-3)
"""As much beside noise of deviation 1, as `fitted` has it, as the default beside 0.05."""


@dataclass(frozen=True)
class Plan:
    """How a tree grows and its values are found."""

    samples: int = 12
    """Along a leaf's side."""
    depth: int = 3
    """Largest level."""
    leaves: int = 320
    """At most."""
    coarse: int = 15
    """Passes through all images at half their size, while the tree changes."""
    fine: int = 10
    """Passes through all images after that."""
    updates: int = 3
    """Of the tree."""
    start: int = 1
    """Level of all leaves at first."""
    rate: float = 0.01
    """Length of a step of the free numbers."""
    batch: int = 1
    """Images a step."""
    priors: Priors = field(default_factory=Priors)
    strengths: tuple[float, ...] = (3.0, 1.0, 0.3)
    """Factors of the total variation's strength that `fitted` tries one after another, while images
    held out are explained better."""
    method: str = "rmsprop"
    """Of `Optimiser`."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.depth:
            raise ValueError(f"start={self.start}: must be from 0 to depth={self.depth}")
        if self.leaves < 8**self.start:
            raise ValueError(f"leaves={self.leaves}: must be at least the {8**self.start} of level "
                             f"start={self.start}")
        for name in ("coarse", "fine", "updates", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not self.priors.variation > 0:
            raise ValueError(f"variation={self.priors.variation}: must be positive")

    def stronger(self, factor: float) -> "Plan":
        """With another strength of the total variation."""
        return replace(self, priors=replace(self.priors, variation=factor * self.priors.variation))


@dataclass(frozen=True, eq=False)
class Grown:
    """What was found."""

    field: Octree
    """In the series' unit, or [V]."""
    steps: int
    leaves: tuple[int, ...]
    """Number after each update."""
    variation: float
    """Strength of that prior, as given or chosen."""
    held_out: tuple[float, ...] = ()
    """Misfit of the images held out after each pass at that strength, from that before them, over
    that of the grown tree."""


@dataclass(frozen=True)
class Shadow(Projection):
    """What passes a specimen without refraction: its line integrals L, or exp(-L)."""

    absorbs: bool = True
    """Whether it is exp(-L)."""

    def intensity(self, specimen: Specimen, exposure: Exposure) -> Tensor:
        """(ny, nx) [1]."""
        total = specimen.slices(self.view(specimen, exposure), 0, 1)[0]
        return torch.exp(-total) if self.absorbs else total


@dataclass(frozen=True)
class Halved:
    """An instrument whose images are of half the size: the mean of 2 x 2 pixels."""

    whole: Instrument

    def intensity(self, specimen: Specimen, exposure: Exposure) -> Tensor:
        """(ny // 2, nx // 2)."""
        return halved(self.whole.intensity(specimen, exposure)[None])[0]


def halved(images: Tensor) -> Tensor:
    """Means of 2 x 2 pixels, (n, ny // 2, nx // 2)."""
    return torch.nn.functional.avg_pool2d(images[:, None], 2)[:, 0]


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


def tree_of(series: Series, plan: Plan) -> Tree:
    """A tree with samples as far apart as the series' voxels that holds their grid."""
    side = 2**plan.depth * (plan.samples - 1)
    z, y, x = (max(1, math.ceil((n - 1) / side)) for n in series.rays.grid)
    return uniform((z, y, x), plan.start, plan.depth, plan.samples, series.rays.voxel)


def volume_of(found: Octree, grid: tuple[int, int, int]) -> Tensor:
    """The voxels of a grid with the same middle, some planes at a time, (nz, ny, nx)."""
    starts = [have // 2 - want // 2 for have, want in zip(found.tree.shape, grid, strict=True)]
    (z, y, x), (nz, ny, nx) = starts, grid
    if min(starts) < 0 or any(s + n > m for s, n, m in zip(starts, grid, found.tree.shape,
                                                          strict=True)):
        raise ValueError(f"grid={grid}: must lie within the tree's {found.tree.shape}")
    out = found.values.new_empty(grid)
    first = 0
    for planes in found.export():
        low, high = max(z, first), min(z + nz, first + len(planes))
        if low < high:
            out[low - z:high - z] = planes[low - first:high - first, y:y + ny, x:x + nx]
        first += len(planes)
    return out


def _free(values: Tensor, unit: float) -> Tensor:
    """The softplus's inverse."""
    y = (values / unit).clamp(min=_LEAST)
    return y + torch.log(-torch.expm1(-y))


def _prior(tree: Tree, priors: Priors, pixels: int, seed: int) -> Callable[[Values], Tensor]:
    """Minus the log of the prior density, where images count as sum of squares / 2."""
    faces, sizes = Faces(tree), as_tensor(tree.steps)
    volume = float((tree.steps**3).sum()) * (tree.samples - 1)**3

    def prior(values: Values) -> Tensor:
        free = values["leaves"]
        total = cells_variation(free, sizes, volume / (pixels / 2 * priors.variation), _CORNER)
        if priors.boundary and len(free) > 1:
            one, other, areas = faces.sides(free)
            scale = float(areas.sum()) * one[0].numel()
            total = total + consistent(one, other, areas, (scale / pixels / priors.boundary)**0.5)
        if priors.non_local and len(free) > 1:
            # The values decide what is drawn: a run that goes on draws what it would have drawn.
            number = int(free.detach().double().abs().sum() * 1e6) % (1 << 31)
            draw = Key(seed, "batches", number).generator()
            n = min(_PAIRS, len(free))
            a = torch.as_tensor(draw.choice(len(free), n, replace=False))
            b = (a + torch.as_tensor(draw.integers(1, len(free), n))) % len(free)
            scale = free[a].numel() / pixels / priors.non_local
            total = total + non_local(free[a], free[b], scale**0.5)
        return total

    return prior


@dataclass(frozen=True, eq=False)
class _Task:
    """Images, and what explains them."""

    instrument: Instrument
    exposures: Sequence[Exposure]
    counts: Tensor
    unit: float
    """Of the values, where the free numbers are about 1."""

    def half(self) -> "_Task":
        """At half the size: means of four pixels have half of the noise."""
        counts = 2 * halved(self.counts)
        return replace(self, instrument=Halved(self.instrument), counts=counts, exposures=[
            replace(exposure, dose=2 * exposure.dose) for exposure in self.exposures])

    def solve(self, tree: Tree, free: Values, plan: Plan, passes: int, held: tuple[int, ...],
              step: Step, kept: Kept, name: str) -> Fit:
        """Values on a tree as it is."""
        def build(values: Values) -> Experiment:
            found = Octree(tree, torch.nn.functional.softplus(values["leaves"]) * self.unit)
            seen = self.exposures
            if "brightness" in values:
                seen = Brightened(seen, values["brightness"])
            return Experiment(Sampled(found, found.size, tree.spacing), self.instrument,
                              Whitened(), seen)

        shown = [n for n in range(len(self.counts)) if n not in held]
        pixels = int(self.counts[shown].isfinite().sum())
        problem = Problem(free, build, self.counts, _prior(tree, plan.priors, pixels, 0), held,
                          {"brightness": 0.01} if "brightness" in free else {})
        steps = passes * -(-len(shown) // plan.batch)
        how = Optimiser(plan.method, steps, rate=plan.rate, batch=plan.batch, betas=(0.9, 0.99),
                        patience=3)
        return fit(problem, how, progress=lambda n, *_: step(n, steps),
                   state_file=kept.state(f"octree {name}"))


def _grow(task: _Task, tree: Tree, plan: Plan, free: Values, held: tuple[int, ...], step: Step,
          kept: Kept) -> tuple[Tree, Values, tuple[int, ...], int]:
    """Tree and values by images of half the size, leaves after each update, and all steps."""
    half, numbers, total = task.half(), [], 0
    rounds = plan.updates + 1
    for number in range(rounds):
        passes = plan.coarse * (number + 1) // rounds - plan.coarse * number // rounds
        if passes:
            found = half.solve(tree, free, plan, passes, held, step, kept, f"coarse {number}")
            free, total = found.values, total + found.steps
        if number < plan.updates:
            now = _field(task, tree, free)
            now = changed(now, chosen(now, plan.leaves))
            tree = now.tree
            free = {**free, "leaves": _free(now.values, task.unit)}
            numbers.append(len(tree.leaves))
    return tree, free, tuple(numbers), total


def _field(task: _Task, tree: Tree, free: Values) -> Octree:
    return Octree(tree, torch.nn.functional.softplus(free["leaves"]) * task.unit)


def published(images: Tensor, series: Series, exposures: Sequence[Exposure], plan: Plan,
              step: Step, kept: Kept) -> Grown:
    """As the paper: no law of the noise, no lens, every image, strengths as given.

    Args:
        images: (n, ny, nx), logarithms already taken, from 0 to 1: `log_normalised`, or line
            integrals over their largest.
        series: how they see the grid.
        exposures: their tilts and shifts; doses are not used.
        plan: of the fit.
        step: called after each step with the number of steps and how many there will be.
        kept: from where an interrupted run goes on.

    Returns:
        The field in the images' unit per A.
    """
    shape = series.rays.shape
    tree = tree_of(series, plan)
    unit = 1 / (series.rays.voxel * max(tree.shape))
    task = _Task(Shadow(shape, shape, series.rays.pixel, absorbs=False),
                 [replace(exposure, dose=1.0) for exposure in exposures], as_tensor(images), unit)
    free = {"leaves": _leaves(tree)}
    tree, free, numbers, steps = _grow(task, tree, plan, free, (), step, kept)
    last = task.solve(tree, free, plan, plan.fine, (), step, kept, "fine")
    return Grown(_field(task, tree, last.values), steps + last.steps, numbers,
                 plan.priors.variation)


def _leaves(tree: Tree) -> Tensor:
    n = tree.samples
    return as_tensor(torch.full((len(tree.leaves), n, n, n), _START))


def fitted(series: Series, exposures: Sequence[Exposure], instrument: Instrument, unit: float,
           plan: Plan, every: int, step: Step, kept: Kept) -> Grown:
    """The field whose images are the most probable.

    Args:
        series: images as `tomography.contrast` and the grid.
        exposures: doses are one over the noise of each image relative to its mean, as of
            `tomogram_fit.exposures_of`.
        instrument: what makes intensities of the field, relative to the mean: `Shadow` or a
            `Projection`.
        unit: of the field where the free numbers are about 1, [V] or [1/A].
        plan: of the fit.
        every: one image of so many is held out, from the growing tree too, and chooses the
            strength of the total variation; all are used at the end. 0 = none.
        step: as in `published`.
        kept: as in `published`.
    """
    doses = as_tensor([float(exposure.dose) for exposure in exposures])
    counts = torch.where(series.weights > 0, (1 - series.images) * doses[:, None, None], torch.nan)
    held = tuple(held_out(series, every)[1]) if every else ()
    tree = tree_of(series, plan)
    task = _Task(instrument, exposures, counts, unit)
    free: Values = {"leaves": _leaves(tree), "brightness": torch.ones_like(doses)}
    tree, free, numbers, steps = _grow(task, tree, plan, free, held, step, kept)
    best: Fit | None = None
    strength, before = plan.priors.variation, 1.0
    curve: tuple[float, ...] = ()
    for factor in plan.strengths if held else ():
        tried = task.solve(tree, free if best is None else best.values, plan.stronger(factor),
                           plan.fine, held, step, kept, f"held out {factor}")
        steps += tried.steps
        if best is not None and min(tried.held_out) >= min(best.held_out):
            break
        if best is None:
            before = tried.held_out[0]
        best, strength = tried, factor * plan.priors.variation
        curve = tuple(value / before for value in tried.held_out)
    last = task.solve(tree, free if best is None else best.values,
                      plan.stronger(strength / plan.priors.variation), plan.fine, (), step, kept,
                      "all")
    return Grown(_field(task, tree, last.values), steps + last.steps, numbers, strength, curve)
