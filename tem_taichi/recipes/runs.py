"""What each recipe does: read, fit, and write results, figures and configurations."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tem_taichi.device import as_tensor
from tem_taichi.estimate.crops import Background, RingSpectrum, pick_background, plain
from tem_taichi.estimate.detector_figure import write_detector_figure, write_picked
from tem_taichi.estimate.edge_fit import estimate_mtf_from_edge
from tem_taichi.estimate.focal_loss import mtf_by_focal_loss
from tem_taichi.estimate.noise_fit import Band, Known, estimate_noise
from tem_taichi.estimate.thickness_field import fit_images_thickness
from tem_taichi.estimate.thickness_figure import write_thickness_figure
from tem_taichi.estimate.thickness_fit import ThicknessFit
from tem_taichi.estimate.twin import (
    NOT_MODELLED,
    TwinSettings,
    make_twin,
    short,
    simulation_time,
    write_twin,
)
from tem_taichi.estimate.twin_figure import write_twin_figure
from tem_taichi.machine import duration
from tem_taichi.recipes.ctf import fit_ctf
from tem_taichi.recipes.input import angles_beside, images_of, series_table
from tem_taichi.recipes.scene import thickness_scene, write_scene
from tem_taichi.recipes.settings import (
    CtfRecipe,
    DetectorRecipe,
    Recipe,
    ThicknessRecipe,
    TwinRecipe,
)

Progress = Callable[[int, int], None]
"""Called with what is done and how much there is."""

Result = dict[str, Any]
"""What goes into results.json."""


def fit_detector(recipe: DetectorRecipe, folder: Path, progress: Progress) -> Result:
    """Noise spectrum, and MTF as far as the assumptions go; the camera as a configuration."""
    stacks = list(images_of(recipe, need_pixel_size=False))
    images = [image for _, stack, _ in stacks for image in stack]
    progress(0, 2)
    crops = images
    if recipe.pick:
        picked = [_picked(image, n, recipe) for n, image in enumerate(images, 1)]
        write_picked(folder / "picked.png", images, picked)
        crops = [crop for background in picked for crop in background.crops]
    progress(1, 2)
    result, config, curves, rings = _curves_of(recipe, crops)
    if not recipe.pick and recipe.method != "edge":
        result["warnings"] += _tilted([name for name, stack, _ in stacks if len(stack) > 1])
    write_detector_figure(folder / "detector.png", curves, rings)
    result |= {"images": len(images), "crops": len(crops)}
    if config is not None and not 1e-6 <= config["gain"] <= 1e6:
        result["warnings"].append("no configuration is written: the counts do not tell their scale "
                                  f"(gain {config['gain']:.3g}); give gain and electrons")
    elif config is not None:
        _write_config(folder / "detector", config, len(images))
    progress(2, 2)
    return result


def _tilted(names: Sequence[str]) -> list[str]:
    """A doubt about each stack that has the angles of a tilt series beside it."""
    found = {name: next(iter(angles_beside(Path(name))), None) for name in names}
    return [f"{name} has tilt angles beside it ({file.name}): a specimen's tilt series is no flat "
            "field; take images without a specimen, or pick=true" for name, file in found.items()
            if file is not None]


def _picked(image: NDArray, number: int, recipe: DetectorRecipe) -> Background:
    try:
        return pick_background(image, size=recipe.size, count=recipe.count)
    except ValueError as error:
        raise ValueError(f"input: image {number}: {error}") from error


def _write_config(folder: Path, config: dict[str, Any], images: int) -> None:
    """A camera that a scene beside the folder chooses as `override detector: fitted`."""
    folder.mkdir()
    if isinstance(config["dqe"], list):
        config = config | {"dqe": None, "dqe_table": np.transpose(config["dqe"]).tolist()}
    text = f"# Estimated by tem_taichi from {images} images\nname: fitted\n"
    (folder / "fitted.yaml").write_text(text + "".join(
        f"{key}: {json.dumps(value)}\n" for key, value in config.items()), encoding="utf-8")


def _curves_of(recipe: DetectorRecipe, crops: list[NDArray]) -> tuple[
        Result, dict[str, Any] | None, dict[str, Band], RingSpectrum | None]:
    """Results, the configuration if there is one, and what the figure shows."""
    if recipe.method == "edge":
        edge = estimate_mtf_from_edge(plain("images", crops), form=recipe.form,
                                      highest=recipe.highest)
        config = edge.to_config(kind=recipe.kind or "counting", gain=recipe.gain or 1.0,
                                dqe=recipe.dqe)
        found = {"mtf": _rows(edge.mtf), "edge_angle_deg": edge.angle, "misfit": edge.misfit,
                 "parameters": edge.parameters, "assumptions": list(edge.assumptions),
                 "warnings": list(edge.warnings)}
        return found, config, {"MTF": edge.mtf}, None
    if recipe.method == "focal_loss":
        counts = plain("images", crops)
        electrons = recipe.electrons or float(np.mean(counts)) / (recipe.gain or 1.0)
        if electrons <= 0:
            raise ValueError(f"electrons=null: the images' mean is {np.mean(counts):.4g} counts: "
                             "must be given [e-/pixel], or the offset taken off the images")
        fitted = mtf_by_focal_loss(as_tensor(counts), electrons)
        found = {"parameters": fitted.values["mtf"].tolist(), "loss": fitted.loss, "assumptions": [
            "pixel-wise distances of independent noise do not converge to the truth"],
            "warnings": []}
        return found, None, {}, None
    known = Known(recipe.kind, recipe.gain, recipe.electrons, recipe.dqe)
    noise = estimate_noise(crops, known, form=recipe.form, taper=0.0 if recipe.periodic else 0.1,
                           order=0 if recipe.periodic else 1)
    every = {"NPS": noise.nps, "MTF": noise.mtf, "DQE": noise.dqe}
    curves = {name: curve for name, curve in every.items() if curve is not None}
    config = noise.to_config()
    return ({name.lower(): _rows(curve) for name, curve in curves.items()}
            | {"parameters": noise.parameters, "misfit": noise.misfit,
               "assumptions": [*noise.assumptions, *_scale(config, recipe.gain, crops)],
               "warnings": list(noise.warnings)}, config, curves, noise.rings)


def _scale(config: dict[str, Any], gain: float | None, crops: list[NDArray]) -> list[str]:
    """What a scene must be told where the camera's gain is not the real one."""
    mean = float(np.mean([np.mean(crop) for crop in crops]))
    if config["gain"] == gain or mean <= 0:
        return []
    return [f"The configuration's gain, {config['gain']:.3g} counts per electron, is not the "
            "camera's: it makes the mean and the noise of these images from "
            f"{mean / config['gain']:.3g} e-/pixel."]


def fit_series_thickness(recipe: ThicknessRecipe, folder: Path, progress: Progress) -> Result:
    """Thickness over mean free path of a tilt series, and the tilt of its normal."""
    (name, images, _), = images_of(recipe, need_pixel_size=False)
    tilts = series_table(recipe, name, len(images))
    fit = fit_images_thickness(images, tilts["tilt_angle"].to_numpy())
    write_thickness_figure(folder / "thickness.png", fit)
    warnings = list(fit.warnings)
    if fit.ratio > 0:
        write_scene(folder / "scene.yaml", f"The ice of {name}",
                    thickness_scene(recipe, fit, tilts))
    else:
        warnings.append("No scene is written: images do not darken with the tilt, t / L is at most "
                        f"{fit.interval()[1]:.3g} (95 %).")
    progress(1, 1)
    return {"thickness_over_mean_free_path": fit.ratio, "standard_error": fit.ratio_error,
            "mean_free_path_A": recipe.mean_free_path,
            "thickness_A": fit.ratio * recipe.mean_free_path,
            "thickness_error_A": fit.ratio_error * recipe.mean_free_path,
            "statistical_error": fit.statistical_error, "field_deviation": fit.field_deviation,
            "parts": None if fit.parts is None else [
                [short(ratio) if np.isfinite(ratio) else None for ratio in row]
                for row in fit.parts],
            "normal_angle_deg": fit.normal_angle, "normal_error_deg": fit.normal_error,
            "angle_error_deg": fit.angle_error, "intensity": fit.intensity, "chi2": fit.chi2,
            "degrees_of_freedom": fit.degrees, "assumptions": _taken(fit), "warnings": warnings}


def _taken(fit: ThicknessFit) -> list[str]:
    """What a thickness rests on and the means cannot tell."""
    return ["The counts are proportional to electrons: an offset of 1 % of the mean without a "
            f"specimen would change t / L by about {fit.by_offset(0.01):+.2g}.",
            "The beam is the same at every tilt, and the angles have the right scale.",
            "The thickness [A] is t / L times the mean free path that was given."]


def fit_twin(recipe: TwinRecipe, folder: Path, progress: Progress) -> Result:
    """A scene like a real series, twin.yaml for `python -m tem_taichi.simulate`."""
    (name, images, pixel_size), = images_of(recipe)
    tilts = series_table(recipe, name, len(images))
    twin = make_twin(images, tilts, pixel_size, recipe.voltage, TwinSettings(
        recipe.mean_free_path, recipe.spherical_aberration,
        (recipe.shape[0], recipe.shape[1]) if recipe.shape else None, tuple(recipe.masses),
        recipe.particles, recipe.tile, recipe.slice_thickness, recipe.seed))
    warnings = list(twin.warnings)
    seconds: float | None = None
    takes: list[str] = []
    try:
        seconds = simulation_time(twin.scene)
        takes.append(f"Simulating it takes about {duration(seconds)} on this machine, as busy as "
                     "it was.")
    except ValueError as error:
        warnings.append(f"twin.yaml does not run as it is: {error}")
    write_twin(folder / "twin.yaml", twin, takes)
    write_twin_figure(folder / "twin.png", twin)
    progress(1, 1)
    fit, crowd = twin.thickness, twin.crowd
    return {"thickness_over_mean_free_path": fit.ratio, "standard_error": fit.ratio_error,
            "statistical_error": fit.statistical_error, "field_deviation": fit.field_deviation,
            "thickness_A": twin.scene.specimen.ice.thickness,
            "normal_angle_deg": fit.normal_angle, "normal_error_deg": fit.normal_error,
            "nominal_dose": twin.nominal_dose, "implied_dose": twin.implied_dose,
            "crowd_volume_fraction": crowd.volume_fraction, "crowd_damage": crowd.damage,
            "crowd_masses_kDa": crowd.masses, "crowd_densities_per_A3": crowd.densities,
            "simulation_seconds": seconds,
            "assumptions": [*twin.assumptions, NOT_MODELLED, *takes], "warnings": warnings}


def _rows(band: Band) -> list[list[float]]:
    """Frequency [cycles/pixel], value and both ends of its 95 % interval."""
    return np.stack([band.w, band.values, band.lower, band.upper], axis=1).tolist()


RUNS: dict[type[Recipe], Callable[[Any, Path, Progress], Result]] = {
    DetectorRecipe: fit_detector, CtfRecipe: fit_ctf, ThicknessRecipe: fit_series_thickness,
    TwinRecipe: fit_twin}
