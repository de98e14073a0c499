"""How much of the beam matter takes from the image: imaginary potential by composition.

The measured mean free path L of ice sets the scale: its imaginary potential is 1 / (2 sigma L),
so that a slab of thickness t leaves exp(-t / L) of the intensity. Other atoms follow from their
inelastic cross-sections relative to those of water. Theory's own scale would give ice an L of
1360 A at 300 kV, a third of the measured one; the ratios of elements depend on it little.

An objective aperture also takes what is scattered elastically beyond it. The wave holds scattering
up to the end of its band and loses by itself what the aperture cuts of that; what lies beyond
both is absorbed here, by Peng's factors of each element, so that the mean of an image does not
depend on its pixel size. Without an aperture nothing scattered elastically is lost.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch

from tem_taichi.device import as_tensor
from tem_taichi.physics import (
    REST_ENERGY,
    SCATTERING_TO_POTENTIAL,
    Value,
    interaction_constant,
)
from tem_taichi.specimen.cross_sections import BOHR_RADIUS, inelastic_cross_section
from tem_taichi.specimen.ice import ICE_DENSITY, ice_power
from tem_taichi.specimen.potential import peng_factors

_VOLTAGE = 300.0
"""[kV] of the ratios: between 100 and 300 kV they change by less than 2 % for H to S."""

PROTEIN = {1: 7.76, 6: 4.94, 7: 1.36, 8: 1.48, 16: 0.04}
"""Atoms of an average residue, 110 Da."""

_RESIDUE_VOLUME = 135.3
"""[A^3], at 1.35 g/cm^3."""


def mean_free_path(at_300: Value, voltage: Value) -> Value:
    """Mean free path at a voltage [A] from that at 300 kV: proportional to (v / c)^2 (Bethe).

    Args:
        at_300: at 300 kV [A].
        voltage: [kV].
    """
    def beta_squared(volts: Value) -> Value:
        return 1 - 1 / (1 + volts * 1e3 / REST_ENERGY) ** 2

    return at_300 * beta_squared(voltage) / beta_squared(300.0)


def imaginary_potential(mean_free_path: Value, voltage: Value) -> Value:
    """1 / (2 sigma L) [V] of a medium of mean free path L [A].

    Args:
        mean_free_path: L at this voltage [A].
        voltage: [kV].
    """
    return 1 / (2 * interaction_constant(voltage) * mean_free_path)


def forward_potentials() -> list[float]:
    """Integral of the potential of an atom of elements 0 to 98 [V A^3]."""
    return (SCATTERING_TO_POTENTIAL * peng_factors()[:, 0].sum(1)).tolist()


@cache
def inelastic_ratios() -> tuple[float, ...]:
    """`Ratios` of inelastic scattering alone."""
    section = [0.0] + [float(inelastic_cross_section(z, _VOLTAGE)) for z in range(1, 99)]
    water = (2 * section[1] + section[8]) * ICE_DENSITY
    forward = forward_potentials()
    return (0.0, *(section[z] / (water * forward[z]) for z in range(1, 99)))


Ratios = tuple[float, ...]
"""Imaginary over real potential of elements 0 to 98, per volt of the ice's imaginary one [1/V]."""


def absorption_ratios(ratios: Ratios | None = None) -> torch.Tensor:
    """Imaginary over real potential of each element, per volt of the ice's imaginary potential.

    Args:
        ratios: of `Loss`; by default those of inelastic scattering.

    Returns:
        Tensor (99,) [1/V]; row 0 is unused.
    """
    return as_tensor(ratios or inelastic_ratios())


def protein_potentials(ratios: Ratios | None = None) -> tuple[float, float]:
    """Mean potential of protein [V], and its imaginary one relative to that of ice."""
    forward, ratio = forward_potentials(), ratios or inelastic_ratios()
    real = sum(count * forward[z] for z, count in PROTEIN.items())
    imaginary = sum(count * forward[z] * ratio[z] for z, count in PROTEIN.items())
    return real / _RESIDUE_VOLUME, imaginary / _RESIDUE_VOLUME


def amplitude_contrast_of_protein(
    mean_free_path: Value, voltage: Value, ice_potential: Value = 4.48, strength: Value = 1.0,
    ratios: Ratios | None = None,
) -> Value:
    """Q of protein in ice: imaginary over real potential, each relative to the ice.

    Args:
        mean_free_path: of the ice at this voltage [A].
        voltage: [kV].
        ice_potential: mean inner potential of the ice [V].
        strength: absorption of the protein over that by its composition.
        ratios: as in `absorption_ratios`.
    """
    real, imaginary = protein_potentials(ratios)
    ice = imaginary_potential(mean_free_path, voltage)
    return ice * (strength * imaginary - 1) / (real - ice_potential)


_END = 4.0
"""Where Peng's factors end, s = 2 / A [1/A]; beyond it a bare nucleus scatters."""


def _bare_nucleus(number: float, beyond: float) -> float:
    """The integral of 2 pi k f^2 of f = Z / (2 pi^2 a0 k^2) (Mott and Bethe) from k on."""
    return math.pi * (number / (2 * math.pi**2 * BOHR_RADIUS * beyond)) ** 2


def elastic_beyond(number: int, k: float, voltage: float) -> float:
    """Cross-section of an atom for elastic scattering beyond a frequency [A^2].

    sigma^2 (h^2 / (2 pi m0 e))^2 times the integral of 2 pi k f(k)^2, sigma the interaction
    constant: in the model's own terms, so that it goes on where its waves end.

    Args:
        number: atomic number, 1 to 98.
        k: 1/d [1/A], the angle over the wavelength, not negative.
        voltage: [kV].
    """
    a, b = torch.tensor(peng_factors()[number])
    pairs, widths = a[:, None] * a, b[:, None] + b
    start = min(k, _END)
    held = math.pi * float((pairs / widths * (
        torch.exp(-widths * start**2) - torch.exp(-widths * _END**2))).sum())
    scale = (float(interaction_constant(voltage)) * SCATTERING_TO_POTENTIAL) ** 2
    return scale * (held + _bare_nucleus(number, max(k, _END)))


def ice_elastic_beyond(k: float, voltage: float) -> float:
    """The same of ice with its structure, per volume: one over a mean free path [1/A]."""
    nodes = torch.linspace(min(k, _END), _END, 4001, dtype=torch.float64)
    power = float(torch.trapezoid(2 * math.pi * nodes * ice_power(nodes), nodes))
    bare = ICE_DENSITY * sum(n * _bare_nucleus(z, max(k, _END)) for z, n in ((1, 2), (8, 1)))
    return float(interaction_constant(voltage)) ** 2 * (
        power + SCATTERING_TO_POTENTIAL**2 * bare)


@dataclass(frozen=True)
class Loss:
    """What takes electrons from the image beside the wave's own aperture."""

    mean_free_path: float
    """Of ice [A]."""
    ratios: Ratios
    """Of the elements, relative to it."""
    stopped: float
    """Part of the ice's loss that is elastic, 0 to 1: an energy filter has no say in it."""


def loss_with_aperture(
    inelastic: float, voltage: float, aperture: float, modelled: float, granularity: float = 1.0,
    particle_absorption: float = 1.0,
) -> Loss:
    """Inelastic loss, and what an aperture takes of the elastic scattering that no wave holds.

    Args:
        inelastic: mean free path of ice for it, at this voltage [A].
        voltage: [kV].
        aperture: its largest frequency, the angle over the wavelength [1/A].
        modelled: end of the band in which waves are scattered [1/A]; 0 if the mode knows only
            linear contrast, from which an aperture takes no electrons.
        granularity: of the ice; a continuum scatters nothing into the band.
        particle_absorption: factor by which particles' ratios will be multiplied; what the
            aperture stops is not to be.
    """
    beyond = max(aperture, modelled)
    smooth = 1 - min(granularity, 1.0) ** 2
    elastic = ((1 - smooth) * ice_elastic_beyond(beyond, voltage)
               + smooth * ice_elastic_beyond(aperture, voltage))
    both = 1 / inelastic + elastic
    # An imaginary potential of V takes 2 sigma V of the electrons per length.
    share = 1 / inelastic / both
    forward = forward_potentials()
    ratios = (share * ratio + elastic_beyond(z, beyond, voltage)
              / (forward[z] * both * particle_absorption)
              for z, ratio in enumerate(inelastic_ratios()) if z)
    return Loss(1 / both, (0.0, *ratios), elastic / both)
