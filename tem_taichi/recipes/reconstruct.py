"""A tomogram of a tilt series, by weighted back-projection, SIRT or SIRT with total variation.

Its unit is contrast per length [1/A], what each A takes from the mean of an image, matter positive;
its frame the specimen's, x and y as in the untilted image.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tem_taichi import checks
from tem_taichi.estimate.tomogram import (
    Grid,
    Series,
    Tomogram,
    back_projected,
    halves_of,
    iterated,
    series_of,
)
from tem_taichi.estimate.tomogram_figure import tomogram_figure
from tem_taichi.files.io import read_images
from tem_taichi.recipes.input import images_of, series_table
from tem_taichi.recipes.result import Report, Result
from tem_taichi.recipes.settings import SeriesRecipe

_METHODS = ("wbp", "sirt", "sirt_tv")


@dataclass(frozen=True)
class ReconstructRecipe(SeriesRecipe):
    """A tilt series, its alignment, and the method."""

    method: str = "wbp"
    """wbp, weighted back-projection; sirt; or sirt_tv, with total variation"""
    thickness: float = 3000.0
    """of the tomogram along the beam [A]"""
    bin: int = 1
    """pixels a voxel; images are averaged"""
    axis_angle: float | None = None
    """of the tilt axis from +y, counter-clockwise [deg]; null = from the table of angles"""
    shifts: tuple[str, str] = ("shift_x", "shift_y")
    """columns of the table of angles that have the images' shifts [A]; 0 where there are none"""
    cut_from: tuple[float, float] = (0.0, 0.0)
    """where the middle of the images lies in the frames that they were cut from, x and y from their
    middle [A], through which the tilt axis runs"""
    mask: str | None = None
    """MRC or TIFF file of pixels that are used, not 0: one image for all or one for each"""
    resolution: float = 0.0
    """of wbp: details of this size have half of their contrast left [A]; 0 = all have all"""
    iterations: int = 50
    """of sirt and sirt_tv, at most"""
    tv: float | None = None
    """of sirt_tv: strength of the total variation [1/A]; null = by the images held out"""
    positive: bool = False
    """of sirt and sirt_tv: whether voxels below 0, lighter than the mean, are set to 0"""
    held_out: int = 8
    """of sirt and sirt_tv: one image of so many is left out at first, and tells after how many
    iterations to stop; 0 = none, all iterations"""
    halves: bool = False
    """whether to reconstruct every other image, in the order of dose, apart as well"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("method", self.method, _METHODS)
        checks.positive("thickness", self.thickness, "A")
        checks.whole("bin", self.bin, 1, 64)
        if self.axis_angle is not None:
            checks.within("axis_angle", self.axis_angle, -360, 360, "deg")
        checks.check(len(self.cut_from) == 2, "cut_from", self.cut_from, "two numbers [A]")
        checks.check(len(self.shifts) == 2, "shifts", self.shifts, "the names of two columns")
        for value in self.cut_from:
            checks.within("cut_from", value, -checks.LARGE, checks.LARGE, "A")
        checks.not_negative("resolution", self.resolution, "A")
        checks.whole("iterations", self.iterations, 1, 10000)
        checks.not_negative("tv", self.tv, "1/A")
        checks.check(self.held_out == 0 or self.held_out >= 2, "held_out", self.held_out,
                     "0, or a whole number from 2")
        checks.check(self.tv is not None or self.held_out > 0 or self.method != "sirt_tv", "tv",
                     self.tv, "given where held_out=0")


def run(recipe: ReconstructRecipe, report: Report) -> Result:
    """A tomogram, and those of half of the images."""
    (name, images, pixel_size), = images_of(recipe)
    table = _tilts(recipe, name, len(images))
    mask = None if recipe.mask is None else _mask(recipe.mask)
    series = series_of(images, table, pixel_size,
                       Grid(recipe.thickness, recipe.bin, recipe.cut_from), mask)
    rays = series.rays
    whole = _reconstructed(recipe, series, report)
    volumes = {"tomogram.mrc": whole.volume}
    if recipe.halves:
        doses = (table["prior_dose"] if "prior_dose" in table else pd.Series(
            np.arange(len(table)))).to_numpy(float)
        for number, half in enumerate(halves_of(series, doses), 1):
            volumes[f"half{number}.mrc"] = _reconstructed(recipe, half, report).volume
    origin = tuple(-(n // 2) * rays.voxel for n in reversed(rays.grid))
    numbers = {"method": recipe.method, "images": len(images), "voxel_size_A": rays.voxel,
               "shape": list(rays.grid), "origin_A": list(origin)}
    if recipe.method != "wbp":
        numbers |= {"iterations": whole.iterations, "tv_per_A": whole.tv,
                    "held_out": list(whole.held_out)}
    return Result(numbers, _taken(recipe, table), figures={
        "tomogram.png": tomogram_figure(whole.volume.numpy(), rays.voxel)}, volumes={
            name: (volume.numpy(), rays.voxel, origin) for name, volume in volumes.items()})


def _reconstructed(recipe: ReconstructRecipe, series: Series, report: Report) -> Tomogram:
    if recipe.method == "wbp":
        report(0, 1)
        found = back_projected(series, recipe.resolution)
        report(1, 1)
        return found
    tv = recipe.tv if recipe.method == "sirt_tv" else 0.0
    return iterated(series, recipe.iterations, tv, recipe.positive, recipe.held_out, report)


def _tilts(recipe: ReconstructRecipe, name: str, count: int) -> pd.DataFrame:
    """The table with the axis and the shifts."""
    table = series_table(recipe, name, count)
    if recipe.axis_angle is not None:
        table["axis_angle"] = recipe.axis_angle
    if "axis_angle" not in table or not np.isfinite(table["axis_angle"]).all():
        raise ValueError("axis_angle=null: the table of angles has none: must be given [deg]")
    for ours, theirs in zip(("shift_x", "shift_y"), recipe.shifts, strict=True):
        if theirs != ours and theirs not in table:
            raise ValueError(f"shifts={theirs}: must be a column of the table of angles, which has "
                             f"{', '.join(table)}")
        if theirs in table:
            if not np.isfinite(table[theirs]).all():
                raise ValueError(f"shifts={theirs}: must have a number [A] in every row")
            table[ours] = table[theirs]
    return table


def _mask(file: str) -> np.ndarray:
    try:
        return read_images(Path(file))[0]
    except (ValueError, OSError) as error:
        raise ValueError(f"mask: {error}") from error


def _taken(recipe: ReconstructRecipe, table: pd.DataFrame) -> list[str]:
    taken = ["Matter is darker than the mean of each image, by what it would absorb: the contrast "
             "transfer function is left as it is."]
    if "shift_x" not in table:
        taken.append("The images are aligned: their table has no shifts.")
    return taken


RECIPE = (ReconstructRecipe, run)
