"""The alignment of a tilt series as a part of recipes."""

import math
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi import checks
from tem_taichi.estimate.alignment import Alignment, aligned
from tem_taichi.estimate.bead_poses import Search
from tem_taichi.estimate.bead_series import Gold, gold_of
from tem_taichi.estimate.free_poses import KINDS, NAMES
from tem_taichi.estimate.reprojected import matched
from tem_taichi.estimate.shared_images import Views
from tem_taichi.estimate.tilt_images import Grid, series_of
from tem_taichi.estimate.tomogram_fit import noise_of
from tem_taichi.physics import wavelength
from tem_taichi.recipes.beads import masked_gold, points_of
from tem_taichi.recipes.result import Report

_FINEST, _PIXELS = 40.0, 3.0
"""Finest detail [A], at least so many pixels."""
_BEFORE_ZERO = 1.1
"""Finest detail over that of the first zero of the contrast transfer."""
BY = ("auto", "beads", "specimen")
_VOXELS = 8e6
"""Of the reconstruction that images are compared with, at most: larger ones are coarser."""
SURE = 2.0
"""Error of each shift [A] by beads up to which the specimen is not asked as well."""
_SURE_AXIS = 0.1
"""And of the axis [deg]: 2 A at 0.1 um from the middle."""


class WithAlign(Protocol):
    """A recipe that may refine the alignment."""

    @property
    def align(self) -> tuple[str, ...]:
        """Of `alignment.KINDS`."""

    @property
    def align_within(self) -> float:
        """Deviation of the shifts that are given [A]."""

    @property
    def align_to(self) -> float | None:
        """Finest detail [A]."""

    @property
    def align_by(self) -> str:
        """Of `BY`."""

    @property
    def align_rounds(self) -> int:
        """Of `reprojected.matched`."""

    @property
    def beads(self) -> str | None:
        """auto, a text of IMOD's model2point, or nothing."""

    @property
    def bead_diameter(self) -> float | None:
        """Of them [A]."""

    @property
    def thickness(self) -> float:
        """Of the specimen [A]."""

    @property
    def cut_from(self) -> tuple[float, float]:
        """See `tilt_images.Grid` [A]."""

    @property
    def voltage(self) -> float:
        """Of the microscope [kV]."""


def check_align(recipe: WithAlign) -> None:
    """Whether the settings can be.

    Raises:
        ValueError: if not.
    """
    for kind in recipe.align:
        checks.one_of("align", kind, tuple(kind for kind in KINDS if kind != "magnification"))
    checks.check(len(set(recipe.align)) == len(recipe.align), "align", recipe.align,
                 "different kinds")
    checks.positive("align_within", recipe.align_within, "A")
    checks.positive("align_to", recipe.align_to, "A")
    checks.one_of("align_by", recipe.align_by, BY)
    checks.whole("align_rounds", recipe.align_rounds, 0, 100)


def refined(recipe: WithAlign, images: NDArray, table: pd.DataFrame, pixel_size: float,
            mask: NDArray | None, report: Report) -> Alignment:
    """The alignment by gold beads where there are, by all of the specimen where they do not tell.

    Args:
        recipe: with something to align.
        images: as they were recorded, (n, ny, nx).
        table: of `series_of`.
        pixel_size: [A].
        mask: of `series_of`.
        report: called as it goes on.

    Raises:
        ValueError: if an image has no noise, or too few pixels, or beads are asked for and there
            are none.
    """
    known, within = None, recipe.align_within
    doubts: tuple[str, ...] = ()
    if recipe.align_by != "specimen":
        gold = _gold(recipe, images, table, pixel_size)
        if gold.fit is not None:
            found = by_beads(gold, table)
            errors = found.tilts.filter(regex="^shift_._error$").to_numpy()
            axis = found.tilts.get("axis_angle_error", pd.Series(0.0)).max()
            sure = (errors < SURE).all() and axis < _SURE_AXIS
            if recipe.align_by == "beads" or sure:
                return found
            images, mask = masked_gold(images, gold, pixel_size, mask)
            table, known, doubts = found.tilts, gold.fit.information, gold.fit.doubts
            within = float(np.sqrt((errors**2).mean())) if errors.size else within
        elif recipe.align_by == "beads":
            raise ValueError("align_by=beads: no beads were followed through the images; recipe="
                             "beads says what was found")
    found = _by_specimen(recipe, images, table, pixel_size, mask, report, within, known)
    return replace(found, doubts=(*doubts, *found.doubts))


def _by_specimen(recipe: WithAlign, images: NDArray, table: pd.DataFrame, pixel_size: float,
                 mask: NDArray | None, report: Report, within: float, known: Tensor | None
                 ) -> Alignment:
    series = series_of(images, table, pixel_size, Grid(recipe.thickness, 1, recipe.cut_from), mask)
    noise = noise_of(series.images).square()
    if not float(noise.min()) > 0:
        raise ValueError(f"input: image {int(noise.argmin()) + 1} has no noise; it must be as it "
                         "was recorded for align")
    finest = finest_of(recipe, table, pixel_size)
    least = min(images.shape[1:]) * pixel_size / 6
    if finest > least:
        raise ValueError(f"align_to={finest:.3g}: must be at most {least:.3g} A, a sixth of the "
                         "images")
    cut = (float(recipe.cut_from[0]), float(recipe.cut_from[1]))
    views = Views(series.images, series.weights, noise, pixel_size, recipe.thickness, cut)
    found = aligned(views, table, recipe.align, within, finest, report, known)
    if "shifts" not in recipe.align or not recipe.align_rounds:
        return found
    many = images[0].size * recipe.thickness / pixel_size / _VOXELS
    size = max(1, int(finest / (2 * pixel_size)), math.ceil(many**(1 / 3)))
    moved, last = matched(images, found.tilts, pixel_size, Grid(recipe.thickness, size, cut),
                          max(finest, 2 * pixel_size * size), noise, mask, recipe.align_rounds,
                          report)
    if known is not None:  # what beads tell of is better known
        sure = (table.filter(regex="^shift_._error$") < SURE).all(axis=1)
        moved = moved.where(~sure, found.tilts)
    changed = {name: float(np.sqrt(np.mean((moved[name] - (
        table[name] if name in table else 0.0))**2))) for name in found.changed}
    errors = {f"{name}_error": np.hypot(found.tilts[f"{name}_error"], last)
              for name in ("shift_x", "shift_y")}
    return replace(found, tilts=moved.assign(**errors), changed=changed)


def _gold(recipe: WithAlign, images: NDArray, table: pd.DataFrame, pixel_size: float) -> Gold:
    """Beads of the series, and the poses by them."""
    search = Search(recipe.bead_diameter, depth=max(Search().depth, recipe.thickness),
                    cut_from=(float(recipe.cut_from[0]), float(recipe.cut_from[1])),
                    kinds=recipe.align, within=recipe.align_within)
    points = None if recipe.beads in (None, "auto") else points_of(
        str(recipe.beads), len(images), "beads")
    return gold_of(images, table, pixel_size, search, points)


def by_beads(gold: Gold, table: pd.DataFrame) -> Alignment:
    """The alignment by gold alone.

    Args:
        gold: with a fit.
        table: that was stated.
    """
    assert gold.fit is not None
    tilts = gold.fit.tilts
    changed = {name: float(np.sqrt(np.mean((tilts[name] - (
        table[name] if name in table else 0.0))**2))) for name in (
        name.removesuffix("_error") for name in tilts if name.endswith("_error"))
        if name in NAMES}
    return Alignment(tilts, changed, None, gold.fit.doubts)


def finest_of(recipe: WithAlign, table: pd.DataFrame, pixel_size: float) -> float:
    """Finest detail that is compared [A].

    Args:
        recipe: whose `align_to` is taken, if it is given.
        table: whose defoci say where the contrast first changes its sign, if it has any.
        pixel_size: [A].
    """
    if recipe.align_to is not None:
        return max(recipe.align_to, 2 * pixel_size)
    defoci = [np.abs(table[name].to_numpy(float)).max() for name in (
        "defocus", "defocus_u", "defocus_v", "target_defocus") if name in table]
    zero = (float(wavelength(recipe.voltage)) * np.nanmax(defoci))**0.5 if defoci else 0.0
    return float(max(_FINEST, _PIXELS * pixel_size, _BEFORE_ZERO * zero))


def alignment_numbers(found: Alignment) -> dict[str, Any]:
    """Of results.json.

    Args:
        found: of `refined`.
    """
    units = {"shift_x": "A", "shift_y": "A"}
    return {"align_changed": {f"{name}_rms_{units.get(name, 'deg')}": value
                              for name, value in found.changed.items()},
            "align_error": {f"{name}_{units.get(name, 'deg')}": float(np.sqrt(np.mean(
                found.tilts[f"{name}_error"]**2))) for name in found.changed},
            **({} if found.gain is None else {"align_agreement": list(found.gain)}),
            **({"align_beads": int(found.tilts["beads"].sum())} if "beads" in found.tilts else {})}
