"""Volumes on voxels agree with the atoms they were made of, and with their projections."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tem_taichi import simulate
from tem_taichi.config import Compute, Ice, Particle, Scene, Specimen, Tilts
from tem_taichi.files.alignment import project, true_alignment
from tem_taichi.files.reconstruction import back_project
from tem_taichi.files.volumes import Volumes, potential_volume
from tem_taichi.physics import SCATTERING_TO_POTENTIAL
from tem_taichi.specimen import build_specimen


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atoms")
    line = "HETATM{:5d} AU   AU  A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00 20.00          AU\n"
    rod = "".join(line.format(n + 1, n + 1, 3.0 * n, 0, 0) for n in range(9))
    (folder / "rod.pdb").write_text(rod + "END\n")
    (folder / "dot.pdb").write_text(line.format(1, 1, 0, 0, 0) + "END\n")
    rods = Particle(structure=str(folder / "rod.pdb"), placement="listed",
                    positions=[[20.0, -30.0, 12.0], [-24.0, 8.0, -16.0]],
                    orientations=[[0.0, 0.0, 90.0], [0.0, 90.0, 0.0]])
    dots = Particle(structure=str(folder / "dot.pdb"), placement="listed",
                    positions=[[40.0, 40.0, 0.0], [500.0, 0.0, 0.0]])  # the last out of the field
    return Scene(name="rods", shape=[48, 40], pixel_size=4.0, compute=Compute(arch="cpu"),
                 specimen=Specimen(ice=Ice(thickness=70.0, potential=0.0, granularity=0.0),
                                   particles={"rod": rods, "dot": dots}),
                 tilts=Tilts(scheme="listed", angles=[0.0]))


@pytest.fixture(scope="module")
def volumes(scene):
    return Volumes(scene, build_specimen(scene), simulate(scene))


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
        weight = np.where(volumes.occupancy == number, volume, 0)
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
    empty = replace(scene, specimen=Specimen(ice=Ice(thickness=70.0)))
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


def test_back_projection_refuses_what_does_not_fit():
    table = pd.DataFrame({"tilt_angle": [0.0], "axis_angle": 0.0, "shift_x": 0.0, "shift_y": 0.0})
    with pytest.raises(ValueError, match=r"depth=0: must be positive \[voxel\]"):
        back_project(torch.ones(1, 4, 4), table, 1.0, 0)
    with pytest.raises(ValueError, match="tilts: has 1 rows; must have one for each of the 2"):
        back_project(torch.ones(2, 4, 4), table, 1.0, 4)
