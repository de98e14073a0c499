"""Poses of a tilt series by its beads: all places and poses in one least-squares fit.

A bead at X is seen at m (R (X + c) + s) - c from an image's middle: R by tilt and axis, s the
shift, m the magnification, c where the image was cut from. Of the finds' errors only the relative
size is taken from what the finder says; how large they are follows from what is left over, and
those that are far off count less (Huber 1981, Robust Statistics, ch. 7).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.optimize import least_squares
from torch import Tensor

from tem_taichi.estimate.free_poses import DEVIATIONS, NAMES, Free

Array = NDArray[np.float64]

_ROUNDS = 8
"""Of the fit, each with the size of errors that the one before left."""
_FAR = 2.385
"""Deviations beyond which a find counts less: 5 % of what normal errors tell is lost by it."""
_LEAST = 0.05
"""Size of the errors, at least, relative to what the finder says."""
_AGREE = 3.0
"""Deviations within which a find agrees with the fit."""


_OTHERWISE = {**dict.fromkeys(NAMES, 0.0), "magnification": 1.0}
"""Where a table does not say."""


@dataclass(frozen=True, eq=False)
class BeadAlignment:
    """What was found."""

    tilts: pd.DataFrame
    """The table with the poses found, their errors, NAME_error, and beads, how many finds of them
    in each image agree with the fit."""
    beads: pd.DataFrame
    """bead, x, y, z and their errors [A], one row each."""
    information: Tensor
    """On the changes of the poses, of `Free.own_information`, for another fit that starts here."""
    error: float
    """Of a find along x or y, root mean square by what is left over [A]."""
    over_stated: float
    """That over what the finder said."""
    doubts: tuple[str, ...]


def rotations_of(tilts: Array, axes: Array) -> tuple[Array, Array, Array]:
    """`rotations.tilt_rotation` of each image, and its slopes.

    Args:
        tilts: angles [deg], (n,).
        axes: from +y, counter-clockwise [deg], (n,).

    Returns:
        Three of (n, 3, 3); slopes by tilt and axis [1/deg].
    """
    tilt, axis = np.deg2rad(tilts)[:, None, None], np.deg2rad(axes)
    zero = np.zeros_like(axis)
    way = np.stack([-np.sin(axis), np.cos(axis), zero], 1)
    turn = np.stack([-np.cos(axis), -np.sin(axis), zero], 1)
    c, s, one = np.cos(tilt), np.sin(tilt), np.eye(3)
    square, cross = way[:, :, None] * way[:, None], _cross(way)
    mixed = turn[:, :, None] * way[:, None]
    radian = np.pi / 180
    return (c * one + (1 - c) * square + s * cross,
            radian * (-s * one + s * square + c * cross),
            radian * ((1 - c) * (mixed + mixed.transpose(0, 2, 1)) + s * _cross(turn)))


def _cross(ways: Array) -> Array:
    """Matrices of the cross products with ways, (n, 3, 3)."""
    return np.cross(ways[:, None], np.eye(3), axis=-1).transpose(0, 2, 1)


@dataclass(frozen=True, eq=False)
class Sightings:
    """Finds of beads."""

    places: Array
    """x and y from the images' middle [A], (m, 2)."""
    errors: Array
    """Of each [A], (m,)."""
    image: NDArray[np.int_]
    """From 0, (m,)."""
    bead: NDArray[np.int_]
    """From 0, (m,)."""
    cut: Array
    """See `bead_tracks.views_of`, and 0 [A], (3,)."""

    def seen(self, poses: Mapping[str, Array], points: Array) -> tuple[Array, dict[str, Array]]:
        """Where beads should be, and how that changes.

        Args:
            poses: of the images, (n,).
            points: of the beads [A], (b, 3).

        Returns:
            (m, 2) [A]; slopes by each of the image's numbers, (m, 2), and by the bead's place,
            "point", (m, 2, 3).
        """
        turns = rotations_of(poses["tilt_angle"], poses["axis_angle"])
        of, own = self.image, points[self.bead] + self.cut
        there, by_tilt, by_axis = (np.einsum("mij,mj->mi", turn[of, :2], own) for turn in turns)
        large = poses["magnification"][of, None]
        shifted = there + np.stack([poses["shift_x"], poses["shift_y"]], 1)[of]
        x, y = np.eye(2)
        return large * shifted - self.cut[:2], {
            "shift_x": large * x, "shift_y": large * y, "tilt_angle": large * by_tilt,
            "axis_angle": large * by_axis, "magnification": shifted,
            "point": large[..., None] * turns[0][of, :2]}


def fitted(sightings: Sightings, tilts: pd.DataFrame, kinds: Sequence[str], within: float,
           begin: pd.DataFrame | None = None) -> BeadAlignment:
    """Poses and beads by all finds together.

    What moves or turns the specimen as a whole is no part of the poses' changes: of all that
    explain the finds alike they are those of the least mean square.

    Args:
        sightings: finds of the beads.
        tilts: the table that is stated; magnification is 1 where it has none.
        kinds: of `free_poses.KINDS`: what is fitted.
        within: deviation of a stated shift [A].
        begin: poses to begin with; None = those stated.

    Raises:
        ValueError: if there are no finds, or not more finds' coordinates than numbers to fit.
    """
    stated = _poses(tilts)
    free = Free({name: torch.as_tensor(value) for name, value in stated.items()}, kinds, within)
    fit = _Fit(sightings, free)
    count, beads = len(sightings.places), int(sightings.bead.max(initial=-1)) + 1
    if 2 * count <= 3 * beads + free.spread.shape[1]:
        raise ValueError(f"align={list(kinds)}: {2 * count} coordinates of beads must be more than "
                         f"the {3 * beads + free.spread.shape[1]} numbers that are fitted")
    first = stated if begin is None else _poses(begin)
    change = np.concatenate([first[name] - stated[name] for name in free.names])
    own = np.linalg.lstsq(free.spread.numpy(), change, rcond=None)[0]
    numbers = np.concatenate([own, fit.placed(fit.split(own)[0]).ravel()])
    for turn in range(_ROUNDS):
        scale = fit.scale(numbers)
        found = least_squares(fit.left, numbers, fit.slopes, loss=fit.robust, args=(scale,),
                              x_scale="jac", max_nfev=20)
        done = turn > 1 and np.abs(fit.poses_moved(found.x - numbers)).max() < 1e-3
        numbers = found.x
        if done:
            break
    return _judged(fit, numbers, tilts)


def _poses(tilts: pd.DataFrame) -> dict[str, Array]:
    n = len(tilts)
    return {name: tilts[name].to_numpy(float).copy() if name in tilts else np.full(n, otherwise)
            for name, otherwise in _OTHERWISE.items()}


class _Fit:
    """Residuals of finds over their errors, then those of what was stated."""

    def __init__(self, sightings: Sightings, free: Free) -> None:
        self.sightings, self.free = sightings, free
        self.spread = free.spread.numpy().reshape(len(free.names), -1, free.spread.shape[1])
        self.stated = free.basis.numpy() / free.deviations.numpy()[:, None]
        self.start = {name: value.numpy() for name, value in free.start.items()}

    def split(self, numbers: Array) -> tuple[dict[str, Array], Array]:
        """Poses and places."""
        own = self.spread.shape[2]
        changes = self.spread @ numbers[:own]
        moved = {name: self.start[name] + change
                 for name, change in zip(self.free.names, changes, strict=True)}
        return {**self.start, **moved}, numbers[own:].reshape(-1, 3)

    def poses_moved(self, numbers: Array) -> Array:
        """By some change of the numbers."""
        return np.asarray(self.spread @ numbers[:self.spread.shape[2]])

    def placed(self, poses: Mapping[str, Array]) -> Array:
        """Beads by some poses, (b, 3)."""
        sightings = self.sightings
        nowhere = np.zeros((int(sightings.bead.max()) + 1, 3))
        seen, slopes = sightings.seen(poses, nowhere)
        for bead in range(len(nowhere)):
            mine = sightings.bead == bead
            lines = slopes["point"][mine].reshape(-1, 3)
            sides = (sightings.places - seen)[mine].ravel()
            nowhere[bead] = np.linalg.solve(lines.T @ lines + 1e-6 * np.eye(3), lines.T @ sides)
        return nowhere

    def off(self, numbers: Array) -> Array:
        """Of the finds over their stated errors, (m, 2)."""
        seen = self.sightings.seen(*self.split(numbers))[0]
        return np.asarray((self.sightings.places - seen) / self.sightings.errors[:, None])

    def scale(self, numbers: Array) -> float:
        """Of the errors, by the median of what is left."""
        off = self.off(numbers)
        free = max(1.0, off.size - len(numbers)) / off.size
        return max(_LEAST, 1.4826 * float(np.median(np.abs(off))) / free**0.5)

    def left(self, numbers: Array, scale: float) -> Array:
        """Residuals."""
        return np.concatenate([self.off(numbers).ravel() / scale,
                               self.stated @ numbers[:self.stated.shape[1]]])

    def slopes(self, numbers: Array, scale: float) -> Array:
        """Of `left`, (r, p)."""
        sightings = self.sightings
        poses, points = self.split(numbers)
        _, slopes = sightings.seen(poses, points)
        rows = np.zeros((*sightings.places.shape, len(numbers)))
        own = self.spread.shape[2]
        for n, name in enumerate(self.free.names):
            rows[..., :own] += slopes[name][..., None] * self.spread[n, sightings.image][:, None]
        columns = own + 3 * sightings.bead[:, None] + np.arange(3)
        np.put_along_axis(rows, np.broadcast_to(columns[:, None], (*rows.shape[:2], 3)),
                          slopes["point"], axis=2)
        rows /= -scale * sightings.errors[:, None, None]
        stated = np.pad(self.stated, ((0, 0), (0, points.size)))
        return np.concatenate([rows.reshape(-1, len(numbers)), stated])

    def robust(self, squares: Array) -> Array:
        """Loss of squared residuals, and its slopes: that of finds is of Cauchy's law.

        It bends back: what was stated of an image outweighs one find that is far off.
        """
        count = self.sightings.places.size
        loss = np.stack([squares, np.ones_like(squares), np.zeros_like(squares)])
        far = 1 + squares[:count] / _FAR**2
        loss[:, :count] = _FAR**2 * np.log(far), 1 / far, -1 / (_FAR * far)**2
        return loss


def _judged(fit: _Fit, numbers: Array, tilts: pd.DataFrame) -> BeadAlignment:
    """The tables, with errors by what is left over."""
    free, sightings, scale = fit.free, fit.sightings, fit.scale(numbers)
    count, own = sightings.places.size, free.spread.shape[1]
    left, slopes = fit.left(numbers, scale), fit.slopes(numbers, scale)
    _, weight, bend = fit.robust(left**2)
    pull, stiff = weight[:count] * left[:count], (weight + 2 * bend * left**2)[:count]
    # Huber's variance of an estimate whose residuals are weighted.
    size = (pull**2).sum() / max(1, count - len(numbers)) / stiff.mean()**2
    agree = (np.abs(left[:count].reshape(-1, 2)) < _AGREE).all(1)
    beads = np.bincount(sightings.image[agree], minlength=len(tilts))
    # Finds that no more of the same image could contradict tell nothing for sure.
    checked = 2 * beads >= sum(name != "axis_angle" for name in free.names) + 2
    share = weight[:count] / weight[:count].mean() * np.repeat(checked[sightings.image], 2)
    information = slopes[:count].T @ (share[:, None] * slopes[:count]) / size
    stated = block_diag(free.stated().numpy(), np.zeros((len(numbers) - own,) * 2))
    places = information[own:, own:] + 1e-12 * np.eye(len(numbers) - own)
    alone = information[:own, :own] - information[:own, own:] @ np.linalg.solve(
        places, information[own:, :own])
    covariance = np.linalg.inv(information + stated + 1e-12 * np.eye(len(numbers)))
    poses, points = fit.split(numbers)
    table = tilts.copy()
    bars = free.bars(torch.as_tensor(covariance[:own, :own])).numpy()
    for name, bar in zip(free.names, bars, strict=True):
        table[name], table[f"{name}_error"] = poses[name], bar
    table["beads"] = beads
    error = np.sqrt(np.diag(covariance)[own:]).reshape(-1, 3)
    found = pd.DataFrame(np.hstack([np.arange(1, len(points) + 1)[:, None], points, error]),
                         columns=["bead", *"xyz", "error_x", "error_y", "error_z"])
    root = float(np.sqrt(size))
    stated_error = float(np.sqrt((sightings.errors**2).mean()))
    return BeadAlignment(table, found, free.own_information(torch.as_tensor(alone)),
                         root * scale * stated_error, root * scale,
                         tuple(_doubts(table, free.names, checked)))


def _doubts(table: pd.DataFrame, names: Sequence[str], checked: NDArray[np.bool_]) -> list[str]:
    doubts = []
    few = np.flatnonzero(~checked)
    if len(few):
        doubts.append(f"{len(few)} images, the first of them image {few[0] + 1}, show too few "
                      "beads for a wrong one to be noticed: error bars there are those stated.")
    for name in (name for name in names if name in DEVIATIONS):
        loose = np.flatnonzero(checked & (table[f"{name}_error"] > DEVIATIONS[name] / 2))
        if len(loose):
            doubts.append(f"{name} of {len(loose)} images, the first of them image {loose[0] + 1}, "
                          "is hardly told by the beads: it is near what was stated.")
    return doubts
