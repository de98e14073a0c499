"""Constants of the electron beam (CODATA 2018)."""

import math
from typing import overload

import torch

from tem_taichi.arguments import check_voltage

Value = float | torch.Tensor

PLANCK = 6.62607015e-34
ELECTRON_MASS = 9.1093837015e-31
ELEMENTARY_CHARGE = 1.602176634e-19
LIGHT_SPEED = 299792458.0

REST_ENERGY = ELECTRON_MASS * LIGHT_SPEED**2 / ELEMENTARY_CHARGE
"""Electron rest energy m0 c^2 [eV]."""

SCATTERING_TO_POTENTIAL = PLANCK**2 / (2 * math.pi * ELECTRON_MASS * ELEMENTARY_CHARGE) * 1e20
"""h^2 / (2 pi m0 e) [V A^2]: turns a scattering factor [A] into a projected potential."""

# Products of constants, made in double precision: in float32 h^2 alone would be zero.
_PHOTON_ENERGY_LENGTH = PLANCK * LIGHT_SPEED / ELEMENTARY_CHARGE * 1e10  # h c [eV A]
_PHASE_PER_POTENTIAL = 2 * math.pi * ELECTRON_MASS * ELEMENTARY_CHARGE / PLANCK**2 * 1e-20


def _volts(voltage: Value) -> Value:
    check_voltage(voltage)
    return voltage * 1e3


@overload
def wavelength(voltage: float) -> float: ...
@overload
def wavelength(voltage: torch.Tensor) -> torch.Tensor: ...
@overload
def wavelength(voltage: Value) -> Value: ...
def wavelength(voltage: Value) -> Value:
    """Relativistic electron wavelength [A] at an accelerating voltage [kV].

    lambda = h c / sqrt(e U (e U + 2 m0 c^2)) (Kirkland 2020, eq. 2.5).

    Raises:
        ValueError: if the voltage is not from 10 to 3000 kV.
    """
    volts = _volts(voltage)
    return _PHOTON_ENERGY_LENGTH / (volts * (volts + 2 * REST_ENERGY)) ** 0.5


@overload
def interaction_constant(voltage: float) -> float: ...
@overload
def interaction_constant(voltage: torch.Tensor) -> torch.Tensor: ...
@overload
def interaction_constant(voltage: Value) -> Value: ...
def interaction_constant(voltage: Value) -> Value:
    """Phase per projected potential, sigma [rad/(V A)], at a voltage [kV].

    sigma = 2 pi m e lambda / h^2 with the relativistic mass m = m0 (1 + U/E0)
    (Kirkland 2020, eq. 5.6).

    Raises:
        ValueError: if the voltage is not from 10 to 3000 kV.
    """
    relativistic = 1 + _volts(voltage) / REST_ENERGY
    return _PHASE_PER_POTENTIAL * relativistic * wavelength(voltage)
