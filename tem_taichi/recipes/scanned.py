"""Tomograms of scanned images, `recipe=reconstruct instrument=stem`: settings, and what is made."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from tem_taichi import checks
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.scans import FAR, SIGNALS, Scan
from tem_taichi.estimate.stem_fit import Plan, fitted, network_of
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram import Step, Tomogram, back_projected, iterated
from tem_taichi.recipes.settings import SeriesRecipe

NOISES = {"gauss": "l2", "laplace": "l1", "flow": "flow"}


@dataclass(frozen=True)
class ScannedRecipe(SeriesRecipe):
    """What `instrument=stem` asks for."""

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
    """of stem with gradient: gauss, noise of one strength, by squared differences; laplace, by
    absolute ones; or flow, a law of noise that is learned from the same images"""
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
        plain = replace_defaults(self)
        checks.check(self.instrument == "stem" or not plain, "instrument", self.instrument,
                     f"stem with {plain[0]}" if plain else "stem")


def replace_defaults(recipe: ScannedRecipe) -> list[str]:
    """Keys of `ScannedRecipe` that are not as they are by default."""
    return [name for name in ScannedRecipe.__annotations__
            if name != "instrument" and getattr(recipe, name) != getattr(ScannedRecipe, name)]


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
    network, half = settings["specimen"] == "implicit", recipe.law_layers // 2
    plan = Plan(
        specimen="implicit" if network else "voxels", loss=NOISES[recipe.noise],
        network=network_of(recipe.network, series.rays.grid, recipe.width),
        tv=0.0 if network and tv is None else tv, passes=settings["iterations"], warm=recipe.warm,
        batch=max(1, min(8, len(table) // 6)),  # so that a pass of few images is some steps too
        law=(half, half, 16), law_rate=recipe.law_rate, turns=recipe.turns,
        bounded=recipe.network == "published", free_cone=recipe.find_convergence)
    made = fitted(scan.images(series, table, recipe.convergence), plan, every, step, kept)
    return Tomogram(series.field(made.volume), made.volume, made.steps, made.tv or 0.0,
                    made.held_out), made.cone


def taken(recipe: ScannedRecipe, scan: Scan, method: str) -> list[str]:
    """What is assumed of scanned images."""
    said = [f"The whole beam is {scan.beam:.4g} counts in a pixel" + (
        "." if recipe.beam is not None else
        ", that of the brightest pixels." if recipe.signal == "bright" else
        f", {FAR:g} times the brightest pixel: counts are taken to be proportional to matter."),
        f"A pixel without electrons has {recipe.dark_counts:g} counts."]
    if method == "gradient":
        said.append({
            "gauss": "Noise is of one strength in all pixels.",
            "laplace": "Noise is of one strength in all pixels, with long tails.",
            "flow": "The mean of the noise is 0 for each clean value; its law is that which the "
                    "images say, of each pixel by itself."}[recipe.noise])
        said.append("Nothing is less dense than the surroundings.")
    return said
