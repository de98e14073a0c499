"""Shifts in one fit with the specimen."""

import numpy as np
import pandas as pd
import pytest
import torch

from tem_taichi.estimate import shift_fit
from tem_taichi.estimate.posed import Posed, turn_of, upright
from tem_taichi.estimate.shift_fit import fitted_shifts
from tem_taichi.estimate.tilt_images import Grid, series_of
from tem_taichi.estimate.tomogram_fit import exposures_of, model_of
from tem_taichi.estimate.tomogram_model import Lens
from tem_taichi.files.mrc import write_mrc
from tem_taichi.fit import main
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.rays import Rays, project

PIXEL, DEPTH, COUNT, SIZE = 16.0, 320.0, 13, 44


def blobs(points, shape):
    """Gaussian potential of 32 A about some places (x, y, z) [A] on a grid, (nz, ny, nx) [V]."""
    axes = [(torch.arange(n) - n // 2) * PIXEL for n in shape]
    near = [torch.exp(-(axis - points[:, 2 - n, None])**2 / (2 * 32.0**2))
            for n, axis in enumerate(axes)]
    return 4 * torch.einsum("pz,py,px->zyx", *near).to(torch.get_default_dtype())


def table(tilts, axis, shifts):
    return pd.DataFrame({"tilt_angle": tilts, "axis_angle": axis, "shift_x": shifts[0],
                         "shift_y": shifts[1], "defocus": 20000.0})


def recorded(volume, tilts, noise, generator, shape=(SIZE, SIZE), cut=(0.0, 0.0)):
    """Images of a volume by the recipe's own model, with noise relative to the beam."""
    rows = torch.stack([tilt_rotation(float(tilt), float(axis)) for tilt, axis in zip(
        tilts["tilt_angle"], tilts["axis_angle"], strict=True)])
    middle = torch.tensor([*cut, 0.0]).to(rows)
    shifts = torch.tensor(tilts[["shift_x", "shift_y"]].to_numpy().tolist()).to(rows) + (
        (rows @ middle)[:, :2] - middle[:2])
    empty = series_of(generator.normal(1, 0.01, (len(tilts), *shape)).astype(np.float32), tilts,
                      PIXEL, Grid(DEPTH))
    model = model_of(empty, range(len(tilts)), exposures_of(empty, tilts, Lens()), PIXEL, Lens(),
                     (6, 6))
    rays = Rays(rows, shifts, tuple(volume.shape), PIXEL, model.rays.shape, PIXEL)
    seen = model.of_projections(project(volume, rays)).numpy()
    return (seen + generator.normal(0, noise, seen.shape)).astype(np.float32)


def posed(axis, tilts=(-50.0, 0.0, 35.0), reach=24.0):
    """A small problem: the model, its table, and points in the specimen's frame."""
    generator = np.random.default_rng(3)
    tilts = table(list(tilts), axis, ([9.0, -5.0, 60.0], [4.0, 70.0, -8.0]))
    shape = (26, 30)
    images = generator.normal(1, 0.01, (3, *shape)).astype(np.float32)
    series = series_of(images, tilts, PIXEL, Grid(DEPTH, margin=100.0))
    straight, room = upright(series, axis, reach)
    model = model_of(straight, range(3), exposures_of(series, tilts, Lens()), PIXEL, Lens(), room)
    points = torch.as_tensor(generator.uniform(-110, 110, (9, 3)))
    return Posed(model, series, axis, reach), tilts, points


def turned(points, angle):
    """About z, counter-clockwise [deg]."""
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return points @ torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1]], dtype=points.dtype)


@pytest.mark.parametrize("axis", [0.0, 3.0, -84.0, 40.0, 178.0])
def test_changes_are_those_of_the_table(axis):
    """Images of changed shifts are those of points where rotations put them; the sign of each."""
    problem, tilts, points = posed(axis)
    change = torch.tensor([[7.0, -4.0, 3.0], [5.0, 2.0, -9.0]])
    after = tilts.copy()
    after[["shift_x", "shift_y"]] += change.T.numpy()
    grid = problem.model.series.rays.grid
    volume = blobs(turned(points, -turn_of(axis)), grid)
    seen = problem.placed(project(volume, problem.model.rays), change)[
        (slice(None), *problem.model.inner)]
    ny, nx = seen.shape[1:]
    y, x = ((torch.arange(n) - n // 2) * PIXEL for n in (ny, nx))
    for n, row in after.iterrows():
        place = points @ tilt_rotation(row["tilt_angle"], row["axis_angle"]).double().T
        near = [torch.exp(-(axis_of - place[:, k, None] - row[name])**2 / (2 * 32.0**2))
                for axis_of, k, name in ((y, 1, "shift_y"), (x, 0, "shift_x"))]
        wanted = 4 * 32 * (2 * np.pi)**0.5 * torch.einsum("py,px->yx", *near)
        assert float((seen[n] - wanted).abs().max()) < 0.03 * float(wanted.max())


def test_gradients_are_those_of_differences(double):
    problem, _, points = posed(-84.0)
    generator = np.random.default_rng(0)
    changes = torch.tensor(generator.normal(0, 5.0, (2, 3)))
    volume = blobs(turned(points, -turn_of(-84.0)), problem.model.series.rays.grid)
    _, slope, by = problem.gradient(volume, changes)

    def loss(volume, changes):
        return problem.gradient(volume, changes)[0]

    way = torch.as_tensor(generator.normal(0, 1, volume.shape))
    ends = [loss(volume + side * 1e-4 * way, changes) for side in (1, -1)]
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(float((slope * way).sum()), rel=1e-5)
    for n in range(6):
        one = torch.zeros(6).double()
        one[n] = 1e-3
        ends = [loss(volume, changes + side * one.reshape(2, 3)) for side in (1, -1)]
        assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(
            float(by.reshape(-1)[n]), rel=1e-4, abs=1e-6 * float(by.abs().max()))


def made(axis, cut=(0.0, 0.0)):
    """Images of a slab of blobs that is wider than all tilts see, and their true table."""
    generator = np.random.default_rng(5)
    tilts = table(np.linspace(-60, 60, COUNT), axis, generator.normal(0, 5, (2, COUNT)))
    points = torch.as_tensor(generator.uniform(-1, 1, (500, 3)) * [930, 930, DEPTH / 2 - 30])
    images = recorded(blobs(points.float(), (int(DEPTH / PIXEL), 116, 116)), tilts, 0.02, generator,
                      cut=cut)
    return images, tilts


def apart(found, truth):
    """Shifts' differences but for a common move of the specimen, (n, 2) [A]."""
    ways = np.stack([tilt_rotation(float(tilt), float(axis)).numpy()[:2] for tilt, axis in zip(
        truth["tilt_angle"], truth["axis_angle"], strict=True)]).reshape(-1, 3)
    by = (found[["shift_x", "shift_y"]].to_numpy() - truth[["shift_x", "shift_y"]].to_numpy())
    return (by.ravel() - ways @ np.linalg.lstsq(ways, by.ravel(), rcond=None)[0]).reshape(-1, 2)


def found_of(images, tilts, within=20.0):
    series = series_of(images, tilts, PIXEL, Grid(DEPTH, margin=300.0))
    return fitted_shifts(series, tilts, Lens(), within)


def rms(values):
    return float(np.sqrt((np.asarray(values)**2).mean()))


@pytest.fixture(scope="module")
def series():
    return made(-7.0)


def test_errors_of_shifts_are_found(series):
    """Of errors of 4 A and as large ones that are smooth over the tilts; the axis is held."""
    images, truth = series
    start = truth.copy()
    bend = 3 * np.linspace(-1, 1, COUNT)**2 - 1
    start[["shift_x", "shift_y"]] += (np.random.default_rng(1).normal(0, 4, (COUNT, 2))
                                      + bend[:, None] * [4.0, -4.0])
    found = found_of(images, start)
    assert rms(apart(start, truth)) > 5
    assert rms(apart(found.tilts, truth)) < 1.2
    # What noise leaves is found from the truth as well.
    assert rms(apart(found.tilts, found_of(images, truth).tilts)) < 0.3
    by = found.tilts["shift_x"] - start["shift_x"]
    assert found.changed["shift_x"] == pytest.approx(rms(by))
    assert found.tilts["axis_angle"].tolist() == truth["axis_angle"].tolist()
    assert found.doubts == ()


def test_what_gold_knows_stays_known(series, monkeypatch):
    """Errors in the table are deviations where it has beads, and only there."""
    monkeypatch.setattr(shift_fit, "_LOOKS", 1)
    images, truth = series
    wrong = truth.assign(shift_y=truth["shift_y"] + np.where(np.arange(COUNT) % 2, 6.0, -6.0),
                         shift_x_error=0.05, shift_y_error=0.05)
    assert found_of(images, wrong).changed["shift_y"] > 4
    assert found_of(images, wrong.assign(beads=5)).changed["shift_y"] < 1


def test_far_shifts_are_doubted(series, monkeypatch):
    monkeypatch.setattr(shift_fit, "_LOOKS", 1)
    images, truth = series
    wrong = truth.assign(shift_x=truth["shift_x"] + 12.0 * (np.arange(COUNT) == 3))
    assert found_of(images, wrong).doubts == ()
    found = found_of(images, wrong, within=1.0)
    assert found.doubts[0].startswith("shift_x of 1 images, the first of them image 4,")
    with pytest.raises(ValueError, match=r"refine=.*needs 3 images"):
        found_of(images[:2], truth[:2])


def test_recipe(series, tmp_path, capsys, monkeypatch):
    """The table that is written has the poses by which the tomogram was made."""
    monkeypatch.setattr(shift_fit, "_LOOKS", 1)
    images, truth = series
    start = truth.assign(shift_x=truth["shift_x"] + np.where(np.arange(COUNT) % 2, 6.0, -6.0))
    write_mrc(tmp_path / "series.mrc", 100 * images, PIXEL)
    start.to_csv(tmp_path / "tilts.csv", index=False)
    words = ["recipe=reconstruct", f"input={tmp_path}/series.mrc", f"angles={tmp_path}/tilts.csv",
             f"thickness={DEPTH}", "iterations=2", "tv=3", "held_out=0"]
    assert main([*words, "method=gradient", "refine=true", f"output={tmp_path}/out"]) == 0
    found = pd.read_csv(tmp_path / "out" / "aligned.csv")
    assert np.sqrt((apart(found, truth)**2).mean()) < 1.5 < np.sqrt((apart(start, truth)**2).mean())
    out = (tmp_path / "out" / "results.json").read_text()
    assert "were refined with the specimen" in out + capsys.readouterr().out
    assert main([*words, "method=sirt", "refine=true", f"output={tmp_path}/wrong"]) != 0
    assert "refine=true: must be left out with method=sirt" in capsys.readouterr().err
