"""Gold of a tilt series: found, followed through the images, and masked."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi.estimate.bead_masks import bead_mask, covered, recorded
from tem_taichi.estimate.bead_tracks import Tracks, follow, shifted, views_of
from tem_taichi.estimate.beads import Beads, beads_of_series

_PASSES = 3
"""Times that images are moved by what the beads say."""


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
    """The table with the shifts that they want."""
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
    given = views_of(tilts, search.cut_from)
    views, before = given, None
    for turn in range(_PASSES + 1):
        tracks = follow(finds, views, pixel_size, shape, search.depth, search.tolerance,
                        search.false_finds)
        if turn == 0 and len(tracks.beads):
            before = float(tracks.beads["residual"].median())
        if turn < _PASSES:
            views = shifted(views, tracks, pixel_size, shape, 6 * search.tolerance)
    sure = (tracks.finds["bead"] > 0) | (tracks.finds["false_finds"] <= search.false_finds)
    tracks = Tracks(tracks.beads, tracks.finds[sure].reset_index(drop=True))
    places = covered(tracks, views, pixel_size, shape, search.false_finds)
    moved = views.offsets - given.offsets
    mask = valid & bead_mask(places, images.shape, pixel_size, search.margin)
    old = [tilts[name] if name in tilts else 0.0 for name in ("shift_x", "shift_y")]
    wanted = tilts.assign(shift_x=old[0] + moved[:, 0], shift_y=old[1] + moved[:, 1])
    return Gold(tracks, places, mask, valid, moved=moved, tilts=wanted, residual_before=before,
                without_mean=dark)
