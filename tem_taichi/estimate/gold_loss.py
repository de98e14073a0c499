"""What gold takes from an image tells how wide the objective aperture is."""

import math

import numpy as np
import pandas as pd
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


def aperture_of(beads: pd.DataFrame, voltage: float, mean_free_path_at_300: float,
                pixel_size: float) -> float | None:
    """The aperture with which gold takes as much from an image as beads do [um].

    Args:
        beads: diameter [A] and contrast, the share of electrons that a bead's middle takes.
        voltage: as in `gold_length`, as are the others.
        mean_free_path_at_300: see voltage.
        pixel_size: see voltage.

    Returns:
        From `NARROWEST` to `WIDEST`; None without beads.
    """
    good = beads[(beads["contrast"] > 0) & (beads["contrast"] < 1)] if len(beads) else beads
    if not len(good):
        return None
    wanted = float(np.median(-good["diameter"] / np.log1p(-good["contrast"])))

    def off(logarithm: float) -> float:
        return gold_length(math.exp(logarithm), voltage, mean_free_path_at_300,
                           pixel_size) - wanted

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
