"""How strongly an atom scatters fast electrons, and into which angles.

Closed forms of Rullgard et al. 2011 (J. Microsc. 243:234): elastic scattering off a
screened Coulomb potential (Wentzel), inelastic after Lenz with a mean loss of 13.5 eV Z. With
kappa = 2 pi / lambda, g = 1 + U/E0, theta0 = Z^(1/3) / (kappa a0), thetaE = 13.5 eV Z / (4 U):

    dsigma_el = 4 Z^(2/3) a0^2 g^2 / (1 + theta^2/theta0^2)^2
    dsigma_in = 4 Z [g / (kappa^2 a0 (theta^2 + thetaE^2))]^2 (1 - (1 + theta^2/theta0^2)^-2)

per solid angle 2 pi theta dtheta. All are double precision whatever the device is set to.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import j0

from tem_taichi.physics import REST_ENERGY, wavelength

Array = NDArray[np.float64]

BOHR_RADIUS = 0.529177210903
"""[A] (CODATA 2018)"""

_LOSS = 13.5
"""Mean energy loss over the atomic number [eV]."""


def screening_angle(number: ArrayLike, voltage: float) -> Array:
    """Angle theta0 [rad], up to about which an atom scatters elastically.

    Args:
        number: atomic number, from 1; any shape.
        voltage: [kV].
    """
    return np.cbrt(_checked(number)) * wavelength(voltage) / (2 * math.pi * BOHR_RADIUS)


def loss_angle(number: ArrayLike, voltage: float) -> Array:
    """Angle thetaE [rad], the typical angle of inelastic scattering.

    Args:
        number: atomic number, from 1; any shape.
        voltage: [kV].
    """
    return _LOSS * _checked(number) / (4e3 * voltage)


def elastic_differential(angle: ArrayLike, number: ArrayLike, voltage: float) -> Array:
    """Elastic cross-section per solid angle [A^2/sr].

    Args:
        angle: of scattering [rad], not negative; broadcasts with `number`.
        number: atomic number, from 1.
        voltage: [kV].
    """
    ratio = np.square(np.asarray(angle) / screening_angle(number, voltage))
    return 4 * (_checked(number) ** (1 / 3) * BOHR_RADIUS * _mass(voltage) / (1 + ratio)) ** 2


def inelastic_differential(angle: ArrayLike, number: ArrayLike, voltage: float) -> Array:
    """Inelastic cross-section per solid angle [A^2/sr]; arguments of `elastic_differential`."""
    ratio = np.square(np.asarray(angle) / screening_angle(number, voltage))
    loss = np.square(angle) + loss_angle(number, voltage) ** 2
    strength = _mass(voltage) * (wavelength(voltage) / (2 * math.pi)) ** 2 / (BOHR_RADIUS * loss)
    return 4 * _checked(number) * strength**2 * ratio * (2 + ratio) / (1 + ratio) ** 2


def elastic_cross_section(
    number: ArrayLike, voltage: float, within: ArrayLike = math.inf
) -> Array:
    """Elastic cross-section [A^2]; 4 pi Z^(4/3) (g / kappa)^2 for all angles.

    Arguments and errors of `total_cross_section`.
    """
    whole = 4 * math.pi * _checked(number) ** (4 / 3) * (
        _mass(voltage) * wavelength(voltage) / (2 * math.pi)) ** 2
    u = _square(within)
    return whole * u / (u + screening_angle(number, voltage) ** 2)


def inelastic_cross_section(
    number: ArrayLike, voltage: float, within: ArrayLike = math.inf
) -> Array:
    """Inelastic cross-section [A^2], integrated in closed form.

    Arguments and errors of `total_cross_section`.
    """
    number = _checked(number)
    u, b, c = (np.square(angle) for angle in (
        np.clip(within, 0, 1e6), screening_angle(number, voltage), loss_angle(number, voltage)))
    # The integral of (v^2 + 2 b v) / ((v + b)^2 (v + c)^2) over v = theta^2 from 0 to u.
    integral = ((c - 2 * b) * u / (u + c) - b * u / (u + b)
                + 2 * b**2 * np.log((u + c) / c * (b / (u + b))) / (b - c)) / (b - c) ** 2
    strength = _mass(voltage) * (wavelength(voltage) / (2 * math.pi)) ** 2 / BOHR_RADIUS
    return 4 * math.pi * number * strength**2 * integral


def total_cross_section(
    number: ArrayLike, voltage: float, within: ArrayLike = math.inf
) -> Array:
    """Elastic and inelastic cross-section together [A^2].

    Args:
        number: atomic number, from 1; any shape.
        voltage: [kV].
        within: the largest angle that counts [rad]; broadcasts with `number`.

    Raises:
        ValueError: if the number is below 1 or the voltage not positive.
    """
    return (elastic_cross_section(number, voltage, within)
            + inelastic_cross_section(number, voltage, within))


def molecular_cross_section(composition: Mapping[int, float], voltage: float) -> float:
    """Total cross-section [A^2] of a molecule given as {atomic number: atoms of it}.

    Args:
        composition: how many atoms of each atomic number.
        voltage: [kV].
    """
    return float(sum(count * total_cross_section(number, voltage)
                     for number, count in composition.items()))


def scattering_transform(
    composition: Mapping[int, float], voltage: float, angles: tuple[float, float], x: ArrayLike
) -> Array:
    """What scattering within an aperture keeps of an image's frequencies.

    C(x) = (1 / sigma) int 2 pi theta dsigma/dtheta J0(x theta) dtheta, with x = q |z| for the
    frequency q = 2 pi k of an object a distance z out of focus: scattered electrons add an image
    that their angles blur (Rullgard et al. 2011).

    Args:
        composition: {atomic number: atoms of it} of what scatters.
        voltage: [kV].
        angles: smallest and largest angle of the integral [rad], both positive.
        x: any shape, not negative.

    Returns:
        Fractions, the shape of `x`; at 0 that of all scattered electrons within the angles.

    Raises:
        ValueError: if the angles are not positive and increasing.
    """
    if not 0 < angles[0] < angles[1]:
        raise ValueError(f"angles={angles}: must be positive and increase [rad]")
    angle = np.geomspace(*angles, 2001)
    density = sum(count * (elastic_differential(angle, number, voltage)
                           + inelastic_differential(angle, number, voltage))
                  for number, count in composition.items())
    weight = 2 * np.pi * angle**2 * density * np.log(angle[1] / angle[0])
    weight[[0, -1]] /= 2  # trapezoidal rule in log(theta)
    whole = molecular_cross_section(composition, voltage)
    return j0(np.multiply.outer(np.asarray(x, dtype=float), angle)) @ weight / whole


def _mass(voltage: float) -> float:
    """Relativistic mass over rest mass."""
    return 1 + 1e3 * voltage / REST_ENERGY


def _square(angle: ArrayLike) -> Array:
    """Square of an angle; any above 1e6 rad counts as infinite."""
    return np.square(np.clip(angle, 0, 1e6))


def _checked(number: ArrayLike) -> Array:
    value = np.asarray(number, dtype=float)
    if not (value >= 1).all():
        raise ValueError(f"number={value.tolist()}: must be an atomic number, from 1")
    return value
