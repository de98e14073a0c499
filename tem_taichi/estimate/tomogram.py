"""A tomogram of a tilt series by the linear methods, and when to stop them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.tilt_images import Series, band, held_out
from tem_taichi.inverse.tomography import Sirt, weighted_back_projection
from tem_taichi.specimen.rays import project

Step = Callable[[int, int], None]
"""Called with the iterations done and how many there will be at most."""

_PATIENCE = 3
"""Iterations in a row, each no better than the one before, that end the search for the best."""
_STRENGTHS = (0.3, 1.0, 3.0)
"""Of the total variation that are tried, in typical differences of the first iteration's voxels."""
_SAVE_EVERY = 20.0
"""Seconds between two writings of what an interrupted run goes on from."""


def left_of(series: Series, volume: Tensor) -> float:
    """Variance of what a volume leaves of the images over that of the images, of each alone."""
    with torch.no_grad():
        left = series.images - project(volume, series.rays)
        return _variance(left, series.weights) / _variance(series.images, series.weights)


def _variance(images: Tensor, weights: Tensor) -> float:
    """Mean over all pixels of the squared difference from their image's mean."""
    count = weights.sum((1, 2), keepdim=True).clamp(min=1e-30)
    mean = (images * weights).sum((1, 2), keepdim=True) / count
    return float(((images - mean).square() * weights).sum() / count.sum())


@dataclass(frozen=True, eq=False)
class Tomogram:
    """What a method found."""

    volume: Tensor
    """Without the margin, (nz, ny, nx): contrast per length [1/A], matter positive."""
    whole: Tensor
    """With it."""
    iterations: int = 0
    """Of an iterative method."""
    tv: float = 0.0
    """Strength of the total variation."""
    held_out: tuple[float, ...] = ()
    """What was left of the images held out after each iteration at that strength, from 0; see
    `left_of`."""


def back_projected(series: Series, resolution: float) -> Tomogram:
    """By `weighted_back_projection`."""
    whole = weighted_back_projection(series.images, series.rays, resolution)
    return Tomogram(series.field(whole), whole)


def iterated(series: Series, iterations: int, tv: float | None, positive: bool, every: int,
             step: Step, kept: Kept) -> Tomogram:
    """By SIRT, stopped where images held out are explained best, those of a `band`.

    Args:
        series: images and how they see the grid.
        iterations: at most; as many where nothing is held out.
        tv: strength of the total variation; None = that of `_STRENGTHS` which explains the images
            held out best.
        positive: whether to keep the volume from falling below 0.
        every: one image of so many is held out to find when to stop; all are used then. 0 = none.
        step: called after each iteration.
        kept: from where an interrupted run goes on.

    Raises:
        ValueError: if tv is None and nothing is held out.
    """
    if tv is None and not every:
        raise ValueError("tv=null: needs held_out, by which the strength is chosen")
    number, found = iterations, tv or 0.0
    curve: tuple[float, ...] = ()
    if every:
        found, curve = _best(series, iterations, tv, positive, every, step, kept)
        number = max(1, int(np.argmin(curve)))
    run = _sirt(series, found, positive)
    iterate(run, lambda curve: len(curve) <= number, lambda volume: 0.0,
             lambda done: step(done, number), kept.state(f"all {found}"))
    return Tomogram(series.field(run.volume), run.volume, number, found, curve)


def _best(series: Series, iterations: int, tv: float | None, positive: bool, every: int,
          step: Step, kept: Kept) -> tuple[float, tuple[float, ...]]:
    """Strength, and the curve of what was held out, of a band."""
    part = band(series)
    shown, hidden = (part.some(which) for which in held_out(part, every))
    strengths: Sequence[float] = [tv] if tv is not None else []
    if tv is None:
        first = _sirt(shown, 0.0, positive)
        first.step()
        typical = 1.4826 * float(torch.stack([
            first.volume.diff(dim=axis).abs().median() for axis in (1, 2)]).mean())
        strengths = [part * typical for part in _STRENGTHS]
    tried = []
    for strength in strengths:
        curve = kept.numbers(f"held out {strength}", partial(
            judged, _sirt(shown, strength, positive), partial(left_of, hidden), iterations, step,
            kept.state(f"held out {strength}")))
        tried.append((min(curve), strength, tuple(curve)))
    return min(tried)[1:]


class Run(Protocol):
    """An iterative method at work."""

    @property
    def volume(self) -> Tensor:
        """So far."""

    def step(self) -> float:
        """One iteration."""

    def state(self) -> dict[str, Tensor]:
        """What changes."""

    def resume(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""


def judged(run: Run, judge: Callable[[Tensor], float], iterations: int, step: Step,
           file: Path | None) -> list[float]:
    """What is left of the images held out, until it gets ever more.

    Args:
        run: of the other images, at its start.
        judge: of a volume, 1 for an even one.
        iterations: at most.
        step: called after each.
        file: where its state is kept.
    """
    # A few rounds may do harm before the next ones do good: of EMPIAR-10499 the second leaves
    # 0.088, the fourth 0.089, the fourteenth 0.083.
    curve = iterate(run, lambda curve: len(curve) <= iterations and (
        len(curve) <= _PATIENCE or bool((np.diff(curve[-1 - _PATIENCE:]) < 0).any())), judge,
        lambda done: step(done, iterations), file)
    if file is not None:
        file.unlink(missing_ok=True)
    return curve


def stopped(make: Callable[[bool], Run], judge: Callable[[Tensor], float] | None, iterations: int,
            step: Step, kept: Kept) -> tuple[Tensor, int, tuple[float, ...]]:
    """A run by all images, as long as one by those shown explains the ones held out ever better.

    Args:
        make: a run at its start, of all images, or of those shown.
        judge: of what those shown tell, 1 for an even volume; None = none are held out.
        iterations: at most; as many where nothing is held out.
        step: called after each.
        kept: from where an interrupted run goes on.

    Returns:
        The volume, after how many iterations, and what was left of the images held out after each.
    """
    number, curve = iterations, tuple[float, ...]()
    if judge is not None:
        curve = tuple(kept.numbers("held out", lambda: judged(
            make(True), judge, iterations, step, kept.state("held out"))))
        number = max(1, int(np.argmin(curve)))
    run = make(False)
    iterate(run, lambda done: len(done) <= number, lambda volume: 0.0,
            lambda done: step(done, number), kept.state("all"))
    return run.volume, number, curve


def iterate(run: Run, more: Callable[[list[float]], bool], judge: Callable[[Tensor], float],
            step: Callable[[int], None], file: Path | None) -> list[float]:
    """Iterations while there are more to do, from where an interrupted run left; their judgement.

    Args:
        run: which goes on.
        more: whether to go on, by the judgement so far.
        judge: of the volume after each iteration; 1 stands for that they begin with.
        step: called with how many are done.
        file: where its state is kept; None = nowhere.
    """
    curve = [1.0]
    if file is not None and file.is_file():
        state = torch.load(file, weights_only=True)
        curve = state.pop("curve").tolist()
        run.resume(state)

    def save() -> None:
        if file is not None:
            whole = file.with_suffix(".json.partial")
            torch.save({"curve": torch.tensor(curve, dtype=torch.float64), **run.state()}, whole)
            whole.replace(file)

    saved = time.monotonic()
    try:
        while more(curve):
            run.step()
            curve.append(judge(run.volume))
            step(len(curve) - 1)
            if time.monotonic() - saved > _SAVE_EVERY:
                save()
                saved = time.monotonic()
    except BaseException:
        save()
        raise
    return curve


def _sirt(series: Series, tv: float, positive: bool) -> Sirt:
    return Sirt(series.images, series.rays, weights=series.weights, tv=tv, positive=positive,
                levels=True)
