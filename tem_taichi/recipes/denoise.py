"""A picture without most of its noise, in electrons per A^2, from one image or many exposures.

All images of the input are registered exposures of one picture, unless `image` names one, or tilts
of one specimen (`joint`). Priors,
their strengths and what others do are judged by the likelihood of electrons that were held out.
What comes out is for looking and picking: it is no image to average or to reconstruct from.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi import checks
from tem_taichi.device import as_tensor
from tem_taichi.estimate.baselines import NEEDS, installed
from tem_taichi.estimate.denoise import (
    CHANCE,
    OTHERS,
    PRIORS,
    Estimate,
    best,
    choose,
    sampled,
    whole,
)
from tem_taichi.estimate.denoise_error import ErrorMap, error_map
from tem_taichi.estimate.denoise_figure import denoise_figure
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.noise_law import transfer
from tem_taichi.estimate.recording import Recording, record
from tem_taichi.files.unfinished import part_key, unfinished_folder
from tem_taichi.recipes.denoise_series import run_joint
from tem_taichi.recipes.input import check_alignment, images_of, tables_beside
from tem_taichi.recipes.result import Report, Result
from tem_taichi.recipes.settings import Recipe
from tem_taichi.series.camera import detector_of_name

_LENGTHS = {"smooth": 1, "spectral": 1, "local": 2, "total_variation": 1}
_MOST = 8192
"""Pixels a side."""


@dataclass(frozen=True)
class DenoiseRecipe(Recipe):
    """What is known of the noise, and what chooses among estimates."""

    image: int | None = None
    """number of the only image to be taken, from 1; null = all are exposures of one picture"""
    joint: bool = False
    """whether the images are tilts of one specimen, each of which is predicted by the others"""
    angles: str | None = None
    """of joint: .mdoc, .rawtlt, .tlt, or a CSV or TSV table with the column tilt_angle; null =
    beside the stack, by name"""
    axis_angle: float | None = None
    """of joint: of the tilt axis from +y, counter-clockwise [deg]; null = from the table of
    angles"""
    shifts: tuple[str, str] = ("shift_x", "shift_y")
    """of joint: columns of the table of angles that have the images' shifts [A]; 0 where there are
    none"""
    cut_from: tuple[float, float] = (0.0, 0.0)
    """of joint: where the middle of the images lies in the frames that they were cut from, x and y
    from their middle [A], through which the tilt axis runs"""
    thickness: float = 3000.0
    """of joint: of the specimen along the beam [A]"""
    bin: int | None = None
    """of joint: pixels a voxel of the specimen; null = so that it has at most 128 planes along the
    beam. The images stay as they are"""
    folds: int = 4
    """of joint: into which the tilts are dealt; those of one are predicted by all others"""
    detector: str | None = None
    """camera whose noise and MTF these are: the YAML file of recipe=detector, or the name of one
    that comes with the package; null = Poisson's law, or a spectrum from the images"""
    prior: str = "auto"
    """smooth = neighbours are alike; spectral = the image's spectrum; local = spectra of windows;
    total_variation = few edges; auto = the one that predicts best what was held out"""
    strength: tuple[float, ...] | None = None
    """of the prior, as results.json says it; null = the one that predicts best"""
    mtf: str = "divided"
    """divided = electrons before the camera; kept = as the camera blurs them"""
    compare: tuple[str, ...] = ("average", "gaussian", "wiener", "nonlocal_means", "wavelets",
                                "topaz")
    """shown beside it: these, the last two where they are installed; surrogate = the loss of
    Diff-TEM (2024) as written, corrected = its estimator without bias"""
    parts: int = 4
    """into which electrons are dealt, one held out at a time; exposures if the noise is no
    Poisson noise"""
    draws: int = 4
    """recordings made anew for the map of errors; 0 = none"""
    steps: int = 200
    """of surrogate and corrected"""
    samples: int = 4
    """of each step of surrogate and corrected"""
    seed: int = 0
    """of all that is left to chance"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check(self.image is None or self.image >= 1, "image", self.image,
                     "1 or more, or null")
        checks.one_of("prior", self.prior, ("auto", *PRIORS))
        checks.one_of("mtf", self.mtf, ("divided", "kept"))
        for name in self.compare:
            checks.one_of("compare", name, OTHERS)
        checks.whole("parts", self.parts, 2, 64)
        checks.whole("draws", self.draws, 0, 1000)
        checks.whole("steps", self.steps, 1, 100_000)
        checks.whole("samples", self.samples, 2, 1000)
        checks.whole("seed", self.seed, 0, 2**63 - 1)
        self._check_joint()
        if self.strength is not None:
            length = _LENGTHS.get(self.prior)
            fine = length == len(self.strength) and all(
                np.isfinite(one) and one >= 0 for one in self.strength)
            if self.prior in ("smooth", "total_variation"):
                fine = fine and min(self.strength) > 0
            checks.check(fine, "strength", self.strength,
                         "null for prior=auto" if length is None else
                         f"{length} for prior={self.prior}, numbers above 0; a width may be 0")

    def _check_joint(self) -> None:
        checks.check(self.joint or self.angles is None, "angles", self.angles,
                     "null unless joint=true")
        checks.check(not self.joint or self.image is None, "image", self.image,
                     "null for joint=true")
        checks.check(not self.joint or self.prior != "total_variation", "prior", self.prior,
                     "auto, smooth, spectral or local for joint=true")
        checks.positive("thickness", self.thickness, "A")
        checks.check(self.bin is None or 1 <= self.bin <= 64, "bin", self.bin,
                     "from 1 to 64, or null")
        checks.whole("folds", self.folds, 2, 64)
        check_alignment(self)


def run(recipe: DenoiseRecipe, report: Report) -> Result:
    """The picture, its error, and what others make of the same electrons."""
    if recipe.joint:
        return run_joint(recipe, report)
    counts, pixel_size = _read(recipe)
    _check_window(recipe, counts)
    detector = None if recipe.detector is None else detector_of_name(recipe.detector)
    recording = record(as_tensor(counts), detector, parts=recipe.parts, seed=recipe.seed)
    kept = _kept(recipe, counts, recording)
    found = _estimates(recipe, recording, counts, kept, report)
    priors = [one for one in found if one.name in PRIORS]
    chosen = choose(priors, recording)
    keep = recipe.mtf == "kept"
    picture = chosen.electrons if keep else whole(chosen.name, chosen.strength, recording,
                                                  chosen.steps, False)
    error = error_map(chosen, recording, keep=keep, draws=recipe.draws,
                      seed=recipe.seed) if recipe.draws else None
    area = pixel_size**2
    return Result(
        _numbers(recipe, recording, chosen, picture, error, found, area, len(counts)),
        _assumed(recipe, recording, len(counts)),
        [*recording.law.warnings, *_doubts(chosen, error)],
        tables={"compared.csv": _table(found, recording)},
        images={"denoised.mrc": (_plain(picture, area), pixel_size),
                "compared.mrc": (np.stack([_plain(one.electrons, area) for one in found]),
                                 pixel_size),
                **({} if error is None else {"error.mrc": (_plain(error.values, area),
                                                           pixel_size)})},
        figures={"denoised.png": denoise_figure(
            _plain(recording.electrons, area), _plain(picture, area),
            None if error is None else _plain(error.values, area),
            f"denoised: {chosen.name}", pixel_size, next(
                (("Gaussian of held-out width", _plain(one.electrons, area)) for one in found
                 if one.name == "gaussian"), None))})


def _read(recipe: DenoiseRecipe) -> tuple[NDArray, float]:
    """Exposures (n, ny, nx) of one picture, and their pixel size [A]."""
    stacks = list(images_of(recipe))
    shapes = {images.shape[1:] for _, images, _ in stacks}
    if len(shapes) > 1:
        raise ValueError(f"input: images of {' and '.join(map(str, sorted(shapes)))} pixels: "
                         "exposures of one picture must have the same")
    counts = np.concatenate([images for _, images, _ in stacks])
    checks.check(max(counts.shape[1:]) <= _MOST, "input", counts.shape[1:],
                 f"images of at most {_MOST} pixels a side")
    if recipe.image is not None:
        checks.check(recipe.image <= len(counts), "image", recipe.image,
                     f"from 1 to {len(counts)}, the number of images")
        return counts[recipe.image - 1:recipe.image], stacks[0][2]
    for name, images, _ in stacks:
        for table in tables_beside(Path(name)) if len(images) > 1 else []:
            raise ValueError(f"image=null: {name} has tilt angles beside it ({table.name}): images "
                             "of different tilts are no exposures of one picture; name one, or "
                             "joint=true")
    return counts, stacks[0][2]


def _check_window(recipe: DenoiseRecipe, counts: NDArray) -> None:
    """ValueError unless a window that is given fits into the image."""
    if recipe.prior == "local" and recipe.strength is not None:
        window, most = recipe.strength[0], min(counts.shape[1:]) // 2
        checks.check(window % 8 == 0 and 8 <= window <= most, "strength", recipe.strength,
                     f"a window of a multiple of 8 from 8 to {most} pixels, and a width")


def _kept(recipe: DenoiseRecipe, counts: NDArray, recording: Recording) -> Kept:
    """What an interrupted run of the same images and the same noise law has found."""
    law = [curve.tolist() for curve in transfer(recording.law, (32, 32))]
    return Kept(unfinished_folder(recipe.output), part_key(counts, [
        "denoise", float(as_tensor(recording.law.detector.gain)), law, recipe.parts, recipe.seed]))


def _estimates(recipe: DenoiseRecipe, recording: Recording, counts: NDArray, kept: Kept,
               report: Report) -> list[Estimate]:
    """Priors and others, those that are installed."""
    priors = PRIORS if recipe.prior == "auto" else (recipe.prior,)
    others = [name for name in recipe.compare if installed(name)]
    done, of = 0, len(priors) + len(others)
    report(done, of)
    found = []
    for name in (*priors, *others):
        if name in ("surrogate", "corrected"):
            found.append(sampled(name, as_tensor(counts), recording, kept, steps=recipe.steps,
                                 samples=recipe.samples, seed=recipe.seed))
        else:
            given = recipe.strength if name in PRIORS else None
            found.append(best(name, recording, kept, given))
        done += 1
        report(done, of)
    return found


def _numbers(recipe: DenoiseRecipe, recording: Recording, chosen: Estimate, picture: Tensor,
             error: ErrorMap | None, found: list[Estimate], area: float, exposures: int
             ) -> dict[str, Any]:
    """Of results.json."""
    recorded = float(recording.electrons.mean())
    return {
        "prior": chosen.name, "strength": list(chosen.strength), "exposures": exposures,
        "electrons_per_A2": recorded / area,
        "denoised_electrons_per_A2": float(picture.mean()) / area,
        "mtf": recipe.mtf,
        "held_out_gain_nats": chosen.gain,
        "rms_error_e_per_A2": None if error is None
        else float(error.values.square().mean().sqrt()) / area,
        "held_out_rms_error_e_per_A2": None if error is None or error.measured is None
        else error.measured / area,
        "error_factor": None if error is None else error.factor,
        "compared": {one.name: {
            "strength": list(one.strength), "held_out_gain_nats": one.gain,
            "electrons_over_recorded": float(one.electrons.mean()) / recorded,
            "seconds": round(one.seconds, 2)} for one in found},
        "left_out": {name: f"needs {NEEDS[name]}" for name in recipe.compare
                     if not installed(name)}}


def _table(found: list[Estimate], recording: Recording) -> pd.DataFrame:
    """A row for each image of compared.mrc."""
    return pd.DataFrame({
        "image": range(1, len(found) + 1), "method": [one.name for one in found],
        "strength": [" ".join(f"{number:.4g}" for number in one.strength) for one in found],
        "held_out_gain_nats": [one.gain for one in found],
        "electrons_over_recorded": [float(one.electrons.mean() / recording.electrons.mean())
                                    for one in found],
        "seconds": [one.seconds for one in found]})


def _assumed(recipe: DenoiseRecipe, recording: Recording, exposures: int) -> list[str]:
    """What the picture rests on."""
    said = list(recording.law.assumptions)
    if exposures > 1:
        said.append(f"The {exposures} images are registered exposures of one picture.")
    said.append("electrons_per_A2 is of all exposures together, by the gain of "
                f"{float(as_tensor(recording.law.detector.gain)):.4g} counts per electron.")
    if recipe.mtf == "divided" and recording.law.detector.mtf is None:
        said.append("There is no MTF to divide out: the detector has none.")
    return said


def _doubts(chosen: Estimate, error: ErrorMap | None) -> list[str]:
    """What a user should not believe."""
    said = []
    if chosen.gain is not None and chosen.gain <= CHANCE:
        said.append("No prior predicts what was held out surely better than an image without "
                    "contrast: there may be nothing to see.")
    if error is not None and error.measured is None:
        said.append("The error is too small for what was held out to tell: the map is the scatter "
                    "of the estimate alone, without what the prior may have taken away.")
    return said


def _plain(electrons: Tensor, area: float) -> NDArray:
    return (electrons / area).detach().cpu().numpy().astype(np.float32)


RECIPE = (DenoiseRecipe, run)
