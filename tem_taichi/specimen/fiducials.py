"""Gold beads: balls cut out of an fcc crystal."""

import math
from dataclasses import replace

import numpy as np
import torch

from tem_taichi.checks import within
from tem_taichi.device import as_tensor, current
from tem_taichi.physics import SCATTERING_TO_POTENTIAL
from tem_taichi.specimen.absorption import Ratios
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.kinds import Kind, kind_of

GOLD_LATTICE = 4.0782
"""Edge of the cubic cell at 298 K [A] (Maeland & Flanagan 1964, Can. J. Phys. 42:2364)."""

GOLD_B_FACTOR = 0.2
"""[A^2], that of the crystal near 100 K; 0.6 at room temperature."""

SMALLEST, LARGEST = 10.0, 500.0
"""Diameters of beads [A]; the largest has 3.9 million atoms."""


def fcc_ball(diameter: float, lattice: float) -> np.ndarray:
    """Sites of a face-centred cubic lattice within a ball about one of them.

    Args:
        diameter: of the ball [A].
        lattice: edge of the cubic cell, which holds four sites [A].

    Returns:
        Sites (n, 3) [A].
    """
    reach = math.ceil(diameter / lattice)
    steps = np.arange(-reach, reach + 1)
    # Half a cell apart, those with an even sum of steps.
    x, y, z = np.meshgrid(steps, steps, steps, indexing="ij")
    even = ((x + y + z) % 2 == 0) & (4 * (x**2 + y**2 + z**2) * (lattice / 2) ** 2 <= diameter**2)
    return np.stack([x[even], y[even], z[even]], axis=1) * (lattice / 2)


def gold_bead(diameter: float, b_factor: float = GOLD_B_FACTOR) -> Atoms:
    """A spherical gold crystal about the origin, its cell's edges along x, y and z.

    Args:
        diameter: [A], 10 to 500.
        b_factor: of every atom [A^2].

    Raises:
        ValueError: for another diameter.
    """
    within("diameter", diameter, SMALLEST, LARGEST, "A")
    sites = as_tensor(fcc_ball(diameter, GOLD_LATTICE))
    n, where = len(sites), current().torch_device
    return Atoms(torch.full((n,), 79, device=where), sites, torch.full_like(sites[:, 0], b_factor),
                 torch.ones_like(sites[:, 0]), torch.zeros(n, dtype=torch.bool, device=where))


def gold_kind(name: str, diameter: float, b_factor: float = GOLD_B_FACTOR,
              ratios: Ratios | None = None) -> Kind:
    """A gold bead as a kind of particle; its void in the ice has the ball's volume.

    An atom's own van der Waals sphere, which other metals displace, is 13 % more than its share
    of the crystal.

    Args:
        name: of the kind.
        diameter: [A], 10 to 500.
        b_factor: of every atom [A^2].
        ratios: as in `kinds.kind_of`.

    Raises:
        ValueError: for another diameter.
    """
    kind = kind_of(gold_bead(diameter, b_factor), name, ratios)
    assert kind.displaced is not None
    share = math.pi / 6 * diameter**3 / len(kind.positions)
    weight = torch.full_like(kind.displaced.weight, -share / SCATTERING_TO_POTENTIAL)
    return replace(kind, displaced=replace(
        kind.displaced, weight=weight,
        broadening=torch.full_like(weight, math.pi * share ** (2 / 3))))
