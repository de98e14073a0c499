"""Bilayers: their profile against an atomistic one, smoothness, curvature."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from tem_taichi.device import as_tensor
from tem_taichi.physics import SCATTERING_TO_POTENTIAL
from tem_taichi.specimen.atoms import read_structure
from tem_taichi.specimen.kinds import Kind
from tem_taichi.specimen.membranes import (
    HALF_THICKNESS,
    bilayer_profile,
    fibonacci_sphere,
    membrane_kind,
    vesicle_kind,
)
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.potential import Gaussians, peng_table
from tem_taichi.specimen.view import View


def value_at(points: np.ndarray, kind: Kind, group: Gaussians) -> np.ndarray:
    """Potential of a kind's Gaussians at points (n, 3) [V, or 1 for the displaced fraction]."""
    b = group.broadening.numpy()
    height = SCATTERING_TO_POTENTIAL * group.weight.numpy() * (math.pi / b) ** 1.5
    squared = ((points**2).sum(1)[:, None] + (kind.positions.numpy() ** 2).sum(1)
               - 2 * points @ kind.positions.numpy().T)
    return np.exp(-math.pi**2 * squared / b) @ height


def test_profile_is_that_of_an_atomistic_bilayer(double, shared):
    """128 DPPC in water: lipids' potential, and where their water is missing.

    Both smoothed by 1 A. With one frame of 64 lipids a leaflet, the data's own halves differ by
    0.22 V and 0.020 (rms): the fit may miss their mean by half of that.
    """
    atoms = read_structure(shared / "data" / "atoms" / "dppc_n128.pdb")
    number, water = atoms.numbers.numpy(), atoms.is_water.numpy()
    strength = SCATTERING_TO_POTENTIAL * peng_table()[:, 0].sum(1).numpy()
    z = atoms.positions.numpy()[:, 2]
    heads = z[number == 15]
    z = z - (heads[heads > 0].mean() + heads[heads < 0].mean()) / 2
    step, area = 0.5, 64.0**2  # the box: the least at which no periodic images clash
    edges = np.arange(-32, 32 + step / 2, step)
    depth = (edges[1:] + edges[:-1]) / 2
    lipid = np.histogram(z[~water], edges, weights=strength[number[~water]])[0] / area / step
    oxygen = np.histogram(z[water & (number == 8)], edges)[0] / area / step
    bulk = oxygen[(np.abs(depth) > 28) & (np.abs(depth) < 31)].mean()
    assert bulk == pytest.approx(0.0331, rel=0.05)  # molecules/A^3 of water
    displaced = 1 - oxygen / bulk
    lipid, displaced = (gaussian_filter1d((p + p[::-1]) / 2, 1 / step) for p in (lipid, displaced))
    inside = np.abs(depth) < 28
    fitted = [gaussian_filter1d(part, 1 / step) for part in bilayer_profile(depth)]
    assert np.sqrt(np.mean((fitted[0] - lipid)[inside] ** 2)) < 0.11  # V
    assert np.sqrt(np.mean((fitted[1] - displaced)[inside] ** 2)) < 0.01
    contrast = (fitted[0] - 4.48 * fitted[1]) - (lipid - 4.48 * displaced)
    assert np.abs(contrast[inside]).max() < 0.22  # V, of 2.4
    # Where the heads are, as measured by X-rays: 38 A between phosphates (Nagle et al. 1996).
    assert np.abs(heads - heads.mean()).mean() * 2 == pytest.approx(38, abs=1.5)


def test_profile_is_plausible():
    """No water in the middle, none missing outside; a trough between two heads."""
    lipid, displaced = bilayer_profile(np.array([0.0, 17.0, 40.0]))
    assert displaced[0] == pytest.approx(1, abs=0.02) and abs(displaced[2]) < 0.01
    relative = lipid - 4.48 * displaced
    assert relative[1] > 2 * relative[0] > 0 and abs(relative[2]) < 0.01
    depth = np.linspace(-60, 60, 1201)
    missing = bilayer_profile(depth)[1].sum() * 0.1
    assert missing == pytest.approx(2 * HALF_THICKNESS, abs=0.2)


@pytest.mark.parametrize("which", ["group", "displaced"])
def test_flat_patch_has_the_profile(double, which):
    """At random points of the middle 20 A of a patch, its rims 40 A = 9 widths away."""
    kind = membrane_kind("m", (100.0, 100.0))
    rng = np.random.default_rng(1)
    points = np.stack([*rng.uniform(-10, 10, (2, 300)), rng.uniform(-30, 30, 300)], axis=1)
    lipid, displaced = bilayer_profile(points[:, 2])
    expected = lipid if which == "group" else -displaced
    found = value_at(points, kind, getattr(kind, which))
    # Ripples: 4 exp(-2 pi^2 3^2 / 4.5^2) = 6e-4 of the narrowest Gaussian, 3.5 V
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_vesicle_has_the_profile_and_no_ripples(double):
    """Along random radii."""
    diameter = 300.0
    kind = vesicle_kind("v", diameter)
    rng = np.random.default_rng(2)
    depth = np.repeat(np.linspace(-30, 30, 13), 25)
    radius = diameter / 2 - HALF_THICKNESS + depth
    directions = rng.normal(size=(len(radius), 3))
    points = directions / np.linalg.norm(directions, axis=1)[:, None] * radius[:, None]
    for group, expected in zip((kind.group, kind.displaced), bilayer_profile(depth), strict=True):
        found = np.abs(value_at(points, kind, group)).reshape(13, 25)
        # Ripples: 6 exp(-2 pi^2 3^2 / 4.5^2) = 9e-4 of the narrowest Gaussian, a third of all
        assert found.std(axis=1).max() < 5e-4 * expected.max()
        # second order in width / radius, (6 / 130)^2 = 2e-3
        assert np.abs(found.mean(1) - expected[::25]).max() < 2e-3 * expected.max()


def test_fibonacci_sphere_is_even():
    points = fibonacci_sphere(2000)
    assert np.allclose(np.linalg.norm(points, axis=1), 1)
    nearest = np.sort(2 - 2 * points @ points.T, axis=1)[:, 1]
    spacing = math.sqrt(4 * math.pi / 2000)
    assert 0.7 * spacing < math.sqrt(nearest.min()) and math.sqrt(nearest.max()) < 1.1 * spacing


def test_bent_patch_has_the_profile_along_its_normals(double):
    """A cylinder about an axis along y at z = -R; its top is at the origin."""
    bend, rng = 200.0, np.random.default_rng(3)
    kind = membrane_kind("m", (250.0, 100.0), bend)
    angle, y, depth = rng.uniform((-0.4, -10, -30), (0.4, 10, 30), (300, 3)).T
    radius = bend + depth
    points = np.stack([radius * np.sin(angle), y, radius * np.cos(angle) - bend], axis=1)
    for group, expected in zip((kind.group, kind.displaced), bilayer_profile(depth), strict=True):
        found = np.abs(value_at(points, kind, group))
        # second order in width / radius, 6 / 200: 1e-3, and ripples of the stretched side
        assert np.abs(found - expected).max() < 4e-3 * expected.max()
    x, _, z = kind.positions.numpy().T
    assert np.abs(np.arctan2(x, z + bend)).max() < 125 / bend  # as long as the flat one


@pytest.mark.parametrize("potential", [0.0, 4.48, 5.5])
def test_edge_on_patch_in_ice(double, potential):
    """Rendered like any particle: profile times depth, relative to the ice that is there."""
    kind = membrane_kind("m", (60.0, 120.0))
    turn = np.array([[[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]])
    specimen = ParticlesInIce((kind,), (Poses(np.zeros((1, 3)), turn),), Ice(100.0, potential))
    view = View(rotation=torch.eye(3, dtype=torch.float64), shift=as_tensor([0.0, 0.0]),
                shape=(80, 80), pixel_size=1.5, slice_thickness=100.0, entrance=-50.0, n_slices=1)
    found = specimen.slices(view, 0, 1)[0].numpy()[36:45].mean(0)
    lipid, displaced = bilayer_profile((np.arange(80) - 40) * 1.5)
    # exact to 1e-3, the ripples and the cut beyond 2/3 Nyquist of the grid
    assert np.abs(found - 60 * (lipid - potential * displaced)).max() < 5e-3 * 60 * lipid.max()


@pytest.mark.parametrize(("make", "said"), [
    (lambda: vesicle_kind("v", 60.0), "diameter=60.0: must be from 150 to 3000"),
    (lambda: membrane_kind("m", (-1.0, 50.0)), "size=.*: must be 2 positive numbers"),
    (lambda: membrane_kind("m", (50.0, 9000.0)), "size=9000.0: must be"),
    (lambda: membrane_kind("m", (900.0, 50.0), 20.0), "bend=20.0: must be at least 100, and 143"),
])
def test_wrong_sizes(make, said):
    with pytest.raises(ValueError, match=said):
        make()
