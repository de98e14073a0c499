from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from tem_taichi import slice_potential
from tem_taichi.device import as_tensor
from tem_taichi.files.mrc import write_mrc
from tem_taichi.rotations import euler_to_matrix, tilt_rotation
from tem_taichi.scene.settings import (
    IceSettings,
    InteractionSettings,
    Scene,
    SpecimenSettings,
    particle_of,
)
from tem_taichi.series.build import build_specimen
from tem_taichi.series.placement import particle_table, place
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.view import View

# A chiral molecule: no rotation takes it to its mirror image.
CHIRAL = np.array([[0, 0, 0], [9, 0, 0], [9, 7, 0], [9, 7, 11], [0, 0, 4]], dtype=float)


@pytest.fixture
def molecule(tmp_path: Path) -> str:
    rows = [f"HETATM{i + 1:5d}  S   LIG A{i + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00"
            "           S" for i, (x, y, z) in enumerate(CHIRAL)]
    file = tmp_path / "chiral.pdb"
    file.write_text("\n".join([*rows, "END"]) + "\n")
    return str(file)


def scene_of(thickness=300.0, size=None, seed=0, **particles):
    return Scene(seed=seed, shape=[128, 128], pixel_size=2.0,
                 interaction=InteractionSettings(slice_thickness=5.0), specimen=SpecimenSettings(
        ice=IceSettings(granularity=0.0, thickness=thickness), size=size,
        particles={name: particle_of(**p) for name, p in particles.items()}))


def view_of(rotation, shape=(96, 96), pixel_size=1.0, n_slices=8, thickness=10.0, shift=(0, 0)):
    return View(rotation=rotation, shift=as_tensor(shift), shape=shape, pixel_size=pixel_size,
                slice_thickness=thickness, entrance=-n_slices * thickness / 2, n_slices=n_slices)


def test_copies_are_the_atoms_turned_and_moved(double, molecule):
    """Pose, tilt and image shift against atoms transformed by hand."""
    scene = scene_of(a=dict(structure=molecule, placement="listed", hydrogens="none",
                            positions=[[10.0, -5.0, 8.0], [-20.0, 12.0, -9.0]],
                            orientations=[[10.0, 20.0, 30.0], [200.0, 100.0, 50.0]]))
    ice = replace(scene.specimen.ice, potential=0.0)
    scene = replace(scene, specimen=replace(scene.specimen, ice=ice))
    rotation = tilt_rotation(35.0, 20.0)
    stack = build_specimen(scene).slices(view_of(rotation, shift=(3.0, -2.0)), 0, 8)
    centred = CHIRAL - (CHIRAL.min(0) + CHIRAL.max(0)) / 2
    turns = euler_to_matrix([10.0, 200.0], [20.0, 100.0], [30.0, 50.0])
    placed = np.concatenate([centred @ turn.T + place for turn, place in
                             zip(turns, [[10, -5, 8], [-20, 12, -9]], strict=True)])
    seen = placed @ rotation.numpy().T + [3.0, -2.0, 0.0]
    n = len(seen)
    atoms = Atoms(torch.full((n,), 16), as_tensor(seen), as_tensor(np.full(n, 20.0)),
                  as_tensor(np.ones(n)), torch.zeros(n, dtype=torch.bool))
    expected = slice_potential(atoms, (96, 96), 1.0, 10.0, 80.0)
    assert float((stack - expected).abs().max()) < 1e-10 * float(expected.max())


def test_mirrored_molecule_looks_different(molecule):
    """The comparison above would notice a mirrored hand: no pose hides it."""
    distances = pdist(CHIRAL)
    assert np.allclose(distances, pdist(CHIRAL * [1, 1, -1]))
    centred, mirrored = (p - p.mean(0) for p in (CHIRAL, CHIRAL * [1, 1, -1]))
    u, _, vt = np.linalg.svd(mirrored.T @ centred)
    best = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    assert np.abs(mirrored @ best - centred).max() > 1.0


def test_chunks_and_batches_are_the_whole(molecule, monkeypatch):
    scene = scene_of(a=dict(structure=molecule, count=12), size=[80.0, 80.0])
    specimen, view = build_specimen(scene), view_of(tilt_rotation(20.0), n_slices=30)
    whole = specimen.slices(view, 0, 30)
    monkeypatch.setattr("tem_taichi.specimen.slicing.BATCH", 11)
    pieces = torch.cat([specimen.slices(view, first, 5) for first in range(0, 30, 5)])
    assert float((whole - pieces).abs().max()) < 1e-5 * float(whole.max())  # order of float32 sums
    low, high = specimen.depth_range(view)
    inside = slice(int((low - view.entrance) // 10), int((high - view.entrance) // 10) + 1)
    assert float(whole.sum()) == pytest.approx(float(whole[inside].sum()), rel=1e-6)


def test_a_map_is_a_particle_under_any_rotation(double, tmp_path):
    """A Gaussian blob off its centre as a map, against the same blob's formula."""
    n, voxel, width, height = 40, 1.5, 4.0, 3.0
    offset = np.array([6.0, -4.0, 9.0])
    z, y, x = np.meshgrid(*[(np.arange(n) - n // 2) * voxel] * 3, indexing="ij")
    squared = (x - offset[0]) ** 2 + (y - offset[1]) ** 2 + (z - offset[2]) ** 2
    write_mrc(tmp_path / "blob.mrc",
              (height * np.exp(-squared / (2 * width**2))).astype(np.float32), voxel, volume=True)
    scene = scene_of(blob=dict(map=str(tmp_path / "blob.mrc"), placement="listed",
                               positions=[[5.0, 5.0, 0.0]], orientations=[[40.0, 65.0, 15.0]]))
    rotation = tilt_rotation(-25.0)
    found = build_specimen(scene).slices(view_of(rotation, n_slices=10), 0, 10).sum(0).numpy()
    centre = rotation.numpy() @ (euler_to_matrix([40.0], [65.0], [15.0])[0] @ offset
                                 + [5.0, 5.0, 0.0])
    py, px = np.meshgrid(*[np.arange(96) - 48.0] * 2, indexing="ij")
    expected = height * width * np.sqrt(2 * np.pi) * np.exp(
        -((px - centre[0]) ** 2 + (py - centre[1]) ** 2) / (2 * width**2))
    # 1e-4 of the weights are left out, and the blob is stored in float32
    assert np.abs(found - expected).max() < 2e-3 * expected.max()


def test_random_copies_do_not_overlap_and_stay_inside(molecule):
    scene = scene_of(thickness=200.0, size=[300.0, 250.0], a=dict(structure=molecule, count=60),
                     b=dict(structure=molecule, count=20, gap=5.0))
    specimen = build_specimen(scene)
    radius = specimen.kinds[0].radius
    a, b = (pose.positions for pose in specimen.poses)
    assert len(a) == 60 and len(b) == 20
    assert pdist(np.concatenate([a, b])).min() >= 2 * radius
    assert pdist(b).min() >= 2 * radius + 5
    everything = np.abs(np.concatenate([a, b])).max(0)
    assert (everything <= [150, 125, 100 - radius + 1e-9]).all()


def test_random_placement_is_seeded_and_uniform(molecule):
    scene = scene_of(thickness=400.0, size=[2000.0, 2000.0], a=dict(structure=molecule, count=800))
    one, = place(scene, {"a": 8.0})
    again, = place(scene, {"a": 8.0})
    other, = place(replace(scene, seed=1), {"a": 8.0})
    assert np.array_equal(one.positions, again.positions)
    assert not np.array_equal(one.positions, other.positions)
    # mean of 800 uniform numbers over +-1000: 1000 / sqrt(2400) = 20 A; 5 sigma
    assert np.abs(one.positions[:, :2].mean(0)).max() < 102


def test_no_copies_need_no_room(molecule):
    scene = scene_of(thickness=6.0, size=[4.0, 4.0], a=dict(structure=molecule, count=0))
    assert build_specimen(scene).n_scatterers == 0


def test_lattice_and_listed_files(molecule, tmp_path):
    (tmp_path / "placed.csv").write_text("x,y,z,rot,tilt,psi\n1,2,3,10,20,30\n-40,5,6,0,0,0\n")
    scene = scene_of(grid=dict(structure=molecule, placement="lattice", copies=[2, 3, 1],
                               spacing=[50.0, 40.0, 30.0]),
                     listed=dict(structure=molecule, placement="listed",
                                 file=str(tmp_path / "placed.csv")))
    specimen = build_specimen(scene)
    table = particle_table([k.name for k in specimen.kinds], specimen.poses)
    grid = table[table["kind"] == "grid"][["x", "y", "z"]].to_numpy()
    assert sorted(set(grid[:, 0])) == [-25, 25] and sorted(set(grid[:, 1])) == [-40, 0, 40]
    listed = table[table["kind"] == "listed"]
    assert listed[["x", "y", "z"]].to_numpy().tolist() == [[1, 2, 3], [-40, 5, 6]]
    assert np.allclose(listed[["rot", "tilt", "psi"]].to_numpy()[0], [10, 20, 30])


@pytest.mark.parametrize(("thickness", "particle", "message"), [
    (10.0, dict(count=1), "specimen.ice.thickness=10: must be at least the diameter"),
    (300.0, dict(count=5000), "specimen.particles.a.count=5000: only"),
    (300.0, dict(placement="listed", positions=[[0.0, 0.0, 149.0]]),
     "copy 0 reaches from z=.* must lie within the ice"),
    (300.0, dict(placement="listed", positions=[[0.0, 0.0, 0.0]] * 3,
                 orientations=[[0.0, 0.0, 0.0]] * 2), "orientations: has 2 entries"),
    (300.0, dict(structure="nowhere.pdb"), "specimen.particles.a.structure: .*nowhere.pdb"),
    (300.0, dict(structure=None, map="nowhere.mrc"), "specimen.particles.a.map: .*nowhere.mrc"),
    (300.0, dict(placement="listed", file="nowhere.star"),
     "specimen.particles.a.file: .*nowhere.star"),
])
def test_what_does_not_fit(molecule, thickness, particle, message):
    scene = scene_of(thickness=thickness, size=[100.0, 100.0],
                     a={"structure": molecule, **particle})
    with pytest.raises(ValueError, match=message):
        build_specimen(scene)
