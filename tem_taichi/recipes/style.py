"""A clean tilt series that is made to look like a real one, which needs no labels.

Style transfer as FakET has it (Harar et al. 2023): input is a stack without noise, as simulate
writes it. What comes out looks like the style; its noise is not that of electrons, and structures
of the style, such as its large shades, are laid over those of the input.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi import checks
from tem_taichi.device import as_tensor
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.styled import FEATURES, Looks, settings_of, spectral_distance
from tem_taichi.estimate.styled_figure import styled_figure
from tem_taichi.files.io import read_images
from tem_taichi.files.unfinished import part_key, unfinished_folder
from tem_taichi.recipes.input import images_of, series_table
from tem_taichi.recipes.result import Report, Result
from tem_taichi.recipes.settings import SeriesRecipe
from tem_taichi.scene.typed import to_plain
from tem_taichi.streams import Key

_SAME = 0.01
"""Relative difference of pixel sizes that are taken for the same."""
_NEAR = 5.0
"""[deg] between an image and the style's next."""


@dataclass(frozen=True)
class StyleRecipe(SeriesRecipe):
    """A clean series, the style, and how one is made to look like the other."""

    style: str = ""
    """stack of a real tilt series, or one image, with pixels as wide as the input's"""
    style_angles: str | None = None
    """of the style, as angles; null = beside it, by name; one image needs none"""
    features: str = "pyramid"
    """by what looks are compared: pyramid = statistics of a steerable pyramid; vgg = VGG-19, as
    published"""
    weights: str | None = None
    """of features=vgg: torchvision's file; null = where torch keeps it"""
    contrast: str = "own"
    """own = the input's, relative to its mean; style = such that the deviation is the style's, as
    published, which takes the style's shades for contrast of structures"""
    steps: int = 1
    """of Adam: 1 as published; 0 = the style's white noise alone"""
    rate: float = 0.15
    """of a step, in deviations of the style"""
    keep: float = 1.0
    """weight of what the input shows, against the style"""
    content_noise: float = 0.25
    """part of the noise with which the input is shown, 0 to 1"""
    tile: int = 2048
    """pixels a side that are made at a time; fewer take less memory"""
    seed: int = 0
    """of the noise"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check(bool(self.style), "style", self.style, "a file of images")
        checks.one_of("features", self.features, tuple(FEATURES))
        checks.one_of("contrast", self.contrast, ("own", "style"))
        checks.check(self.weights is None or self.features == "vgg", "weights", self.weights,
                     "null unless features=vgg")
        checks.whole("seed", self.seed, 0, 2**63 - 1)
        checks.whole("steps", self.steps, 0, 100_000)
        checks.positive("rate", self.rate, "deviations")
        checks.not_negative("keep", self.keep, "1")
        checks.check(0 <= self.content_noise <= 1, "content_noise", self.content_noise,
                     "from 0 to 1")
        checks.whole("tile", self.tile, 256, 65_536)


def run(recipe: StyleRecipe, report: Report) -> Result:
    """The series in the other's style, and how far it is from it."""
    (name, clean, pixel_size), = images_of(recipe)
    tilts = series_table(recipe, name, len(clean))["tilt_angle"].to_numpy(float)
    style, style_tilts = _style(recipe, pixel_size)
    looks = Looks(as_tensor(style), style_tilts)
    like = settings_of(FEATURES[recipe.features](recipe.weights), recipe.contrast == "style",
                       recipe.steps, recipe.rate, recipe.keep, recipe.content_noise, recipe.tile)
    settings = {key: value for key, value in to_plain(recipe).items()
                if key not in ("input", "output", "overwrite", "style")}
    kept = Kept(unfinished_folder(recipe.output), part_key(clean, [
        "style", part_key(style, style_tilts.tolist()), settings, tilts.tolist()]))
    made = np.empty(clean.shape, np.float32)
    rows = []
    for n, tilt in enumerate(tilts.tolist()):
        report(n, len(clean))
        image, law, key = as_tensor(clean[n]), looks.law(tilt, like), Key(recipe.seed, "noise", n)
        picture = kept.picture(f"image {n}", image, lambda: law.sample(image, 1.0, key))  # noqa: B023
        made[n] = picture.cpu().numpy()
        white = law.expected(image) + law.noise * as_tensor(
            key.generator().standard_normal(tuple(image.shape)))
        rows.append({"tilt_angle": tilt, "style_image": looks.nearest(tilt) + 1, "mean": law.mean,
                     "deviation": law.deviation, "noise": law.noise,
                     "distance": spectral_distance(picture, law.image),
                     "distance_of_white_noise": spectral_distance(white, law.image)})
    report(len(clean), len(clean))
    table = pd.DataFrame(rows)
    numbers = {"images": len(clean), **{key: float(table[key].median())
                                        for key in ("distance", "distance_of_white_noise")}}
    return Result(
        numbers, ["The style's noise is white where its spectrum ends: its deviation is that of "
                  "0.3 to 0.475 cycles a pixel.",
                  "Mean, deviation and noise of the style are parabolas over the tilt."],
        _doubts(looks, tilts), tables={"styled.csv": table},
        images={"styled.mrc": (made, pixel_size)},
        texts={"styled.txt": "".join(f"{tilt:.2f}\n" for tilt in tilts)},
        figures={"styled.png": styled_figure(clean, made, looks, tilts)})


def _style(recipe: StyleRecipe, pixel_size: float) -> tuple[NDArray, NDArray]:
    """Images of the style and their tilts [deg]."""
    path = Path(recipe.style)
    checks.check(path.is_file(), "style", recipe.style, "a file; there is none of this name")
    try:
        images, own = read_images(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"style: {error}") from error
    if own is not None and abs(own / pixel_size - 1) > _SAME:
        raise ValueError(f"style={path.name}: has pixels of {own:.4g} A, the input of "
                         f"{pixel_size:.4g} A: must be the same; bin one of them")
    if len(images) == 1 and recipe.style_angles is None:
        return images, np.zeros(1)
    table = series_table(_Angles(recipe.style_angles), recipe.style, len(images))
    return images, table["tilt_angle"].to_numpy(float)


@dataclass(frozen=True)
class _Angles:
    """Names a file of tilt angles."""

    angles: str | None


def _doubts(looks: Looks, tilts: NDArray) -> list[str]:
    doubts = []
    far = max((abs(looks.tilt_angles[looks.nearest(tilt)] - tilt), tilt) for tilt in tilts)
    if len(looks.images) > 1 and far[0] > _NEAR:
        doubts.append(f"The style's image next to {far[1]:g} deg is {far[0]:.0f} deg away.")
    white = looks.measured[2] / looks.measured[1]
    if np.median(white) > 0.98:
        doubts.append("The style is hardly more than white noise.")
    return doubts


RECIPE = (StyleRecipe, run)
