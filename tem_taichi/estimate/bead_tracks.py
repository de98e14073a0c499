"""Beads of a tilt series in three dimensions: one place in the specimen, one find in each image.

A find in one image leaves the depth open. Of all depths that is taken at which the most images have
a find where the alignment puts it; their lines of sight then give the place by least squares, and
what is left over is a check of the alignment.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.stats import poisson

from tem_taichi.rotations import tilt_rotation

Array = NDArray[np.float64]

_SEEDS = 7
"""Images whose finds are tried, by tilt from end to end."""

_DEPTHS = 4
"""Of a find's line of sight, the best of them."""

_REFITS = 5


@dataclass(frozen=True, eq=False)
class Views:
    """How each image sees the specimen: place [A from the image's middle] = (R X)_xy + offset."""

    rotations: Array
    """(n, 3, 3)"""
    offsets: Array
    """x, y [A], (n, 2)."""

    def project(self, points: Array) -> Array:
        """Places of points (m, 3) in all images [A], (n, m, 2)."""
        return np.asarray(np.einsum("nij,mj->nmi", self.rotations[:, :2], points)
                          + self.offsets[:, None])


def views_of(tilts: pd.DataFrame, cut_from: tuple[float, float] = (0.0, 0.0)) -> Views:
    """Of an aligned series.

    Args:
        tilts: tilt_angle, axis_angle [deg] of each image; shift_x, shift_y [A], or 0.
        cut_from: middle of the images less that of the frames that they were cut from, x and y
            [A]; the axis runs through the frames' middle.
    """
    turns = np.stack([tilt_rotation(float(tilt), float(axis)).double().cpu().numpy()
                      for tilt, axis in zip(tilts["tilt_angle"], tilts["axis_angle"],
                                            strict=True)])
    shifts = np.stack([tilts[name].to_numpy(float) if name in tilts else np.zeros(len(tilts))
                       for name in ("shift_x", "shift_y")], axis=1)
    cut = np.array([*cut_from, 0.0])
    return Views(turns, shifts + (turns @ cut)[:, :2] - cut[:2])


@dataclass(frozen=True, eq=False)
class Tracks:
    """Beads in the specimen."""

    beads: pd.DataFrame
    """A row a bead: bead (from 1), x, y, z [A] from the specimen's middle and the error of each,
    images in which it was found, of which (those whose field it is in), residual, root mean square
    distance of its finds from where they should be [A], residual_over_error, that over what the
    finds' own errors and the fit leave, 1 where the alignment is right, diameter [A], contrast."""
    finds: pd.DataFrame
    """Those of the images, with bead, 0 = of no track, and off_x, off_y, how far they are from
    where the bead's place puts them [A]."""


def follow(finds: pd.DataFrame, views: Views, pixel_size: float, shape: tuple[int, int],
           depth: float, tolerance: float | Array, false_finds: float = 0.01) -> Tracks:
    """Join finds of all images to beads in the specimen.

    Args:
        finds: of `beads.find_beads`, with image, from 0; doubtful ones may join a track.
        views: of the images.
        pixel_size: [A].
        shape: of the images (ny, nx).
        depth: beads are this far from the specimen's middle at most, along the beam [A].
        tolerance: farthest that a find is from where the bead's place puts it [A], or of each
            image, (n,).
        false_finds: an image's finds above this are doubtful, and begin no track; and as many
            tracks of finds that have nothing to do with each other are let in.

    Returns:
        Beads of three images at least, in the order of how many.
    """
    there = finds[["x", "y"]].to_numpy() - np.array([shape[1] // 2, shape[0] // 2])
    state = _Finds(there * pixel_size, finds["image"].to_numpy(int),
                   np.zeros(len(finds), int), views,
                   np.broadcast_to(tolerance, len(views.offsets)),
                   np.array([shape[1], shape[0]]) / 2 * pixel_size)
    sure = finds["false_finds"].to_numpy() <= false_finds
    guesses, tried = _guesses(state, sure, depth)
    chance = false_finds / max(1, tried)
    rows: list[dict[str, float]] = []
    for point in guesses:
        mine = state.nearest(point)
        if len(mine) < 3:
            continue
        for _ in range(_REFITS):
            point, _ = state.solved(mine)
            again = state.nearest(point)
            if len(again) < 3 or np.array_equal(again, mine):
                break
            mine = again
        inside, expected = state.expected(point)
        enough = 3 <= len(mine) >= inside / 3 and sure[mine].sum() >= 3
        if not enough or abs(point[2]) > depth or poisson.sf(len(mine) - 2, expected) > chance:
            continue
        state.bead[mine] = len(rows) + 1
        row = _row(len(rows) + 1, state, mine, inside)
        rows.append(row | _mean(finds.iloc[mine], pixel_size, row["residual"]))
    off = np.full((len(finds), 2), np.nan)
    for row in rows:
        mine = np.flatnonzero(state.bead == row["bead"])
        off[mine] = state.off(np.array([row[axis] for axis in "xyz"]), mine)
    return Tracks(pd.DataFrame(rows, columns=_COLUMNS), finds.assign(
        bead=state.bead, off_x=off[:, 0], off_y=off[:, 1]))


_COLUMNS = ["bead", "x", "y", "z", "error_x", "error_y", "error_z", "images", "of", "residual",
            "residual_over_error", "diameter", "contrast"]


@dataclass(frozen=True, eq=False)
class _Finds:
    """Places of finds [A], their images, and the bead that each has been given."""

    places: Array
    image: NDArray[np.int_]
    bead: NDArray[np.int_]
    views: Views
    tolerance: Array
    """Of each image [A], (n,)."""
    half: Array

    def off(self, point: Array, rows: NDArray[np.int_]) -> Array:
        """Of some finds from where a point is in their images, (n, 2)."""
        seen = self.views.project(point[None])[:, 0]
        return np.asarray(self.places[rows] - seen[self.image[rows]])

    def nearest(self, point: Array) -> NDArray[np.int_]:
        """The find next to a point in each image that has one in reach, of those without bead."""
        free = np.flatnonzero(self.bead == 0)
        far = np.hypot(*self.off(point, free).T)
        near = far < self.tolerance[self.image[free]]
        free, far = free[near], far[near]
        order = np.argsort(far, kind="stable")
        _, first = np.unique(self.image[free[order]], return_index=True)
        return np.asarray(free[order][first])

    def solved(self, rows: NDArray[np.int_]) -> tuple[Array, Array]:
        """Place by least squares, and its covariance for finds of error 1."""
        lines = self.views.rotations[self.image[rows], :2].reshape(-1, 3)
        sides = (self.places[rows] - self.views.offsets[self.image[rows]]).reshape(-1)
        # Images of nearly one tilt leave the depth open; it is then that of the middle.
        normal = lines.T @ lines + 1e-6 * np.eye(3)
        return (np.asarray(np.linalg.solve(normal, lines.T @ sides)),
                np.asarray(np.linalg.inv(normal)))

    def votes(self, points: Array) -> Array:
        """Images with a find in reach of each point, nearer ones a little more."""
        places = self.views.project(points)
        total = np.zeros(len(points))
        for number, seen in enumerate(places):
            mine = self.places[self.image == number]
            if len(mine):
                reach = self.tolerance[number]
                far = KDTree(mine).query(seen, distance_upper_bound=reach)[0] / reach
                total += np.where(far < 1, 1 - 0.1 * far, 0)
        return total

    def expected(self, point: Array) -> tuple[int, float]:
        """Images whose field a point is in, and finds that chance alone puts in its reach."""
        seen = self.views.project(point[None])[:, 0]
        inside = (np.abs(seen) < self.half).all(1)
        count = np.bincount(self.image, minlength=len(seen))
        share = count * math.pi * self.tolerance**2 / (4 * self.half.prod())
        return int(inside.sum()), float(np.minimum(share, 1)[inside].sum())


def _guesses(state: _Finds, sure: NDArray[np.bool_], depth: float) -> tuple[Array, int]:
    """Places on the lines of sight of sure finds, the best first, and how many were tried."""
    n = len(state.views.rotations)
    beams = state.views.rotations[:, 2]
    by_tilt = np.argsort(beams @ np.linalg.svd(beams - beams.mean(0))[2][0])
    images = np.unique(by_tilt[np.linspace(0, n - 1, min(n, _SEEDS)).round().astype(int)])
    rows = np.flatnonzero(sure & np.isin(state.image, images))
    if not len(rows):
        return np.zeros((0, 3)), 0
    turns = state.views.rotations[state.image[rows]]
    # Half a reach apart as any image sees them.
    steps = np.linspace(-depth, depth, 2 * math.ceil(2 * depth / state.tolerance.min()) + 1)
    sides = state.places[rows] - state.views.offsets[state.image[rows]]
    lean = np.maximum(np.abs(turns[:, 2, 2]), 0.1)
    points = (np.einsum("nij,ni->nj", turns[:, :2], sides)[:, None]
              + (steps / lean[:, None])[..., None] * turns[:, None, 2])
    votes = state.votes(points.reshape(-1, 3)).reshape(len(rows), -1)
    best = np.argsort(-votes, axis=1, kind="stable")[:, :_DEPTHS]
    kept = np.take_along_axis(points, best[..., None], 1).reshape(-1, 3)
    order = np.argsort(-np.take_along_axis(votes, best, 1).ravel(), kind="stable")
    return np.asarray(kept[order]), votes.size


def _row(number: int, state: _Finds, mine: NDArray[np.int_], inside: int) -> dict[str, float]:
    point, covariance = state.solved(mine)
    square = float((state.off(point, mine)**2).sum())
    error = np.sqrt(np.diag(covariance) * square / (2 * len(mine) - 3))
    return dict(zip(_COLUMNS, [number, *point, *error, len(mine), inside,
                               math.sqrt(square / len(mine))], strict=False))


def _mean(finds: pd.DataFrame, pixel_size: float, residual: float) -> dict[str, float]:
    """Of a bead's finds, the surer ones the more.

    Args:
        finds: of it.
        pixel_size: [A].
        residual: root mean square distance of the finds [A].
    """
    weight = finds["snr"].to_numpy() ** 2
    spread = residual**2 * len(finds) / (2 * len(finds) - 3)
    own = pixel_size**2 * float((finds["error"].to_numpy() ** 2).mean())
    return {"residual_over_error": math.sqrt(spread / own),
            "diameter": float(np.average(finds["diameter"], weights=weight)),
            "contrast": float(np.average(finds["contrast"], weights=weight))}


def shifted(views: Views, tracks: Tracks, pixel_size: float, shape: tuple[int, int], reach: float
            ) -> Views:
    """Views with each image moved by what its beads say.

    Args:
        views: of the alignment.
        tracks: of `follow` by it.
        pixel_size: [A].
        shape: of the images (ny, nx).
        reach: farthest that an image is moved along x or y [A].

    Returns:
        Of each image that shift by which the most finds, three at least, are next to beads (10 A
        or a pixel), and then their median; other images, and all where no bead is, stay. What
        moves the specimen as a whole is taken off.
    """
    offsets = views.offsets.copy()
    if not len(tracks.beads):
        return views
    seen = views.project(tracks.beads[["x", "y", "z"]].to_numpy())
    middle = np.array([shape[1] // 2, shape[0] // 2])
    for number, rows in tracks.finds.groupby("image"):
        places = (rows[["x", "y"]].to_numpy() - middle) * pixel_size
        off = (places[:, None] - seen[int(number)]).reshape(-1, 2)
        off = off[(np.abs(off) <= reach).all(1)]
        if not len(off):
            continue
        tree = KDTree(off)
        alike = tree.query_ball_point(off, max(10.0, pixel_size))
        best = max(alike, key=len)
        if len(best) >= 3:
            offsets[int(number)] += np.median(off[best], axis=0)
    return Views(views.rotations, offsets - translation(views, offsets - views.offsets))


def translation(views: Views, steps: Array) -> Array:
    """Of steps of all images, those that a step of the whole specimen makes.

    By the least sum of distances, so that a few images that are far off do not drag it.

    Args:
        views: of the images.
        steps: of their offsets [A], (n, 2).

    Returns:
        (n, 2) [A].
    """
    lines, sides = views.rotations[:, :2].reshape(-1, 3), steps.reshape(-1)
    part = np.zeros(len(sides))
    for _ in range(20):
        far = np.hypot(*(sides - part).reshape(-1, 2).T)
        weight = np.repeat(1 / np.maximum(far, 1.0), 2)
        step = np.linalg.lstsq(lines * weight[:, None] ** 0.5, sides * weight**0.5, rcond=None)[0]
        part = lines @ step
    return part.reshape(-1, 2)
