"""Shifts of a series in one fit with its specimen.

The potential and the shifts that make the images the most probable are looked for together, by the
microscope's own model, total variation and what was stated of the shifts. The volume is the fit's
own, on a grid along the tilt axis (`posed`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tem_taichi.estimate.alignment import Alignment
from tem_taichi.estimate.free_poses import Free, poses_of
from tem_taichi.estimate.posed import Posed, upright
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram_fit import CORNER, even, exposures_of, model_of
from tem_taichi.estimate.tomogram_model import Lens, typical_slope
from tem_taichi.inverse.accelerated import Accelerated, Metric, metric_of
from tem_taichi.inverse.priors import total_variation_curvature, total_variation_slope

_STRENGTH = 0.6
"""Of the total variation, in what noise does to the slope by a voxel."""
_VOXELS = 6e6
"""At most: wider ones are taken otherwise."""
_ALONE, _STEPS, _ROUNDS = 10, 20, 8
"""Steps of the volume alone at first, and of both in a round; rounds at most."""
_STILL = 0.2
"""Deviations, were the volume known, by which a last round moves the shifts at most."""
_REACH = 2.0
"""Stated deviations of a shift that images have room for."""
_FLAT = 1e-6
"""Of the largest curvature, what is less curved."""
_FAR = 4.0
"""Stated deviations beyond which a shift is doubted."""
_NAMES = ["shift_x", "shift_y"]


@dataclass(frozen=True, eq=False)
class _Both:
    """How curved the loss is by a volume, and by numbers in whose scale it is so by 1."""

    metric: Metric
    like: Tensor

    def step(self, slope: Tensor) -> Tensor:
        """Where a gradient leads."""
        volume, numbers = _apart(slope, self.like)
        return _together(self.metric.step(volume), numbers)


def _together(volume: Tensor, numbers: Tensor) -> Tensor:
    """One vector, in the order of the volume's memory."""
    return torch.cat([volume.transpose(1, 2).reshape(-1), numbers.to(volume)])


def _apart(values: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    nz, ny, nx = like.shape
    lines, numbers = values.tensor_split([like.numel()])
    return lines.view(nz, nx, ny).transpose(1, 2), numbers


class _Fit:
    """Of a volume and the numbers of `Free`."""

    def __init__(self, posed: Posed, free: Free) -> None:
        self.posed, self.free = posed, free
        self.volume = even(posed.model.series)
        self.metric = metric_of(posed.model.gradient, self.volume)
        self.scale = 1 / (_STRENGTH * typical_slope(posed.model))

    def _changes(self, numbers: Tensor) -> Tensor:
        return (self.free.spread @ numbers).reshape(2, -1).to(self.volume)

    def known(self, numbers: Tensor) -> Tensor:
        """Information on the shifts of each image, were the volume known, (2 n, 2 n)."""
        found = self.posed.information(self.volume, self._changes(numbers))
        return torch.cat([torch.cat([torch.diag(one) for one in row], 1) for row in found])

    def curvature(self, numbers: Tensor) -> Tensor:
        """By the numbers, with the prior's, were the volume known."""
        return self.free.spread.T @ self.known(numbers) @ self.free.spread + self.free.stated()

    def gradient(self, volume: Tensor, numbers: Tensor) -> tuple[float, Tensor, Tensor]:
        """Of the misfit and both priors."""
        misfit, slope, by = self.posed.gradient(volume, self._changes(numbers))
        cost, more = total_variation_slope(volume, self.scale, CORNER)
        prior = self.free.stated() @ numbers
        return (misfit + cost + float(numbers @ prior) / 2, slope.add_(more),
                self.free.spread.T @ by.reshape(-1).double().cpu() + prior)

    def run(self, numbers: Tensor, steps: int, ways: Tensor) -> Tensor:
        """Numbers after some steps of both; the volume is kept.

        Args:
            numbers: to begin with.
            steps: how many.
            ways: changes of the numbers in whose scale the loss is curved by 1, (p, q).
        """
        start = self.volume

        def gradient(values: Tensor) -> tuple[float, Tensor]:
            volume, moved = _apart(values, start)
            loss, slope, by = self.gradient(volume, numbers + ways @ moved.double().cpu())
            return loss, _together(slope, ways.T @ by)

        curved = total_variation_curvature(start.permute(self.metric.order), self.scale, CORNER)
        run = Accelerated(gradient, _together(start, start.new_zeros(ways.shape[1])),
                          _Both(self.metric.plus(curved), start))
        for _ in range(steps):
            run.step()
        self.volume, moved = _apart(run.volume, start)
        return numbers + ways @ moved.double().cpu()

    def improved(self, numbers: Tensor) -> Tensor:
        """Numbers after a round of both."""
        curved, ways = torch.linalg.eigh(self.curvature(numbers))
        return self.run(numbers, _STEPS,
                        ways / curved.clamp(min=_FLAT * float(curved.max())).sqrt())

    def in_deviations(self, numbers: Tensor, change: Tensor) -> float:
        """Root mean square of a change of the shifts."""
        own = (self.free.spread @ change).square() * self.known(numbers).diagonal()
        return float(own.mean().sqrt())


def fitted_shifts(series: Series, tilts: pd.DataFrame, lens: Lens, within: float,
                  step: Callable[[int, int], None] = lambda done, of: None) -> Alignment:
    """Shifts that with a specimen of their own make the images the most probable.

    What moves the specimen as a whole is left as it is stated, and so is the tilt axis. How well
    the shifts are known is not said anew: errors in the table stay those of what it stated.

    Args:
        series: images, and the grid of a tomogram.
        tilts: the table that it was made from, with defoci; its shift_x_error and shift_y_error
            [A] are taken for the deviations of its shifts where they are by gold, that is, where it
            has beads.
        lens: of all images; the specimen is taken for thin.
        within: deviation of a shift from the stated one, where it is not by gold [A].
        step: called after each part of the work.

    Raises:
        ValueError: if there are fewer than 3 images, no defocus is known of all, or an image has
            no noise.
    """
    if len(tilts) < 3:
        raise ValueError("refine=true: needs 3 images or more")
    lens, axis = replace(lens, model="projection"), float(tilts["axis_angle"].mean())
    pixel = series.rays.pixel
    exposures, reach = exposures_of(series, tilts, lens), _REACH * within
    free = Free(poses_of(tilts), ["shifts"], within, _by_gold(tilts, within))
    numbers = torch.zeros(free.spread.shape[1], dtype=torch.float64)
    while math.prod(series.rays.grid) > _VOXELS:
        series = series.coarser()
    straight, room = upright(series, axis, reach)
    model = model_of(straight, range(len(tilts)), exposures, pixel, lens, room)
    fit = _Fit(Posed(model, series, axis, reach), free)
    numbers = fit.run(numbers, _ALONE, free.spread.new_zeros(len(numbers), 0))
    for number in range(1, _ROUNDS + 1):
        before, numbers = numbers, fit.improved(numbers)
        step(number, _ROUNDS)
        if fit.in_deviations(numbers, numbers - before) < _STILL:
            break
    return _table((free.spread @ numbers).reshape(2, -1).numpy(), tilts, within)


def _by_gold(tilts: pd.DataFrame, within: float) -> Tensor | None:
    """What beads tell of the shifts beside the stated deviation; the specimen is asked anew."""
    names = [f"{name}_error" for name in _NAMES]
    if not {"beads", *names} <= set(tilts):
        return None
    errors = torch.as_tensor(tilts[names].to_numpy(float).T.reshape(-1).copy())
    return torch.diag((errors**-2 - within**-2).clamp(min=0))


def _table(changes: np.ndarray, tilts: pd.DataFrame, within: float) -> Alignment:
    """With doubts."""
    table, doubts = tilts.copy(), []
    for name, change in zip(_NAMES, changes, strict=True):
        table[name] = change + (tilts[name].to_numpy(float) if name in tilts else 0.0)
        far = np.flatnonzero(np.abs(change) > _FAR * within)
        if len(far):
            doubts.append(f"{name} of {len(far)} images, the first of them image {far[0] + 1}, is "
                          f"farther than {_FAR * within:g} A from its start: the images do not "
                          "confirm what was stated of it.")
    changed = {name: float(np.sqrt(np.mean(change**2)))
               for name, change in zip(_NAMES, changes, strict=True)}
    return Alignment(table, changed, None, tuple(doubts))
