"""Copies on spheres and in balls around others, and vesicles of lipids: parts of virions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from tem_taichi.scene.load import load_scene
from tem_taichi.scene.particle import particle_of
from tem_taichi.scene.settings import Scene, SpecimenSettings
from tem_taichi.scene.typed import from_plain
from tem_taichi.series.build import build_specimen, load_kind
from tem_taichi.series.placement import place
from tem_taichi.specimen.lipids import bent_into_sphere, read_patch
from tem_taichi.specimen.membranes import HALF_THICKNESS

RADII = {"envelope": 300.0, "spike": 40.0, "filling": 50.0, "other": 60.0}


def virions(middles, spikes=10, filling=8, others=0, turned=None, **keys):
    """Poses of envelopes, of spikes on them, of what is in them, and of others around them."""
    particles = {
        "envelope": particle_of(globule=50.0, placement="listed", positions=middles,
                                orientations=turned),
        "spike": particle_of(globule=50.0, placement="sphere", around="envelope", radius=350.0,
                             count=spikes, **keys),
        "filling": particle_of(globule=50.0, placement="ball", around="envelope", radius=250.0,
                               count=filling),
        "other": particle_of(globule=50.0, count=others)}
    scene = Scene(specimen=SpecimenSettings(particles=particles, size=(2000.0, 2000.0)), seed=5)
    return place(scene, RADII)


def test_copies_stand_on_each_sphere_z_outward_and_are_turned_with_it():
    middles = [[0.0, 0.0, 0.0], [900.0, 100.0, -50.0]]
    turned = [[0.0, 0.0, 0.0], [20.0, 50.0, 70.0]]
    envelopes, spikes, filling, _ = virions(middles, turned=turned)
    assert len(spikes.positions) == 20 and len(filling.positions) == 16
    apart = []
    for n, middle in enumerate(middles):
        out = spikes.positions[10 * n:10 * n + 10] - middle
        np.testing.assert_allclose(np.linalg.norm(out, axis=1), 350, rtol=1e-9)
        np.testing.assert_allclose(spikes.rotations[10 * n:10 * n + 10, :, 2], out / 350,
                                   atol=1e-9)
        inside = filling.positions[8 * n:8 * n + 8] - middle
        assert np.linalg.norm(inside, axis=1).max() <= 200  # a ball of 250 holds all of 50
        both = [cKDTree(points) for points in (out, inside)]
        apart.append([tree.query(tree.data, k=2)[0][:, 1].min() for tree in both])
    assert np.min(apart, axis=0)[0] >= 80 and np.min(apart, axis=0)[1] >= 100
    # The same virion, turned and elsewhere, and with others before it.
    again = virions(middles[1:] + middles[:1], turned=turned[:1] * 2)[1]
    back = (spikes.positions[:10] - middles[0]) @ envelopes.rotations[0]
    np.testing.assert_allclose(again.positions[:10] - middles[1], back, atol=1e-9)
    assert not np.allclose(again.positions[10:] - middles[0], back)  # each has its own


def test_spheres_may_be_even_and_copies_turned_before_they_stand():
    _, spikes, _, _ = virions([[0.0, 0.0, 0.0]], spikes=40, even=True,
                              orientations=[[0.0, 180.0, 0.0]])
    out = spikes.positions / 350
    np.testing.assert_allclose(spikes.rotations[:, :, 2], -out, atol=1e-9)
    nearest = cKDTree(out).query(out, k=2)[0][:, 1]
    assert nearest.min() > 0.75 * math.sqrt(4 * math.pi / 40)  # those at random come closer
    assert np.linalg.norm(out.mean(0)) < 0.02


def test_even_copies_that_overlap_are_said():
    with pytest.warns(UserWarning, match=r"spike\.even=true: the bounding spheres of 300 of 300"):
        virions([[0.0, 0.0, 0.0], [900.0, 0.0, 0.0]], spikes=300, even=True)


def test_others_stay_clear_of_all_that_stands_around_a_copy():
    envelopes, spikes, _, others = virions([[0.0, 0.0, 0.0]], others=12)
    distance = np.linalg.norm(others.positions - envelopes.positions, axis=1)
    assert len(others.positions) == 12 and distance.min() >= 350 + 40 + 60
    assert cKDTree(spikes.positions).query(others.positions)[0].min() >= 100


def test_without_another_kind_the_middle_is_the_specimens():
    particle = particle_of(globule=50.0, placement="sphere", radius=200.0, count=6)
    scene = Scene(specimen=SpecimenSettings(particles={"p": particle}))
    assert np.allclose(np.linalg.norm(place(scene, {"p": 30.0})[0].positions, axis=1), 200)


def test_kinds_about_the_specimens_middle_stay_clear_of_each_other():
    kinds = {"small": particle_of(globule=50.0, placement="ball", radius=260.0, count=60),
             "large": particle_of(globule=50.0, placement="sphere", radius=200.0, count=8)}
    small, large = place(Scene(specimen=SpecimenSettings(particles=kinds)),
                         {"small": 20.0, "large": 40.0})
    assert len(small.positions) == 60
    assert cKDTree(large.positions).query(small.positions)[0].min() >= 60


@pytest.mark.parametrize(("keys", "said"), [
    ({"placement": "sphere"}, r"spike\.radius=null: must be given for placement: sphere"),
    ({"radius": 100.0}, r"spike\.radius=100.0: must be null for placement: random"),
    ({"placement": "ball", "radius": 9.0, "around": "nothing"},
     r'spike\.around="nothing": must be the name of another particle'),
    ({"placement": "sphere", "radius": -1.0}, r"spike\.radius=-1.0: must be above 0"),
    ({"placement": "ball", "radius": 90.0, "even": True},
     r"spike\.even=true: must be false for placement: ball"),
    ({"placement": "ball", "radius": 90.0, "orientations": [[0.0, 0.0, 0.0]]},
     r"spike\.orientations=.*: must be null in a ball"),
    ({"orientations": [[0.0, 0.0, 0.0]]},
     r"spike\.orientations=.*: must be null for placement: random"),
])
def test_what_cannot_stand_is_refused_in_one_line(keys, said):
    content = {"specimen": {"particles": {"spike": {"globule": 50.0, **keys}}}}
    with pytest.raises(ValueError, match=said) as error:
        from_plain(Scene, content)
    assert "\n" not in str(error.value)


def test_more_than_fit_are_refused():
    with pytest.raises(ValueError, match=r"spike\.count=900: only \d+ of radius 40 A found room"):
        virions([[0.0, 0.0, 0.0]], spikes=900)
    with pytest.raises(ValueError, match=r"filling\.count=90: only \d+ of radius 50 A found room"):
        virions([[0.0, 0.0, 0.0]], filling=90)


PATCH = (18.0, 25.0)
"""Of 10 lipids in either leaflet: 45 A^2 each."""


@pytest.fixture
def patch_file(tmp_path: Path) -> Path:
    """Lipids of three atoms, a chiral tripod with its head (P) outward, and water."""
    rng = np.random.default_rng(1)
    lines = [f"CRYST1{PATCH[0]:9.3f}{PATCH[1]:9.3f}{90:9.3f}  90.00  90.00  90.00 P 1"]
    for n in range(20):
        sign = 1 if n % 2 else -1
        x, y = (n // 4 + 0.5) / 5 * PATCH[0] + 40, ((n // 2) % 2 + 0.5) / 2 * PATCH[1] - 7
        jitter = rng.uniform(-0.3, 0.3, 2)
        for name, dx, dy, z in (("P", 0, 0, 19), ("C1", 1, 0, 8), ("C2", 0, 1, 3)):
            lines.append(f"ATOM  {len(lines):5d}  {name:3} DPP A{n + 1:4d}    "
                         f"{x + dx + jitter[0]:8.3f}{y + dy + jitter[1]:8.3f}{sign * z + 4:8.3f}"
                         f"  1.00  0.00          {' ' + name[0]}")
    lines.append("ATOM  99999  O   HOH B 999       0.000   0.000  40.000  1.00  0.00           O")
    file = tmp_path / "patch.pdb"
    file.write_text("\n".join([*lines, "END", ""]))
    return file


@pytest.mark.parametrize("diameter", [300.0, 700.0])
def test_lipids_cover_both_leaflets_with_the_area_that_they_have(double, patch_file, diameter):
    atoms = bent_into_sphere(read_patch(str(patch_file)), diameter)
    middle = diameter / 2 - HALF_THICKNESS
    distance = torch.linalg.vector_norm(atoms.positions, dim=1).numpy()
    heads = atoms.numbers.numpy() == 15
    np.testing.assert_allclose(np.abs(distance[heads] - middle), 19, atol=0.05)
    for sign in (1, -1):
        leaflet = heads & (np.sign(distance - middle) == sign)
        # The area is right at the mean height of a leaflet's atoms, 10 A; cells at their rims hold
        # some lipids more or fewer.
        expected = 4 * math.pi * (middle + sign * 10) ** 2 / 45
        assert leaflet.sum() == pytest.approx(expected, rel=0.03)
        up = atoms.positions.numpy()[leaflet] / distance[leaflet, None]
        tree = cKDTree(up * (middle + sign * 10))
        anywhere = np.random.default_rng(2).standard_normal((4000, 3))
        anywhere *= (middle + sign * 10) / np.linalg.norm(anywhere, axis=1, keepdims=True)
        # In the flat patch no place is farther than 6.5 A from a lipid; a missing one leaves 12.
        assert tree.query(anywhere)[0].max() < 12
    # Lipids stay as they are, left or right.
    tripods = atoms.positions.numpy().reshape(-1, 3, 3)
    arms = tripods[:, 1:] - tripods[:, :1]
    volume = np.linalg.det(np.concatenate([arms, tripods[:, :1]], axis=1))
    flat = np.linalg.norm(arms, axis=2)
    np.testing.assert_allclose(flat, np.broadcast_to([math.hypot(11, 1), math.hypot(16, 1)],
                                                     flat.shape), atol=0.02)
    outer = distance.reshape(-1, 3)[:, 0] > middle
    assert (volume[outer] > 0).all() and (volume[~outer] > 0).all()


def test_a_patch_needs_a_cell_or_an_area_and_two_leaflets(patch_file, tmp_path):
    bare = tmp_path / "bare.pdb"
    text = patch_file.read_text()
    bare.write_text(text[text.index("ATOM"):])
    particle = particle_of(vesicle=300.0, lipids=str(bare))
    with pytest.raises(ValueError, match=r"particles\.v\.lipids: .*lipid_area must be given"):
        load_kind("v", particle)
    assert read_patch(str(bare), 45.0).sides == pytest.approx((math.sqrt(450),) * 2)
    assert len(load_kind("v", particle_of(vesicle=300.0, lipids=str(bare), lipid_area=45.0)
                         ).positions) > 10_000
    one = tmp_path / "one.pdb"
    one.write_text("\n".join(text.splitlines()[1:4]))
    with pytest.raises(ValueError, match="two leaflets"):
        read_patch(str(one), 45.0)


def test_virions_that_are_shipped_are_as_large_as_they_say(shared, monkeypatch):
    monkeypatch.setenv("TEM_TAICHI_CACHE", str(shared / "data" / "atoms"))
    kinds = {}
    for name, changes in (("zika", ["specimen.particles.zika.hydrogens=none"]),
                          ("tmv", ["specimen.particles.tmv.length=700"])):
        specimen = build_specimen(load_scene(None, [f"specimen={name}", "pixel_size=4", *changes]))
        kinds[name] = specimen.kinds[0], specimen.poses[0]
    zika, _ = kinds["zika"]
    assert len(zika.positions) == 661_440 and zika.radius == pytest.approx(239.4, abs=0.1)
    assert torch.allclose(zika.positions.mean(0), torch.zeros(3), atol=0.01)  # icosahedral
    tmv, poses = kinds["tmv"]
    assert len(poses.positions) == round(700 / 1.408)
    # Subunits of one strand meet: 49 in 3 turns of 23 A, out to 92 A from the axis.
    turn = poses.rotations[0].T @ poses.rotations[49]
    assert np.rad2deg(np.arccos((np.trace(turn) - 1) / 2)) < 0.01
    assert float(tmv.positions[:, :2].norm(dim=1).max()) == pytest.approx(92.3, abs=0.1)
