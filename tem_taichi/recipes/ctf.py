"""The recipe `ctf`: defocus of many images, which an interruption does not lose."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi import checks
from tem_taichi.estimate.ctf_curves import CtfCurves
from tem_taichi.estimate.ctf_figure import write_ctf_figure, write_ctf_star
from tem_taichi.estimate.ctf_fit import CtfFit, fit_micrograph, fit_particles, fit_spectrum
from tem_taichi.estimate.ctf_pool import assumption, contradicts, pool, verdict
from tem_taichi.estimate.ctf_search import CtfSearch, default_search
from tem_taichi.estimate.ctf_tilt import common_astigmatism, fit_tilted_micrograph
from tem_taichi.files.unfinished import load_part, part_key, save_part, unfinished_folder
from tem_taichi.recipes.input import images_of, series_table
from tem_taichi.recipes.scene import micrograph_scene, series_scene, write_scene
from tem_taichi.recipes.settings import CtfRecipe

_ROW = ("defocus_u", "defocus_v", "astigmatism_angle", "phase_shift", "errors",
        "statistical_errors", "model_errors", "resolution", "gain", "figure_of_merit",
        "spherical_aberration", "spherical_error", "reliable", "doubts", "hand_gain")
"""What is kept of a fit; its curves are in the picture."""
_HAND = 20.0
"""Log-likelihood, over a series, by which one sense of the tilt must explain the rings better."""


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


def fit_ctf(recipe: CtfRecipe, folder: Path,
            progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Defocus of every image; fits that an earlier, interrupted run finished are taken over."""
    for name in recipe.input:
        checks.check(not re.search(r"[\s#\"']", name), "input", name,
                     "a name without blanks, quotes and #, for the star file")
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    pixels = 0.0
    unread: dict[str, str] = {}

    def after(done: int, total: int) -> Callable[[int], None]:
        return lambda n: progress(done + n, total)

    for place, (file, images, pixels) in enumerate(
            images_of(recipe, finite=False, unread=unread), 1):
        search = _search(recipe, pixels)
        tilts = None if recipe.angles is None else _tilts(recipe, len(images))
        stack = _Stack(file, images, pixels, tilts, len(rows))
        passes = 2 if tilts is not None and recipe.common_astigmatism else 1
        total = len(rows) + passes * stack.count(recipe) + len(recipe.input) - place
        found = _rows(recipe, search, stack, folder, after(len(rows), total))
        shared = common_astigmatism([_fit_of(row) for row in found]) if passes == 2 else None
        if shared is not None:
            found = _rows(recipe, replace(search, known=shared), stack, folder,
                          after(len(images), total))
            result = {"common_astigmatism_A": shared[0], "common_astigmatism_angle_deg": shared[1]}
        rows += found
        if tilts is not None:
            content = series_scene(recipe, rows, tilts, stack.shape, pixels)
            if content is not None:
                write_scene(folder / "scene.yaml", f"The tilts and lens of {file}", content)
            result |= _hand(rows)
    rows += [{"name": name, **_failed_row(reason)} for name, reason in unread.items()]
    return {"fits": [{key: _finite(value) for key, value in row.items()} for row in rows],
            **result, **_judged(recipe, rows, pixels, folder, result.get("warnings", []))}


def _search(recipe: CtfRecipe, pixel_size: float) -> CtfSearch:
    low, high = recipe.defocus
    coarse, fine = recipe.resolution or default_search(pixel_size).resolution
    return CtfSearch((low, high), recipe.astigmatism, (coarse, fine), recipe.phase_shift)


def _judged(recipe: CtfRecipe, rows: list[dict[str, Any]], pixel_size: float, folder: Path,
            warnings: list[str]) -> dict[str, Any]:
    """What the fits say together, and the star files: good fits apart from doubtful ones."""
    failed = [row for row in rows if "failed" in row]
    if len(failed) == len(rows):
        raise ValueError(f"input: {failed[0]['failed']}")
    if failed:
        warnings = [*warnings, f"{len(failed)} of {len(rows)} images could not be fitted; the "
                    f"first: {failed[0]['failed']}"]
    result: dict[str, Any] = {}
    stated = recipe.spherical_aberration
    pooled = pool([_fit_of(row) for row in rows if row["reliable"]])
    if pooled is not None:
        result = {"spherical_aberration_mm": pooled.value,
                  "spherical_aberration_error_mm": pooled.error}
        text = verdict(pooled, stated, pixel_size, recipe.voltage)
        warnings = [*warnings, text] if text else warnings
        result["assumptions"] = [assumption(pooled, stated)]
        if contradicts(pooled, stated):
            _doubt(rows, "the rings of all fits together contradict pixel size, voltage or Cs")
            for scene in folder.glob("*.yaml"):
                scene.unlink()
    for name, good in (("micrographs_ctf", True), ("micrographs_ctf_doubtful", False)):
        chosen = [row for row in rows if row["reliable"] is good and "failed" not in row]
        if chosen:
            write_ctf_star(folder / f"{name}.star", [row["name"] for row in chosen],
                           [_fit_of(row) for row in chosen], pixel_size=pixel_size,
                           voltage=recipe.voltage, spherical_aberration=stated,
                           amplitude_contrast=recipe.amplitude_contrast)
    return {**result, **({"warnings": warnings} if warnings else {})}


def _rows(recipe: CtfRecipe, search: CtfSearch, stack: _Stack, folder: Path,
          report: Callable[[int], None]) -> list[dict[str, Any]]:
    """Fits of a stack, with a picture of each and the scene of each that is no tilt."""
    rows: list[dict[str, Any]] = []
    count = stack.count(recipe)
    tilts = count * [None] if stack.tilts is None else list(zip(
        stack.tilts["tilt_angle"].tolist(), stack.tilts["axis_angle"].tolist(), strict=True))
    for n, (image, tilt) in enumerate(zip(
            stack.images[None] if recipe.average else stack.images, tilts, strict=True), 1):
        picture = folder / f"{stack.before + n:04d}_{Path(stack.name).stem}.png"
        try:
            row = _fitted_row(recipe, search, image, stack.pixel_size, tilt, picture)
        except ValueError as error:
            row = _failed_row(f"{stack.name}, image {n}: {error}")
        name = stack.name if count == 1 else f"{n:06d}@{stack.name}"
        rows.append({"name": name, **({} if tilt is None else {"tilt_angle": tilt[0]}), **row})
        if row["reliable"] and tilt is None:
            write_scene(picture.with_suffix(".yaml"), f"The lens of {name}",
                        micrograph_scene(recipe, row, stack.shape, stack.pixel_size))
        report(n)
    return rows


def _tilts(recipe: CtfRecipe, count: int) -> pd.DataFrame:
    """The table of a tilt series, with an axis."""
    table = series_table(recipe, recipe.input[0], count)
    if recipe.axis_angle is not None:
        table["axis_angle"] = recipe.axis_angle
    if "axis_angle" not in table or not np.isfinite(table["axis_angle"]).all():
        raise ValueError(f"axis_angle=null: {recipe.angles} has none: must be given [deg]")
    return table


def _hand(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether the defocus rises across the images where the tilts say so."""
    gain = sum(row["hand_gain"] for row in rows if row["reliable"])
    result: dict[str, Any] = {"hand_gain": gain}
    if gain < -_HAND:
        result["warnings"] = ["the rings are those of the opposite tilts: the angles' signs or the "
                              "axis are turned round, or the images mirrored"]
    elif gain < _HAND:
        result["warnings"] = ["the rings do not tell the sense of the tilts"]
    return result


def _fitted_row(recipe: CtfRecipe, search: CtfSearch, image: NDArray, pixel_size: float,
                tilt: tuple[float, float] | None, picture: Path) -> dict[str, Any]:
    """A fit's numbers, with its picture: from an interrupted run or anew."""
    kept = unfinished_folder(recipe.output)
    lens = (recipe.voltage, recipe.spherical_aberration, recipe.amplitude_contrast)
    key = part_key(image, [*lens, recipe.spectrum, recipe.average, pixel_size,
                           tilt, *vars(search).values()])
    row = load_part(kept, key, _ROW, picture)
    if row is None:
        if tilt is not None:
            fit = fit_tilted_micrograph(image, pixel_size, tilt, *lens, search)
        else:
            run = (fit_spectrum if recipe.spectrum else
                   fit_particles if recipe.average else fit_micrograph)
            fit = run(image, pixel_size, *lens, search)
        write_ctf_figure(picture, image if recipe.spectrum else None, fit)
        row = {name: _finite(getattr(fit, name)) for name in _ROW}
        save_part(kept, key, row, picture)
    return row


def _doubt(rows: list[dict[str, Any]], reason: str) -> None:
    for row in rows:
        row["reliable"] = False
        row["doubts"] = [*row["doubts"], reason]


def _failed_row(reason: str) -> dict[str, Any]:
    """The row of an image that could not be fitted, all numbers NaN."""
    row: dict[str, Any] = dict.fromkeys(_ROW, math.nan)
    four = (math.nan,) * 4
    return row | {"errors": four, "statistical_errors": four, "model_errors": four, "gain": 0.0,
                  "reliable": False, "doubts": [reason], "failed": reason}


def _finite(value: Any) -> Any:
    """Null for what JSON has no number for, as the resolution of a fit without rings."""
    if isinstance(value, tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fit_of(row: dict[str, Any]) -> CtfFit:
    """The fit's numbers for a star file, without its curves."""
    none = np.empty(0)
    number: dict[str, Any] = {name: math.nan if row[name] is None else row[name] for name in _ROW
                              if name not in ("reliable", "resolution")}
    resolution = math.inf if row["resolution"] is None else row["resolution"]
    return CtfFit(**number, resolution=resolution, curves=CtfCurves(*6 * [none]), model=none,
                  flattened=none, pixel_size=math.nan)
