"""Sets of experiments.arms: the same content in all, and noise of a spectrum; paired intervals."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from experiments import arms_sets
from experiments.arms import made, twin_for
from experiments.arms_scores import counted_of, paired
from experiments.arms_table import table
from experiments.picker_scores import Counted
from tem_taichi.files.mrc import write_mrc
from tem_taichi.scene.dataset import load_dataset, scene_of
from tem_taichi.scene.load import load_scene
from tem_taichi.scene.particle import particle_of

SCENE = """defaults: [simulate, override detector: ideal, override specimen: empty, _self_]
shape: [32, 32]
pixel_size: 10.0
dose: 2.0
tilts: {scheme: listed, angles: [0, 30]}
specimen:
  ice: {thickness: 320, granularity: 0}
  particles: {large: {globule: 900, count: 2}, small: {globule: 150, count: 3}}
"""
HIDDEN = """scene: scene.yaml
samples: 10
name: hidden
overrides: {detector.gain: 5.0, specimen.particles.gold: {fiducial: 60, count: 2}}
vary: {specimen.ice.thickness: {uniform: [400, 500]}}
"""


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """The same sets, small, of balls."""
    (tmp_path / "scene.yaml").write_text(SCENE)
    (tmp_path / "content.yaml").write_text("scene: scene.yaml\nsamples: 10\nname: content\n")
    (tmp_path / "hidden.yaml").write_text(HIDDEN)
    for name in ("content", "hidden"):
        one = load_dataset(tmp_path / f"{name}.yaml")
        monkeypatch.setattr(arms_sets, name + "s" * (name == "content"), lambda one=one: one)
    monkeypatch.setattr(arms_sets, "DEPTH", 32)
    return tmp_path


def places(scene):
    return {name: one.placing.positions for name, one in scene.specimen.particles.items()
            if one.placing.placement == "listed"}


def test_all_arms_have_the_same_particles_and_labels(sets):
    one, again, other = (arms_sets.content(n) for n in (3, 3, 4))
    assert np.array_equal(one.truth.instances, again.truth.instances)
    assert not np.array_equal(one.truth.places, other.truth.places)
    # A label is where its particle is: these balls have their middles in themselves.
    at = tuple(np.rint(one.truth.places).astype(int).T)
    assert one.truth.instances[at].tolist() == [1, 2, 3, 4, 5]
    assert one.truth.kinds.tolist() == [1, 1, 2, 2, 2]
    hidden = one.seen(scene_of(arms_sets.hidden(), 3))
    twin = load_scene(sets / "scene.yaml")
    twin = replace(twin, shape=(64, 32), specimen=replace(twin.specimen, particles={
        "globule_5": particle_of(globule=5.0, count=9), "gold": particle_of(
            fiducial=60.0, placement="listed", positions=[[0, 0, 0]] * 4 + [[200, 0, 0]])}))
    bare = arms_sets.twin_of(one, twin, gold=False)
    assert set(bare.specimen.particles) == {"large", "small"}
    twin = arms_sets.twin_of(one, twin)
    assert places(one.plain) == places(hidden) == places(twin) != places(other.plain)
    assert set(hidden.specimen.particles) == set(twin.specimen.particles) == {
        "large", "small", "gold"}
    assert twin.specimen.particles["gold"].placing.count == 2  # four in a field twice as high
    assert hidden.specimen.ice.thickness > 400 and twin.shape == (32, 32)


def test_arms_show_what_they_say(sets):
    one = arms_sets.content(1)
    _, images, tilts = arms_sets.recorded(one.plain)
    clean = made(sets, "clean", one, (images, tilts))[0]
    seen, _ = made(sets, "benchmark", one, None)
    assert np.array_equal(clean, images)
    correlation = np.corrcoef(seen[0].ravel(), images[0].ravel())[0, 1]
    assert 0.2 < correlation < 0.99 and seen.mean() / images.mean() == pytest.approx(5, rel=0.2)
    volume = arms_sets.tomogram(images, tilts)
    assert volume.shape == (32, 32, 32)
    assert volume[one.truth.instances > 0].mean() < volume[one.truth.instances == 0].mean()
    stated = arms_sets.stated(tilts)
    assert "defocus_u" not in stated and stated["dose"].unique().tolist() == [2.0]


def test_a_twin_that_does_not_run_gives_way_to_the_next_ones(tmp_path):
    for n in range(4):
        twin = tmp_path / f"series_{n}" / "twin"
        twin.mkdir(parents=True)
        (twin.parent / "costs.json").write_text("{}")
        warnings = ["twin.yaml does not run as it is: ..."] if n == 3 else ["Low confidence"]
        (twin / "results.json").write_text(json.dumps({"warnings": warnings}))
        (twin / "twin.yaml").write_text(SCENE.replace("dose: 2.0", f"dose: {n + 1}"))
    assert [twin_for(tmp_path, n).dose for n in (0, 2, 3, 5)] == [1, 3, 1, 2]


def test_matched_noise_has_the_spectrum_that_is_asked():
    rng = np.random.default_rng(0)

    def coloured(shape, falls):
        k = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
        return np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) / (1 + falls * k), s=shape)

    clean = np.stack([10 * (1 + 0.15 * coloured((96, 96), 10)) for _ in range(6)])
    real = np.stack([70 * (1 + 0.2 * coloured((128, 160), 4)) for _ in range(3)])
    tilts = pd.DataFrame({"tilt_angle": [-1.0, -0.5, 0, 0.5, 1, 1.5]})
    noisy = arms_sets.matched(clean, tilts, real, np.array([0.0, 30, 60]), rng)
    assert noisy.mean((1, 2)) == pytest.approx(real[0].mean(), rel=1e-5)
    wanted = np.interp(np.arange(4, 48) / 96, *arms_sets.radial(real[0]))
    power = np.mean([arms_sets.radial(one)[1][3:47] for one in noisy], axis=0)
    # Rings of 128 x 160 pixels and of six images have 150 coefficients and more, windowed.
    assert np.abs(np.log(power / wanted)).max() < 0.5
    assert np.abs(np.log(power / wanted)).mean() < 0.1
    assert np.corrcoef(noisy[0].ravel(), clean[0].ravel())[0, 1] > 0.2


def test_white_noise_of_a_series_is_as_strong_as_its(tmp_path):
    rng = np.random.default_rng(0)
    write_mrc(tmp_path / "tilt_series.mrc", rng.normal(50, 6, (2, 64, 48)).astype(np.float32), 10.0)
    tilts = pd.DataFrame({"tilt_angle": [0.0, 30.0]})
    tilts.to_csv(tmp_path / "stated.csv", index=False)
    clean = np.full((2, 256, 256), 3.0, np.float32)
    noisy = arms_sets.in_style(clean, tilts, tmp_path, 0, steps=0)
    assert noisy.mean() == pytest.approx(50, rel=0.01)
    # Measured on some 2000 coefficients, and at most 0.98 of the deviation.
    assert noisy.std() == pytest.approx(0.98 * 6, rel=0.05)
    other = arms_sets.in_style(clean, tilts, tmp_path, 1, steps=0)
    assert abs(np.corrcoef(noisy[0].ravel(), other[0].ravel())[0, 1]) < 0.02


def counted(share, rng):
    kinds = np.repeat([1, 2], 30)
    return Counted(kinds, np.where(rng.random(60) < share, kinds, 0), np.ones(3, np.int64),
                   np.zeros(0))


def test_intervals_of_ratios_are_paired():
    rng = np.random.default_rng(1)
    runs = [[counted(0.7, rng) for _ in range(4)] for _ in range(2)]
    worse = [[Counted(one.kinds, np.where(rng.random(60) < 0.9, one.found_as, 0), one.false,
                      one.distances) for one in run] for run in runs]
    exact = [[replace(one, false=one.false[:0]) for one in run] for run in runs]
    ends = paired({"a": exact, "same": exact, "worse": worse}, 2, "a",
                  np.random.default_rng(0), draws=200)
    assert ends["same"]["f1_ratio"] == ends["same"]["macro_ratio"] == (1, 1)
    low, high = ends["worse"]["f1_ratio"]
    assert low < high < 1
    # The quotient of the ends is what drawing each by itself might give.
    one, other = ends["worse"]["f1"], ends["a"]["f1"]
    apart = one[1] / other[0] - one[0] / other[1]
    assert high - low < 0.8 * apart


def row_of(arm, seed, found):
    return {"arm": arm, "seed": seed, "steps": 7, "kinds": [[1, 2, 2]], "found": [found],
            "false": [[]], "told": {"f1": 1.0, "macro": 1.0}, "apart": {"spectrum": 0.1},
            "set_cpu": 20.0, "fit_cpu": 0.0}


def test_the_table_pairs_seeds_and_says_what_is_missing():
    rows = [row_of("benchmark", 0, [1, 2, 2]), row_of("benchmark", 1, [1, 2, 0]),
            row_of("other", 1, [1, 0, 0])]
    text = table(rows, {"benchmark": "itself", "other": "another"}, draws=20)
    first, second = text.splitlines()[2:4]
    # F1 of all is 1 and 0.8, of the other 0.5; the other's benchmark is that of its own seed.
    assert first.startswith("| itself | 2 | 0.833 | 1.000 | 0.900 (")
    assert second.startswith("| another | 1 | 0.333 | 1.000 | 0.500 (") and "| 0.625 (" in second
    assert text.endswith("Not there, of arm and seed: other 0.\n")


def test_a_row_tells_what_was_counted():
    row = {"kinds": [[1, 2], [2]], "found": [[1, 0], [1]], "false": [[], [2]]}
    first, second = counted_of(row)
    assert first.found_as.tolist() == [1, 0] and second.false.tolist() == [2]
