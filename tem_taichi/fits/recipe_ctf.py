"""The recipe `ctf`: defocus of many images, which an interruption does not lose."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tem_taichi import checks
from tem_taichi.files.unfinished import load_part, part_key, save_part, unfinished_folder
from tem_taichi.fits.ctf_curves import CtfCurves
from tem_taichi.fits.ctf_figure import write_ctf_figure, write_ctf_star
from tem_taichi.fits.ctf_fit import CtfFit, CtfSearch, fit_micrograph, fit_spectrum
from tem_taichi.fits.recipe_input import images_of
from tem_taichi.fits.recipes import CtfRecipe

_ROW = ("defocus_u", "defocus_v", "astigmatism_angle", "phase_shift", "errors", "resolution",
        "gain", "figure_of_merit", "reliable", "doubts")
"""What is kept of a fit; its curves are in the picture."""


def fit_ctf(recipe: CtfRecipe, folder: Path,
            progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Defocus of every image; fits that an earlier, interrupted run finished are taken over."""
    for name in recipe.input:
        checks.check(not re.search(r"[\s#\"']", name), "input", name,
                     "a name without blanks, quotes and #, for the star file")
    (coarse, fine), (low, high) = recipe.resolution, recipe.defocus
    search = CtfSearch((low, high), recipe.astigmatism, (coarse, fine), recipe.phase_shift)
    rows: list[dict[str, Any]] = []
    pixels = 0.0
    for place, (file, images, pixels) in enumerate(images_of(recipe), 1):
        for n, image in enumerate(images, 1):
            picture = folder / f"{len(rows) + 1:04d}_{Path(file).stem}.png"
            try:
                row = _fitted_row(recipe, search, image, pixels, picture)
            except ValueError as error:
                raise ValueError(f"input: {file}, image {n}: {error}") from error
            rows.append({"name": file if len(images) == 1 else f"{n:06d}@{file}", **row})
            progress(len(rows), len(rows) + len(images) - n + len(recipe.input) - place)
    write_ctf_star(folder / "micrographs_ctf.star", [row["name"] for row in rows],
                   [_fit_of(row) for row in rows], pixel_size=pixels,
                   voltage=recipe.voltage, spherical_aberration=recipe.spherical_aberration,
                   amplitude_contrast=recipe.amplitude_contrast)
    return {"fits": rows}


def _fitted_row(recipe: CtfRecipe, search: CtfSearch, image: NDArray, pixel_size: float,
                picture: Path) -> dict[str, Any]:
    """A fit's numbers, with its picture: from an interrupted run or anew."""
    kept = unfinished_folder(recipe.output)
    lens = (recipe.voltage, recipe.spherical_aberration, recipe.amplitude_contrast)
    key = part_key(image, [*lens, recipe.spectrum, pixel_size, *vars(search).values()])
    row = load_part(kept, key, _ROW, picture)
    if row is None:
        run = fit_spectrum if recipe.spectrum else fit_micrograph
        fit = run(image, pixel_size, *lens, search)
        write_ctf_figure(picture, image if recipe.spectrum else None, fit)
        row = {name: _finite(getattr(fit, name)) for name in _ROW}
        save_part(kept, key, row, picture)
    return row


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
