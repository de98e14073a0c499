"""Beads followed through a tilt series while its poses become what the beads say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi.estimate.bead_alignment import BeadAlignment, fitted
from tem_taichi.estimate.bead_modes import joined
from tem_taichi.estimate.bead_sightings import Sightings
from tem_taichi.estimate.bead_tracks import Tracks, Views, follow, shifted, translation, views_of
from tem_taichi.estimate.free_poses import KINDS

Array = NDArray[np.float64]

_PASSES = 3
"""Times that images are moved by what the beads say."""
_FITS = 5
"""Of all poses and beads at once, at most; after each the beads' finds are looked for anew."""
_REACH = 6.0
"""Farthest that a find then is from its bead's place, in errors of a find; 2 pixels at least."""
_STARTS = (-1.0, 0.0, 1.0)
"""Axes to begin with, from the one given [deg]."""
_FEW = 2
"""Beads of an image that agree, below which it is lost."""
_ANYWHERE = 6.0
"""Farthest that an image is moved, in tolerances of a find."""


@dataclass(frozen=True)
class Search:
    """What is looked for, and where."""

    diameter: float | None = None
    """Of the beads [A]; None = as the images say."""
    false_finds: float = 0.01
    """Of an image by noise alone, and of the series in three dimensions."""
    contrast: float | None = None
    """See `beads.Beads`."""
    depth: float = 3000.0
    """Of beads from the specimen's middle at most, along the beam [A]."""
    tolerance: float = 50.0
    """Farthest that a find is from where its bead's place puts it [A]."""
    cut_from: tuple[float, float] = (0.0, 0.0)
    """See `bead_tracks.views_of` [A]."""
    margin: float = 20.0
    """That the mask has about each bead [A]."""
    kinds: tuple[str, ...] = ("shifts", "axis")
    """Of `free_poses.KINDS`: what the beads' fit changes; empty = shifts, of images with three."""
    within: float = 20.0
    """Deviation of the shifts that are given [A]."""


@dataclass(frozen=True, eq=False)
class BeadPoses:
    """What was found."""

    tracks: Tracks
    tilts: pd.DataFrame
    """The table with the poses that the beads want."""
    fit: BeadAlignment | None
    """The last fit of all; None where there are too few finds for one."""
    residual_before: float | None
    """Median residual of the beads by the alignment given [A]."""


def poses_by_beads(finds: pd.DataFrame, tilts: pd.DataFrame, pixel_size: float,
                   shape: tuple[int, int], search: Search) -> BeadPoses:
    """Tracks and poses by turns: images are moved, then all is fitted at once, the surest first.

    Args:
        finds: of `beads.beads_of_series`.
        tilts: see `bead_tracks.views_of`.
        pixel_size: [A].
        shape: of the images (ny, nx).
        search: how far they may be off, and what is fitted.
    """
    work = _Work(finds, pixel_size, shape, search)
    offs = _STARTS if "axis" in search.kinds else (0.0,)
    ways = [_followed(work, tilts, off) for off in offs]
    fits = [way.fit for way in ways if way.fit is not None]
    if not fits:
        return ways[offs.index(0.0)]
    # Where beads did not do for all kinds from some start, those that were fitted whole.
    most = max(len(fit.tilts.columns) for fit in fits)
    fits = [fit for fit in fits if len(fit.tilts.columns) == most]
    scores = [work.score(fit, tilts) for fit in fits]
    best = fits[int(np.argmax(scores))]
    fit = joined(fits, scores)
    return replace(next(way for way in ways if way.fit is best), tilts=fit.tilts, fit=fit)


def _followed(work: "_Work", tilts: pd.DataFrame, off: float) -> BeadPoses:
    """From the axis so many degrees beside that given."""
    search, pixel_size = work.search, work.pixel_size
    tracks = work.followed(tilts, search.tolerance)
    before = float(tracks.beads["residual"].median()) if len(tracks.beads) else None
    table = tilts
    if off:
        table = tilts.assign(axis_angle=tilts["axis_angle"] + off)
        tracks = work.followed(table, search.tolerance)
    for _ in range(_PASSES):
        table = work.moved(table, tracks)
        tracks = work.followed(table, search.tolerance)
    fit: BeadAlignment | None = None
    # Images of few beads fit wrong ones where much is free: that comes last.
    order = [kind for kind in KINDS if kind in search.kinds]
    stages = [tuple(order[:n]) for n in range(1, len(order) + 1)]
    for kinds in stages:
        for _ in range(_FITS if kinds else 0):
            sightings = work.sightings(tracks)
            try:
                fit = fitted(sightings, table, kinds, search.within, None if fit is None
                             else fit.tilts)
            except ValueError:
                break  # too few finds
            reach = min(search.tolerance, max(2 * pixel_size, _REACH * fit.error))
            moved = work.moved(fit.tilts, tracks)
            known = tracks.finds["bead"]
            tracks = work.followed(moved, reach)
            table = _restated(table, fit.tilts, moved, reach)
            if tracks.finds["bead"].equals(known):
                break
        if fit is not None:
            fit, tracks, table = work.lost_found(fit, tracks, table, tilts, kinds, reach)
    return BeadPoses(tracks, table if fit is None else fit.tilts, fit, before)


def _restated(table: pd.DataFrame, found: pd.DataFrame, moved: pd.DataFrame, reach: float
              ) -> pd.DataFrame:
    """The table that is stated, where images that were lost have where they turned up."""
    names = ["shift_x", "shift_y"]
    far = np.hypot(*(moved[names] - found[names]).to_numpy().T) > reach
    table = table.copy()
    table.loc[far, names] = moved.loc[far, names]
    return table


@dataclass(frozen=True, eq=False)
class _Work:
    finds: pd.DataFrame
    pixel_size: float
    shape: tuple[int, int]
    search: Search

    def followed(self, tilts: pd.DataFrame, tolerance: float | Array) -> Tracks:
        return follow(self.finds, self.views(tilts), self.pixel_size, self.shape,
                      self.search.depth, tolerance, self.search.false_finds)

    def lost_found(self, fit: BeadAlignment, tracks: Tracks, table: pd.DataFrame,
                   given: pd.DataFrame, kinds: Sequence[str], reach: float
                   ) -> tuple[BeadAlignment, Tracks, pd.DataFrame]:
        """Images with too few beads begin again where they were given, and look as far."""
        names = ["shift_x", "shift_y"]
        few = fit.tilts["beads"].to_numpy() < _FEW
        if "shifts" not in kinds or not few.any():
            return fit, tracks, table
        was = given[names] if "shift_x" in given else pd.DataFrame(0.0, given.index, names)
        table, begun = table.copy(), fit.tilts.copy()
        for one in (table, begun):
            one.loc[few, names] = was[few]
        tracks = self.followed(begun, np.where(few, self.search.tolerance, reach))
        fit = fitted(self.sightings(tracks), table, kinds, self.search.within, begun)
        return fit, tracks, table

    def score(self, fit: BeadAlignment, given: pd.DataFrame) -> float:
        """Logarithm of how probable a fit is beside finds that are all stray."""
        area = self.shape[0] * self.shape[1] * self.pixel_size**2
        stray = len(self.finds) / len(given) / area
        anywhere = len(fit.beads) * math.log(2 * self.search.depth * area)
        steps = self.views(fit.tilts).offsets - self.views(given).offsets
        steps = steps - translation(self.views(given), steps)
        # Some images may be lost: Student's law of five degrees of freedom.
        moved = 3 * np.log1p((steps / self.search.within)**2 / 5).sum()
        return float(fit.evidence - fit.finds * math.log(stray) - anywhere - moved)

    def views(self, tilts: pd.DataFrame) -> Views:
        return views_of(tilts, self.search.cut_from)

    def moved(self, tilts: pd.DataFrame, tracks: Tracks) -> pd.DataFrame:
        """The table with each image moved by what its beads say."""
        before = self.views(tilts)
        after = shifted(before, tracks, self.pixel_size, self.shape,
                        _ANYWHERE * self.search.tolerance)
        by = after.offsets - before.offsets
        return tilts.assign(**{name: (tilts[name] if name in tilts else 0.0) + by[:, part]
                               for part, name in enumerate(("shift_x", "shift_y"))})

    def sightings(self, tracks: Tracks) -> Sightings:
        """Finds of beads."""
        mine = tracks.finds[tracks.finds["bead"] > 0]
        middle = np.array([self.shape[1] // 2, self.shape[0] // 2])
        return Sightings(
            (mine[["x", "y"]].to_numpy(float) - middle) * self.pixel_size,
            mine["error"].to_numpy(float) * self.pixel_size, mine["image"].to_numpy(int),
            mine["bead"].to_numpy(int) - 1, np.array([*self.search.cut_from, 0.0]))
