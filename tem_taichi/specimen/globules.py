"""Featureless balls of protein: particles whose mass matters and whose fold does not."""

import math

import torch

from tem_taichi.checks import within
from tem_taichi.device import as_tensor
from tem_taichi.physics import SCATTERING_TO_POTENTIAL
from tem_taichi.specimen.absorption import Ratios, protein_potentials
from tem_taichi.specimen.fiducials import fcc_ball
from tem_taichi.specimen.kinds import Kind
from tem_taichi.specimen.potential import Gaussians

VOLUME_PER_MASS = 1e27 / 6.02214076e23 / 1.35
"""[A^3 per kDa], at 1.35 g/cm^3."""

_LATTICE = 8.0
"""Of the Gaussians that fill the ball [A]."""

_WIDTH = 3.0
"""Standard deviation of each [A]: ripples of 2e-3 inside, an edge as soft as a side chain."""

SMALLEST, LARGEST = 5.0, 10_000.0
"""Masses [kDa]."""


def globule_kind(name: str, mass: float, ratios: Ratios | None = None) -> Kind:
    """A ball of average protein, uniform inside: true in mass and contrast beyond about 20 A.

    Args:
        name: of the kind.
        mass: [kDa], 5 to 10,000.
        ratios: as in `kinds.kind_of`.

    Raises:
        ValueError: for another mass.
    """
    within("mass", mass, SMALLEST, LARGEST, "kDa")
    volume = mass * VOLUME_PER_MASS
    sites = as_tensor(fcc_ball((6 * volume / math.pi) ** (1 / 3), _LATTICE))
    share = torch.full_like(sites[:, 0], volume / len(sites) / SCATTERING_TO_POTENTIAL)
    real, imaginary = protein_potentials(ratios)
    each = Gaussians.single(share, 2 * math.pi**2 * _WIDTH**2)
    return Kind(name, sites, each.scaled(real), each.scaled(-1.0), each.scaled(imaginary))
