"""What gold takes from an image tells how wide the objective aperture is."""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq

from tem_taichi.grid import BAND_LIMIT
from tem_taichi.physics import interaction_constant, wavelength
from tem_taichi.scene.microscope import MicroscopeSettings
from tem_taichi.specimen.absorption import (
    Loss,
    forward_potentials,
    imaginary_potential,
    loss_with_aperture,
    mean_free_path,
)
from tem_taichi.specimen.fiducials import GOLD_LATTICE

NARROWEST, WIDEST = 10.0, 300.0
"""Apertures [um]."""
_GOLD = 79
_INNER, _OUTER = 0.6, (1.6, 2.5)
_WAVES = 1.5
"""Pixels of a scene's wave in one of the images', by default."""


def gold_length(aperture: float, voltage: float, mean_free_path_at_300: float, pixel_size: float
                ) -> float:
    """Way through gold after which 1 / e of the electrons are left in an image [A].

    Args:
        aperture: objective aperture's diameter [um], at the focal length of a scene.
        voltage: [kV].
        mean_free_path_at_300: of the loss from the image in ice, without the aperture [A].
        pixel_size: of the images [A]: waves hold what is scattered up to the band's end.
    """
    loss = _loss(aperture, voltage, mean_free_path_at_300, pixel_size)
    real = forward_potentials()[_GOLD] * 4 / GOLD_LATTICE**3
    imaginary = real * loss.ratios[_GOLD] * float(imaginary_potential(loss.mean_free_path, voltage))
    return 1 / (2 * float(interaction_constant(voltage)) * imaginary)


def path_with_aperture(aperture: float | None, voltage: float, mean_free_path_at_300: float,
                       pixel_size: float) -> float:
    """Mean free path of ice at a voltage, for all that is lost from an image [A].

    Args:
        aperture: its diameter [um]; None = open.
        voltage: as in `gold_length`, as are the others.
        mean_free_path_at_300: see voltage.
        pixel_size: see voltage.
    """
    if aperture is None:
        return float(mean_free_path(mean_free_path_at_300, voltage))
    return _loss(aperture, voltage, mean_free_path_at_300, pixel_size).mean_free_path


def bead_length(images: NDArray[np.float64], places: pd.DataFrame, pixel_size: float
                ) -> float | None:
    """Way through gold after which 1 / e is left, by the beads that are seen [A].

    Logarithms of what is left in the middle of beads, within `_INNER` of their radius, over what is
    about them, from `_OUTER` on, beyond most of their fringe.

    Args:
        images: (n, ny, nx).
        places: of `bead_masks.covered`.
        pixel_size: [A].

    Returns:
        The median; None where no bead is whole in an image.
    """
    found = []
    for row in places[places["found"] & (places["bead"] > 0)].itertuples():
        radius = row.diameter / 2 / pixel_size
        reach = math.ceil(_OUTER[1] * radius) + 1
        y, x = round(row.y), round(row.x)
        image = images[row.image]
        if not (reach <= y < len(image) - reach and reach <= x < image.shape[1] - reach):
            continue
        part = image[y - reach:y + reach + 1, x - reach:x + reach + 1]
        away = np.hypot(*np.meshgrid(np.arange(-reach, reach + 1) + y - row.y,
                                     np.arange(-reach, reach + 1) + x - row.x, indexing="ij"))
        inner = away <= max(_INNER * radius, 0.7)
        about = part[(away >= _OUTER[0] * radius) & (away <= _OUTER[1] * radius)].mean()
        way = row.diameter * np.sqrt(1 - (away[inner] / radius).clip(max=0.99) ** 2).mean()
        if 0 < part[inner].mean() < about:
            found.append(math.log(about / part[inner].mean()) / way)
    return 1 / float(np.median(found)) if found else None


def aperture_of(length: float | None, voltage: float, mean_free_path_at_300: float,
                pixel_size: float) -> float | None:
    """The aperture with which gold takes as much from an image as beads do [um].

    Args:
        length: of `bead_length` [A]; None = unknown.
        voltage: as in `gold_length`, as are the others.
        mean_free_path_at_300: see voltage.
        pixel_size: see voltage.

    Returns:
        From `NARROWEST` to `WIDEST`; None where the length is.
    """
    if length is None:
        return None

    def off(logarithm: float) -> float:
        return gold_length(math.exp(logarithm), voltage, mean_free_path_at_300,
                           pixel_size) - length

    ends = math.log(NARROWEST), math.log(WIDEST)
    if off(ends[0]) >= 0 or off(ends[1]) <= 0:
        return NARROWEST if off(ends[0]) >= 0 else WIDEST
    return math.exp(brentq(off, *ends, xtol=1e-3))


def _loss(aperture: float, voltage: float, mean_free_path_at_300: float, pixel_size: float
          ) -> Loss:
    angle = aperture * 1e-3 / (2 * MicroscopeSettings().focal_length)
    return loss_with_aperture(float(mean_free_path(mean_free_path_at_300, voltage)), voltage,
                              angle / float(wavelength(voltage)),
                              BAND_LIMIT / 2 * _WAVES / pixel_size, 1.0)
