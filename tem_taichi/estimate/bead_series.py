"""Gold of a tilt series: found, followed through the images, and masked."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi.estimate.bead_alignment import BeadAlignment
from tem_taichi.estimate.bead_masks import bead_mask, covered, recorded
from tem_taichi.estimate.bead_poses import Search, poses_by_beads
from tem_taichi.estimate.bead_tracks import Tracks, views_of
from tem_taichi.estimate.beads import Beads, beads_of_series


@dataclass(frozen=True, eq=False)
class Gold:
    """What was found."""

    tracks: Tracks
    """Of images moved by `moved`; doubtful finds of no bead are left out."""
    places: pd.DataFrame
    """`bead_masks.covered`."""
    mask: NDArray[np.bool_]
    """Pixels that show the specimen, (n, ny, nx)."""
    valid: NDArray[np.bool_]
    """Those that are no padding."""
    moved: NDArray[np.float64]
    """What the beads say that each image is off the alignment given, x and y [A], (n, 2)."""
    tilts: pd.DataFrame
    """The table with the poses that they want."""
    fit: BeadAlignment | None
    """Of all poses and beads at once; None where there are too few finds for one."""
    residual_before: float | None
    """Median residual of the beads by the alignment given [A]."""
    without_mean: list[int]
    """Images, from 0, in which nothing can be looked for."""


def gold_of(images: NDArray, tilts: pd.DataFrame, pixel_size: float, search: Search,
            points: pd.DataFrame | None = None,
            report: Callable[[int, int], None] = lambda done, of: None) -> Gold:
    """Beads of an aligned series, whose shifts may be somewhat off.

    Args:
        images: (n, ny, nx), matter dark.
        tilts: see `bead_tracks.views_of`.
        pixel_size: [A].
        search: what is looked for.
        points: of `imod_points.read_points`, taken as they are; None = beads are looked for.
        report: called with what is done and how much there is.
    """
    valid, shape = recorded(images), images.shape[1:]
    dark: list[int] = []
    if points is not None:
        assert search.diameter is not None
        finds = points.drop(columns="contour").assign(
            error=0.5, diameter=search.diameter, contrast=np.nan, snr=1.0, false_finds=0.0)
    else:
        lowest = np.argsort(tilts["tilt_angle"].abs().to_numpy(), kind="stable")[:3]
        finds, dark = beads_of_series(
            images, pixel_size, Beads(search.diameter, search.false_finds, search.contrast), valid,
            report, [int(number) for number in lowest])
    found = poses_by_beads(finds, tilts, pixel_size, shape, search)
    tracks = found.tracks
    sure = (tracks.finds["bead"] > 0) | (tracks.finds["false_finds"] <= search.false_finds)
    tracks = Tracks(tracks.beads, tracks.finds[sure].reset_index(drop=True))
    places = covered(tracks, views_of(found.tilts, search.cut_from), pixel_size, shape,
                     search.false_finds)
    mask = valid & bead_mask(places, images.shape, pixel_size, search.margin)
    shifts = [one[name].to_numpy(float) if name in one else np.zeros(len(tilts))
              for one in (found.tilts, tilts) for name in ("shift_x", "shift_y")]
    moved = np.stack(shifts[:2], 1) - np.stack(shifts[2:], 1)
    return Gold(tracks, places, mask, valid, moved=moved, tilts=found.tilts, fit=found.fit,
                residual_before=found.residual_before, without_mean=dark)
