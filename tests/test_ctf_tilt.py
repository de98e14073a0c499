"""Defocus of tilted specimens: the slope across the image is used, with the right sign."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tem_taichi as tt
from experiments.ctf_bench import Truth, linear_micrograph, tilted_micrograph
from tem_taichi.estimate.ctf_fit import fit_micrograph
from tem_taichi.estimate.ctf_search import CtfSearch
from tem_taichi.estimate.ctf_tilt import common_astigmatism, fit_stack, fit_tilted_micrograph
from tem_taichi.files.mrc import write_mrc
from tem_taichi.fit import main
from tem_taichi.recipes.ctf import CtfRecipe
from tem_taichi.recipes.scene import series_scene

PIXEL_SIZE, VOLTAGE, CS, Q = 2.0, 300.0, 2.7, 0.07
TRUTH = Truth(16000, 700, 40)


@pytest.fixture(scope="module")
def steep() -> np.ndarray:
    return tilted_micrograph(TRUTH, (52.0, 25.0), 1024, 4, PIXEL_SIZE)


def test_defocus_of_a_steep_tilt(steep):
    """Within 5 of its own standard errors, which are a third of those that heed no tilt."""
    found = fit_tilted_micrograph(steep, PIXEL_SIZE, (52.0, 25.0), VOLTAGE, CS, Q)
    plain = fit_micrograph(steep, PIXEL_SIZE, VOLTAGE, CS, Q)
    assert found.reliable, found.doubts
    for value, error, sign in ((found.defocus_u, found.errors[0], 1),
                               (found.defocus_v, found.errors[1], -1)):
        assert abs(value - TRUTH.defocus - sign * TRUTH.astigmatism / 2) < 5 * error < 100
    assert abs(found.astigmatism_angle - TRUTH.angle) < 5 * found.errors[2] < 15
    assert found.gain > 1.5 * plain.gain and found.resolution < 0.75 * plain.resolution


def test_the_opposite_tilt_is_told_apart(steep):
    """Also if the axis is turned by half a turn, which is the same as the other sign."""
    right, wrong = fit_stack([steep, steep], PIXEL_SIZE, VOLTAGE, CS, Q,
                             tilts=[(-52.0, 205.0), (-52.0, 25.0)])
    assert right.hand_gain > 100
    assert wrong.hand_gain == pytest.approx(-right.hand_gain, rel=0.05)


def test_sign_is_the_simulators():
    """Underfocus grows with the height that the simulator's own tilt gives the specimen."""
    scene = tt.load_scene(None, [
        "shape=[512,512]", "pixel_size=2", "dose=200", "optics.defocus=12000", "seed=2",
        "tilts={scheme: listed, angles: [50], axis_angle: -70}", "specimen.ice.thickness=200",
        "specimen.particles={}", "interaction.slice_thickness=200"])
    series = tt.simulate(scene)
    found = fit_tilted_micrograph(series.images[0], 2.0, (50.0, -70.0), VOLTAGE, CS,
                                  series.amplitude_contrast)
    assert found.hand_gain > 100
    assert abs(found.defocus - 12000) < 5 * found.errors[0]


def test_level_image_is_fitted_as_such():
    image = linear_micrograph(TRUTH, 512, np.random.default_rng(0), PIXEL_SIZE)
    level = fit_micrograph(image, PIXEL_SIZE, VOLTAGE, CS, Q)
    found = fit_tilted_micrograph(image, PIXEL_SIZE, (0.0, 10.0), VOLTAGE, CS, Q)
    assert found.defocus == level.defocus and found.hand_gain == 0 and math.isnan(level.hand_gain)


def test_too_steep_a_tilt_is_refused(steep):
    with pytest.raises(ValueError, match=r"tilt=\(85\.0, 0\.0\): must be an angle below 80"):
        fit_tilted_micrograph(steep, PIXEL_SIZE, (85.0, 0.0), VOLTAGE, CS, Q)


def test_common_astigmatism():
    """Three weak images; with what they share, the defocus of each is known better."""
    truths = [TRUTH._replace(defocus=defocus) for defocus in (14000, 16000, 18000)]
    images = [linear_micrograph(truth, 512, np.random.default_rng(n), PIXEL_SIZE, dose=10)
              for n, truth in enumerate(truths)]
    alone = fit_stack(images, PIXEL_SIZE, VOLTAGE, CS, Q)
    amount, angle = common_astigmatism(alone) or (math.nan, math.nan)
    # The median's error: 1.25 / sqrt(3) of one image's, of U - V sqrt(2) of U's; 4 deviations.
    error = 1.02 * max(max(fit.errors[:2]) for fit in alone)
    away = amount * np.exp(2j * np.radians(angle)) - TRUTH.astigmatism * np.exp(
        2j * np.radians(TRUTH.angle))
    assert abs(away) < 4 * error
    for truth, one, shared in zip(truths, alone, fit_stack(
            images, PIXEL_SIZE, VOLTAGE, CS, Q, CtfSearch(known=(amount, angle))), strict=True):
        assert shared.astigmatism == pytest.approx(amount, abs=0.1)  # A, of single precision
        assert shared.errors[0] < one.errors[0] and shared.errors[2] == 0
        assert abs(shared.defocus - truth.defocus) < 5 * shared.errors[0]
    assert common_astigmatism(alone[:2]) is None


def test_recipe_of_a_tilt_series(steep, tmp_path, monkeypatch):
    """The angles' file gives tilt and axis; the opposite angles are noticed."""
    monkeypatch.chdir(tmp_path)
    write_mrc(Path("series.mrc"), steep[None], PIXEL_SIZE)
    command = ["recipe=ctf", "input=series.mrc", f"amplitude_contrast={Q}"]
    for name, angle in (("right", 52.0), ("wrong", -52.0)):
        Path(f"{name}.csv").write_text(f"tilt_angle,axis_angle\n{angle},25.0\n")
        assert main([*command, f"angles={name}.csv", f"output={name}"]) == 0
    right, wrong = (json.loads(Path(name, "results.json").read_text())
                    for name in ("right", "wrong"))
    assert right["fits"][0]["tilt_angle"] == 52.0 and "warnings" not in right
    assert abs(right["fits"][0]["defocus_u"] - TRUTH.defocus - TRUTH.astigmatism / 2) < 5 * (
        right["fits"][0]["errors"][0])
    scene = tt.load_scene(Path("right", "scene.yaml"))
    assert scene.tilts.angles == (52.0,) and scene.tilts.axis_angle == 25.0
    assert scene.optics.defocus == pytest.approx(
        (right["fits"][0]["defocus_u"] + right["fits"][0]["defocus_v"]) / 2, 1e-5)
    assert "opposite tilts" in wrong["warnings"][0] and wrong["hand_gain"] < -100


def test_scene_of_a_series_is_in_the_order_of_acquisition():
    """Angles in the stack's order, doses and defoci as they were taken; the median for a doubt."""
    rows = [{"defocus_u": u, "defocus_v": u - 100, "astigmatism_angle": 30.0, "phase_shift": 0.0,
             "reliable": good} for u, good in ((9950, True), (9000, False), (10250, True))]
    tilts = pd.DataFrame({"tilt_angle": [-30.0, 0.0, 30.0], "axis_angle": 12.0,
                          "acquisition_index": [1, 0, 2], "dose": [2.0, 3.0, 4.0]})
    recipe = CtfRecipe(input=["a.mrc"], angles="a.mdoc")
    content = series_scene(recipe, rows, tilts, (64, 96), 1.5)
    assert content["optics"]["defocus"] == 10050 and content["optics"]["astigmatism"] == 100
    assert content["tilts"] == {
        "scheme": "listed", "angles": [0.0, -30.0, 30.0], "axis_angle": 12.0,
        "defocus_offsets": [0.0, -150.0, 150.0], "doses": [3.0, 2.0, 4.0]}
    assert series_scene(recipe, [row | {"reliable": False} for row in rows], tilts, (64, 96),
                        1.5) is None


@pytest.mark.parametrize(("words", "message"), [
    (["angles=plain.tlt"], "axis_angle=null: plain.tlt has none: must be given"),
    (["axis_angle=10"], "axis_angle=10.0: must be null where there are no angles"),
    (["angles=plain.tlt", "spectrum=true"], 'angles="plain.tlt": must be null, or the input one'),
    (["angles=none.tlt"], "angles: none.tlt"),
])
def test_wrong_angles_are_named(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).normal(100, 10, (1, 128, 128)).astype(np.float32)
    write_mrc(Path("series.mrc"), image, PIXEL_SIZE)
    Path("plain.tlt").write_text("30.0\n")
    assert main(["recipe=ctf", "input=series.mrc", *words]) == 2
    assert message in capsys.readouterr().err
