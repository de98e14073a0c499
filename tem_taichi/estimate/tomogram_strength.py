"""A tomogram's fit at one strength of its prior, and which strength explains other images best.

Fits go from strong to weak, each from the volume of that before, to their end: what a fit would
explain that was stopped early says little of one that goes on. How much contrast a specimen has is
left free where images held out are judged: total variation takes some off, in proportion to its
strength, which says nothing of what it does to shapes.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.tilt_images import Series, finer
from tem_taichi.estimate.tomogram import Step, iterate
from tem_taichi.estimate.tomogram_model import Model
from tem_taichi.inverse.accelerated import Accelerated, metric_of
from tem_taichi.inverse.priors import total_variation_curvature, total_variation_slope

_CORNER = 0.1
"""Differences of voxels that cost their square rather than themselves [V]."""
_LAST, _SMALL = 5, 0.001
"""Steps that end a fit where they took no more than that part of all that the loss has fallen from
an even specimen's."""
_MOST = 9
"""Strengths that are tried, where no more must be."""


class Fit:
    """Of a volume to images, by steps."""

    def __init__(self, model: Model, positive: bool) -> None:
        """What does not depend on the prior.

        Args:
            model: of the images.
            positive: whether the potential is kept from falling below 0.
        """
        self.model, self.positive = model, positive
        self.start = even(model.series)
        self.metric = metric_of(model.gradient, self.start)
        self.whole = model.misfit(self.start)

    def run(self, tv: float, start: Tensor) -> Accelerated:
        """With a strength of the prior [1/V], from a volume."""
        def gradient(volume: Tensor) -> tuple[float, Tensor]:
            misfit, slope = self.model.gradient(volume)
            cost, by_cost = total_variation_slope(volume, 1 / tv, _CORNER)
            return misfit + cost, slope.add_(by_cost)

        start = torch.empty_like(self.start).copy_(start)
        curved = total_variation_curvature(start.permute(self.metric.order), 1 / tv, _CORNER)
        return Accelerated(gradient, start, self.metric.plus(curved), self.positive)

    def settled(self, run: Accelerated, judge: Callable[[Tensor], float], passes: int, step: Step,
                file: Path | None) -> list[float]:
        """Steps until they hardly lessen the loss; the judgement after each, after a first 1.

        Args:
            run: at its start.
            judge: of a volume.
            passes: steps at most.
            step: called after each.
            file: where its state is kept.
        """
        def more(curve: list[float]) -> bool:
            losses = run.losses
            ends = len(losses) > _LAST and (
                losses[-1 - _LAST] - losses[-1] <= _SMALL * (self.whole - losses[-1]))
            return len(curve) <= passes and not ends

        return iterate(run, more, judge, lambda done: step(done, passes), file)


class Trials:
    """Fits of some images at several strengths, by what they leave of others."""

    def __init__(self, shown: Model, hidden: Model, *, unit: float, start: Tensor | None,
                 positive: bool, passes: int, step: Step, kept: Kept) -> None:
        """None yet.

        Args:
            shown: images that are fitted.
            hidden: those held out.
            unit: of strengths [1/V].
            start: volume of the first fit, also one of wider voxels; None = an even one.
            positive: as of `Fit`.
            passes: steps of each at most.
            step: called after each.
            kept: from where an interrupted run goes on.
        """
        self.fit, self.hidden, self.unit = Fit(shown, positive), hidden, unit
        self.whole = hidden.misfit(self.fit.start)
        self.passes, self.step, self.kept = passes, step, kept
        self.found: dict[float, tuple[Tensor, tuple[float, ...]]] = {}
        self.start = self.fit.start if start is None else finer(start, self.fit.start.shape)

    def left(self, strength: float) -> float:
        """Of the images held out, with any contrast, over that of an even specimen."""
        volume, _ = self._tried(strength)
        return self.hidden.misfit_of_shapes(volume) / self.whole

    def fitted(self, strength: float) -> tuple[Tensor, tuple[float, ...]]:
        """The volume of the nearest strength tried, and its curve of what was left at each step."""
        if not self.found:
            return self._tried(strength)
        return self.found[min(self.found, key=lambda one: abs(np.log(one / strength)))]

    def _tried(self, strength: float) -> tuple[Tensor, tuple[float, ...]]:
        name = f"held out {strength} {self.fit.model.series.rays.voxel}"
        run = self.fit.run(strength * self.unit, self.start)
        file = self.kept.state(name)

        def settle() -> list[float]:
            curve = self.fit.settled(run, lambda volume: self.hidden.misfit(volume) / self.whole,
                                     self.passes, self.step, file)
            self.kept.picture(f"{name} volume", self.start, lambda: run.volume)
            return curve

        curve = tuple(self.kept.numbers(name, settle))
        volume = self.kept.picture(f"{name} volume", self.start, lambda: run.volume)
        if file is not None:
            file.unlink(missing_ok=True)
        self.start = volume
        self.found[strength] = volume, curve
        return volume, curve


def least(left: Callable[[float], float], first: float, ratio: float, count: int) -> float:
    """Strength that leaves the least: of the parabola, in its logarithm, about the best one tried.

    Args:
        left: of a strength.
        first: strength.
        ratio: of neighbours.
        count: how many are tried in any case, from the first to weaker ones; more until the best
            has neighbours on either side.
    """
    tried = {-n: left(first / ratio**n) for n in range(count)}
    while True:
        best = min(tried, key=lambda n: tried[n])
        beside = [n for n in (best - 1, best + 1) if n not in tried]
        if not beside or len(tried) >= _MOST:
            break
        tried[beside[0]] = left(first * ratio**beside[0])
    bend = 0.0 if beside else tried[best - 1] + tried[best + 1] - 2 * tried[best]
    beyond = (tried[best - 1] - tried[best + 1]) / (2 * bend) if bend > 0 else 0.0
    return float(first * ratio**(best + beyond))


def typical_slope(model: Model) -> float:
    """Slope of the misfit by a voxel at the start, of those that are mostly noise [1/V]."""
    slope = model.gradient(even(model.series))[1]
    return max(1.4826 * float(slope[::2, ::2, ::2].abs().median()), 1e-30)


def even(series: Series) -> Tensor:
    """A volume of 0, in memory as projections take it."""
    nz, ny, nx = series.rays.grid
    return torch.zeros((nz, nx, ny), dtype=series.images.dtype,
                       device=series.images.device).transpose(1, 2)
