"""Noise spectrum and MTF of a camera from flat crops, micrographs or the image of an edge.

The MTF as far as the assumptions go: flat images alone do not show it. A scene beside the camera
that is written chooses it by `override detector: fitted`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tem_taichi import checks
from tem_taichi.device import as_tensor
from tem_taichi.estimate.crops import Background, RingSpectrum, pick_background, plain
from tem_taichi.estimate.detector_figure import detector_figure, picked_figure
from tem_taichi.estimate.edge_fit import estimate_mtf_from_edge
from tem_taichi.estimate.focal_loss import mtf_by_focal_loss
from tem_taichi.estimate.noise_fit import Band, Known, estimate_noise
from tem_taichi.recipes.input import angles_beside, images_of
from tem_taichi.recipes.result import Report, Result
from tem_taichi.recipes.settings import Recipe


@dataclass(frozen=True)
class DetectorRecipe(Recipe):
    """What is known of the camera, and how its curves are found."""

    method: str = "background"
    """background = noise of flat regions; edge = a slanted edge or beam stop; focal_loss = the
    pixel-wise loss of Diff-TEM (2024), for comparison: it is biased"""
    form: str = "free"
    """free = a smooth curve; parametric = five numbers a, b, c, alpha, beta"""
    kind: str | None = None
    """integrating = assume noise blurred as the signal is, which gives an MTF; null = do not"""
    gain: float | None = None
    """counts per electron; null = unknown"""
    electrons: float | None = None
    """of each pixel; null = mean counts over the gain"""
    dqe: float | None = None
    """DQE(0); null = unknown"""
    pick: bool = False
    """cut flat regions out of the images and show which; false = the images are flat crops"""
    size: int = 256
    """of the regions picked [pixel]"""
    count: int = 10
    """of the regions picked in each image"""
    periodic: bool = False
    """whether the crops are whole simulated images, whose edges meet: no taper then"""
    highest: float = 1.0
    """for edge: H above which nothing is recorded [cycles/pixel]; 0.5 for our own simulations"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("method", self.method, ("background", "edge", "focal_loss"))
        checks.one_of("form", self.form, ("free", "parametric"))
        checks.check(not (self.pick and self.method == "edge"), "pick", self.pick,
                     "false for method=edge: cut the images around the edge")
        checks.check(self.kind in (None, "integrating", "counting"), "kind", self.kind,
                     "integrating, counting or null")
        checks.positive("gain", self.gain, "counts per electron")
        checks.positive("electrons", self.electrons, "e-/pixel")
        checks.check(self.dqe is None or 1e-4 <= self.dqe <= 1, "dqe", self.dqe,
                     "from 0.0001 to 1, or null")
        checks.within("highest", self.highest, 0.5, 2, "cycles/pixel")
        checks.check(32 <= self.size <= 4096 and self.size % 8 == 0, "size", self.size,
                     "a multiple of 8 from 32 to 4096")
        checks.whole("count", self.count, 1, 1000)


@dataclass(frozen=True)
class _Curves:
    """What one method finds."""

    numbers: dict[str, Any]
    assumptions: list[str]
    warnings: list[str]
    config: dict[str, Any] | None = None  # of the camera
    shown: dict[str, Band] = field(default_factory=dict)  # in the figure
    rings: RingSpectrum | None = None


def run(recipe: DetectorRecipe, report: Report) -> Result:
    """Noise spectrum, and MTF as far as the assumptions go; the camera as a configuration."""
    stacks = list(images_of(recipe, need_pixel_size=False))
    images = [image for _, stack, _ in stacks for image in stack]
    report(0, 2)
    crops = images
    figures: dict[str, Figure | Path] = {}
    if recipe.pick:
        picked = [_picked(image, n, recipe) for n, image in enumerate(images, 1)]
        figures["picked.png"] = picked_figure(images, picked)
        crops = [crop for background in picked for crop in background.crops]
    report(1, 2)
    found = {"background": _of_background, "edge": _of_edge,
             "focal_loss": _of_focal_loss}[recipe.method](recipe, crops)
    warnings, config, scenes = list(found.warnings), found.config, {}
    if not recipe.pick and recipe.method != "edge":
        warnings += _tilted([name for name, stack, _ in stacks if len(stack) > 1])
    if found.shown:
        figures["detector.png"] = detector_figure(found.shown, found.rings)
    if config is not None and not 1e-6 <= config["gain"] <= 1e6:
        warnings.append("no configuration is written: the counts do not tell their scale "
                        f"(gain {config['gain']:.3g}); give gain and electrons")
    elif config is not None:
        scenes["detector/fitted.yaml"] = _camera(config, len(images))
    report(2, 2)
    return Result({**found.numbers, "images": len(images), "crops": len(crops)},
                  found.assumptions, warnings, scenes=scenes, figures=figures)


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


def _camera(config: dict[str, Any], images: int) -> str:
    """A camera that a scene beside the folder chooses as `override detector: fitted`."""
    if isinstance(config["dqe"], list):
        config = config | {"dqe": None, "dqe_table": np.transpose(config["dqe"]).tolist()}
    text = f"# Estimated by tem_taichi from {images} images\nname: fitted\n"
    return text + "".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items())


def _of_edge(recipe: DetectorRecipe, crops: list[NDArray]) -> _Curves:
    edge = estimate_mtf_from_edge(plain("images", crops), form=recipe.form,
                                  highest=recipe.highest)
    config = edge.to_config(kind=recipe.kind or "counting", gain=recipe.gain or 1.0,
                            dqe=recipe.dqe)
    return _Curves({"mtf": _rows(edge.mtf), "edge_angle_deg": edge.angle, "misfit": edge.misfit,
                    "parameters": edge.parameters}, list(edge.assumptions), list(edge.warnings),
                   config, {"MTF": edge.mtf})


def _of_focal_loss(recipe: DetectorRecipe, crops: list[NDArray]) -> _Curves:
    counts = plain("images", crops)
    electrons = recipe.electrons or float(np.mean(counts)) / (recipe.gain or 1.0)
    if electrons <= 0:
        raise ValueError(f"electrons=null: the images' mean is {np.mean(counts):.4g} counts: "
                         "must be given [e-/pixel], or the offset taken off the images")
    fitted = mtf_by_focal_loss(as_tensor(counts), electrons)
    return _Curves({"parameters": fitted.values["mtf"].tolist(), "loss": fitted.loss},
                   ["pixel-wise distances of independent noise do not converge to the truth"], [])


def _of_background(recipe: DetectorRecipe, crops: list[NDArray]) -> _Curves:
    known = Known(recipe.kind, recipe.gain, recipe.electrons, recipe.dqe)
    noise = estimate_noise(crops, known, form=recipe.form, taper=0.0 if recipe.periodic else 0.1,
                           order=0 if recipe.periodic else 1)
    every = {"NPS": noise.nps, "MTF": noise.mtf, "DQE": noise.dqe}
    curves = {name: curve for name, curve in every.items() if curve is not None}
    config = noise.to_config()
    return _Curves({name.lower(): _rows(curve) for name, curve in curves.items()}
                   | {"parameters": noise.parameters, "misfit": noise.misfit},
                   [*noise.assumptions, *_scale(config, recipe.gain, crops)],
                   list(noise.warnings), config, curves, noise.rings)


def _scale(config: dict[str, Any], gain: float | None, crops: list[NDArray]) -> list[str]:
    """What a scene must be told where the camera's gain is not the real one."""
    mean = float(np.mean([np.mean(crop) for crop in crops]))
    if config["gain"] == gain or mean <= 0:
        return []
    return [f"The configuration's gain, {config['gain']:.3g} counts per electron, is not the "
            "camera's: it makes the mean and the noise of these images from "
            f"{mean / config['gain']:.3g} e-/pixel."]


def _rows(band: Band) -> list[list[float]]:
    """Frequency [cycles/pixel], value and both ends of its 95 % interval."""
    return np.stack([band.w, band.values, band.lower, band.upper], axis=1).tolist()


RECIPE = (DetectorRecipe, run)
