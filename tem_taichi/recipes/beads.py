"""Gold beads of a tilt series: where they are in each image and in the specimen, and a mask.

tracks.star has their places in the specimen, with residuals that check the alignment.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi import checks
from tem_taichi.estimate.bead_figure import bead_figure
from tem_taichi.estimate.bead_masks import filled
from tem_taichi.estimate.bead_poses import Search
from tem_taichi.estimate.bead_series import Gold, gold_of
from tem_taichi.estimate.free_poses import KINDS
from tem_taichi.files.imod_points import points_text, read_points
from tem_taichi.recipes.input import aligned_table, check_alignment, images_of
from tem_taichi.recipes.result import Report, Result
from tem_taichi.recipes.settings import SeriesRecipe


@dataclass(frozen=True)
class BeadsRecipe(SeriesRecipe):
    """A tilt series, how it is aligned, and what is looked for."""

    bead_diameter: float | None = None
    """[A]; null = 40 to 300, as the images say"""
    points: str | None = None
    """text of IMOD's model2point, [[object] contour] x y z: beads that were found already, of
    bead_diameter; null = look for them"""
    false_finds: float = 0.01
    """of an image, that noise alone makes, and of the series in three dimensions; structure is no
    noise"""
    contrast: float | None = None
    """least share of the electrons that a bead's middle takes; null = a third of what gold does,
    1 - exp(-diameter / 180 A), at most 0.12, which is more than protein takes"""
    depth: float = 3000.0
    """of beads, from the specimen's middle at most, along the beam [A]"""
    tolerance: float = 50.0
    """farthest that a find is from where its bead's place puts it [A]"""
    axis_angle: float | None = None
    """of the tilt axis from +y, counter-clockwise [deg]; null = from the table of angles"""
    shifts: tuple[str, str] = ("shift_x", "shift_y")
    """columns of the table of angles that have the images' shifts [A]; 0 where there are none"""
    align: tuple[str, ...] = ("shifts", "axis")
    """what is fitted to the beads, all images and beads at once, for tilts_beads.csv: any of
    shifts, axis, one for all images, tilts, the angle of each, and magnification of each; [] =
    shifts of images with three beads and more, one image after another"""
    align_within: float = 20.0
    """how far the shifts that are given may be off, as a standard deviation [A]; the axis is taken
    for known to 3 deg, tilts to 1 deg, magnifications to 1 %"""
    cut_from: tuple[float, float] = (0.0, 0.0)
    """where the middle of the images lies in the frames that they were cut from, x and y from their
    middle [A], through which the tilt axis runs"""
    margin: float = 20.0
    """that the mask has about each bead, for its fringes [A]"""
    fill: bool = False
    """whether to write the images with the mean of what is about each bead in its place"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive("bead_diameter", self.bead_diameter, "A")
        checks.check(self.points is None or self.bead_diameter is not None, "bead_diameter",
                     self.bead_diameter, "given where points are [A]")
        checks.positive("false_finds", self.false_finds, "finds an image")
        checks.check(self.contrast is None or 0 < self.contrast < 1, "contrast", self.contrast,
                     "above 0 and below 1, or null")
        checks.positive("depth", self.depth, "A")
        checks.positive("tolerance", self.tolerance, "A")
        checks.not_negative("margin", self.margin, "A")
        for kind in self.align:
            checks.one_of("align", kind, tuple(KINDS))
        checks.check(len(set(self.align)) == len(self.align), "align", self.align,
                     "different kinds")
        checks.positive("align_within", self.align_within, "A")
        check_alignment(self)


def run(recipe: BeadsRecipe, report: Report) -> Result:
    """Beads of a tilt series."""
    (name, images, pixel_size), = images_of(recipe)
    table = aligned_table(recipe, name, len(images))
    points = None if recipe.points is None else points_of(recipe.points, len(images))
    search = Search(diameter=recipe.bead_diameter, false_finds=recipe.false_finds,
                    contrast=recipe.contrast, depth=recipe.depth, tolerance=recipe.tolerance,
                    cut_from=recipe.cut_from, margin=recipe.margin, kinds=recipe.align,
                    within=recipe.align_within)
    gold = gold_of(images, table, pixel_size, search, points, report)
    beads, finds = gold.tracks.beads, gold.tracks.finds
    diameters = beads["diameter"] if len(beads) else finds["diameter"]
    numbers = {
        "images": len(images), "beads": len(beads), "finds": len(finds),
        "finds_of_no_bead": int((finds["bead"] == 0).sum()),
        "diameter_A": float(diameters.median()) if len(diameters) else None,
        "residual_A": _middle(beads, "residual"),
        "residual_over_error": _middle(beads, "residual_over_error"),
        "residual_of_given_alignment_A": gold.residual_before, **_fit_numbers(gold),
        "masked": float(1 - gold.mask.mean()), "padding": float(1 - gold.valid.mean())}
    volumes: dict[str, tuple[NDArray, float]] = {"mask.mrc": (gold.mask.astype(np.int8),
                                                              pixel_size)}
    if recipe.fill:
        width = (numbers["diameter_A"] or 100.0) / 2 / pixel_size
        volumes["filled.mrc"] = (filled(images, gold.mask, width), pixel_size)
    contours = gold.places[gold.places["bead"] > 0].rename(columns={"bead": "contour"})
    return Result(
        numbers, _taken(recipe), _doubts(recipe, gold, len(images)),
        tables={"finds.star": _from_one(finds), "tracks.star": beads,
                "tilts_beads.csv": gold.tilts, "places.csv": _from_one(gold.places)},
        texts={"beads_fid.txt": points_text(contours[contours["found"]].sort_values(
            ["contour", "image"]))},
        images=volumes, figures={"beads.png": bead_figure(images, table, gold, pixel_size)})


def without_gold(images: NDArray, table: pd.DataFrame, pixel_size: float, mask: NDArray | None,
                 beads: str, search: Search) -> tuple[NDArray, NDArray]:
    """Images whose beads are filled with the mean of what is about them, and the pixels left.

    Args:
        images: (n, ny, nx).
        table: of `aligned_table`.
        pixel_size: [A].
        mask: of pixels that are used anyway, of the images or of one; None = all.
        beads: auto, or a text of IMOD's model2point.
        search: what is looked for.

    Raises:
        ValueError: if the text can't be read, or the mask has another shape.
    """
    points = None if beads == "auto" else points_of(beads, len(images), "beads")
    gold = gold_of(images, table, pixel_size, search, points)
    return masked_gold(images, gold, pixel_size, mask)


def masked_gold(images: NDArray, gold: Gold, pixel_size: float, mask: NDArray | None
                ) -> tuple[NDArray, NDArray]:
    """Images whose beads are filled with the mean of what is about them, and the pixels left.

    Args:
        images: (n, ny, nx).
        gold: that was found in them.
        pixel_size: [A].
        mask: of pixels that are used anyway, of the images or of one; None = all.

    Raises:
        ValueError: if the mask has another shape.
    """
    diameters = gold.places["diameter"]
    width = (float(diameters.median()) if len(diameters) else 100.0) / 2 / pixel_size
    used = gold.mask
    if mask is not None:
        if mask.shape[-2:] != images.shape[1:] or mask.size not in (images[0].size, images.size):
            raise ValueError(f"mask: has shape {mask.shape}, must be that of the images, "
                             f"{images.shape}, or of one, {images.shape[1:]}")
        used = used & (mask > 0)
    return filled(images, gold.mask, width), used


def points_of(file: str, count: int, key: str = "points") -> pd.DataFrame:
    """Points of IMOD's model, of so many images.

    Raises:
        ValueError: if the file can't be read, or has a point of another image.
    """
    checks.check(Path(file).is_file(), key, file, "a file; there is none of this name")
    try:
        points = read_points(Path(file))
    except (ValueError, OSError) as error:
        raise ValueError(f"{key}: {error}") from error
    if points["image"].max() >= count:
        raise ValueError(f"{key}={file}: has z={points['image'].max()}: must be below {count}, "
                         "the number of images")
    return points


def _fit_numbers(gold: Gold) -> dict[str, Any]:
    """Of the fit of all poses and beads."""
    if gold.fit is None:
        return {}
    units = {"shift_x": "_A", "shift_y": "_A", "magnification": ""}
    errors = {f"{name.removesuffix('_error')}{units.get(name.removesuffix('_error'), '_deg')}":
              float(np.sqrt(np.mean(gold.fit.tilts[name]**2)))
              for name in gold.fit.tilts if name.endswith("_error")}
    return {"find_error_A": gold.fit.error, "align_error": errors}


def _middle(beads: pd.DataFrame, name: str) -> float | None:
    return float(beads[name].median()) if len(beads) else None


def _from_one(table: pd.DataFrame) -> pd.DataFrame:
    """Images counted from 1, as people do."""
    return table.assign(image=table["image"] + 1)


def _taken(recipe: BeadsRecipe) -> list[str]:
    taken = ["Gold is dark, and round.",
             "A bead of many images stays in its place in the specimen while that is tilted."]
    if recipe.points is not None:
        taken[0] = "The points are beads, all of one diameter."
    return taken


def _doubts(recipe: BeadsRecipe, gold: Gold, count: int) -> list[str]:
    finds, doubts = gold.tracks.finds, []
    if gold.without_mean:
        doubts.append(f"{len(gold.without_mean)} of {count} images, the first of them image "
                      f"{gold.without_mean[0] + 1}, have no positive mean: nothing is looked for.")
    if not len(gold.tracks.beads):
        doubts.append("No bead was followed through the images: the alignment is off by more than "
                      f"tolerance={recipe.tolerance:g} A, or there are no beads.")
        return doubts
    doubts += () if gold.fit is None else gold.fit.doubts
    alone = (finds["bead"] == 0).groupby(finds["image"]).mean()
    lost = [int(image) + 1 for image in alone.index[alone > 0.5]]
    if lost:
        doubts.append(f"Most finds of images {', '.join(map(str, lost[:9]))} are of no bead.")
    far = np.hypot(*gold.moved.T)
    off = [int(image) for image in np.flatnonzero(far > recipe.tolerance / 2)]
    if off:
        doubts.append(f"By the beads, {len(off)} of {count} images are misplaced by "
                      f"{recipe.tolerance / 2:g} A and more, most of all image {far.argmax() + 1} "
                      f"by {far.max():.0f} A: tilts_beads.csv has the shifts that they want.")
    return doubts


RECIPE = (BeadsRecipe, run)
