"""Filaments: helical symmetry, placement, labels."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.special import jv

from tem_taichi.files.particles import write_particles
from tem_taichi.rotations import euler_to_matrix
from tem_taichi.scene.load import load_scene
from tem_taichi.scene.settings import IceSettings, Scene, SpecimenSettings, particle_of
from tem_taichi.scene.typed import from_plain
from tem_taichi.series.build import build_specimen, load_kind
from tem_taichi.series.filaments import along_filaments, helix
from tem_taichi.series.placement import particle_table, place
from tem_taichi.specimen.atoms import read_structure

HELIX = dict(placement="helix", rise=27.6, twist=-166.6, length=500.0)
TUBE = dict(globule=50.0, placement="helix", rise=41 / 13, twist=110.769230769,
            axis_distance=112.0)


def scene_of(thickness=400.0, size=(800.0, 800.0), seed=0, **particles):
    return Scene(seed=seed, specimen=SpecimenSettings(
        ice=IceSettings(thickness=thickness), size=list(size),
        particles={name: particle_of(**values) for name, values in particles.items()}))


def subunits(**particle) -> np.ndarray:
    """Centres of a standing filament's subunits, x of their own frame put into the specimen."""
    particle = {"orientations": [[0.0, 0.0, 0.0]], "positions": [[0.0, 0.0, 0.0]], **particle}
    pose, = place(scene_of(a=particle), {"a": 10.0})
    return pose.positions + pose.rotations[:, :, 0] * particle.get("axis_distance", 10.0)


def test_positive_twist_is_a_right_handed_screw():
    """Turning counter-clockwise seen from +z, where it rises to."""
    x, y, z = subunits(globule=42.0, placement="helix", rise=5.0, twist=30.0, length=60.0).T
    assert np.allclose(np.diff(z), 5) and len(z) == 12 and abs(z.mean()) < 1e-9
    assert np.allclose(np.diff(np.unwrap(np.arctan2(y, x))), math.radians(30))
    assert np.allclose(np.hypot(x, y), 10)


def test_tobacco_mosaic_virus_is_its_biological_assembly(double, shared):
    """2OM3: the file's 49 operators against the rise and twist (16.34 a turn), atom by atom."""
    file = str(shared / "data" / "atoms" / "2OM3.pdb")
    particle = dict(structure=file, placement="helix", rise=1.4076, twist=360 / 16.34,
                    length=49 * 1.4076, positions=[[0.0, 0.0, 0.0]], hydrogens="none")
    kind = load_kind("tmv", particle_of(**particle))
    subunit = read_structure(file, hydrogens="none").positions.numpy()
    kept = kind.positions.numpy()
    shift = kept - subunit
    assert np.array_equal(shift[:, :2], np.zeros_like(shift[:, :2]))  # the axis stays
    assert np.ptp(shift[:, 2]) < 1e-9 and abs(kept[:, 2].max() + kept[:, 2].min()) < 1e-9
    pose, = place(scene_of(tmv=particle), {"tmv": kind.radius})
    built = np.einsum("cij,nj->cni", pose.rotations, kept) + pose.positions[:, None]
    assembly = read_structure(file, assembly="1", hydrogens="none").positions.numpy() + shift[0]
    # Operators of six digits at 90 A
    assert np.abs(built - assembly.reshape(built.shape)).max() < 1e-3


def test_layer_lines_of_a_helix():
    """Cochran, Crick & Vand 1952: on layer line l only J_n with l = 3 n + 49 m (TMV)."""
    n, radius, repeat = 49 * 4, 60.0, 49 * 1.4076
    heights, turns = helix(n, repeat / 49, 1080 / 49)
    points = turns @ np.array([radius, 0.0, 0.0]) + np.array([0.0, 0.0, 1.0]) * heights[:, None]
    for line, order in ((0, 0), (3, 1), (6, 2), (46, -1), (9, 3), (1, -16)):
        assert (line - 3 * order) % 49 == 0
        for k in np.linspace(0.001, 0.02, 9):
            found = abs(np.exp(2j * math.pi * points @ [k, 0.0, line / repeat]).mean())
            # the next order on the line is 49 away, and nothing at these radii
            assert found == pytest.approx(abs(jv(order, 2 * math.pi * k * radius)), abs=1e-6)
    for between in (0.25, 1.5, 3.75):  # whole numbers of waves in 4 repeats
        assert abs(np.exp(2j * math.pi * points @ [0.01, 0.0, between / repeat]).mean()) < 1e-9


def test_microtubule_lattice():
    """13 straight protofilaments of 41 A; their neighbours on a left-handed 3-start helix."""
    x, y, z = subunits(**TUBE, length=410.0).T
    angle = np.degrees(np.arctan2(y, x))
    assert len(x) == 130
    assert np.allclose((angle[13:] - angle[:-13] + 180) % 360 - 180, 0, atol=1e-6)
    assert np.allclose(z[13:] - z[:-13], 41)
    assert np.allclose((angle[3:] - angle[:-3] + 180) % 360 - 180, -360 / 13, atol=1e-6)
    assert np.allclose(z[3:] - z[:-3], 3 * 41 / 13)
    assert len(np.unique(np.round((angle + 0.01) % 360, 3))) == 13


def test_listed_filaments_lie_where_they_are_put():
    particle = dict(globule=42.0, **HELIX, axis_distance=16.0,
                    positions=[[10.0, 20.0, 30.0], [-100.0, 0.0, 5.0]],
                    orientations=[[0.0, 0.0, 0.0], [20.0, 90.0, 40.0]])
    pose, = place(scene_of(actin=particle), {"actin": 40.0})
    first, second = (pose.positions[pose.filament == n] for n in (1, 2))
    assert np.allclose(first.mean(0), [10, 20, 30]) and np.allclose(second.mean(0), [-100, 0, 5])
    axis = euler_to_matrix([20.0], [90.0], [40.0])[0][:, 2]
    assert np.allclose(np.diff(second, axis=0), 27.6 * axis) and abs(axis[2]) < 1e-9
    assert np.allclose(pose.rotations[:, :, 2][pose.filament == 2], axis)
    assert len(first) == len(second) == round(500 / 27.6)


def test_random_filaments_keep_clear_and_inside():
    """Of one another, of listed ones, and of random copies that come after."""
    scene = scene_of(
        ball=dict(globule=300.0, count=30, gap=4.0), bead=dict(fiducial=60.0, count=5),
        actin=dict(globule=42.0, count=5, gap=10.0, axis_distance=16.0, **HELIX),
        tube=dict(**TUBE, length=600.0, positions=[[0.0, 300.0, 0.0]],
                  orientations=[[0.0, 90.0, 0.0]]))
    radii = {"ball": 45.0, "bead": 30.0, "actin": 38.0, "tube": 136.0}
    poses = dict(zip(radii, place(scene, radii), strict=True))
    actin = poses["actin"]
    assert sorted(set(actin.filament)) == [1, 2, 3, 4, 5]
    assert np.abs(actin.positions[:, 2]).max() <= 200 - 38 + 1e-9
    middles = np.array([actin.positions[actin.filament == n].mean(0) for n in range(1, 6)])
    assert np.abs(middles[:, :2]).max() <= 400
    for n in range(1, 6):
        mine, others = (actin.positions[part] for part in
                        (actin.filament == n, actin.filament != n))
        assert cKDTree(others).query(mine)[0].min() >= 2 * 38 + 10
        direction = mine[-1] - mine[0]
        assert abs(direction[2]) <= np.sin(math.radians(5)) * np.linalg.norm(direction) + 1e-9
    for name, gap in (("ball", 4.0), ("bead", 0.0)):
        for other in ("actin", "tube"):
            distance = cKDTree(poses[other].positions).query(poses[name].positions)[0].min()
            assert distance >= radii[name] + radii[other] + gap
    tube = cKDTree(poses["tube"].positions).query(actin.positions)[0].min()
    assert tube >= 136 + 38 + 10
    again = dict(zip(radii, place(scene, radii), strict=True))
    assert all(np.array_equal(again[k].positions, poses[k].positions) for k in radii)


def test_long_filaments_do_not_reserve_a_sphere():
    """Filaments twice as long as the ice is thick find room side by side, at shallow angles."""
    scene = scene_of(thickness=90.0, size=(3000.0, 3000.0), actin=dict(
        globule=42.0, count=30, **{**HELIX, "length": 1000.0}))
    pose, = place(scene, {"actin": 38.0})
    assert len(set(pose.filament)) == 30 and np.abs(pose.positions[:, 2]).max() <= 7 + 1e-9
    ends = pose.positions[np.append(np.diff(pose.filament) > 0, True)]
    begins = pose.positions[np.insert(np.diff(pose.filament) > 0, 0, True)]
    angle = np.arctan2(*(ends - begins)[:, 1::-1].T)
    # Uniform: the mean of 30 unit vectors is 1 / sqrt(30) = 0.18 long; 3 of it
    assert abs(np.exp(1j * angle).mean()) < 0.55 and abs(np.exp(2j * angle).mean()) < 0.55


def test_labels_in_the_truth(tmp_path):
    scene = scene_of(actin=dict(globule=42.0, count=2, **HELIX),
                     beads=dict(fiducial=50.0, count=3),
                     tube=dict(**TUBE, length=100.0, positions=[[0.0, 0.0, 0.0]],
                               orientations=[[0.0, 90.0, 0.0]]))
    names = list(scene.specimen.particles)
    table = particle_table(names, place(scene, {"actin": 24.0, "beads": 25.0, "tube": 136.0}))
    assert {kind: sorted(set(part)) for kind, part in table.groupby("kind")["filament"]} == {
        "actin": [1, 2], "beads": [0], "tube": [3]}
    write_particles(tmp_path / "p.star", table, tomogram="t", pixel_size=2.0, voltage=300.0,
                    spherical_aberration=2.7, amplitude_contrast=0.07)
    assert "_rlnHelicalTubeID #11" in (tmp_path / "p.star").read_text()
    beads = {"beads": scene.specimen.particles["beads"]}
    scene = replace(scene, specimen=replace(scene.specimen, particles=beads))
    plain = particle_table(["beads"], place(scene, {"beads": 25.0}))
    assert list(plain) == ["kind", "x", "y", "z", "rot", "tilt", "psi"]


def test_what_came_before_filaments_stays_where_it_was():
    """Poses of a seed are part of published scenes."""
    scene = scene_of(thickness=600.0, size=(1024.0, 1024.0), a=dict(globule=500.0, count=9, gap=3),
                     b=dict(globule=50.0, count=20))
    first = place(scene, {"a": 60.0, "b": 35.0})[0].positions[0]
    assert np.allclose(first, [-469.49589879, 262.65253942, 113.28376421])


def test_crowded_scene():
    """What ships: every kind is there, none overlaps, and copies are named in the truth."""
    scene = load_scene(overrides=["specimen=crowded"])
    specimen = build_specimen(scene)
    table = particle_table([kind.name for kind in specimen.kinds], specimen.poses)
    counts = table["kind"].value_counts()
    assert counts["vesicle"] == 1 and counts["actin"] == 72 and counts["fiducial"] == 3
    balls = [(pose.positions, kind.radius) for kind, pose in
             zip(specimen.kinds, specimen.poses, strict=True)]
    for i, (points, radius) in enumerate(balls):
        for other, size in balls[i + 1:]:
            assert cKDTree(points).query(other)[0].min() >= radius + size - 1e-6


def one(**values):
    return {"specimen": {"particles": {"p": values}}}


@pytest.mark.parametrize(("content", "said"), [
    (one(fiducial=-100), "specimen.particles.p.fiducial=-100.0: must be above 0"),
    (one(vesicle=0), "specimen.particles.p.vesicle=0.0: must be above 0"),
    (one(globule=float("nan")), "specimen.particles.p.globule=nan: must be above 0"),
    (one(membrane=[5]), "specimen.particles.p.membrane=[5.0]: must be 2 positive numbers"),
    (one(structure="4v1w", vesicle=500), "p.structure=\"4v1w\": must be null where vesicle is"),
    (one(fiducial=5, globule=5), "p.fiducial=5.0: must be null where globule is given"),
    (one(vesicle=500, bend=300), "p.bend=300: no such key; did you mean render? A vesicle has"),
    (one(placement="random"), "p.structure=null: must be given, or else one of map, fiducial"),
    (one(globule=50, placement="helix", twist=3, length=9), "p.rise=null: must be given for"),
    (one(globule=50, placement="helix", rise=3, length=9), "p.twist=null: must be given for"),
    (one(globule=50, placement="helix", rise=3, twist=3), "p.length=null: must be given for"),
    (one(globule=50, placement="helix", rise=-3, twist=3, length=9), "p.rise=-3.0: must be from"),
    (one(globule=50, placement="helix", rise=3, twist=3, length=2), "p.length=2.0: must be from 3"),
    (one(globule=50, placement="helix", rise=3, twist=400, length=9), "p.twist=400.0: must be"),
    (one(globule=50, placement="helix", rise=3, twist=3, length=9, axis_distance=-1),
     "p.axis_distance=-1.0: must be"),
    (one(globule=50, placement="helix", rise=3, twist=3, length=9, orientations=[[0, 0, 0]]),
     "p.orientations=[[0.0, 0.0, 0.0]]: must be null for random filaments"),
    (one(globule=50, rise=3), "p.rise=3.0: must be null for placement: random"),
    (one(globule=50, placement="spiral"), 'p.placement="spiral": must be one of random, lattice'),
    (one(globule=50, placement="\n", rise=3), r'p.placement="\n": must be one of random, lattice'),
])
def test_wrong_scenes(content, said):
    with pytest.raises(ValueError) as error:
        from_plain(Scene, content)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("particle", "said"), [
    (dict(fiducial=5.0), "specimen.particles.a.fiducial: diameter=5.0: must be from 10 to 500"),
    (dict(vesicle=50.0), "specimen.particles.a.vesicle: diameter=50.0: must be from 150"),
    (dict(globule=1.0), "specimen.particles.a.globule: mass=1.0: must be from 5"),
    (dict(membrane=[900.0, 90.0], bend=30.0), "specimen.particles.a.membrane: bend=30.0: must be"),
    (dict(vesicle=500.0), "specimen.ice.thickness=400: must be at least the diameter of"),
    (dict(TUBE, length=300.0, count=90), "specimen.particles.a.count=90: only . filaments"),
    (dict(TUBE, length=300.0, positions=[[0.0, 0.0, 150.0]]), "specimen.particles.a: copy .*"
     "must lie within the ice"),
    (dict(globule=50.0, **{**HELIX, "axis_distance": 300.0}), "specimen.ice.thickness=400: must be "
     "at least the diameter of the filament"),
])
def test_what_does_not_fit(particle, said):
    with pytest.raises(ValueError, match=said) as error:
        build_specimen(scene_of(a=particle))
    assert "\n" not in str(error.value)


def test_filaments_of_two_subunits_turn_about_their_middle():
    points, turns = along_filaments(np.zeros((1, 3)), np.eye(3)[None], *helix(2, 10.0, 90.0))
    assert np.allclose(points[:, 2], [-5, 5])
    assert np.allclose(turns[1] @ turns[0].T @ [1, 0, 0], [0, 1, 0])
