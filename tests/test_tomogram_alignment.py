"""A tilt series' poses by the likelihood of all its images."""

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch

from tem_taichi.device import init
from tem_taichi.estimate.alignment import aligned
from tem_taichi.estimate.free_poses import NAMES, poses_of
from tem_taichi.estimate.reprojected import displacement, matched
from tem_taichi.estimate.shared_images import Shared, Views
from tem_taichi.estimate.stretched import places
from tem_taichi.estimate.strips import strips_of
from tem_taichi.estimate.tilt_images import Grid
from tem_taichi.files.mrc import write_mrc
from tem_taichi.fit import main
from tem_taichi.inverse.tomography import contrast
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.rays import Rays, project

PIXEL, THICKNESS, NOISE, COUNT = 16.0, 320.0, 0.004, 15
DEPTH, LONG, WIDE = int(THICKNESS / PIXEL) + 1, 110, 200


def gauge(tilts):
    """How common moves of the specimen move the images, (n, 2, 3)."""
    return np.stack([tilt_rotation(float(tilt), float(axis)).numpy()[:2] for tilt, axis in zip(
        tilts["tilt_angle"], tilts["axis_angle"], strict=True)])


def apart(found, truth):
    """Shifts' differences but for a common move."""
    ways = gauge(truth).reshape(-1, 3)
    by = (found[["shift_x", "shift_y"]].to_numpy() - truth[["shift_x", "shift_y"]].to_numpy())
    return (by.ravel() - ways @ np.linalg.lstsq(ways, by.ravel(), rcond=None)[0]).reshape(-1, 2)


def recorded(volume, generator):
    """Images of a slab wider than all tilts see, and their true table."""
    tilts = pd.DataFrame({"tilt_angle": np.linspace(-60, 60, COUNT), "axis_angle": -7.0})
    tilts["shift_x"], tilts["shift_y"] = generator.normal(0, 15, (2, COUNT))
    rays = Rays(torch.stack([tilt_rotation(float(tilt), -7.0) for tilt in tilts["tilt_angle"]]),
                torch.as_tensor(tilts[["shift_x", "shift_y"]].to_numpy(), dtype=torch.float32),
                tuple(volume.shape), PIXEL, (72, 80), PIXEL)
    seen = 1 - project(volume, rays).numpy()
    return (seen + generator.normal(0, NOISE, seen.shape)).astype(np.float32), tilts


@pytest.fixture(scope="module")
def series():
    """Of blobs: images, true table."""
    init("cpu", "float32")
    generator = np.random.default_rng(0)
    volume = torch.zeros(DEPTH, LONG, WIDE)
    for size, count in ((2, 2500), (3, 800)):
        for z, y, x in generator.integers((0, 2, 2), (DEPTH - size, 106, WIDE - 4), (count, 3)):
            volume[z:z + size, y:y + size, x:x + size] += 4e-4
    return recorded(volume, generator)


def views(images):
    lines = contrast(torch.as_tensor(images))
    return Views(lines, torch.ones_like(lines), torch.full((len(lines),), NOISE**2), PIXEL,
                 THICKNESS)


@pytest.fixture(scope="module")
def start(series):
    """The table as it is given: 20 A and 1 degree off."""
    tilts = series[1].copy()
    tilts[["shift_x", "shift_y"]] += np.random.default_rng(1).normal(0, 20, (COUNT, 2))
    tilts["axis_angle"] += 1.0
    return tilts


@pytest.fixture(scope="module")
def found(series, start):
    return aligned(views(series[0]), start, ("shifts", "axis"), 20.0, 75.0)


def test_places_are_those_of_the_specimen():
    """What is stretched and put back is where the rotation of an exposure takes it."""
    init("cpu", "float64")
    poses = {"shift_x": 5.0, "shift_y": -7.0, "tilt_angle": 35.0, "axis_angle": 80.0}
    batch = {name: torch.tensor([value], dtype=torch.float64) for name, value in poses.items()}
    rotation = tilt_rotation(35.0, 80.0)
    axis = np.deg2rad(80.0)
    cut = torch.tensor([30.0, -20.0, 0.0], dtype=torch.float64)
    across, along, z = 40.0, 25.0, 60.0
    c, s = np.cos(axis), np.sin(axis)
    point = torch.tensor([c * across - s * along, s * across + c * along, z], dtype=torch.float64)
    wanted = (rotation @ (point + cut) - cut)[:2] + torch.tensor([5.0, -7.0])
    stretched = across + z * np.tan(np.deg2rad(35.0))
    found = places(batch, torch.tensor(stretched), torch.tensor(along), (30.0, -20.0))[0]
    torch.testing.assert_close(found, wanted.double(), rtol=0, atol=1e-9)
    init("cpu", "float32")


def test_shifts_and_axis_come_back(series, start, found):
    """20 A and 1 degree become as little as the error bars say."""
    left, before = apart(found.tilts, series[1]), apart(start, series[1])
    bars = found.tilts[["shift_x_error", "shift_y_error"]].to_numpy()
    assert np.sqrt((before**2).mean()) > 15
    assert np.sqrt((left**2).mean()) < 2
    # Mean square of 30 - 3 numbers; spectra and windows are approximations.
    assert 0.3 < np.mean((left / bars)**2) < 2.5
    axis = found.tilts["axis_angle"]
    assert axis.nunique() == 1
    assert abs(axis[0] + 7) < 4 * found.tilts["axis_angle_error"][0] < 1
    assert found.doubts == ()
    assert found.gain[1] > found.gain[0] and found.tilts["agreement"].min() > 10


def test_what_no_image_tells_is_left(start, found):
    """Of the changes nothing is a move of the specimen."""
    by = (found.tilts[["shift_x", "shift_y"]] - start[["shift_x", "shift_y"]]).to_numpy()
    common = np.einsum("nik,ni->k", gauge(start), by)
    # Of single precision
    np.testing.assert_allclose(common, 0, atol=1e-3 * np.abs(by).sum())


def test_derivatives_of_all_numbers(series, start):
    """Against differences in double precision, the tilts' through the covariance as well."""
    init("cpu", "float64")
    poses = poses_of(start)
    shared = Shared(Views(contrast(torch.as_tensor(series[0]).double()), torch.ones(COUNT, 72, 80)
                          .double(), torch.full((COUNT,), NOISE**2).double(), PIXEL, THICKNESS),
                    poses, 100.0)
    free = {name: value.clone().requires_grad_() for name, value in poses.items()}
    slopes = torch.autograd.grad(shared.loss(free), list(free.values()))
    for name, slope in zip(free, slopes, strict=True):
        for number in (0, 11):
            step = torch.zeros(COUNT).double()
            step[number] = 1e-5
            ahead, behind = (float(shared.loss({
                other: (value + sign * step * (other == name)).detach().requires_grad_()
                for other, value in poses.items()}).detach()) for sign in (1, -1))
            assert float(slope[number]) == pytest.approx((ahead - behind) / 2e-5, rel=1e-4,
                                                         abs=1e-4)
    init("cpu", "float32")


def test_information_is_the_variance_of_the_slopes(series):
    """At the truth, what the loss's slopes in the shifts are on average: chi^2 of 30 numbers."""
    poses = poses_of(series[1])
    shared = Shared(views(series[0]), poses, 60.0)
    free = {name: value.clone().requires_grad_(name.startswith("shift"))
            for name, value in poses.items()}
    slopes = torch.autograd.grad(shared.loss(free), [free[name] for name in NAMES[:2]])
    known = shared.information(poses, NAMES[:2])
    ratios = [slope.double().square() / known[n, :, n].diagonal() for n, slope in enumerate(slopes)]
    assert 0.4 < float(torch.stack(ratios).mean()) < 1.6


def test_observed_information_is_the_curvature(series, start):
    """Of these very images, away from the truth, against differences of the slopes in shifts."""
    poses = poses_of(start)
    shared = Shared(views(series[0]), poses, 100.0)
    step = torch.zeros(COUNT)
    step[4] = 0.5

    def slope(sign):
        ours = {name: (value + sign * step * (name == "shift_y")).requires_grad_(
            name == "shift_y") for name, value in poses.items()}
        return torch.autograd.grad(shared.loss(ours), ours["shift_y"])[0].double()

    found = shared.information(poses, ["shift_y"], observed=True)[0, :, 0, 4]
    wanted = slope(1) - slope(-1)
    # Images are interpolated between pixels, by cubics.
    assert float((found - wanted).norm() / wanted.norm()) < 0.05
    assert float((shared.information(poses, ["shift_y"])[0, :, 0, 4] - wanted).norm()
                 / wanted.norm()) > 0.1


def test_strips_share_out_the_field(series):
    """Each has as much of the windows' squares, and together they have all."""
    poses = poses_of(series[1])
    shared = Shared(views(series[0]), poses, 60.0)
    windows = shared.stretch.windows
    strips = strips_of(windows, PIXEL, poses, 5)
    torch.testing.assert_close(sum(strip.square() for strip in strips), torch.ones_like(windows))
    parts = torch.stack([(windows * strip).square().sum() for strip in strips])
    assert float(parts.max() / parts.min()) < 1.1


def test_one_filament_is_doubted():
    """What is not spread evenly breaks the model: the error bars grow, and it is said."""
    generator = np.random.default_rng(3)
    volume = torch.zeros(DEPTH, LONG, WIDE)
    for x in range(2, WIDE - 3):
        y = int(25 + 0.3 * x)
        volume[10:13, y:y + 3, x:x + 3] += 4e-3
    images, truth = recorded(volume, generator)
    lone = aligned(views(images), truth, ("shifts", "axis"), 6.0, 75.0)
    assert any("strips of the field disagree" in doubt for doubt in lone.doubts)
    assert lone.tilts["axis_angle_error"][0] > 0.5
    left = apart(lone.tilts, truth)
    bars = lone.tilts[["shift_x_error", "shift_y_error"]].to_numpy()
    # As above.
    assert np.mean((left / bars)**2) < 2.5


def test_what_is_predicted_tells_where_an_image_lies():
    """Moved by known steps, beside noise; without anything in common it stays."""
    generator = np.random.default_rng(7)
    k = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64))
    wave = np.fft.rfft2(generator.normal(0, 1, (64, 64))) / (1 + (k / 0.05)**2)
    ky, kx = np.fft.fftfreq(64, PIXEL)[:, None], np.fft.rfftfreq(64, PIXEL)[None]
    there = torch.as_tensor(np.fft.irfft2(wave))
    for x, y in ((11.0, -7.0), (-0.4, 3.0)):
        moved = np.fft.irfft2(wave * np.exp(-2j * np.pi * (kx * x + ky * y)))
        noise = generator.normal(0, 0.2 * moved.std(), moved.shape)
        found = displacement(torch.as_tensor(moved + noise), there, torch.ones(64, 64), PIXEL, 60.0)
        # The window stays where it is: up to a tenth of the move, which the rounds take; and noise.
        np.testing.assert_allclose(found, [x, y], atol=0.8)
    assert (displacement(there, torch.zeros(64, 64), torch.ones(64, 64), PIXEL, 60.0) == 0).all()


def test_other_tilts_correct_shifts(series):
    """4 A off, each image is put back by what the others predict, the specimen is not."""
    images, truth = series
    off = truth.copy()
    off[["shift_x", "shift_y"]] += np.random.default_rng(8).normal(0, 4, (COUNT, 2))
    done = []
    table, last = matched(100 * images, off, PIXEL, Grid(THICKNESS, 2), 75.0,
                          torch.full((COUNT,), NOISE**2), step=lambda n, of: done.append((n, of)))
    before, after = (np.sqrt((apart(one, truth)**2).mean()) for one in (off, table))
    assert before > 3 and after < 0.4 * before
    assert last < before and done[-1] == (2, 2)
    by = (table[["shift_x", "shift_y"]] - off[["shift_x", "shift_y"]]).to_numpy()
    np.testing.assert_allclose(np.einsum("nik,ni->k", gauge(truth), by), 0, atol=1e-3)


def test_noise_is_doubted(start):
    images = 1 + np.random.default_rng(2).normal(0, NOISE, (COUNT, 72, 80)).astype(np.float32)
    said = aligned(views(images), start, ("shifts", "axis"), 20.0, 150.0)
    assert any("are not more probable by the others" in doubt for doubt in said.doubts)
    assert said.tilts["shift_x_error"].median() > 10


def test_recipe_writes_a_table_that_it_reads(series, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mrc(tmp_path / "s.mrc", 100 * series[0], PIXEL)
    start.to_csv(tmp_path / "s.csv", index=False)
    words = ["recipe=reconstruct", "input=s.mrc", f"thickness={THICKNESS}", "bin=4"]
    assert main([*words, "angles=s.csv", "align=[shifts,axis]", "align_to=150", "output=a"]) == 0
    table = pd.read_csv(tmp_path / "a" / "aligned.csv")
    assert np.sqrt((apart(table, series[1])**2).mean()) < 8
    assert main([*words, "angles=a/aligned.csv", "output=b"]) == 0
    np.testing.assert_array_equal(mrcfile.read(tmp_path / "a" / "tomogram.mrc"),
                                  mrcfile.read(tmp_path / "b" / "tomogram.mrc"))


@pytest.mark.parametrize(("word", "said"), [
    ("align=[turns]", 'align="turns": must be one of shifts, axis, tilts'),
    ("align=[axis,axis]", 'align=["axis", "axis"]: must be different'),
    ("align_within=0", "align_within=0"), ("align_to=-1", "align_to=-1"),
    ("align=[shifts] align_to=900", "align_to=900: must be at most 192")])
def test_what_cannot_be_is_one_line(series, start, tmp_path, capsys, word, said):
    write_mrc(tmp_path / "s.mrc", 100 * series[0], PIXEL)
    start.to_csv(tmp_path / "s.csv", index=False)
    assert main(["recipe=reconstruct", f"input={tmp_path}/s.mrc", f"angles={tmp_path}/s.csv",
                 f"output={tmp_path}/out", *word.split()]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
