"""Gold beads: found where they are, with errors that hold, followed, masked; and nothing else."""

import json
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
from scipy.ndimage import maximum_filter

from tem_taichi.estimate.bead_filter import MatchedFilters, expected_maxima, threshold
from tem_taichi.estimate.bead_masks import filled, recorded
from tem_taichi.estimate.bead_poses import Search
from tem_taichi.estimate.bead_series import gold_of
from tem_taichi.estimate.bead_tracks import follow, views_of
from tem_taichi.estimate.beads import GOLD_LENGTH, Beads, find_beads
from tem_taichi.files.imod_points import points_text, read_points
from tem_taichi.files.mrc import write_mrc
from tem_taichi.fit import main
from tem_taichi.simulate import main as simulate

PIXEL, SHAPE = 10.0, (120, 150)
BEADS = np.array([(60, -490, 200), (-200, -60, -300), (290, 340, -40), (-380, 240, 270),
                  (550, 100, 10), (-60, 180, 120)], float)
"""[A]; no mirror image of these, nor they turned, are themselves."""


def image_of(places, diameters, counts=40.0, seed=0, shape=SHAPE):
    """Shadows of gold [A from the middle] in counts with more noise at low frequencies."""
    rng = np.random.default_rng(seed)
    fine = 4
    y, x = (((np.arange(n * fine) + 0.5) / fine - 0.5 - n // 2) * PIXEL for n in shape)
    way = np.zeros((len(y), len(x)))
    for (px, py), d in zip(places, diameters, strict=True):
        way += 2 * np.sqrt(np.clip(d**2 / 4 - (x - px)**2 - (y[:, None] - py)**2, 0, None))
    mean = np.exp(-way / GOLD_LENGTH).reshape(shape[0], fine, shape[1], fine).mean((1, 3))
    k = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    ice = np.fft.irfft2(np.fft.rfft2(rng.normal(size=shape)) * 0.05 / (1 + (k / 0.05)**2), shape)
    return rng.poisson(counts * mean * (1 + ice)).astype(np.float32)


def series_of_gold(errors=0.0, shape=SHAPE):
    rng = np.random.default_rng(5)
    angles = np.arange(-60.0, 61, 10)
    table = pd.DataFrame({"tilt_angle": angles, "axis_angle": 25.0,
                          "shift_x": rng.normal(0, 20, 13), "shift_y": rng.normal(0, 20, 13)})
    places = views_of(table).project(BEADS)
    made = np.stack([image_of(one, [100.0] * len(BEADS), seed=n, shape=shape)
                     for n, one in enumerate(places)])
    table["shift_x"] += errors * rng.normal(size=13)
    return made, table, places


@pytest.mark.parametrize(("corner", "least"), [(10.0, 0.6), (0.1, 0.1)])
def test_noise_is_as_high_as_often_as_said(corner, least):
    """White noise and red: maxima fall between pixels, so that fewer are seen than there are."""
    rng = np.random.default_rng(0)
    k = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128))
    seen, expected, use = 0, 0.0, np.ones((128, 128), bool)
    for _ in range(20):
        waves = np.fft.rfft2(rng.normal(size=(128, 128))) / (1 + (k / corner)**2)
        filters = MatchedFilters(np.fft.irfft2(waves), use, PIXEL, [80.0])
        height, _, slope = filters.filtered(80.0)
        height = height / filters.level(height)
        seen += int(((height > 3) & (height == maximum_filter(height, 3))).sum())
        expected += expected_maxima(3.0, 128**2, slope)
    assert least * expected < seen < expected + 2 * np.sqrt(expected)
    assert expected_maxima(threshold(128**2, 0.2, 0.01), 128**2, 0.2) == pytest.approx(0.01)


@pytest.mark.parametrize("diameter", [60.0, 100.0, 160.0])
@pytest.mark.parametrize("known", [True, False])
def test_beads_are_found_to_part_of_a_pixel(diameter, known):
    """Without their size being told; errors as large as said."""
    rng = np.random.default_rng(int(diameter))
    grid = np.stack(np.meshgrid(np.arange(-800, 801, 400), np.arange(-600, 601, 400)), -1)
    places = grid.reshape(-1, 2) + rng.uniform(-80, 80, (20, 2))
    found = find_beads(image_of(places, [diameter] * 20, 60.0, shape=(180, 220)), PIXEL,
                       Beads(diameter if known else None))
    assert len(found) == 20
    at = (found[["x", "y"]].to_numpy() - [110, 90]) * PIXEL
    nearest = np.hypot(*(at[:, None] - places).T).argmin(0)
    assert sorted(nearest) == list(range(20))
    off = (at - places[nearest]) / PIXEL
    assert np.abs(off).max() < 0.8  # the least ones are known to 0.25
    pull = off / found["error"].to_numpy()[:, None]
    # A normal law's rms of 40 numbers is 1 +- 0.11; the shadow's form and sampling add.
    assert 0.6 < np.sqrt((pull**2).mean()) < 1.5
    assert found["diameter"].median() == pytest.approx(diameter, rel=0.1)


def test_lines_and_faint_balls_are_no_gold():
    """A dark edge, a membrane's two leaflets, and protein as large as the bead."""
    places = [(-400.0, -300.0), (400.0, 300.0)]
    image = image_of(places, [100.0] * 2, 100.0)
    y, x = np.mgrid[:SHAPE[0], :SHAPE[1]]
    across = (x - 75) * 0.8 + (y - 60) * 0.6
    for middle in (-4.0, 4.0):
        image *= 1 - 0.35 * np.exp(-((across - middle) / 1.5)**2)
    image *= 1 - 0.08 * (np.hypot(x - 115, y - 30) < 5) - 0.08 * (np.hypot(x - 30, y - 90) < 5)
    found = find_beads(image, PIXEL, Beads(100.0))
    assert len(found) == 2
    np.testing.assert_allclose(sorted(found["x"]), [35, 115], atol=0.5)


def test_a_bead_at_the_rim_and_beads_that_touch():
    places = [(-745.0, 100.0), (0.0, 0.0), (105.0, 0.0), (300.0, -595.0)]
    found = find_beads(image_of(places, [100.0] * 4, 100.0), PIXEL, Beads(100.0))
    at = (found[["x", "y"]].to_numpy() - [75, 60]) * PIXEL
    near = np.hypot(*(at[:, None] - np.array(places)).T)
    assert len(found) == 4 and near.min(1).max() < 12  # [A]; half of two is not seen


def test_places_in_the_specimen_and_what_the_alignment_is_off():
    """One image is 150 A off, more than a find may be from its place."""
    images, table, places = series_of_gold()
    table.loc[3, "shift_x"] += 150.0
    gold = gold_of(images, table, PIXEL, Search(100.0, depth=600.0))
    beads = gold.tracks.beads
    assert len(beads) == len(BEADS) and (beads["images"] >= 12).all()
    moved = beads[["x", "y", "z"]].to_numpy()
    pairs = np.linalg.norm(moved[:, None] - BEADS, axis=2).argmin(1)
    assert sorted(pairs) == list(range(len(BEADS)))
    off = moved - BEADS[pairs]
    assert np.sqrt((off**2).mean()) < PIXEL / 4 and np.abs(off).max() < PIXEL / 2
    assert beads["residual_over_error"].median() < 1.3  # of one, shadows overlap in an image
    assert beads["residual_over_error"].between(0.5, 3).all()
    np.testing.assert_allclose(gold.moved[3], [-150, 0], atol=4)
    assert np.abs(np.delete(gold.moved, 3, 0)).max() < 4
    assert gold.tilts["shift_x"][3] == pytest.approx(table["shift_x"][3] - 150, abs=4)
    hidden = np.zeros(images.shape, bool)
    for number, seen in enumerate(places):
        y, x = np.mgrid[:SHAPE[0], :SHAPE[1]]
        for px, py in seen:
            hidden[number] |= np.hypot(x - 75 - px / PIXEL, y - 60 - py / PIXEL) < 5
    assert not gold.mask[hidden].any()
    assert (~gold.mask).sum() < 2.6 * hidden.sum()  # (5 + 2)^2 / 5^2 = 2.0


def test_finds_that_have_nothing_to_do_with_each_other_are_no_track():
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"tilt_angle": np.arange(-60.0, 61, 6), "axis_angle": 0.0})
    finds = pd.DataFrame({"x": rng.uniform(0, 400, 420), "y": rng.uniform(0, 400, 420),
                          "image": np.repeat(np.arange(21), 20), "error": 0.1, "diameter": 100.0,
                          "contrast": 0.5, "snr": 20.0, "false_finds": 0.0})
    tracks = follow(finds, views_of(table), PIXEL, (400, 400), 1000.0, 50.0)
    assert len(tracks.beads) == 0 and (tracks.finds["bead"] == 0).all()


def test_padding_is_known_at_any_dose():
    rng = np.random.default_rng(0)
    for counts in (0.4, 3.0, 40.0):
        image = rng.poisson(counts, (80, 100)).astype(np.float32)
        true = np.ones(image.shape, bool)
        assert recorded(image[None]).mean() > 0.999
        true[:, 90:] = False
        true[:2] = False
        y, x = np.mgrid[:80, :100]
        true &= x + y > 30
        found = recorded(np.where(true, image, 0)[None])[0]
        assert found[true].mean() > 0.99
        assert found[:, 90:].sum() + found[:2].sum() == 0
        assert found[~true].mean() < (0.3 if counts < 1 else 0.02)  # slanted rims keep steps
    real = rng.poisson(40.0, (80, 100)).astype(np.float32)
    real[:, 95:] = real.mean()
    assert (recorded(real[None])[0] == (np.arange(100) < 95)).all()


def test_what_is_left_out_is_filled_with_its_surroundings():
    image = np.add.outer(np.arange(60.0), np.arange(50.0))[None] + 10
    mask = np.ones(image.shape, bool)
    mask[0, 20:28, 20:28] = False
    dark = np.where(mask, image, 0)
    np.testing.assert_allclose(filled(dark, mask, 5.0), image, atol=2)
    np.testing.assert_array_equal(filled(dark, mask, 5.0)[mask], image[mask])


def test_imod_text_is_read_back(tmp_path):
    table = pd.DataFrame({"image": [0, 0, 3], "x": [0.0, 11.25, 7.5], "y": [3.5, 0.0, 8.0],
                          "contour": [1, 2, 2]})
    file = tmp_path / "fid.txt"
    file.write_text(points_text(table))
    assert file.read_text().splitlines()[0].split() == ["1", "1", "0.500", "4.000", "0"]
    pd.testing.assert_frame_equal(read_points(file), table)
    for text, said in (("1 2\n", "has 2 columns"), ("a b c\n", "lines of numbers"),
                       ("1 2 0.5\n", "z=0.5: must be an image"), ("\n", "is empty")):
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_points(file)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    """A scene's own fiducials in granular ice, as its command writes them."""
    folder = tmp_path_factory.mktemp("gold")
    assert simulate([
        "name=gold", "specimen=empty", "shape=[96,112]", "pixel_size=5", "dose=6",
        "specimen.damage=0", "specimen.ice.thickness=300", "optics.defocus=20000",
        "specimen.particles.bead={fiducial: 40, placement: listed}",
        f"specimen.particles.bead.positions={(BEADS[:4] / 3).round().astype(int).tolist()}",
        "tilts={scheme: dose_symmetric, minimum: -48, maximum: 48, step: 16, axis_angle: 25}",
        "tilts.errors={shift: 15, angle: 0.5, axis_angle: 2}", "compute.arch=cpu",
        f"output={folder}/series"]) == 0
    return folder / "series"


def test_the_command_finds_the_fiducials_of_a_scene(simulated, tmp_path):
    words = ["recipe=beads", f"input={simulated}/gold.mrc",
             f"angles={simulated}/gold_tilts.csv", "bead_diameter=40", "depth=200", "tolerance=20"]
    assert main([*words, f"output={tmp_path}/a", "fill=true"]) == 0
    said = json.loads((tmp_path / "a/results.json").read_text())
    beads = starfile.read(tmp_path / "a/tracks.star")
    truth = (BEADS[:4] / 3).round()
    assert said["beads"] == 4 and said["finds_of_no_bead"] <= 1
    assert said["residual_A"] < 3 and said["masked"] < 0.1
    at = beads[["x", "y", "z"]].to_numpy()
    far = np.linalg.norm(at[:, None] - truth, axis=2)
    assert sorted(far.argmin(1)) == [0, 1, 2, 3] and far.min(1).max() < 5
    mask, stack = mrcfile.read(tmp_path / "a/mask.mrc"), mrcfile.read(tmp_path / "a/filled.mrc")
    assert mask.shape == stack.shape == (7, 96, 112) and set(np.unique(mask)) == {0, 1}
    shifts = pd.read_csv(simulated / "gold_tilts.csv")[["shift_x", "shift_y"]].to_numpy()
    x, y = np.rint((truth[:, :2] + shifts[3]) / 5 + [56, 48]).astype(int).T
    assert (mask[3][y, x] == 0).all()
    # The text that IMOD takes is taken here in the place of a search.
    assert main([*words, f"output={tmp_path}/b", f"points={tmp_path}/a/beads_fid.txt"]) == 0
    again = starfile.read(tmp_path / "b/tracks.star")
    near = np.linalg.norm(again[["x", "y", "z"]].to_numpy()[:, None] - at, axis=2).min(1)
    assert near.max() < 0.1
    assert (tmp_path / "a/beads.png").is_file()


@pytest.mark.parametrize(("words", "said"), [
    (["bead_diameter=-1"], "bead_diameter=-1"), (["points=none.txt"], "bead_diameter=null"),
    (["points=none.txt", "bead_diameter=80"], 'points="none.txt": must be a file'),
    (["points=far.txt", "bead_diameter=80"], "has z=99: must be below 7"),
    (["false_finds=0"], "false_finds=0"), (["contrast=2"], "contrast=2"),
    (["bead_diameter=2000"], "must be at most a third"), (["tolerance=0"], "tolerance=0"),
    (["depth=-1"], "depth=-1"), (["margin=-1"], "margin=-1"), (["cut_from=[1]"], "cut_from"),
    (["shifts=[dx,dy]"], "shifts=dx: must be a column")])
def test_what_cannot_be_is_one_line(simulated, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    Path("far.txt").write_text("1 3 4 99\n")
    assert main(["recipe=beads", f"input={simulated}/gold.mrc",
                 f"angles={simulated}/gold_tilts.csv", "output=out", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not Path("out").exists()


def test_real_series(shared):
    """EMPIAR-10499, three of its images: all ten or so that an eye sees, no membrane."""
    images = mrcfile.read(shared / "data/tilt/empiar10499_00254_y0-310.mrc").astype(np.float32)
    eye = [(557, 171), (197, 216), (463, 36), (507, 83), (75, 263), (159, 239), (336, 222),
           (335, 206), (44, 195), (76, 80)]
    found = find_beads(images[20], 10.0, Beads(100.0))
    near = np.hypot(*(found[["x", "y"]].to_numpy()[:, None] - np.array(eye)).T)
    assert len(found) == len(eye) and near.min(0).max() < 2


def test_an_image_without_electrons_is_said(simulated, tmp_path):
    images = mrcfile.read(simulated / "gold.mrc").astype(np.float32)
    images[2] = 0
    write_mrc(tmp_path / "dark.mrc", images, 5.0)
    assert main(["recipe=beads", f"input={tmp_path}/dark.mrc", "bead_diameter=40",
                 f"angles={simulated}/gold_tilts.csv", f"output={tmp_path}/out"]) == 0
    said = json.loads((tmp_path / "out/results.json").read_text())
    assert "the first of them image 3, have no positive mean" in said["warnings"][0]


def test_a_series_without_beads_is_whole(tmp_path):
    rng = np.random.default_rng(2)
    write_mrc(tmp_path / "ice.mrc", rng.poisson(20, (5, 64, 64)).astype(np.float32), PIXEL)
    pd.DataFrame({"tilt_angle": np.arange(-20.0, 21, 10), "axis_angle": 0.0}).to_csv(
        tmp_path / "ice.csv", index=False)
    assert main(["recipe=beads", f"input={tmp_path}/ice.mrc", f"output={tmp_path}/out",
                 "fill=true"]) == 0
    said = json.loads((tmp_path / "out/results.json").read_text())
    assert said["beads"] == 0 and "No bead was followed" in said["warnings"][0]
    assert mrcfile.read(tmp_path / "out/mask.mrc").all()


def test_gold_is_left_out_of_a_tomogram(simulated, tmp_path, capsys):
    """By our own search and by IMOD's text, with another mask besides."""
    words = ["recipe=reconstruct", f"input={simulated}/gold.mrc", "thickness=300", "bin=2",
             f"angles={simulated}/gold_tilts.csv", "bead_diameter=40"]
    write_mrc(tmp_path / "mask.mrc", np.ones((96, 112), np.float32), 5.0)
    table = pd.read_csv(simulated / "gold_tilts.csv")
    truth = (BEADS[:4] / 3).round()
    seen = views_of(table).project(truth) / 5 + [56, 48]
    rows = [(n, x, y, bead) for n, image in enumerate(seen) for bead, (x, y) in enumerate(image, 1)]
    (tmp_path / "fid.txt").write_text(points_text(pd.DataFrame(
        rows, columns=["image", "x", "y", "contour"])))
    spread = {}
    for name, more in (("with", []), ("auto", ["beads=auto", f"mask={tmp_path}/mask.mrc"]),
                       ("file", [f"beads={tmp_path}/fid.txt"])):
        assert main([*words, *more, f"output={tmp_path}/{name}"]) == 0
        spread[name] = mrcfile.read(tmp_path / name / "tomogram.mrc").max()
    assert max(spread["auto"], spread["file"]) < 0.6 * spread["with"]
    for more, said in ((["beads=none.txt"], 'beads="none.txt": must be a file'),
                       (["beads=none.txt", "bead_diameter=null"], "bead_diameter=null: must be")):
        assert main([*words, *more, f"output={tmp_path}/no"]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
