"""Shifts, tilt axis and tilt angles of a series by the likelihood of all its images together.

From coarse to fine, each time from the spectra that the images have at the poses so far. Poses that
only move or turn the specimen as a whole are kept as they are: of all tables that explain the
images alike, the one whose shifts and tilts are changed least, in the mean of squares.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tem_taichi.estimate.free_poses import DEVIATIONS, KINDS, Free, poses_of
from tem_taichi.estimate.shared_images import Shared, Views
from tem_taichi.estimate.strips import STRIPS, excess, spread_of
from tem_taichi.inverse.minimise import Optimiser, Values, minimise

_COARSE, _FINER = 12.0, 0.5
"""First detail, in stated deviations of a shift, and each later one relative to that before."""
_STEPS, _ROUNDS = 20, 2
"""Of the optimiser between two estimates of the spectra, and of these at each resolution."""
_FAR = 4.0
"""Stated deviations beyond which a pose is doubted."""
_APART = 4.0
"""Deviations of what chance allows beyond which strips of the field disagree."""
_WIDE = 4.0
"""Details across a strip, for it to tell of the axis."""
_LIKE = 10.0
"""Nats by which an image must be more probable by the others."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """Poses that were found."""

    tilts: pd.DataFrame
    """The table with the poses found; shift_x_error, shift_y_error [A], axis_angle_error and
    tilt_angle_error [deg] of those refined; agreement, by how many nats an image is more probable
    by the others than by itself; of beads, see `BeadAlignment.tilts`."""
    changed: Mapping[str, float]
    """Root of the mean square of each column's change."""
    gain: tuple[float, float] | None
    """Sum of the agreements at the finest detail, before and after [nats]; None = not asked."""
    doubts: tuple[str, ...]


def levels(within: float, finest: float) -> list[float]:
    """Details that are compared one after another [A]."""
    found = [max(_COARSE * within, finest)]
    while found[-1] > finest:
        found.append(max(found[-1] * _FINER, finest))
    return found


def aligned(views: Views, tilts: pd.DataFrame, kinds: Sequence[str], within: float, finest: float,
            step: Callable[[int, int], None] = lambda done, of: None, known: Tensor | None = None
            ) -> Alignment:
    """Poses that make the images the most probable.

    Args:
        views: the images.
        tilts: table of `series_of`.
        kinds: of KINDS: what is refined.
        within: deviation of a shift from the stated one [A].
        finest: detail [A].
        step: called after each part of the work.
        known: information on the poses' changes from what is stated, see `Free`.

    Raises:
        ValueError: if there are fewer than 3 images, or nothing is to be refined.
    """
    if len(tilts) < 3 or not kinds:
        raise ValueError(f"align={list(kinds)}: needs 3 images or more, and something to refine")
    free = Free(poses_of(tilts), kinds, within, known)
    numbers = torch.zeros(free.spread.shape[1], dtype=torch.float64)
    details = levels(within, finest)
    for number, detail in enumerate(details):
        shared = Shared(views, free.poses(numbers), detail)
        for again in range(_ROUNDS):
            if again:
                shared.learn(free.poses(numbers))
            numbers = _improved(shared, free, numbers)
            step(number * _ROUNDS + again + 1, len(details) * _ROUNDS)
    shared.learn(free.poses(numbers))
    return _judged(shared, free, numbers, tilts, within)


def _information(free: Free, shared: Shared, poses: Mapping[str, Tensor], observed: bool = False
                 ) -> Tensor:
    """With that of the start."""
    size = len(free.spread)
    images = shared.information(poses, free.names, observed).reshape(size, size).cpu()
    return free.spread.T @ images @ free.spread + free.stated()


def _improved(shared: Shared, free: Free, numbers: Tensor) -> Tensor:
    """By steps in the scale of what is known of each combination of the numbers."""
    information = _information(free, shared, free.poses(numbers))
    curvature, ways = torch.linalg.eigh(information)
    scaled = ways / curvature.clamp(min=1e-6 * float(curvature.max())).sqrt()

    def loss(values: Values) -> Tensor:
        moved = numbers + scaled @ values["z"]
        return shared.loss(free.poses(moved)) + free.prior(moved)

    found = minimise(loss, {"z": torch.zeros_like(numbers)}, Optimiser(steps=_STEPS))
    return numbers + scaled @ found.values["z"]


def _judged(shared: Shared, free: Free, numbers: Tensor, tilts: pd.DataFrame, within: float
            ) -> Alignment:
    """The table, errors and doubts."""
    poses = free.poses(numbers)
    errors, uneven = _errors(shared, free, poses)
    before, after = (shared.gains(one).cpu().numpy() for one in (free.start, poses))
    table = tilts.copy()
    changed: dict[str, float] = {}
    doubts = [uneven] if uneven else []
    for name, error in zip(free.names, errors.numpy(), strict=True):
        start = tilts[name].to_numpy(float) if name in tilts else np.zeros(len(tilts))
        change = (poses[name] - free.start[name]).double().cpu().numpy()
        table[name], table[f"{name}_error"] = start + change, error
        changed[name] = float(np.sqrt(np.mean(change**2)))
        far = np.flatnonzero(np.abs(change) > _FAR * DEVIATIONS.get(name, within))
        if len(far):
            doubts.append(f"{name} of {len(far)} images, the first of them image {far[0] + 1}, is "
                          f"farther than {_FAR * DEVIATIONS.get(name, within):g} from its start: "
                          "the images do not confirm what was stated of it.")
    table["agreement"] = after
    alone = np.flatnonzero(after < _LIKE)
    if len(alone):
        doubts.append(f"{len(alone)} images, the first of them image {alone[0] + 1}, are not more "
                      "probable by the others: where they are is not known.")
    if after.sum() <= before.sum() and max(changed.values()) > 0:
        doubts.append("The images predict each other no better by the poses found than by those "
                      "of the start.")
    return Alignment(table, changed, (float(before.sum()), float(after.sum())), tuple(doubts))


def _errors(shared: Shared, free: Free, poses: dict[str, Tensor]) -> tuple[Tensor, str]:
    """The model's error bars and '', or where strips of the field contradict it a doubt.

    Then the larger of the model's and those by the strips: few as they are, theirs are the worse
    where the model holds.
    """
    information = _information(free, shared, poses)
    slopes = shared.slopes(poses, free.names).cpu()
    # What was stated of the start disagrees with nothing.
    spread = spread_of(slopes.flatten(1) @ free.spread) + free.stated()
    model = free.bars(torch.linalg.inv(information))
    # A narrow strip is turned with its edges: of the axis it says too little to contradict it.
    turned = shared.extent[0] > STRIPS * _WIDE * shared.resolution or len(free.names) == 1
    sure = Free(free.start, [kind for kind in KINDS if set(KINDS[kind]) & set(free.names)
                              and (kind != "axis" or turned)], free.within)
    own = [free.names.index(name) for name in sure.names]
    ratio, chance = excess(spread_of(slopes[:, own].flatten(1) @ sure.spread) + sure.stated(),
                           _information(sure, shared, poses))
    if ratio < 1 + _APART * chance:
        return model, ""
    curvature = _information(free, shared, poses, observed=True)
    if float(torch.linalg.eigvalsh(curvature)[0]) <= 0:
        curvature = information
    inverse = torch.linalg.inv(curvature)
    strips = torch.maximum(model, free.bars(inverse @ spread @ inverse))
    times = (strips.square().mean(1) / model.square().mean(1)).sqrt()
    said = ", ".join(f"{name} {float(by):.1f}" for name, by in zip(free.names, times, strict=True))
    return strips, (
        "The images agree with each other less well than an even specimen would: strips of the "
        f"field disagree {ratio:.1f} times as much in variance. Error bars are by the strips "
        f"({said} times the model's), and still too small where all strips err alike, as with "
        "long filaments.")
