"""A scene's random numbers are those of what is in it, whatever else there is."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tem_taichi as tt
from tem_taichi.scene.settings import (
    IceSettings,
    MovieSettings,
    OpticsSettings,
    Scene,
    SpecimenSettings,
    StackSettings,
    TiltErrorSettings,
    TiltSettings,
    particle_of,
)
from tem_taichi.series.placement import place
from tem_taichi.series.simulate import simulate
from tem_taichi.series.tilts import tilt_table
from tem_taichi.streams import ROOM, Key

KINDS = {
    "balls": particle_of(globule=30.0, count=3),
    "crystal": particle_of(globule=10.0, placement="lattice", copies=[2, 1, 1]),
    "fibre": particle_of(globule=10.0, placement="helix", rise=40.0, twist=30.0, length=80.0),
}
# Along the tilt axis, where no tilt takes it out of the ice's depth, which decides the slices.
AWAY = particle_of(globule=30.0, placement="listed", positions=[[0.0, 3000.0, 0.0]])
ABSENT = particle_of(globule=60.0, count=0)


def tilted(*angles):
    return TiltSettings(scheme="listed", angles=list(angles),
                        errors=TiltErrorSettings(defocus=100.0))


def scene_of(kinds=KINDS, **changes):
    settings = dict(
        seed=3, shape=[48, 48], pixel_size=5.0, dose=6.0, optics=OpticsSettings(defocus=3000.0),
        specimen=SpecimenSettings(ice=IceSettings(thickness=200.0), size=[1000.0, 1000.0],
                                particles=dict(kinds)),
        movie=MovieSettings(frames=2, motion=5.0),
        tilts=tilted(0.0, 20.0))
    return Scene(**{**settings, **changes})


@pytest.fixture(scope="module")
def series():
    return simulate(scene_of())


@pytest.mark.parametrize("changes", [
    {"kinds": {"new": AWAY, **KINDS}},
    {"kinds": {"new": ABSENT, **KINDS}},
    {"formats": ["relion5", "imod"]},
    {"stack": StackSettings(box=16)},
    {"name": "other", "output": "elsewhere"},
], ids=["out of the field", "no copies", "formats", "stack", "name"])
def test_pictures_do_not_change_with_what_is_not_in_them(series, changes):
    other = simulate(scene_of(**changes))
    assert torch.equal(other.noise_free, series.noise_free)
    assert torch.equal(other.images, series.images)
    assert torch.equal(other.frames, series.frames)


def test_another_tilt_at_the_end_leaves_the_others(series):
    other = simulate(scene_of(tilts=tilted(0.0, 20.0, 40.0)))
    assert torch.equal(other.images[:2], series.images)
    assert torch.equal(other.frames[:2], series.frames)


def poses(kinds, **changes):
    scene = scene_of(kinds, **changes)
    return dict(zip(kinds, place(scene, dict.fromkeys(kinds, 20.0)), strict=True))


@pytest.mark.parametrize("kinds", [
    {"new": AWAY, "none": ABSENT, **KINDS}, {**KINDS, "new": AWAY, "none": ABSENT},
    dict(reversed(KINDS.items())),
], ids=["first", "last", "another order"])
def test_poses_do_not_depend_on_other_kinds(kinds):
    before, after = poses(KINDS), poses(kinds)
    for name in KINDS:
        assert np.array_equal(before[name].positions, after[name].positions), name
        assert np.array_equal(before[name].rotations, after[name].rotations), name


def test_more_copies_leave_those_before_them():
    few = poses({"balls": particle_of(globule=30.0, count=3)})["balls"]
    many = poses({"balls": particle_of(globule=30.0, count=4)})["balls"]
    assert np.array_equal(many.positions[:3], few.positions)
    assert np.array_equal(many.rotations[:3], few.rotations)


def test_kinds_and_seeds_have_poses_of_their_own():
    both = poses({name: particle_of(globule=30.0, count=3) for name in ("one", "other")})
    assert not np.isclose(both["one"].positions, both["other"].positions).any()
    assert not np.isclose(both["one"].rotations, both["other"].rotations).any()
    again = poses({"one": particle_of(globule=30.0, count=3)}, seed=4)["one"]
    assert not np.isclose(again.positions, both["one"].positions).any()


@pytest.mark.parametrize("error", ["angle", "axis_angle", "shift", "dose"])
def test_errors_of_one_quantity_leave_the_others(error):
    columns = {"angle": {"tilt_angle"}, "axis_angle": {"axis_angle"},
               "shift": {"shift_x", "shift_y"}, "dose": {"dose", "prior_dose"}}[error]
    scene = scene_of()
    before = tilt_table(scene)
    errors = replace(scene.tilts.errors, **{error: 0.1})
    after = tilt_table(replace(scene, tilts=replace(scene.tilts, errors=errors)))
    changed = {name for name in before if not before[name].equals(after[name])}
    assert changed == columns


def test_streams_do_not_meet():
    names = ["noise", "tilts", "placement", "orientation", "motion", "ice", "trials", "batches",
             "rays"]
    keys = [Key(3, name, number) for name in names for number in (0, 1, ROOM - 1)]
    keys += [Key(4, "noise"), Key.of(3, "motion", "a"), Key.of(3, "motion", "b")]
    drawn = {tuple(key.generator().integers(2**63, size=2)) for key in keys}
    drawn |= {tuple(Key(3, "ice").generator(part, kind).integers(2**63, size=2))
              for part in (-2, -1, 1) for kind in (0, 1)}
    assert len(drawn) == len(keys) + 6


def test_streams_stay_what_they_are():
    """Philox at keys that published pictures were made with: noise, tilts and ice."""
    for name, first in (("noise", 0), ("tilts", 2**32), ("ice", 2**35)):
        reference = np.random.Philox(key=[7, first + 5],
                                     counter=np.array([0, 0, 2**64 - 2, 1], dtype=np.uint64))
        assert np.array_equal(Key(7, name, 5).generator(-2, 1).random(4),
                              np.random.Generator(reference).random(4))
    assert Key.of(7, "motion", "ribosome") == Key(7, "motion", 481103149)


def test_torch_numbers_follow_the_key():
    one, same, other = (torch.rand(3, generator=Key(seed, "trials").torch_generator("cpu"))
                        for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.isclose(one, other).any()


def test_no_other_module_has_random_numbers_of_its_own():
    """But for a fixed mixing of equally good tiles, which no seed changes."""
    sources = re.compile(r"Philox|default_rng|RandomState|manual_seed|SeedSequence")
    package = Path(tt.__file__).parent
    own = {file.name for file in package.rglob("*.py") if sources.search(file.read_text("utf-8"))}
    assert own == {"streams.py", "crops.py"}


@pytest.mark.parametrize(("changes", "message"), [
    ({"seed": -1}, "seed=-1: must be a whole number from 0"),
    ({"seed": 2**64}, "seed=18446744073709551616"),
    ({"name": "nose"}, 'name="nose": must be one of noise, tilts, placement'),
    ({"number": ROOM}, "number=4294967296: must be a whole number from 0 to 4294967295"),
    ({"number": -1}, "number=-1"),
])
def test_bad_keys_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Key(**{"seed": 0, "name": "noise", **changes})
