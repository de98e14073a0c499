"""Defocus, astigmatism and phase shift of micrographs, stacks, tilt series or spectra.

Good fits and doubtful ones go to separate RELION star files, and each good one to a scene. Fits
that are done outlast an interruption.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tem_taichi import checks
from tem_taichi.estimate.ctf_figure import write_ctf_figure
from tem_taichi.estimate.ctf_fit import fit_micrograph, fit_particles, fit_spectrum
from tem_taichi.estimate.ctf_pool import assumption, contradicts, pool, verdict
from tem_taichi.estimate.ctf_row import ROW, failed_row, finite, fit_of, row_of
from tem_taichi.estimate.ctf_search import CtfSearch, default_search
from tem_taichi.estimate.ctf_tilt import common_astigmatism, fit_tilted_micrograph
from tem_taichi.files.unfinished import (
    load_part,
    part_key,
    picture_of,
    save_part,
    unfinished_folder,
)
from tem_taichi.recipes.ctf_tables import lines_of, star_tables, tilt_table
from tem_taichi.recipes.input import images_of, tilted
from tem_taichi.recipes.result import Report, Result
from tem_taichi.recipes.scene import micrograph_scene, scene_text, series_scene
from tem_taichi.recipes.settings import Recipe
from tem_taichi.recipes.together import fit_together

_HAND = 20.0
"""Log-likelihood, over a series, by which one sense of the tilt must explain the rings better."""


@dataclass(frozen=True)
class CtfRecipe(Recipe):
    """The lens, what is looked for in the rings, and the tilts if there are any."""

    spectrum: bool = False
    """whether the input holds power spectra (zero frequency in the middle) instead of images"""
    average: bool = False
    """whether all images of a file share one CTF, as particles of a micrograph do: one fit each"""
    voltage: float = 300.0
    """[kV]"""
    spherical_aberration: float = 2.7
    """Cs [mm]"""
    amplitude_contrast: float = 0.07
    """Q"""
    defocus: tuple[float, ...] = (1500.0, 60000.0)
    """lowest and highest looked for [A], positive = underfocus"""
    astigmatism: float = 1200.0
    """largest U - V looked for [A]"""
    resolution: tuple[float, ...] | None = None
    """lowest and highest used [A]; null = 30 to 4 A, coarser for pixels beyond 2 A"""
    phase_shift: bool = False
    """whether to look for a phase plate's shift"""
    angles: str | None = None
    """of a tilt series: .mdoc, .rawtlt, .tlt, or a CSV or TSV table with the columns tilt_angle and
    axis_angle; null = the images are not tilted"""
    axis_angle: float | None = None
    """of the tilt axis, counter-clockwise from +y [deg]; null = that of the file of angles"""
    common_astigmatism: bool = True
    """whether the images of a tilt series have one astigmatism, that of their fits' median; then
    each is fitted once more with it"""
    joint: bool = False
    """whether the images of a tilt series are fitted all at once, in one likelihood: for rings that
    are too weak in single images. Each keeps a defocus of its own"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.within("voltage", self.voltage, 10, 3000, "kV")
        checks.within("spherical_aberration", self.spherical_aberration, -100, 100, "mm")
        checks.within("amplitude_contrast", self.amplitude_contrast, 0, 0.99, "1")
        checks.positives("defocus", self.defocus, 2, "A")
        if self.resolution is not None:
            checks.positives("resolution", self.resolution, 2, "A")
        checks.check(not (self.average and (self.spectrum or self.angles)), "average", True,
                     "false for spectra and tilt series")
        checks.within("astigmatism", self.astigmatism, 0, 1e5, "A")
        checks.check(self.angles is None or (len(self.input) == 1 and not self.spectrum), "angles",
                     self.angles, "null, or the input one stack of images")
        checks.check(not self.joint or self.angles is not None, "joint", True,
                     "false where there are no angles")
        checks.check(self.axis_angle is None or self.angles is not None, "axis_angle",
                     self.axis_angle, "null where there are no angles")

    @property
    def microscope(self) -> dict[str, float]:
        """Keys of a scene's microscope that fits take for known."""
        return {"voltage": self.voltage, "spherical_aberration": self.spherical_aberration}

    @property
    def lens(self) -> tuple[float, float, float]:
        """Voltage [kV], Cs [mm] and amplitude contrast, as fits take them."""
        return self.voltage, self.spherical_aberration, self.amplitude_contrast


@dataclass(frozen=True, eq=False)
class _Stack:
    """Images of one file."""

    name: str
    images: NDArray
    pixel_size: float
    tilts: pd.DataFrame | None  # tilt_angle and axis_angle [deg] of a tilt series
    before: int  # images of the files before

    @property
    def shape(self) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]

    def count(self, recipe: CtfRecipe) -> int:
        """Number of fits."""
        return 1 if recipe.average else len(self.images)


@dataclass
class _Found:
    """What the fits of all files give."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    scenes: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Figure | Path] = field(default_factory=dict)


def run(recipe: CtfRecipe, report: Report) -> Result:
    """Defocus of every image; fits that an earlier, interrupted run finished are taken over."""
    for name in recipe.input:
        checks.check(not re.search(r"[\s#\"']", name), "input", name,
                     "a name without blanks, quotes and #, for the star file")
    found = _Found()
    unread: dict[str, str] = {}
    pixels, tilts = 0.0, None

    def after(done: int, total: int) -> Callable[[int], None]:
        return lambda n: report(done + n, total)

    for place, (file, images, pixels) in enumerate(
            images_of(recipe, finite=False, unread=unread), 1):
        search = _search(recipe, pixels)
        tilts = None if recipe.angles is None else tilted(recipe, file, len(images))
        stack = _Stack(file, images, pixels, tilts, len(found.rows))
        passes = 2 if tilts is not None and recipe.common_astigmatism and not recipe.joint else 1
        total = len(found.rows) + passes * stack.count(recipe) + len(recipe.input) - place
        find = _rows_together if recipe.joint else _rows
        rows = find(recipe, search, stack, found, after(len(found.rows), total))
        shared = common_astigmatism([fit_of(row) for row in rows]) if passes == 2 else None
        if shared is not None:
            rows = _rows(recipe, replace(search, known=shared), stack, found,
                         after(len(images), total))
            found.numbers = {"common_astigmatism_A": shared[0],
                             "common_astigmatism_angle_deg": shared[1]}
        found.rows += rows
        if tilts is not None:
            content = series_scene(recipe.microscope, rows, tilts, stack.shape, pixels)
            if content is not None:
                found.scenes["scene.yaml"] = scene_text(f"The tilts and lens of {file}", content)
            _judge_hand(found)
    found.rows += [{"name": name, **failed_row(reason)} for name, reason in unread.items()]
    _judge_together(recipe, found, pixels)
    tables = star_tables(found.rows, pixels, recipe.lens)
    if recipe.joint and tilts is not None:
        good = "" if found.rows[0]["reliable"] else "_doubtful"
        tables[f"tilts_ctf{good}.csv"] = tilt_table(tilts, found.rows, recipe.lens)
    fits = [{key: finite(value) for key, value in row.items()} for row in found.rows]
    return Result({"fits": fits, **found.numbers}, found.assumptions or None,
                  found.warnings or None, lines_of(fits), tables,
                  scenes=found.scenes, figures=found.figures)


def _search(recipe: CtfRecipe, pixel_size: float) -> CtfSearch:
    low, high = recipe.defocus
    coarse, fine = recipe.resolution or default_search(pixel_size).resolution
    return CtfSearch((low, high), recipe.astigmatism, (coarse, fine), recipe.phase_shift)


def _judge_together(recipe: CtfRecipe, found: _Found, pixel_size: float) -> None:
    """What the fits say together."""
    failed = [row for row in found.rows if "failed" in row]
    if len(failed) == len(found.rows):
        raise ValueError(f"input: {failed[0]['failed']}")
    if failed:
        found.warnings.append(f"{len(failed)} of {len(found.rows)} images could not be fitted; the "
                              f"first: {failed[0]['failed']}")
    stated = recipe.spherical_aberration
    pooled = pool([fit_of(row) for row in found.rows if row["reliable"]])
    if pooled is None:
        return
    found.numbers |= {"spherical_aberration_mm": pooled.value,
                      "spherical_aberration_error_mm": pooled.error}
    found.assumptions.append(assumption(pooled, stated))
    if text := verdict(pooled, stated, pixel_size, recipe.voltage):
        found.warnings.append(text)
    if contradicts(pooled, stated):
        found.scenes.clear()
        for row in found.rows:
            row["reliable"] = False
            row["doubts"] = [*row["doubts"], "the rings of all fits together contradict pixel "
                             "size, voltage or Cs"]


def _rows(recipe: CtfRecipe, search: CtfSearch, stack: _Stack, found: _Found,
          report: Callable[[int], None]) -> list[dict[str, Any]]:
    """Fits of a stack; `found` gets a picture of each, and the scene of each that is no tilt."""
    rows: list[dict[str, Any]] = []
    count = stack.count(recipe)
    tilts = count * [None] if stack.tilts is None else list(zip(
        stack.tilts["tilt_angle"].tolist(), stack.tilts["axis_angle"].tolist(), strict=True))
    for n, (image, tilt) in enumerate(zip(
            stack.images[None] if recipe.average else stack.images, tilts, strict=True), 1):
        label = f"{stack.before + n:04d}_{Path(stack.name).stem}"
        try:
            row, found.figures[f"{label}.png"] = _fitted_row(
                recipe, search, image, stack.pixel_size, tilt)
        except ValueError as error:
            row = failed_row(f"{stack.name}, image {n}: {error}")
        name = stack.name if count == 1 else f"{n:06d}@{stack.name}"
        rows.append({"name": name, **({} if tilt is None else {"tilt_angle": tilt[0]}), **row})
        if row["reliable"] and tilt is None:
            found.scenes[f"{label}.yaml"] = scene_text(
                f"The lens of {name}",
                micrograph_scene(recipe.microscope, row,
                                 None if recipe.spectrum else stack.shape, stack.pixel_size))
        report(n)
    return rows


def _rows_together(recipe: CtfRecipe, search: CtfSearch, stack: _Stack, found: _Found,
                   report: Callable[[int], None]) -> list[dict[str, Any]]:
    """Fits of a tilt series from one likelihood; `found` gets its picture and numbers."""
    assert stack.tilts is not None
    try:
        rows, found.numbers, picture = fit_together(
            stack.images, stack.pixel_size, stack.tilts, recipe.lens, search,
            unfinished_folder(recipe.output))
    except ValueError as error:
        raise ValueError(f"{stack.name}: {error}") from error
    found.figures["series.png"] = picture
    found.assumptions.append(
        f"the amplitude contrast is {recipe.amplitude_contrast:g}: with 0.01 more the defoci are "
        f"{found.numbers['defocus_A_per_0.01_amplitude_contrast']:+.0f} A")
    report(len(rows))
    return [{"name": f"{n:06d}@{stack.name}", "tilt_angle": angle, **row}
            for n, (angle, row) in enumerate(zip(stack.tilts["tilt_angle"], rows, strict=True), 1)]


def _judge_hand(found: _Found) -> None:
    """Whether the defocus rises across the images where the tilts say so."""
    gain = sum(row["hand_gain"] for row in found.rows if row["reliable"])
    found.numbers["hand_gain"] = gain
    if gain < -_HAND:
        found.warnings.append("the rings are those of the opposite tilts: the angles' signs or the "
                              "axis are turned round, or the images mirrored")
    elif gain < _HAND:
        found.warnings.append("the rings do not tell the sense of the tilts")


def _fitted_row(recipe: CtfRecipe, search: CtfSearch, image: NDArray, pixel_size: float,
                tilt: tuple[float, float] | None) -> tuple[dict[str, Any], Path]:
    """A fit's numbers, and its picture: from an interrupted run or anew."""
    kept = unfinished_folder(recipe.output)
    key = part_key(image, [*recipe.lens, recipe.spectrum, recipe.average, pixel_size,
                           tilt, *vars(search).values()])
    row, picture = load_part(kept, key, ROW), picture_of(kept, key)
    if row is None or not picture.is_file():
        if tilt is not None:
            fit = fit_tilted_micrograph(image, pixel_size, tilt, *recipe.lens, search)
        else:
            run = (fit_spectrum if recipe.spectrum else
                   fit_particles if recipe.average else fit_micrograph)
            fit = run(image, pixel_size, *recipe.lens, search)
        kept.mkdir(parents=True, exist_ok=True)
        write_ctf_figure(picture, image if recipe.spectrum else None, fit)
        row = row_of(fit)
        save_part(kept, key, row)
    return row, picture


RECIPE = (CtfRecipe, run)
