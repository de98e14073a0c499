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
from scipy.special import betaln
from scipy.stats import norm
from torch import Tensor

from tem_taichi.estimate.bead_sightings import Sightings
from tem_taichi.estimate.free_poses import DEVIATIONS, NAMES, Free

Array = NDArray[np.float64]

_ROUNDS = 8
"""Of the fit, each with the size of errors that the one before left."""
_FAR = 2.385
"""Deviations beyond which a find counts less: 5 % of what normal errors tell is lost by it."""
_LEAST = 0.05
"""Size of the errors, at least, relative to what the finder says."""
_SAID = 5.0
"""Coordinates that what the finder says counts for, where few finds check each other."""
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
    finds: int
    """Those that evidence is of: of images with enough for a wrong one to be noticed."""
    evidence: float
    """Logarithm of the probability of these finds [1/A^2 each] times the volume of the poses and
    places that give it, at the errors found and by Laplace's approximation."""


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
    scale = 1.0
    for turn in range(_ROUNDS):
        scale = fit.scale(numbers, scale)
        found = least_squares(fit.left, numbers, fit.slopes, loss=fit.robust, args=(scale,),
                              x_scale="jac", max_nfev=20)
        done = turn > 1 and np.abs(fit.poses_moved(found.x - numbers)).max() < 1e-3
        numbers = found.x
        if done:
            break
    return _judged(fit, numbers, tilts, fit.scale(numbers, scale))


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

    def scale(self, numbers: Array, before: float) -> float:
        """Of the errors, by the median of what is left over their share that is left.

        A find that alone tells where its image lies leaves nothing, and says nothing of errors.

        Args:
            numbers: of the fit.
            before: the scale that says how much what was stated counts for.
        """
        slopes = self.slopes(numbers, before)
        mine = slopes[:self.sightings.places.size]
        inverse = np.linalg.pinv(slopes.T @ slopes, hermitian=True)
        share = np.clip(1 - np.einsum("ij,jk,ik->i", mine, inverse, mine, optimize=True), 1e-3, 1)
        off = np.abs(self.off(numbers).ravel()) / share**0.5
        said = norm.isf(np.arange(0.05, 0.5, 0.1))
        off, share = np.append(off, said), np.append(share, np.full(len(said), _SAID / len(said)))
        order = np.argsort(off)
        total = np.cumsum(share[order])
        middle = off[order][np.searchsorted(total, total[-1] / 2)]
        return max(_LEAST, 1.4826 * float(middle))

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


def _judged(fit: _Fit, numbers: Array, tilts: pd.DataFrame, scale: float) -> BeadAlignment:
    """The tables, with errors by what is left over."""
    free, sightings = fit.free, fit.sightings
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
    told = np.repeat(checked[sightings.image], 2)
    share = weight[:count] / weight[:count].mean() * told
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
    return BeadAlignment(
        tilts=table, beads=found, information=free.own_information(torch.as_tensor(alone)),
        error=root * scale * stated_error, over_stated=root * scale,
        doubts=tuple(_doubts(table, free.names, checked)), finds=int(told.sum()) // 2,
        evidence=_evidence(fit, left[:count], scale, told, covariance))


def _evidence(fit: _Fit, left: Array, scale: float, told: NDArray[np.bool_], covariance: Array
              ) -> float:
    """See `BeadAlignment`; the loss is that of Student's law, whose integral is known."""
    own = _FAR * np.exp(betaln(0.5, (_FAR**2 - 1) / 2))
    width = np.log(own * scale * np.repeat(fit.sightings.errors, 2))
    loss = _FAR**2 / 2 * np.log1p((left / _FAR)**2)
    volume = np.linalg.slogdet(2 * np.pi * covariance)[1] / 2
    return float(volume - (loss + width)[told].sum())


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
