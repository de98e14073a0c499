"""A clean tilt series that is made to look like a real one, which needs no labels.

Style transfer as FakET has it (Harar et al. 2023): input is a stack without noise, as simulate
writes it. What comes out looks like the style; its noise is not that of electrons, and structures
of the style, such as its large shades, are laid over those of the input.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi import checks
from tem_taichi.device import as_tensor
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.styled import spectral_distance
from tem_taichi.estimate.styled_figure import styled_figure
from tem_taichi.files.unfinished import part_key, unfinished_folder
from tem_taichi.recipes.input import images_of, series_table
from tem_taichi.recipes.result import Report, Result
from tem_taichi.recipes.settings import SeriesRecipe
from tem_taichi.scene.style import StyleSettings, check_style
from tem_taichi.scene.typed import to_plain
from tem_taichi.series.styles import Styles, styles_of
from tem_taichi.streams import Key

_NEAR = 5.0
"""[deg] between an image and the style's next."""


@dataclass(frozen=True)
class StyleRecipe(StyleSettings, SeriesRecipe):
    """A clean series, the style, and how one is made to look like the other."""

    seed: int = 0
    """of the noise"""

    def __post_init__(self) -> None:
        SeriesRecipe.__post_init__(self)
        check_style(self, "")
        checks.whole("seed", self.seed, 0, 2**63 - 1)


def run(recipe: StyleRecipe, report: Report) -> Result:
    """The series in the other's style, and how far it is from it."""
    (name, clean, pixel_size), = images_of(recipe)
    tilts = series_table(recipe, name, len(clean))["tilt_angle"].to_numpy(float)
    styles = styles_of(recipe, pixel_size, key="")
    looks = styles.looks
    settings = {key: value for key, value in to_plain(recipe).items()
                if key not in ("input", "output", "overwrite", "style")}
    seen = part_key(looks.images.cpu().numpy(), looks.tilt_angles.tolist())
    kept = Kept(unfinished_folder(recipe.output), part_key(clean, [
        "style", seen, settings, tilts.tolist()]))
    made = np.empty(clean.shape, np.float32)
    rows = []
    for n, tilt in enumerate(tilts.tolist()):
        report(n, len(clean))
        image, law, key = as_tensor(clean[n]), styles.law(tilt), Key(recipe.seed, "noise", n)
        picture = kept.picture(f"image {n}", image, lambda: law.sample(image, 1.0, key))  # noqa: B023
        made[n] = picture.cpu().numpy()
        white = replace(law, steps=0).sample(image, 1.0, key)
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
        _doubts(styles, tilts), tables={"styled.csv": table},
        images={"styled.mrc": (made, pixel_size)},
        texts={"styled.txt": "".join(f"{tilt:.2f}\n" for tilt in tilts)},
        figures={"styled.png": styled_figure(clean, made, looks, tilts)})


def _doubts(styles: Styles, tilts: NDArray) -> list[str]:
    looks, doubts = styles.looks, []
    far = max((abs(looks.tilt_angles[looks.nearest(tilt)] - tilt), tilt) for tilt in tilts)
    if len(looks.images) > 1 and far[0] > _NEAR:
        doubts.append(f"The style's image next to {far[1]:g} deg is {far[0]:.0f} deg away.")
    white = looks.measured[2] / looks.measured[1]
    if np.median(white) > 0.98:
        doubts.append("The style is hardly more than white noise.")
    return doubts


RECIPE = (StyleRecipe, run)
