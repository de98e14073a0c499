"""Gold beads and globules: number, lattice, contrast and the void they leave in the ice."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from tem_taichi.device import as_tensor
from tem_taichi.physics import SCATTERING_TO_POTENTIAL
from tem_taichi.specimen.absorption import protein_potentials
from tem_taichi.specimen.fiducials import GOLD_LATTICE, fcc_ball, gold_bead, gold_kind
from tem_taichi.specimen.globules import VOLUME_PER_MASS, globule_kind
from tem_taichi.specimen.kinds import Kind, kind_of
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.potential import Gaussians, peng_table
from tem_taichi.specimen.view import View

ONE = Poses(np.zeros((1, 3)), np.eye(3)[None])


def integral(group: Gaussians) -> float:
    """Of the potential of some Gaussians over space [V A^3]."""
    return SCATTERING_TO_POTENTIAL * float((group.weight * group.table[group.kind, 0].sum(1)).sum())


def projected(kind: Kind, potential: float, n: int = 96, pixel: float = 2.0) -> np.ndarray:
    """Projection of one copy relative to uniform ice [V A]."""
    view = View(rotation=torch.eye(3, dtype=as_tensor(0.0).dtype), shift=as_tensor([0.0, 0.0]),
                shape=(n, n), pixel_size=pixel, slice_thickness=n * pixel, entrance=-n * pixel / 2,
                n_slices=1)
    return ParticlesInIce((kind,), (ONE,), Ice(n * pixel, potential)).slices(view, 0, 1)[0].numpy()


def test_gold_is_an_fcc_crystal_of_its_density(double):
    atoms = gold_bead(100.0)
    sites = atoms.positions.numpy()
    assert np.linalg.norm(sites, axis=1).max() <= 50
    # Points of a lattice in a ball: off by about the square root of those in its outer layer.
    ideal = 4 / GOLD_LATTICE**3 * math.pi / 6 * 100**3
    assert abs(len(sites) - ideal) < math.sqrt(4 * math.pi * 50**2 / (GOLD_LATTICE**2 / 2))
    inner = sites[np.linalg.norm(sites, axis=1) < 40]
    near = cKDTree(sites).query(inner, k=14)[0]
    assert np.allclose(near[:, 1:13], GOLD_LATTICE / math.sqrt(2), rtol=1e-9)  # 12 neighbours
    assert np.allclose(near[:, 13], GOLD_LATTICE)
    assert (atoms.numbers == 79).all()


def test_void_in_the_ice_is_the_balls_volume(double):
    kind = gold_kind("gold", 80.0)
    ball = math.pi / 6 * 80**3
    assert integral(kind.displaced) == pytest.approx(-ball, rel=1e-9)
    # Van der Waals spheres, which other metals displace, would overlap by an eighth.
    overlapping = kind_of(gold_bead(80.0)).displaced
    assert integral(overlapping) < -1.1 * ball
    # Through the middle the ice is missing over the diameter; the weave of Gaussians of a
    # lattice of 4 A is smooth at 4 A, and the lattice's ball is off by one layer, 2 A.
    alone = replace(kind, group=kind.group.scaled(0.0))
    middle = projected(alone, 4.48)[44:53, 44:53].mean()
    assert middle == pytest.approx(-4.48 * 80, rel=0.025)


def test_contrast_of_gold(double):
    """Mean inner potential 4 f(0) / a^3 of free atoms, 30 V, less that of the ice."""
    kind = gold_kind("gold", 80.0)
    mean = SCATTERING_TO_POTENTIAL * 4 * float(peng_table()[79, 0].sum()) / GOLD_LATTICE**3
    assert 25 < mean < 35
    found = projected(kind, 4.48)[44:53, 44:53].mean()
    assert found == pytest.approx((mean - 4.48) * 80, rel=0.025)


@pytest.mark.parametrize("mass", [10.0, 50.0, 480.0])
def test_globule_is_uniform_protein_of_its_mass(double, mass):
    kind, volume = globule_kind("g", mass), mass * VOLUME_PER_MASS
    real, imaginary = protein_potentials()
    assert volume == pytest.approx(1230 * mass, rel=1e-3)  # 1.35 g/cm^3
    assert integral(kind.group) == pytest.approx(real * volume, rel=1e-9)
    assert integral(kind.displaced) == pytest.approx(-volume, rel=1e-9)
    assert integral(kind.absorbing) == pytest.approx(imaginary * volume, rel=1e-9)
    # Radius of gyration of a ball, sqrt(3/5) R, and of the Gaussians' own 3 A: sqrt(3) 3.
    squared = float((kind.positions**2).sum(1).mean())
    radius = (3 * volume / (4 * math.pi)) ** (1 / 3)
    assert math.sqrt(squared) == pytest.approx(math.sqrt(0.6) * radius, rel=0.05)  # few sites
    assert kind.radius <= radius


def test_globule_is_smooth_inside(double):
    """At random points within: ripples of the lattice below 2e-3 of the potential."""
    kind = globule_kind("g", 480.0)
    points = np.random.default_rng(0).uniform(-15, 15, (200, 3))
    squared = ((points[:, None] - kind.positions.numpy()) ** 2).sum(-1)
    b = float(kind.group.broadening[0])
    potential = (integral(kind.group) / len(kind.positions) * (math.pi / b) ** 1.5
                 * np.exp(-math.pi**2 * squared / b)).sum(1)
    volume = 480 * VOLUME_PER_MASS
    density = 4 / 8.0**3 / (len(kind.positions) / volume)
    assert np.allclose(potential, protein_potentials()[0] * density, rtol=2e-3)
    assert density == pytest.approx(1, abs=0.03)  # sites in the ball are whole numbers


def test_fcc_ball_has_the_symmetry_of_a_cube():
    sites = {tuple(site) for site in np.round(fcc_ball(30.0, 4.0), 9) + 0.0}
    assert {(y, z, x) for x, y, z in sites} == sites == {(y, -x, z) for x, y, z in sites}


@pytest.mark.parametrize(("make", "said"), [
    (lambda: gold_kind("g", 5.0), "diameter=5.0: must be from 10 to 500"),
    (lambda: gold_bead(float("nan")), "diameter=nan"),
    (lambda: globule_kind("g", 1.0), "mass=1.0: must be from 5 to 10000"),
])
def test_wrong_sizes(make, said):
    with pytest.raises(ValueError, match=said):
        make()
