"""Poses of a tilt series and places of its beads in one least-squares fit."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tem_taichi.estimate import bead_poses
from tem_taichi.estimate.bead_alignment import _Fit, _poses, fitted
from tem_taichi.estimate.bead_modes import joined
from tem_taichi.estimate.bead_poses import Search, poses_by_beads
from tem_taichi.estimate.bead_sightings import Sightings, rotations_of
from tem_taichi.estimate.free_poses import KINDS, Free
from tem_taichi.files.imod_points import points_text
from tem_taichi.files.mrc import write_mrc
from tem_taichi.fit import main
from tem_taichi.rotations import tilt_rotation

CUT, SIDE, PIXEL = np.array([30.0, -50.0, 0.0]), 1500.0, 16.0


def series(seed, count=41, beads=9, error=1.5, strays=0.0):
    """Finds of beads, some astray, and the true table."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"tilt_angle": np.linspace(-60, 60, count), "axis_angle": 12.0,
                          "shift_x": rng.normal(0, 20, count), "shift_y": rng.normal(0, 20, count),
                          "magnification": 1 + rng.normal(0, 2e-3, count)})
    points = rng.uniform(-1, 1, (beads, 3)) * [SIDE / 2, SIDE / 2, 900]
    image, bead = (one.ravel() for one in np.indices((count, beads)))
    # Mean magnification is the specimen's size.
    table["magnification"] /= table["magnification"].mean()
    sightings = Sightings(np.zeros((len(image), 2)), np.full(len(image), error), image, bead, CUT)
    seen, _ = sightings.seen(_poses(table), points)
    places = seen + rng.normal(0, error, seen.shape)
    astray = rng.uniform(size=len(image)) < strays
    places[astray] += rng.uniform(-40, 40, (int(astray.sum()), 2))
    inside = (np.abs(places) < SIDE / 2).all(1)
    return Sightings(places[inside], sightings.errors[inside], image[inside], bead[inside],
                     CUT), table


def off(table, seed, tilts=0.0):
    """A table as it is given: 20 A, 1 degree, and some tilt beside the truth."""
    rng = np.random.default_rng([seed, 1])
    start = table.drop(columns="magnification")
    start[["shift_x", "shift_y"]] += rng.normal(0, 20, (len(table), 2))
    return start.assign(axis_angle=start["axis_angle"] + 1,
                        tilt_angle=start["tilt_angle"] + tilts * rng.normal(size=len(table)))


def apart(found, truth):
    """Shifts' differences but for a move of the specimen, (n, 2)."""
    ways = np.stack([tilt_rotation(float(tilt), float(axis)).numpy()[:2] for tilt, axis in zip(
        truth["tilt_angle"], truth["axis_angle"], strict=True)]).reshape(-1, 3)
    by = (found[["shift_x", "shift_y"]].to_numpy() - truth[["shift_x", "shift_y"]].to_numpy())
    return (by.ravel() - ways @ np.linalg.lstsq(ways, by.ravel(), rcond=None)[0]).reshape(-1, 2)


def test_rotations_and_slopes():
    tilts, axes = np.array([-60.0, 0.0, 35.0]), np.array([12.0, -80.0, 170.0])
    turns = rotations_of(tilts, axes)
    for turn, tilt, axis in zip(turns[0], tilts, axes, strict=True):
        # Single precision of the other.
        np.testing.assert_allclose(turn, tilt_rotation(tilt, axis).numpy(), atol=1e-6)
    for number, (a, b) in enumerate(((1e-4, 0), (0, 1e-4)), 1):
        ahead, behind = (rotations_of(tilts + s * a, axes + s * b)[0] for s in (1, -1))
        np.testing.assert_allclose(turns[number], (ahead - behind) / 2e-4, atol=1e-9)


def test_derivatives_of_all_numbers():
    sightings, truth = series(0, count=7, beads=4)
    start = _poses(off(truth, 0))
    fit = _Fit(sightings, Free({name: torch.as_tensor(value) for name, value in start.items()},
                               tuple(KINDS), 20.0))
    rng = np.random.default_rng(3)
    own = fit.spread.shape[2]
    numbers = np.concatenate([rng.normal(0, 0.5, own), rng.normal(0, 300, 12)])
    slopes = fit.slopes(numbers, 0.7)
    for n in range(len(numbers)):
        step = np.zeros(len(numbers))
        step[n] = 1e-4
        wanted = (fit.left(numbers + step, 0.7) - fit.left(numbers - step, 0.7)) / 2e-4
        np.testing.assert_allclose(slopes[:, n], wanted, rtol=1e-6,
                                   atol=1e-6 * np.abs(wanted).max())
    squares = np.concatenate([rng.uniform(0, 30, sightings.places.size), [5.0]])
    _, slope, bend = fit.robust(squares)
    ahead, behind = fit.robust(squares + 1e-4), fit.robust(squares - 1e-4)
    np.testing.assert_allclose(slope, (ahead[0] - behind[0]) / 2e-4, rtol=1e-6)
    np.testing.assert_allclose(bend, (ahead[1] - behind[1]) / 2e-4, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kinds", [("shifts", "axis"), ("shifts", "axis", "tilts"), tuple(KINDS)])
def test_errors_are_as_large_as_said(kinds):
    """Of three series with one find of thirty astray; from 20 A and 1 degree beside the truth."""
    pulls = {name: [] for kind in kinds for name in KINDS[kind]}
    for seed in range(3):
        sightings, truth = series(seed, count=31, strays=0.03)
        start = off(truth, seed, 0.5 if "tilts" in kinds else 0.0)
        if "magnification" not in kinds:
            start["magnification"] = truth["magnification"]
        found = fitted(sightings, start, kinds, 20.0)
        table = found.tilts
        left = apart(table, truth)
        assert np.sqrt((left**2).mean()) < 2.0
        pulls["shift_x"] += list(left[:, 0] / table["shift_x_error"])
        pulls["shift_y"] += list(left[:, 1] / table["shift_y_error"])
        assert abs(table["axis_angle"][0] - 12) < 4 * table["axis_angle_error"][0] < 0.2
        pulls["axis_angle"].append((table["axis_angle"][0] - 12) / table["axis_angle_error"][0])
        for name in ("tilt_angle", "magnification"):
            if name in pulls:
                by = table[name] - truth[name]
                pulls[name] += list((by - by.mean()) / table[f"{name}_error"])
        # Finds' errors are known from what is left, whatever is said of them.
        assert found.error == pytest.approx(1.5, rel=0.2)
        assert found.doubts == () and found.tilts["beads"].min() >= 3
    for name, pull in pulls.items():
        size = np.sqrt(np.mean(np.square(pull)))
        # A normal law's rms of 93 numbers is 1 +- 0.07, of the 3 of the axis +- 0.4.
        assert (0.75 < size < 1.25) if len(pull) > 9 else size < 2, (name, size)


def test_what_no_find_tells_is_left():
    """The start moved as a whole is moved as far at the end."""
    sightings, truth = series(1)
    start = off(truth, 1)
    rotations, _, _ = rotations_of(truth["tilt_angle"].to_numpy(), start["axis_angle"].to_numpy())
    move = rotations[:, :2] @ np.array([40.0, -25.0, 60.0])
    moved = start.assign(shift_x=start["shift_x"] + move[:, 0],
                         shift_y=start["shift_y"] + move[:, 1])
    one, other = (fitted(sightings, table, ("shifts", "axis"), 20.0).tilts
                  for table in (start, moved))
    by = other[["shift_x", "shift_y"]].to_numpy() - one[["shift_x", "shift_y"]].to_numpy()
    # The prior of 20 A against errors of 1 A, and the axis moved by 1 degree since.
    np.testing.assert_allclose(by, move, atol=1.5)
    assert other["axis_angle"][0] == pytest.approx(one["axis_angle"][0], abs=1e-3)


def test_an_image_with_one_bead_is_not_taken_for_known():
    sightings, truth = series(2)
    keep = (sightings.image != 5) | (sightings.bead == sightings.bead[sightings.image == 5][0])
    few = Sightings(sightings.places[keep], sightings.errors[keep], sightings.image[keep],
                    sightings.bead[keep], CUT)
    found = fitted(few, off(truth, 2), ("shifts", "axis"), 20.0)
    assert found.tilts["shift_x_error"][5] > 15 > 3 > found.tilts["shift_x_error"].drop(5).max()
    assert "the first of them image 6, show too few" in found.doubts[0]
    with pytest.raises(ValueError, match="must be more than"):
        fitted(Sightings(few.places[:20], few.errors[:20], few.image[:20], few.bead[:20], CUT),
               truth, ("shifts", "axis"), 20.0)


@pytest.mark.parametrize("seed", range(2))
def test_images_of_one_bead_do_not_make_errors_small(seed):
    """What is left over in them is nothing, whatever the finds' errors."""
    sightings, truth = series(seed, beads=4)
    keep = (sightings.bead == sightings.image % 4) | (sightings.image % 4 == 0)
    few = Sightings(sightings.places[keep], sightings.errors[keep], sightings.image[keep],
                    sightings.bead[keep], CUT)
    found = fitted(few, off(truth, seed), ("shifts", "axis"), 20.0)
    assert 0.7 < found.error < 3.0  # of 1.5 A
    assert abs(found.tilts["axis_angle"][0] - 12) < 3 * found.tilts["axis_angle_error"][0]


def finds_of(sightings):
    """As the finder gives them."""
    finds = pd.DataFrame({"image": sightings.image, "error": 0.1, "diameter": 100.0,
                          "contrast": 0.3, "snr": 9.0, "false_finds": 1e-3})
    finds[["x", "y"]] = sightings.places / PIXEL + 47
    return finds


def test_the_most_probable_start_is_taken(monkeypatch):
    """Two of three are spoiled: their beads lie where other tilts would put them."""
    sightings, truth = series(6, count=15, beads=5)
    followed = bead_poses._followed

    def spoiled(work, tilts, beside):
        angles = tilts["tilt_angle"] * {-1.0: 0.9, 0.0: 1.15}.get(beside, 1.0)
        return followed(work, tilts.assign(tilt_angle=angles), beside)

    monkeypatch.setattr(bead_poses, "_followed", spoiled)
    found = poses_by_beads(finds_of(sightings), off(truth, 6), PIXEL, (94, 94), Search(
        cut_from=(CUT[0], CUT[1]), depth=1200.0))
    np.testing.assert_array_equal(found.tilts["tilt_angle"], truth["tilt_angle"])
    assert found.fit is not None and found.fit.doubts == ()
    assert abs(found.tilts["axis_angle"][0] - 12) < 3 * found.tilts["axis_angle_error"][0] < 0.5


def test_another_way_as_probable_is_in_the_error_bars():
    sightings, truth = series(7, count=21)
    one = fitted(sightings, off(truth, 7), ("shifts", "axis"), 20.0)
    step = np.linspace(-5, 5, 21)
    other = replace(one, tilts=one.tilts.assign(
        axis_angle=one.tilts["axis_angle"] + 0.8, shift_x=one.tilts["shift_x"] + step))
    both = joined([one, other], [500.0, 499.0])
    pd.testing.assert_frame_equal(both.tilts[["shift_x", "axis_angle"]],
                                  one.tilts[["shift_x", "axis_angle"]])
    share = np.exp(-0.1)  # one of ten that say nothing
    assert both.tilts["axis_angle_error"][0] == pytest.approx(0.8 * share**0.5, rel=0.02)
    assert "followed in another way" in both.doubts[0] and "axis +0.80 degrees" in both.doubts[0]
    # What a fit that goes on from here is told is as uncertain.
    free = Free({name: torch.as_tensor(value) for name, value in _poses(one.tilts).items()},
                ("shifts", "axis"), 20.0, both.information)
    bars = free.bars(torch.linalg.inv(free.stated()))[-1]
    assert float(bars[0]) == pytest.approx(0.8 * share**0.5, rel=0.1)
    # One that is out of the question changes nothing.
    alone = joined([other, one], [100.0, 500.0])
    np.testing.assert_allclose(alone.tilts["axis_angle_error"], one.tilts["axis_angle_error"],
                               rtol=1e-6)
    assert alone.doubts == one.doubts == ()


def test_an_image_far_off_is_found_and_wrong_finds_are_left():
    """One image 140 A off, another without finds, and as many false finds as beads."""
    sightings, truth = series(4, count=21, beads=6)
    rng = np.random.default_rng(4)
    image = np.repeat(np.arange(21), 4)
    false = rng.uniform(-SIDE / 2, SIDE / 2, (len(image), 2))
    finds = pd.concat([finds_of(sightings), finds_of(Sightings(
        false, np.ones(len(image)), image, image, CUT))])
    finds = finds[finds["image"] != 18].reset_index(drop=True)
    truth = truth.assign(magnification=1.0)
    start = off(truth, 4)
    start.loc[12, "shift_y"] += 140
    found = poses_by_beads(finds, start, PIXEL, (94, 94), Search(
        cut_from=(CUT[0], CUT[1]), depth=1200.0))
    assert found.fit is not None and len(found.tracks.beads) == 6
    left = apart(found.tilts.drop(18), truth.drop(18))
    assert np.sqrt((left**2).mean()) < 2.5  # magnifications are not fitted
    assert abs(found.tilts["axis_angle"][0] - 12) < 0.1
    assert found.tilts["shift_x_error"][18] == pytest.approx(20, rel=0.1)


def test_a_series_is_aligned_by_beads(tmp_path, capsys):
    """By the command, from IMOD's points; without beads it says so."""
    sightings, truth = series(5, count=11)
    truth = truth.assign(magnification=1.0)
    rows = pd.DataFrame({"image": sightings.image, "contour": sightings.bead + 1})
    rows[["x", "y"]] = sightings.places / PIXEL + 47
    (tmp_path / "fid.txt").write_text(points_text(rows))
    noise = np.random.default_rng(0).poisson(20, (11, 94, 94)).astype(np.float32)
    write_mrc(tmp_path / "s.mrc", noise, PIXEL)
    off(truth, 5).to_csv(tmp_path / "s.csv", index=False)
    words = ["recipe=reconstruct", f"input={tmp_path}/s.mrc", f"angles={tmp_path}/s.csv", "bin=16",
             "thickness=400", "align=[shifts,axis]", "cut_from=[30,-50]", "bead_diameter=100"]
    assert main([*words, f"beads={tmp_path}/fid.txt", f"output={tmp_path}/out"]) == 0
    table = pd.read_csv(tmp_path / "out" / "aligned.csv")
    said = json.loads((tmp_path / "out" / "results.json").read_text())
    assert np.sqrt((apart(table, truth)**2).mean()) < 2.5
    assert abs(table["axis_angle"][0] - 12) < 0.1
    assert said["align_error"]["axis_angle_deg"] < 0.1 and said["align_beads"] > 60
    assert any("is by gold beads alone" in one for one in said["assumptions"])
    for more, words_said in (("align_by=gold", 'align_by="gold": must be one of auto, beads'),
                             ("align_by=beads", "align_by=beads: no beads were followed")):
        assert main([*words, more, f"output={tmp_path}/no"]) == 2
        assert words_said in capsys.readouterr().err
