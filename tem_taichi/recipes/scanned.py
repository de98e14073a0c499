"""Tomograms of scanned images, and by networks and learned laws of noise of any images.

Settings of `recipe=reconstruct`, and what is made.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from tem_taichi import checks
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.micrographs import Micrographs
from tem_taichi.estimate.scans import FAR, SIGNALS, Scan
from tem_taichi.estimate.stem_fit import Along, Found, Plan, Recorded, fitted, network_of
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram import Step, Tomogram, back_projected, iterated
from tem_taichi.recipes.settings import SeriesRecipe

NOISES = {"gauss": "l2", "laplace": "l1", "flow": "flow"}
UNIT = 5.0
"""Of potentials [V]: a fiftieth of it is a small difference."""


@dataclass(frozen=True)
class ScannedRecipe(SeriesRecipe):
    """What `instrument=stem`, networks and laws of noise ask for."""

    instrument: str = "tem"
    """tem, or stem: images of what passes a scanned beam, by Beer and Lambert's law"""
    signal: str = "bright"
    """of stem: bright, matter is dark; or dark, matter is bright"""
    beam: float | None = None
    """of stem: counts of the whole beam in a pixel, above dark_counts; null = of a bright field the
    brightest pixels', of a dark field far above them, so that counts are proportional to matter"""
    dark_counts: float = 0.0
    """of stem: counts of a pixel without electrons"""
    convergence: float = 0.0
    """of stem with gradient: half of the beam's opening angle [mrad], by which it widens away from
    the tilt axis; 0 = in focus everywhere"""
    find_convergence: bool = False
    """of stem with gradient: whether the convergence is found too, from the one that is given on"""
    noise: str = "gauss"
    """of gradient: gauss, noise of one strength, by squared differences; laplace, by absolute ones;
    or flow, a law of noise that is learned from the same images. With laplace and flow nothing is
    below the surroundings"""
    warm: int = 20
    """of noise=flow: passes by squared differences before the law is learned"""
    law_rate: float = 0.5
    """of noise=flow: rate of the law's numbers over that of the specimen's; 0 = it stays as it is
    learned after the first passes"""
    turns: int = 0
    """of noise=flow: how often specimen and law are found by turns; 0 = both at once"""
    law_layers: int = 8
    """of noise=flow: layers of the law, of which half know the clean value; an even number"""
    network: str = "small"
    """of specimen=implicit: small, grids of features down to a voxel and 2 layers; or published, 10
    octaves, 9 layers of 256 and a sigmoid, for a GPU"""
    width: int = 64
    """of network=small: features of a layer"""
    rays: int = 0
    """of specimen=implicit with stem: pixels a step, each seen along points of its own ray, so that
    no step makes a grid; 0 = whole images of all voxels. Without tv and convergence"""
    points: tuple[int, int] = (64, 128)
    """of rays: points of each that a coarse network is asked for, and more where it is dense"""
    rate: float | None = None
    """of specimen=implicit, noise=laplace or flow, and voxels of stem: length of a first step, of
    Adam; null = 0.003 of a network, 0.2 of voxels"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("instrument", self.instrument, ("tem", "stem"))
        checks.one_of("signal", self.signal, SIGNALS)
        checks.positive("beam", self.beam, "counts")
        checks.within("dark_counts", self.dark_counts, -1e9, 1e9, "counts")
        checks.within("convergence", self.convergence, 0, 1000, "mrad")
        checks.check(self.convergence > 0 or not self.find_convergence, "convergence",
                     self.convergence, "above 0 where find_convergence=true [mrad]")
        checks.one_of("noise", self.noise, tuple(NOISES))
        checks.whole("warm", self.warm, 0, 10**6)
        checks.not_negative("law_rate", self.law_rate, "1")
        checks.whole("turns", self.turns, 0, 1000)
        checks.check(2 <= self.law_layers <= 64 and self.law_layers % 2 == 0, "law_layers",
                     self.law_layers, "an even number from 2 to 64")
        checks.one_of("network", self.network, ("small", "published"))
        checks.whole("width", self.width, 1, 4096)
        checks.positive("rate", self.rate, "1")
        checks.whole("rays", self.rays, 0, 1 << 24)
        for number, least in zip(self.points, (2, 0), strict=True):
            checks.whole("points", number, least, 1 << 16)
        for key, plain in (("instrument", self.instrument == "stem"),
                           ("convergence", self.convergence == 0)):
            checks.check(plain or not self.rays, "rays", self.rays,
                         f"0 with {key}={getattr(self, key)}")
        given = [name for name in ("signal", "beam", "dark_counts", "convergence",
                                   "find_convergence")
                 if getattr(self, name) != getattr(ScannedRecipe, name)]
        checks.check(self.instrument == "stem" or not given, "instrument", self.instrument,
                     f"stem with {given[0]}" if given else "stem")


def is_learned(recipe: ScannedRecipe, settings: dict[str, Any]) -> bool:
    """Whether a transmission microscope's images are explained as scanned ones are.

    Args:
        recipe: its noise.
        settings: specimen of the recipe.
    """
    return settings["specimen"] == "implicit" or recipe.noise != "gauss"


def check_learned(recipe: ScannedRecipe, settings: dict[str, Any]) -> None:
    """Whether a network or a law of noise can be had with the method.

    Args:
        recipe: its noise.
        settings: method, specimen, model and tv of the recipe.

    Raises:
        ValueError: if not.
    """
    for key, least in (("method", "gradient"), ("model", "projection")):
        checks.check(recipe.noise == "gauss" or settings[key] == least, "noise", recipe.noise,
                     f"gauss with {key}={settings[key]}")
    checks.check(recipe.noise == "gauss" or settings["specimen"] != "octree", "noise",
                 recipe.noise, "gauss with specimen=octree")
    checks.check(settings["specimen"] != "implicit" or settings["model"] == "projection", "model",
                 settings["model"], "projection with specimen=implicit")
    for key, plain in (("specimen", settings["specimen"] == "implicit"),
                       ("tv", not settings["tv"])):
        checks.check(plain or not recipe.rays, "rays", recipe.rays, f"0 with {key}={settings[key]}")
    checks.check(settings["specimen"] != "octree" or not recipe.find_convergence,
                 "find_convergence", recipe.find_convergence, "false with specimen=octree")


def tomogram_of(recipe: ScannedRecipe, settings: dict[str, Any], series: Series, scan: Scan,
                table: pd.DataFrame, step: Step, kept: Kept) -> tuple[Tomogram, float]:
    """By any method, and the beam's convergence [mrad].

    Args:
        recipe: what stem asks for.
        settings: method, specimen, resolution, iterations, tv, positive and held_out of the recipe.
        series: how images see the grid, and weights; its images are not used.
        scan: the images.
        table: of the tilts.
        step: called after each step.
        kept: from where an interrupted run goes on.
    """
    method, tv, every = settings["method"], settings["tv"], settings["held_out"]
    if method == "wbp":
        step(0, 1)
        found = back_projected(scan.of(series), settings["resolution"])
        step(1, 1)
        return found, 0.0
    if method != "gradient":
        return iterated(scan.of(series), settings["iterations"], tv if method == "sirt_tv" else 0.0,
                        settings["positive"], every, step, kept), 0.0
    made = _learned(recipe, settings, scan.images(series, table, recipe.convergence), None, tv,
                    step, kept)
    return _tomogram(series, made, made.tv), made.cone


def potential_of(recipe: ScannedRecipe, settings: dict[str, Any], images: Micrographs, step: Step,
                 kept: Kept) -> Tomogram:
    """The potential above the surroundings' [V] of a network or beside a law of noise.

    Args:
        recipe: network and noise.
        settings: as `tomogram_of` takes them; tv [1/V].
        images: of a transmission microscope.
        step: called after each step.
        kept: from where an interrupted run goes on.
    """
    tv = settings["tv"]
    made = _learned(recipe, settings, images, UNIT, None if tv is None else UNIT * tv, step, kept)
    return _tomogram(images.series, made, made.tv / UNIT)


def _learned(recipe: ScannedRecipe, settings: dict[str, Any], images: Recorded,
             unit: float | None, tv: float | None, step: Step, kept: Kept) -> Found:
    """By what is learned by its gradient."""
    network, half = settings["specimen"] == "implicit", recipe.law_layers // 2
    plan = Plan(
        specimen="implicit" if network else "voxels", loss=NOISES[recipe.noise],
        network=network_of(recipe.network, images.rays.grid, recipe.width),
        tv=0.0 if tv is None and (recipe.rays or not settings["held_out"]) else tv,
        along=Along(recipe.rays, *recipe.points) if recipe.rays else None,
        passes=settings["iterations"], rate=recipe.rate, warm=recipe.warm,
        # So that a pass of few images is some steps too.
        batch=max(1, min(8, len(images.exposures) // 6)),
        law=(half, half, 16), law_rate=recipe.law_rate, turns=recipe.turns, unit=unit,
        bounded=recipe.network == "published", free_cone=recipe.find_convergence)
    return fitted(images, plan, settings["held_out"], step, kept)


def _tomogram(series: Series, made: Found, tv: float) -> Tomogram:
    return Tomogram(series.field(made.volume), made.volume, made.steps, tv, made.held_out)


def taken(recipe: ScannedRecipe, scan: Scan, method: str) -> list[str]:
    """What is assumed of scanned images."""
    said = [f"The whole beam is {scan.beam:.4g} counts in a pixel" + (
        "." if recipe.beam is not None else
        ", that of the brightest pixels." if recipe.signal == "bright" else
        f", {FAR:g} times the brightest pixel: counts are taken to be proportional to matter."),
        f"A pixel without electrons has {recipe.dark_counts:g} counts."]
    if method == "gradient":
        said += noise_taken(recipe)
    return said


def noise_taken(recipe: ScannedRecipe) -> list[str]:
    """What is assumed of noise and density of gradient."""
    return [{
        "gauss": "Noise is of one strength in all pixels.",
        "laplace": "Noise is of one strength in all pixels, with long tails.",
        "flow": "The mean of the noise is 0 for each clean value; its law is that which the "
                "images say, of each pixel by itself."}[recipe.noise],
        "Nothing is less dense than the surroundings."]
