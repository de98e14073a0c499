"""Thickness over mean free path of a tilt series, I0 exp(-(t / L) / cos(theta - theta0)).

With it the tilt of the ice's normal, whether the field is a slab, and a scene of that ice.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tem_taichi import checks
from tem_taichi.estimate.thickness_field import fit_images_thickness
from tem_taichi.estimate.thickness_figure import thickness_figure
from tem_taichi.estimate.thickness_fit import ThicknessFit
from tem_taichi.estimate.twin_scene import short, slab
from tem_taichi.recipes.input import images_of, series_table
from tem_taichi.recipes.result import Report, Result
from tem_taichi.recipes.scene import scene_text
from tem_taichi.recipes.settings import SeriesRecipe


@dataclass(frozen=True)
class ThicknessRecipe(SeriesRecipe):
    """A tilt series, and what gives its thickness in A."""

    mean_free_path: float = 3950.0
    """L [A], to state the thickness; 3950 A: zero-loss imaging of ice at 300 kV"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive("mean_free_path", self.mean_free_path, "A")


def run(recipe: ThicknessRecipe, report: Report) -> Result:
    """Thickness over mean free path of a tilt series, and the tilt of its normal."""
    (name, images, _), = images_of(recipe, need_pixel_size=False)
    tilts = series_table(recipe, name, len(images))
    fit = fit_images_thickness(images, tilts["tilt_angle"].to_numpy())
    warnings, scenes = list(fit.warnings), {}
    if fit.ratio > 0:
        scenes["scene.yaml"] = scene_text(f"The ice of {name}", _scene(recipe, fit, tilts))
    else:
        warnings.append("No scene is written: images do not darken with the tilt, t / L is at most "
                        f"{fit.interval()[1]:.3g} (95 %).")
    report(1, 1)
    parts = None if fit.parts is None else [
        [short(ratio) if np.isfinite(ratio) else None for ratio in row] for row in fit.parts]
    return Result({"thickness_over_mean_free_path": fit.ratio, "standard_error": fit.ratio_error,
                   "mean_free_path_A": recipe.mean_free_path,
                   "thickness_A": fit.ratio * recipe.mean_free_path,
                   "thickness_error_A": fit.ratio_error * recipe.mean_free_path,
                   "statistical_error": fit.statistical_error,
                   "field_deviation": fit.field_deviation, "parts": parts,
                   "normal_angle_deg": fit.normal_angle, "normal_error_deg": fit.normal_error,
                   "angle_error_deg": fit.angle_error, "intensity": fit.intensity,
                   "chi2": fit.chi2, "degrees_of_freedom": fit.degrees},
                  _taken(fit), warnings, scenes=scenes,
                  figures={"thickness.png": thickness_figure(fit)})


def _taken(fit: ThicknessFit) -> list[str]:
    """What a thickness rests on and the means cannot tell."""
    return ["The counts are proportional to electrons: an offset of 1 % of the mean without a "
            f"specimen would change t / L by about {fit.by_offset(0.01):+.2g}.",
            "The beam is the same at every tilt, and the angles have the right scale.",
            "The thickness [A] is t / L times the mean free path that was given."]


def _scene(recipe: ThicknessRecipe, fit: ThicknessFit, tilts: pd.DataFrame) -> dict[str, Any]:
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


RECIPE = (ThicknessRecipe, run)
