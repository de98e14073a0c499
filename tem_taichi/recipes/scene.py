"""What fits tell of a scene, as a file for `python -m tem_taichi.simulate`."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from tem_taichi.estimate.thickness_fit import ThicknessFit
from tem_taichi.estimate.twin import short, slab
from tem_taichi.recipes.settings import CtfRecipe, ThicknessRecipe

Content = dict[str, Any]


def write_scene(file: Path, about: str, content: Content) -> None:
    """Write a scene; what it does not name is the default's.

    Args:
        file: to write, *.yaml.
        about: what the scene is of, one line.
        content: keys of a scene.
    """
    text = yaml.safe_dump({"defaults": ["simulate", "_self_"], **content}, sort_keys=False,
                          default_flow_style=None, width=95)
    file.write_text(f"# {about}, estimated by tem_taichi; the rest is the default's\n{text}",
                    encoding="utf-8")


def micrograph_scene(recipe: CtfRecipe, row: dict[str, Any], shape: tuple[int, int],
                     pixel_size: float) -> Content:
    """A micrograph with the lens of a fit.

    Args:
        recipe: of the fit.
        row: the fit's numbers.
        shape: (ny, nx) of the image; a spectrum's is not used.
        pixel_size: [A].
    """
    size = {} if recipe.spectrum else {"shape": list(shape)}
    return {**size, "pixel_size": short(pixel_size),
            "microscope": {"voltage": recipe.voltage,
                           "spherical_aberration": recipe.spherical_aberration},
            "optics": {"defocus": short((row["defocus_u"] + row["defocus_v"]) / 2),
                       "astigmatism": short(row["defocus_u"] - row["defocus_v"]),
                       "astigmatism_angle": short(row["astigmatism_angle"]),
                       "phase_shift": short(row["phase_shift"])},
            "tilts": {"scheme": "listed", "angles": [0.0]}}


def series_scene(recipe: CtfRecipe, rows: list[dict[str, Any]], tilts: pd.DataFrame,
                 shape: tuple[int, int], pixel_size: float) -> Content | None:
    """A tilt series with the defocus of each fit, the median where a fit is not reliable.

    Args:
        recipe: of the fits.
        rows: numbers of each fit, all of one astigmatism.
        tilts: of the images: tilt_angle, axis_angle [deg] and, where they are known,
            acquisition_index and dose [e-/A^2].
        shape: (ny, nx) of the images.
        pixel_size: [A].

    Returns:
        None if no fit is reliable.
    """
    good = np.array([row["reliable"] for row in rows])
    if not good.any():
        return None
    mean = np.array([(row["defocus_u"] + row["defocus_v"]) / 2 for row in rows])
    middle = np.median(mean[good])
    order = np.argsort(tilts["acquisition_index"].to_numpy(), kind="stable") if (
        "acquisition_index" in tilts) else np.arange(len(rows))
    content = micrograph_scene(recipe, rows[int(good.argmax())], shape, pixel_size)
    content["optics"]["defocus"] = short(middle)
    offsets = np.where(good, mean, middle) - short(middle)
    content["tilts"] = {
        "scheme": "listed", "angles": tilts["tilt_angle"].to_numpy(float)[order].round(4).tolist(),
        "axis_angle": short(tilts["axis_angle"].iloc[0]),
        "defocus_offsets": offsets[order].round(1).tolist()}
    if "dose" in tilts and (tilts["dose"] > 0).all():
        content["tilts"]["doses"] = tilts["dose"].to_numpy(float)[order].round(4).tolist()
    return content


def thickness_scene(recipe: ThicknessRecipe, fit: ThicknessFit, tilts: pd.DataFrame) -> Content:
    """A tilt series of ice as thick and as oblique, for the recipe's mean free path at 300 kV.

    Args:
        recipe: of the fit.
        fit: of the means.
        tilts: tilt_angle and, where it is known, axis_angle [deg].
    """
    axis = float(tilts["axis_angle"].iloc[0]) if "axis_angle" in tilts else np.nan
    axis = axis if np.isfinite(axis) else 0.0
    thickness, slope = slab(fit, recipe.mean_free_path, axis)
    return {"specimen": {"ice": {"thickness": thickness, "slope": slope,
                                 "mean_free_path": recipe.mean_free_path}},
            "tilts": {"scheme": "listed", "axis_angle": short(axis),
                      "angles": tilts["tilt_angle"].to_numpy(float).round(4).tolist()}}
