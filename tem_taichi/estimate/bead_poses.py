"""Beads followed through a tilt series while its poses become what the beads say."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tem_taichi.estimate.bead_alignment import BeadAlignment, Sightings, fitted
from tem_taichi.estimate.bead_tracks import Tracks, Views, follow, shifted, views_of
from tem_taichi.estimate.free_poses import KINDS

_PASSES = 3
"""Times that images are moved by what the beads say."""
_FITS = 5
"""Of all poses and beads at once, at most; after each the beads' finds are looked for anew."""
_REACH = 6.0
"""Farthest that a find then is from its bead's place, in errors of a find; 2 pixels at least."""
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
    tracks = work.followed(tilts, search.tolerance)
    before = float(tracks.beads["residual"].median()) if len(tracks.beads) else None
    table = tilts
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

    def followed(self, tilts: pd.DataFrame, tolerance: float) -> Tracks:
        return follow(self.finds, self.views(tilts), self.pixel_size, self.shape,
                      self.search.depth, tolerance, self.search.false_finds)

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
