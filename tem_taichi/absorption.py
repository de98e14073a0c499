"""How much of the beam matter takes from the image: imaginary potential by composition.

The measured mean free path L of ice sets the scale: its imaginary potential is 1 / (2 sigma L),
so that a slab of thickness t leaves exp(-t / L) of the intensity. Other atoms follow from their
inelastic cross-sections relative to those of water. Theory's own scale would give ice an L of
1360 A at 300 kV, a third of the measured one; the ratios of elements depend on it little.
"""

from functools import cache

import torch

from tem_taichi.cross_sections import inelastic_cross_section
from tem_taichi.device import as_tensor
from tem_taichi.ice import ICE_DENSITY
from tem_taichi.physics import (
    REST_ENERGY,
    SCATTERING_TO_POTENTIAL,
    Value,
    interaction_constant,
)
from tem_taichi.potential import peng_table

_VOLTAGE = 300.0
"""[kV] of the ratios: between 100 and 300 kV they change by less than 2 % for H to S."""

PROTEIN = {1: 7.76, 6: 4.94, 7: 1.36, 8: 1.48, 16: 0.04}
"""Atoms of an average residue, 110 Da."""

_RESIDUE_VOLUME = 135.3
"""[A^3], at 1.35 g/cm^3."""


def mean_free_path(at_300: Value, voltage: Value) -> Value:
    """Mean free path at a voltage [A] from that at 300 kV: proportional to (v / c)^2 (Bethe)."""
    def beta_squared(volts: Value) -> Value:
        return 1 - 1 / (1 + volts * 1e3 / REST_ENERGY) ** 2

    return at_300 * beta_squared(voltage) / beta_squared(300.0)


def imaginary_potential(mean_free_path: Value, voltage: Value) -> Value:
    """1 / (2 sigma L) [V] of a medium of mean free path L [A]."""
    return 1 / (2 * interaction_constant(voltage) * mean_free_path)


@cache
def _ratios() -> tuple[float, ...]:
    section = [0.0] + [float(inelastic_cross_section(z, _VOLTAGE)) for z in range(1, 99)]
    water = (2 * section[1] + section[8]) * ICE_DENSITY
    forward = SCATTERING_TO_POTENTIAL * peng_table()[:, 0].sum(1).cpu()
    return (0.0, *(section[z] / (water * float(forward[z])) for z in range(1, 99)))


def absorption_ratios() -> torch.Tensor:
    """Imaginary over real potential of each element, per volt of the ice's imaginary potential.

    Returns:
        Tensor (99,) [1/V]; row 0 is unused.
    """
    return as_tensor(_ratios())


def protein_potentials() -> tuple[float, float]:
    """Mean potential of protein [V], and its imaginary one relative to that of ice."""
    forward = SCATTERING_TO_POTENTIAL * peng_table()[:, 0].sum(1).cpu()
    real = sum(count * float(forward[z]) for z, count in PROTEIN.items())
    imaginary = sum(count * float(forward[z]) * _ratios()[z] for z, count in PROTEIN.items())
    return real / _RESIDUE_VOLUME, imaginary / _RESIDUE_VOLUME


def amplitude_contrast_of_protein(
    mean_free_path: Value, voltage: Value, ice_potential: Value = 4.48, strength: Value = 1.0
) -> Value:
    """Q of protein in ice: imaginary over real potential, each relative to the ice.

    Args:
        mean_free_path: of the ice at this voltage [A].
        voltage: [kV].
        ice_potential: mean inner potential of the ice [V].
        strength: absorption of the protein over that by its composition.
    """
    real, imaginary = protein_potentials()
    ice = imaginary_potential(mean_free_path, voltage)
    return ice * (strength * imaginary - 1) / (real - ice_potential)
