"""The tilts of one specimen without most of their noise, as `recipe=denoise joint=true` has them.

What the others say of a tilt is reprojected from a specimen that knows nothing of it; that, what
is left of the tilt's own electrons, and the tilt by itself are judged by electrons held out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi import checks
from tem_taichi.device import as_tensor
from tem_taichi.estimate.denoise import PRIORS, whole
from tem_taichi.estimate.denoise_error import error_map
from tem_taichi.estimate.denoise_figure import denoise_figure
from tem_taichi.estimate.denoise_tilt import JOINT, Tilt, denoise_tilt
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.other_tilts import Noise, full_size, predictions
from tem_taichi.estimate.recording import record_each
from tem_taichi.estimate.tilt_images import Grid, Series, series_of
from tem_taichi.files.unfinished import part_key, unfinished_folder
from tem_taichi.recipes.input import aligned_table, images_of
from tem_taichi.recipes.result import Report, Result
from tem_taichi.series.camera import detector_of_name

if TYPE_CHECKING:
    from tem_taichi.recipes.denoise import DenoiseRecipe

_PLANES = 128
"""Of the specimen along the beam, at most, unless `bin` is given."""
_SMALLEST = 16
"""Binned pixels a side, at least, unless `bin` is given."""


@dataclass(frozen=True, eq=False)
class _Stack:
    """What is read."""

    images: NDArray
    pixel_size: float
    table: pd.DataFrame
    bin: int


def run_joint(recipe: "DenoiseRecipe", report: Report) -> Result:
    """Every tilt, its error, and how much of it came from the others."""
    stack = _read(recipe)
    detector = None if recipe.detector is None else detector_of_name(recipe.detector)
    try:
        recordings = record_each(as_tensor(stack.images), detector, parts=recipe.parts,
                                 seed=recipe.seed)
    except ValueError as error:
        raise ValueError(f"input: {error}") from error
    series = series_of(stack.images, stack.table, stack.pixel_size, Grid(
        recipe.thickness, stack.bin, recipe.cut_from, _margin(recipe, stack)))
    of = recipe.folds + len(recordings)
    done = iter(range(1, of + 1))
    report(0, of)
    key = part_key(stack.images, ["joint", recipe.detector, *(
        getattr(recipe, name) for name in ("thickness", "cut_from", "folds", "parts", "seed")),
        stack.bin, stack.pixel_size, stack.table.to_csv()])
    folder = unfinished_folder(recipe.output)
    noise = Noise([one.law for one in recordings],
                  [float(one.electrons.mean()) for one in recordings], stack.bin)
    known = predictions(series, noise, recipe.folds, Kept(folder, key),
                        lambda: report(next(done), of))
    tilts, pictures, errors = [], [], []
    for number, recording in enumerate(recordings):
        alone, joint = (Kept(folder, f"{key} {number} {how}") for how in ("alone", "joint"))
        tilt = denoise_tilt(
            recording, full_size(-known[number], stack.images.shape[1:], stack.bin),
            PRIORS if recipe.prior == "auto" else (recipe.prior,),
            JOINT if recipe.prior == "auto" else (recipe.prior,), recipe.strength, (alone, joint))
        tilts.append(tilt)
        pictures.append(_picture(recipe, tilt))
        errors.append(_error(recipe, tilt, joint))
        report(next(done), of)
    return _result(recipe, stack, series, tilts, pictures, errors)


def _read(recipe: "DenoiseRecipe") -> _Stack:
    checks.check(len(recipe.input) == 1, "input", recipe.input,
                 "one stack of a tilt series for joint=true")
    (name, images, pixel_size), = images_of(recipe)
    table = aligned_table(recipe, name, len(images))
    checks.check(len(images) >= 2 * recipe.folds, "folds", recipe.folds,
                 f"at most {len(images) // 2}, half of the {len(images)} images")
    most = min(images.shape[1:]) // _SMALLEST
    size = recipe.bin or max(1, min(most, int(np.ceil(
        recipe.thickness / (_PLANES * pixel_size)))))
    return _Stack(images, pixel_size, table, size)


def _margin(recipe: "DenoiseRecipe", stack: _Stack) -> float:
    """Beside the field, on either side, what highly tilted images show more of [A]."""
    highest = min(float(stack.table["tilt_angle"].abs().max()), 80.0)
    width = max(stack.images.shape[1:]) * stack.pixel_size
    return float(min(recipe.thickness / 2 * np.tan(np.deg2rad(highest)), width))


def _picture(recipe: "DenoiseRecipe", tilt: Tilt) -> Tensor:
    one = tilt.chosen
    return one.electrons if recipe.mtf == "kept" else whole(one.name, one.strength, tilt.recording,
                                                            one.steps, False)


def _error(recipe: "DenoiseRecipe", tilt: Tilt, kept: Kept) -> Tensor | None:
    if not recipe.draws:
        return None
    return kept.picture(
        f"error {recipe.draws} {recipe.mtf} {tilt.chosen.name} {tilt.chosen.strength}",
        tilt.chosen.electrons, lambda: error_map(
            tilt.chosen, tilt.recording, keep=recipe.mtf == "kept", draws=recipe.draws,
            seed=recipe.seed).values)


def _result(recipe: "DenoiseRecipe", stack: _Stack, series: Series, tilts: list[Tilt],
            pictures: list[Tensor], errors: list[Tensor | None]) -> Result:
    area = stack.pixel_size**2

    def plain(electrons: Tensor) -> NDArray:
        return (electrons / area).detach().cpu().numpy().astype(np.float32)

    images = {"denoised.mrc": pictures,
              "from_others.mrc": [one.part + one.recording.electrons.mean() for one in tilts]}
    if recipe.draws:
        images["error.mrc"] = [one for one in errors if one is not None]
    table = _table(stack, tilts, errors, area)
    shown = int(stack.table["tilt_angle"].abs().to_numpy().argmin())
    tilt, error = tilts[shown], errors[shown]
    how = "with the others" if tilt.is_joint else "alone"
    numbers: dict[str, Any] = {
        "images": len(tilts), "folds": recipe.folds, "voxel_size_A": series.rays.voxel,
        "grid": list(series.rays.grid), "mtf": recipe.mtf,
        "with_others": sum(one.is_joint for one in tilts),
        "median_from_others": float(table["from_others"].median()),
        "tilts": table.to_dict("records")}
    return Result(
        numbers, _assumed(recipe, stack, tilts), [*_said(one.recording.law.warnings
                                                         for one in tilts), *_doubts(tilts)],
        tables={"tilts.csv": table},
        images={name: (np.stack([plain(one) for one in of]), stack.pixel_size)
                for name, of in images.items()},
        figures={"denoised.png": denoise_figure(
            plain(tilt.recording.electrons), plain(pictures[shown]),
            None if error is None else plain(error),
            f"image {shown + 1}, {how}: {tilt.chosen.name}", stack.pixel_size,
            (f"alone: {tilt.alone.name}", plain(tilt.alone.electrons)))})


def _table(stack: _Stack, tilts: list[Tilt], errors: list[Tensor | None], area: float
           ) -> pd.DataFrame:
    """A row for each image."""
    rows = []
    for number, (tilt, error) in enumerate(zip(tilts, errors, strict=True)):
        recorded = float(tilt.recording.electrons.mean())
        rows.append({
            "image": number + 1, "tilt_angle": float(stack.table["tilt_angle"].iloc[number]),
            "with_others": tilt.is_joint, "prior": tilt.chosen.name,
            "strength": " ".join(f"{one:.4g}" for one in tilt.chosen.strength),
            "from_others": tilt.from_others, "held_out_gain_nats": tilt.chosen.gain,
            "held_out_gain_alone_nats": tilt.alone.gain,
            "electrons_per_A2": recorded / area,
            "electrons_over_recorded": float(tilt.chosen.electrons.mean()) / recorded,
            "rms_error_e_per_A2": None if error is None
            else float(error.square().mean().sqrt()) / area})
    return pd.DataFrame(rows)


def _assumed(recipe: "DenoiseRecipe", stack: _Stack, tilts: list[Tilt]) -> list[str]:
    said = _said(one.recording.law.assumptions for one in tilts)
    said.append("The tilts show one specimen, in a slab of "
                f"{recipe.thickness:g} A; their CTF is taken for the same in all of them.")
    if "shift_x" not in stack.table:
        said.append("The images are aligned: their table has no shifts.")
    if recipe.mtf == "divided" and tilts[0].recording.law.detector.mtf is None:
        said.append("There is no MTF to divide out: the detector has none.")
    return said


def _said(of_images: Iterator[tuple[str, ...]]) -> list[str]:
    """Sentences on single images, those that differ in nothing but numbers once."""
    first: dict[str, list[str]] = {}
    total = 0
    for sentences in of_images:
        total += 1
        for text in sentences:
            first.setdefault(re.sub(r"[\d.e+-]+", "#", text), []).append(text)
    return [texts[0] if len(set(texts)) == 1 and len(texts) == total
            else f"{texts[0]} (So or alike for {len(texts)} of {total} images.)"
            for texts in first.values()]


def _doubts(tilts: list[Tilt]) -> list[str]:
    said = []
    alone = [str(n) for n, one in enumerate(tilts, 1) if not one.is_joint]
    if alone:
        said.append(f"{len(alone)} of {len(tilts)} images ({', '.join(alone[:8])}"
                    f"{', ...' if len(alone) > 8 else ''}) are denoised alone: what the others "
                    "predict explains what was held out no better"
                    + (". Shifts, axis or angles may be wrong." if 2 * len(alone) > len(tilts)
                       else "."))
    empty = [str(n) for n, one in enumerate(tilts, 1) if float(one.chosen.gain or 0) <= 0]
    if empty:
        said.append(f"Of image {', '.join(empty)} no estimate predicts what was held out better "
                    "than an image without contrast.")
    return said
