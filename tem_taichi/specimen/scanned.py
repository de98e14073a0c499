"""Particles and ice as a scanning microscope sees them: cross-sections in place of potentials.

An atom's projected potential becomes its cross-section for scattering away from the detector's
bright field, or onto its ring in dark field, in the shape that its potential has; ice has what its
molecules have together, and particles displace it.
"""

import math
from dataclasses import replace

import torch

from tem_taichi.device import as_tensor
from tem_taichi.physics import SCATTERING_TO_POTENTIAL
from tem_taichi.specimen.cross_sections import total_cross_section
from tem_taichi.specimen.ice import ICE_DENSITY
from tem_taichi.specimen.kinds import Kind
from tem_taichi.specimen.layer import Ice


def lost(number: int, voltage: float, signal: str, angles: tuple[float, float]) -> float:
    """Cross-section of an element for what changes a signal [A^2].

    Args:
        number: atomic number.
        voltage: [kV].
        signal: bright, scattering beyond the detector's outer angle, or dark, onto its ring.
        angles: inner and outer angle of the detector [mrad].
    """
    inner, outer = (1e-3 * angle for angle in angles)
    low, high = (outer, math.inf) if signal == "bright" else (inner, outer)
    whole = total_cross_section(number, voltage, high) - total_cross_section(number, voltage, low)
    return float(whole)


def of_atoms(kind: Kind, voltage: float, signal: str, angles: tuple[float, float]) -> Kind:
    """A kind whose scatterers have cross-sections [A^2] where they had potentials [V A^3].

    Arguments of `lost`.

    Raises:
        ValueError: if it is not made of atoms.
    """
    table = kind.group.table
    if len(table) != 99:
        raise ValueError(f"{kind.name}: must be made of atoms, or a map, for instrument=stem")
    wanted = as_tensor([0.0, *(lost(z, voltage, signal, angles) for z in range(1, 99))])
    forward = SCATTERING_TO_POTENTIAL * table[:, 0].sum(1)
    made = table.clone()
    made[:, 0] *= torch.where(forward > 0, wanted / torch.where(forward > 0, forward, 1.0),
                              0.0)[:, None]
    return Kind(kind.name, kind.positions, replace(kind.group, table=made), kind.displaced,
                render=kind.render)


def of_ice(ice: Ice, voltage: float, signal: str, angles: tuple[float, float]) -> Ice:
    """Ice that attenuates by its molecules' cross-sections; no ice where it had no potential.

    Its random structure, a few per cent of it, is left out. Arguments of `lost`.
    """
    one = 2 * lost(1, voltage, signal, angles) + lost(8, voltage, signal, angles)
    density = ICE_DENSITY * one if float(ice.potential) else 0.0
    return Ice(thickness=ice.thickness, potential=density,
               mean_free_path=1 / density if density > 0 else None, shape=ice.shape)
