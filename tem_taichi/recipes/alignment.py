"""The alignment of a tilt series as a part of recipes."""

from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi import checks
from tem_taichi.estimate.alignment import KINDS, Alignment, aligned
from tem_taichi.estimate.shared_images import Views
from tem_taichi.estimate.tilt_images import Grid, series_of
from tem_taichi.estimate.tomogram_fit import noise_of
from tem_taichi.physics import wavelength
from tem_taichi.recipes.result import Report

_FINEST, _PIXELS = 40.0, 3.0
"""Finest detail [A], at least so many pixels."""
_BEFORE_ZERO = 1.1
"""Finest detail over that of the first zero of the contrast transfer."""


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
        checks.one_of("align", kind, tuple(KINDS))
    checks.check(len(set(recipe.align)) == len(recipe.align), "align", recipe.align,
                 "different kinds")
    checks.positive("align_within", recipe.align_within, "A")
    checks.positive("align_to", recipe.align_to, "A")


def refined(recipe: WithAlign, images: NDArray, table: pd.DataFrame, pixel_size: float,
            mask: NDArray | None, report: Report) -> Alignment:
    """The alignment by all images together.

    Args:
        recipe: with something to align.
        images: as they were recorded, (n, ny, nx).
        table: of `series_of`.
        pixel_size: [A].
        mask: of `series_of`.
        report: called as it goes on.

    Raises:
        ValueError: if an image has no noise, or too few pixels.
    """
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
    views = Views(series.images, series.weights, noise, pixel_size, recipe.thickness,
                  (float(recipe.cut_from[0]), float(recipe.cut_from[1])))
    return aligned(views, table, recipe.align, recipe.align_within, finest, report)


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
            "align_agreement": list(found.gain)}
