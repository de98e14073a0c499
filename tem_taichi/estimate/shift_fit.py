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
_ALONE = 15
"""Steps of the volume alone at first."""
_STEPS, _LOOKS, _STILL = 20, 8, 0.2
"""Steps of both between looks at the shifts, and looks at most; the last is one at which they have
moved by no more than that, in deviations were the volume known. All are one descent: begun again at
each look it forgets how volume and shifts hang together, and hardly moves what is smooth over the
tilts (a lysate's 6.5 A across the axis to 5.7 instead of 2.7 A in as many steps)."""
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
        self.start = even(posed.model.series)
        self.scale = 1 / (_STRENGTH * typical_slope(posed.model))
        metric = metric_of(posed.model.gradient, self.start)
        self.metric = metric.plus(total_variation_curvature(
            self.start.permute(metric.order), self.scale, CORNER))

    def gradient(self, volume: Tensor, numbers: Tensor) -> tuple[float, Tensor, Tensor]:
        """Of the misfit and both priors."""
        misfit, slope, by = self.posed.gradient(volume, self._changes(numbers))
        cost, more = total_variation_slope(volume, self.scale, CORNER)
        prior = self.free.stated() @ numbers
        return (misfit + cost + float(numbers @ prior) / 2, slope.add_(more),
                self.free.spread.T @ by.reshape(-1).double().cpu() + prior)

    def _changes(self, numbers: Tensor) -> Tensor:
        return (self.free.spread @ numbers).reshape(2, -1).to(self.start)

    def run(self, step: Callable[[int, int], None]) -> Tensor:
        """The most probable numbers.

        Args:
            step: called after each part of the work.
        """
        none = torch.zeros(self.free.spread.shape[1], dtype=torch.float64)
        volume = self._alone(none)
        known = self._known(volume, none)
        curved, ways = torch.linalg.eigh(
            self.free.spread.T @ known @ self.free.spread + self.free.stated())
        # In the scale in which the loss is curved by 1, were the volume known.
        ways = ways / curved.clamp(min=_FLAT * float(curved.max())).sqrt()

        def gradient(values: Tensor) -> tuple[float, Tensor]:
            volume, scaled = _apart(values, self.start)
            loss, slope, by = self.gradient(volume, ways @ scaled.double().cpu())
            return loss, _together(slope, ways.T @ by)

        both = Accelerated(gradient, _together(volume, torch.zeros(len(none))),
                           _Both(self.metric, self.start))
        numbers = none
        for number in range(1, _LOOKS + 1):
            for _ in range(_STEPS):
                both.step()
            before, numbers = numbers, ways @ _apart(both.volume, self.start)[1].double().cpu()
            step(number, _LOOKS)
            moved = (self.free.spread @ (numbers - before)).square() * known.diagonal()
            if float(moved.mean()) < _STILL**2:
                break
        return numbers

    def _alone(self, numbers: Tensor) -> Tensor:
        """A volume that goes with some numbers."""
        run = Accelerated(lambda volume: self.gradient(volume, numbers)[:2], self.start,
                          self.metric)
        for _ in range(_ALONE):
            run.step()
        return run.volume

    def _known(self, volume: Tensor, numbers: Tensor) -> Tensor:
        """Information on the shifts of each image, were the volume known, (2 n, 2 n)."""
        found = self.posed.information(volume, self._changes(numbers))
        return torch.cat([torch.cat([torch.diag(one) for one in row], 1) for row in found])


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
    while math.prod(series.rays.grid) > _VOXELS:
        series = series.coarser()
    straight, room = upright(series, axis, reach)
    model = model_of(straight, range(len(tilts)), exposures, pixel, lens, room)
    numbers = _Fit(Posed(model, series, axis, reach), free).run(step)
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
