"""The noise law of images that take the looks of others: what settings name, read and measured."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tem_taichi import checks
from tem_taichi.device import as_tensor
from tem_taichi.files.io import read_images
from tem_taichi.files.tilt_tables import tilts_of
from tem_taichi.noise.looks import Looks
from tem_taichi.noise.pyramid import Pyramid
from tem_taichi.noise.style import Style
from tem_taichi.noise.vgg import read_vgg
from tem_taichi.scene.style import StyleSettings

_SAME = 0.01
"""Relative difference of pixel sizes that are taken for the same."""


@dataclass(frozen=True, eq=False)
class Styles:
    """The law at each tilt."""

    looks: Looks
    like: Style
    """Law whose settings all have."""

    def law(self, tilt_angle: float) -> Style:
        """That of an image [deg]."""
        return self.looks.law(tilt_angle, self.like)


def styles_of(settings: StyleSettings, pixel_size: float, shape: tuple[int, int] | None = None,
              key: str = "noise.") -> Styles:
    """The laws that settings describe.

    Args:
        settings: whose `style` is given.
        pixel_size: of the images [A].
        shape: (ny, nx) of their middle that is kept; None = all.
        key: before the settings' names, for errors.

    Raises:
        ValueError: if a file can't be read, or has pixels of another size.
    """
    name = settings.style or ""
    checks.check(Path(name).is_file(), f"{key}style", name, "a file; there is none of this name")
    try:
        images, own = read_images(Path(name))
    except (ValueError, OSError) as error:
        raise ValueError(f"{key}style: {error}") from error
    if own is not None and abs(own / pixel_size - 1) > _SAME:
        raise ValueError(f"{key}style={Path(name).name}: has pixels of {own:.4g} A, the images "
                         f"have {pixel_size:.4g} A: must be the same")
    tilts = np.zeros(1)
    if len(images) > 1 or settings.style_angles is not None:
        tilts = tilts_of(Path(name), settings.style_angles, len(images),
                         f"{key}style_angles")["tilt_angle"].to_numpy(float)
    try:
        features = Pyramid() if settings.features == "pyramid" else read_vgg(settings.weights)
        looks = Looks(as_tensor(images), tilts)
    except ValueError as error:
        raise ValueError(f"{key}{error}") from error
    return Styles(looks, Style(
        image=torch.zeros(1, 1), mean=0.0, deviation=1.0, noise=0.0, features=features,
        scaled=settings.contrast == "style", steps=settings.steps, rate=settings.rate,
        keep=settings.keep, content_noise=settings.content_noise, tile=settings.tile, shape=shape))
