"""Volumes on voxels agree with the atoms they were made of, and with their projections."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import maximum_filter

from tem_taichi import simulate
from tem_taichi.export.alignment import project, true_alignment
from tem_taichi.export.reconstruction import back_project
from tem_taichi.export.volumes import (
    Volumes,
    potential_volume,
    reference,
    scatterer_labels,
    solid,
)
from tem_taichi.physics import SCATTERING_TO_POTENTIAL
from tem_taichi.rotations import random_rotations
from tem_taichi.scene.settings import (
    ComputeSettings,
    IceSettings,
    Scene,
    SpecimenSettings,
    TiltSettings,
    particle_of,
)
from tem_taichi.series.build import build_specimen
from tem_taichi.specimen.fiducials import gold_kind
from tem_taichi.specimen.globules import globule_kind
from tem_taichi.specimen.membranes import HALF_THICKNESS, vesicle_kind
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.specimen.poses import Poses


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atoms")
    line = "HETATM{:5d} AU   AU  A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00 20.00          AU\n"
    rod = "".join(line.format(n + 1, n + 1, 3.0 * n, 0, 0) for n in range(9))
    (folder / "rod.pdb").write_text(rod + "END\n")
    (folder / "dot.pdb").write_text(line.format(1, 1, 0, 0, 0) + "END\n")
    rods = particle_of(structure=str(folder / "rod.pdb"), placement="listed",
                       positions=[[20.0, -30.0, 12.0], [-24.0, 8.0, -16.0]],
                       orientations=[[0.0, 0.0, 90.0], [0.0, 90.0, 0.0]])
    dots = particle_of(structure=str(folder / "dot.pdb"), placement="listed",
                       positions=[[40.0, 40.0, 0.0], [500.0, 0.0, 0.0]])  # out of the field
    return Scene(name="rods", shape=[48, 40], pixel_size=4.0, compute=ComputeSettings(arch="cpu"),
                 specimen=SpecimenSettings(ice=IceSettings(thickness=70.0, potential=0.0,
                                                           granularity=0.0),
                                           particles={"rod": rods, "dot": dots}),
                 tilts=TiltSettings(scheme="listed", angles=[0.0]))


@pytest.fixture(scope="module")
def volumes(scene):
    return Volumes(simulate(scene))


def test_potential_is_conserved_and_lies_where_the_atoms_are(volumes):
    volume = volumes.potential
    assert volume.shape == volumes.shape == (18, 48, 40)
    gold = volumes.specimen.kinds[1].group
    one = SCATTERING_TO_POTENTIAL * float(gold.table[gold.kind[0], 0].sum() * gold.weight[0])
    # 19 atoms in the field. Single precision, and the splats' cut-off.
    assert volume.sum(dtype=float) * 4.0**3 == pytest.approx(19 * one, rel=1e-3)
    z, y, x = np.unravel_index(volume[:, 30:, 26:].argmax(), volume[:, 30:, 26:].shape)
    assert (x + 26, y + 30, z) == (20 + 10, 24 + 10, 9)
    grid = np.meshgrid(*(np.arange(n) - n // 2 for n in volume.shape), indexing="ij")
    for number, place in ((1, [20.0, -30, 12]), (2, [-24.0, 8, -16]), (3, [40.0, 40, 0])):
        weight = np.where(maximum_filter(volumes.occupancy == number, 3), volume, 0)
        centre = [4.0 * float((weight * axis).sum() / weight.sum()) for axis in grid[::-1]]
        # Rings of the band limit are cut off by the mask: a tenth of a voxel.
        np.testing.assert_allclose(centre, place, atol=0.4)


def test_masks_number_the_particles_of_the_table(volumes):
    occupancy, classes = volumes.occupancy, volumes.classes
    assert set(np.unique(occupancy)) == {0, 1, 2, 3}  # the fourth is out of the field
    assert {1: 1, 2: 1, 3: 2} == {n: int(classes[occupancy == n].max()) for n in (1, 2, 3)}
    assert np.array_equal(occupancy > 0, classes > 0)
    assert np.all(volumes.potential[occupancy > 0] > 0)
    # psi = 90 turns reference x to -y; tilt = 90 turns it to +z.
    for number, axis in ((1, 1), (2, 0)):
        extent = [np.ptp(np.nonzero(occupancy == number)[n]) for n in range(3)]
        assert np.argmax(extent) == axis and extent[axis] >= 6  # 24 A
    voxels = np.argwhere(occupancy == 1)
    np.testing.assert_allclose(voxels.mean(axis=0), [9 + 3, 24 - 7.5, 20 + 5], atol=0.6)


def test_potential_of_a_specimen_without_particles_is_zero(scene):
    empty = replace(scene, specimen=SpecimenSettings(ice=IceSettings(thickness=70.0)))
    assert not potential_volume(build_specimen(empty), (6, 16, 16), 4.0).any()


def blobs(table: pd.DataFrame, axis: float, points: np.ndarray, sigma: float) -> torch.Tensor:
    """Images of Gaussian dents of depth 0.001 per pixel, 64 x 60 pixels of 2 A."""
    places = project(true_alignment(table, axis), points)[..., :2] / 2.0
    y, x = np.meshgrid(np.arange(64) - 32, np.arange(60) - 30, indexing="ij")
    square = ((x - places[..., 0, None, None]) ** 2 + (y - places[..., 1, None, None]) ** 2)
    dents = np.exp(-square / (2 * sigma**2)).sum(axis=1) * sigma * math.sqrt(2 * math.pi)
    return torch.from_numpy(1000 * (1 - 0.001 * dents))


@pytest.mark.parametrize("axis", [0.0, 85.0])
def test_back_projection_finds_density_and_place(double, axis):
    angles = np.arange(-89.0, 90.0, 2.0)
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"tilt_angle": angles, "axis_angle": axis + rng.normal(size=90),
                          "shift_x": 5 * rng.normal(size=90), "shift_y": 5 * rng.normal(size=90)})
    # In the tomogram; one beside the axis, high up, the other on the other side and low.
    points = np.array([[16.0, 10.0, 14.0], [-20.0, -12.0, -10.0]])
    volume = back_project(blobs(table, 0.0, points, 2.5), table, 2.0, 32).numpy()
    for x, y, z in points / 2:
        z, y, x = round(z) + 16, round(y) + 32, round(x) + 30
        around = volume[z - 3:z + 4, y - 3:y + 4, x - 3:x + 4]
        assert np.unravel_index(around.argmin(), around.shape) == (3, 3, 3)
        # Linear interpolation and the mean that is taken off cost some percent.
        assert around.min() == pytest.approx(-0.001, rel=0.08)


@pytest.mark.parametrize("bad", [0.0, -3.0])
def test_images_without_electrons_add_nothing(double, bad):
    """As counting rounds a weak beam to; the others make the volume that they made alone."""
    angles = np.array([-30.0, 0.0, 30.0])
    table = pd.DataFrame({"tilt_angle": angles, "axis_angle": 0.0, "shift_x": 0.0, "shift_y": 0.0})
    images = blobs(table, 0.0, np.array([[6.0, 10.0, 4.0]]), 2.5)
    images[1] = bad
    with pytest.warns(UserWarning, match="1 of 3 images, the first of them image 2, have no pos"):
        volume = back_project(images, table, 2.0, 16)
    images[1] = 500.0  # without any contrast
    assert torch.equal(volume, back_project(images, table, 2.0, 16)) and volume.abs().max() > 0


def test_back_projection_refuses_what_does_not_fit():
    table = pd.DataFrame({"tilt_angle": [0.0], "axis_angle": 0.0, "shift_x": 0.0, "shift_y": 0.0})
    with pytest.raises(ValueError, match=r"depth=0: must be positive \[voxel\]"):
        back_project(torch.ones(1, 4, 4), table, 1.0, 0)
    with pytest.raises(ValueError, match="tilts: has 1 rows; must have one for each of the 2"):
        back_project(torch.ones(2, 4, 4), table, 1.0, 4)


BODIES = {"bead": (gold_kind("bead", 80.0), 0.0, 40.0),
          "vesicle": (vesicle_kind("vesicle", 200.0), 100 - 2 * HALF_THICKNESS, 100.0),
          "protein": (globule_kind("protein", 150.0), 0.0, 35.0)}
"""Inner and outer radius [A]; 150 kDa of 1.21 A^3/Da."""


@pytest.mark.parametrize("voxel", [2.0, 3.0, 5.0, 10.0])
@pytest.mark.parametrize("name", BODIES)
def test_masks_are_solid(name, voxel):
    kind, inner, outer = BODIES[name]
    n, centre = 2 * math.ceil((outer + 25) / voxel), np.array([1.3, -0.7, 0.4])
    rotation = random_rotations(1, np.random.default_rng(0))
    specimen = ParticlesInIce((kind,), (Poses(centre[None], rotation),))
    mask = solid(scatterer_labels(specimen, (n, n, n), voxel), voxel)
    z, y, x = (np.mgrid[:n, :n, :n] - n // 2) * voxel
    r = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
    # A point fills its voxel, whose middle is up to half a diagonal away; its radius is 2 A.
    reach = voxel * math.sqrt(3) / 2
    core = (r > inner + reach) & (r < outer - reach)
    if core.any():
        assert (mask[core] == 1).mean() > 0.995  # speckled ones had 0.69 to 0.99
    assert not mask[(r > outer + reach + 3) | (r < inner - reach - 3)].any()


def test_solid_bodies_do_not_depend_on_the_slabs(monkeypatch):
    rng = np.random.default_rng(1)
    labels = np.where(rng.random((40, 20, 20)) < 0.02, rng.integers(1, 5, (40, 20, 20)), 0)
    whole = solid(labels.astype(np.int32), 2.0)
    monkeypatch.setattr("tem_taichi.export.volumes._SLAB", 7 * 400)
    parts = solid(labels.astype(np.int32), 2.0)
    # Of equally near points either is the nearest.
    np.testing.assert_array_equal(whole > 0, parts > 0)
    assert (whole != parts).mean() < 0.1
    assert not solid(np.zeros((3, 3, 3), np.int32), 1.0).any()
    assert (solid(np.ones((3, 3, 3), np.int32), 1.0) == 1).all()


def test_reference_is_the_particle_alone(monkeypatch):
    kind, _, outer = BODIES["vesicle"]
    ice = Ice(1000.0, 4.48)
    fine = reference(kind, ice, 2.5)
    monkeypatch.setattr("tem_taichi.export.volumes._LARGEST_REFERENCE", 60)
    coarse = reference(kind, ice, 2.5)
    assert (fine.voxel, coarse.voxel) == (2.5, 5.0)
    n = fine.potential.shape[0]
    assert n % 2 == 0 and n * fine.voxel > 2.2 * outer and coarse.potential.shape[0] <= 60
    radial = fine.potential[n // 2, n // 2, n // 2:]
    heads = abs(radial.argmax() * 2.5 - (outer - HALF_THICKNESS))
    assert heads == pytest.approx(18.75, abs=2.5)  # of either leaflet
    middle = (slice(n // 2 - 4, n // 2 + 4),) * 3
    for empty in (fine.potential[middle], fine.potential[0]):  # ice inside and out
        assert abs(empty.mean()) < 0.01 * radial.max()
    inside = fine.potential[fine.mask == 1].sum(dtype=float)
    # Beyond the outermost points, whose heads are 3 A wide, lie 7 % of it.
    assert inside > 0.9 * fine.potential.sum(dtype=float)
    # The same volume at any voxel size, within a voxel of the surfaces.
    volume, rough = (float(one.mask.sum()) * one.voxel**3 for one in (fine, coarse))
    assert volume == pytest.approx(rough, rel=0.15)
