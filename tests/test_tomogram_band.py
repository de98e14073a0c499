"""Rows that stand for a large tilt series."""

import numpy as np
import pandas as pd
import pytest
import torch

from tem_taichi.estimate import tilt_images, tomogram_fit
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.tilt_images import Grid, Series, band, series_of
from tem_taichi.estimate.tomogram import iterated
from tem_taichi.estimate.tomogram_model import Lens, Model
from tem_taichi.inverse.tomography import Sirt
from tem_taichi.recipes.reconstruct import ReconstructRecipe, _reconstructed
from tem_taichi.specimen.rays import project

ROWS, LONG, WIDE = 12, 40, 24
ANGLES = np.arange(-60.0, 61, 10)


@pytest.fixture(autouse=True)
def few_voxels(monkeypatch):
    monkeypatch.setattr(tilt_images, "_BAND", 1)
    monkeypatch.setattr(tilt_images, "_ROWS", ROWS)


def series_along(axis: float, images: np.ndarray, mask: np.ndarray | None = None) -> Series:
    """Of images (n, LONG, WIDE), turned where the axis lies."""
    turned = axis == 90
    images, mask = (None if one is None else one.swapaxes(-1, -2) if turned else one
                    for one in (images, mask))
    tilts = pd.DataFrame({"tilt_angle": ANGLES, "axis_angle": axis, "shift_x": 5.0 * (1 - turned),
                          "shift_y": 5.0 * turned})
    return series_of(images, tilts, 8.0, Grid(64.0), mask)


def noise() -> np.ndarray:
    return 1 + 0.1 * np.random.default_rng(0).standard_normal((len(ANGLES), LONG, WIDE))


def rows_of(whole: Series, part: Series, way: int) -> int:
    """Where the part's images begin in the whole's."""
    return next(n for n in range(LONG) if torch.equal(
        whole.images.narrow(1 + way, n, ROWS), part.images))


@pytest.mark.parametrize("axis", [0.0, 90.0])
def test_a_band_is_reconstructed_as_in_the_whole(double, axis):
    """Rows along the axis see nothing of one another; shifts across it are the images' still."""
    whole, way = series_along(axis, noise()), int(axis == 90)
    part = band(whole)
    assert part.rays.shape[way] == part.rays.grid[1 + way] == ROWS
    runs = [Sirt(one.images, one.rays, weights=one.weights) for one in (whole, part)]
    for run in runs:
        run.step()
        run.step()
    first = rows_of(whole, part, way)
    torch.testing.assert_close(runs[0].volume.narrow(1 + way, first, ROWS), runs[1].volume)


@pytest.mark.parametrize("axis", [3.0, 87.0])
def test_rays_of_a_leaning_axis_stay_within_a_bands_grid(double, axis):
    """A volume that the band's grid holds is seen alike: nothing of it is beyond, nor moved."""
    tilts = pd.DataFrame({"tilt_angle": ANGLES, "axis_angle": axis, "shift_x": 6.0,
                          "shift_y": -5.0})
    shape, way = ((80, WIDE), 0) if axis < 45 else ((WIDE, 80), 1)
    images = 1 + 0.1 * np.random.default_rng(1).standard_normal((len(ANGLES), *shape))
    whole = series_of(images, tilts, 8.0, Grid(64.0))
    part = band(whole)
    assert part.rays.grid[1 + way] < 40
    rows = part.rays.shape[way]
    first = next(n for n in range(80) if torch.equal(
        whole.images.narrow(1 + way, n, rows), part.images))
    # Of few frequencies: lattices that begin elsewhere interpolate elsewhere.
    z, y, x = (torch.arange(n) for n in whole.rays.grid)
    volume = (2 + torch.sin(y / 5)[:, None] + torch.cos(x / 4)).expand(whole.rays.grid) + (
        torch.sin(z / 3)[:, None, None])
    begin = whole.rays.grid[1 + way] // 2 + first + rows // 2 - 40 - part.rays.grid[1 + way] // 2
    inside = volume.narrow(1 + way, begin, part.rays.grid[1 + way])
    torch.testing.assert_close(project(inside, part.rays),
                               project(volume, whole.rays).narrow(1 + way, first, rows),
                               rtol=0.02, atol=0.02 * float(project(volume, whole.rays).max()))


def test_a_band_varies_as_much_as_all():
    """Not the middle, which is empty here, as a field's often is."""
    images = noise()
    images[:, 10:] = 1 + 1e-3 * (images[:, 10:] - 1)
    whole = series_along(0.0, images)
    part = band(whole)
    power = [float(one.images.square().mean()) for one in (whole, part)]
    assert power[1] == pytest.approx(power[0], rel=0.2)
    assert rows_of(whole, part, 0) < 10


def test_small_series_and_those_of_which_a_band_has_nothing_are_whole(monkeypatch):
    mask = np.ones((len(ANGLES), LONG, WIDE))
    mask[3, :34] = 0
    whole = series_along(0.0, noise(), mask)
    whole.images[:] = 1.0
    assert band(whole) is whole
    monkeypatch.setattr(tilt_images, "_BAND", 2**21)
    small = series_along(0.0, noise())
    assert band(small) is small


def test_a_band_tells_when_to_stop_as_all_do(monkeypatch):
    """Of a specimen that is alike everywhere: the same strength, and nearly the same iteration."""
    rng = np.random.default_rng(2)
    truth = torch.as_tensor(rng.standard_normal((8, LONG, WIDE)), dtype=torch.float32)
    for axis in range(3):
        truth = truth + truth.roll(1, axis) + truth.roll(2, axis)
    rays = series_along(0.0, noise()).rays
    seen = project(truth, rays).numpy()
    images = 1 - 0.1 * seen / seen.std() + 0.05 * rng.standard_normal(seen.shape)
    whole, seconds = series_along(0.0, images), []
    for most in (1, 2**21):
        monkeypatch.setattr(tilt_images, "_BAND", most)
        steps = []
        seconds.append(iterated(whole, 20, None, False, 4,
                                lambda done, of, steps=steps: steps.append(of), Kept()))
    by_part, by_all = seconds
    assert by_part.iterations == pytest.approx(by_all.iterations, abs=2)
    assert by_part.tv == pytest.approx(by_all.tv, rel=0.2)


@pytest.mark.parametrize("specimen", ["voxels", "octree"])
def test_waves_pass_wide_voxels_and_bands_where_rays_do(specimen, monkeypatch, tmp_path):
    """Both move the middle of images; slices are placed by the exposures' shifts, not by rays."""
    tilts = pd.DataFrame({"tilt_angle": [-40.0, 0.0, 40.0], "axis_angle": 20.0, "shift_x": 6.0,
                          "shift_y": -5.0, "defocus": 2e4})
    images = 1 + 0.1 * np.random.default_rng(3).standard_normal((3, 64, 32))
    whole, lens, models = series_of(images, tilts, 8.0, Grid(64.0)), Lens(model="multislice"), []

    class Seen(Model):
        def __init__(self, *given):
            super().__init__(*given)
            models.append(self)

    monkeypatch.setattr(tomogram_fit, "Model", Seen)
    if specimen == "voxels":
        tomogram_fit.fitted(whole, tomogram_fit.exposures_of(whole, tilts, lens), lens, 1, None,
                            False, 3, lambda done, of: None, Kept())
    else:
        recipe = ReconstructRecipe(
            input="-", method="gradient", specimen="octree", model="multislice", samples=5, depth=2,
            leaves=256, iterations=1, held_out=3, output=str(tmp_path / "tomogram"))
        _reconstructed(recipe, whole, None, tilts, lambda done, of: None, "", {})
    # Trees grow by wide voxels; of voxels a band is asked when to stop.
    tree = specimen == "octree"
    assert len({model.series.rays.pixel for model in models}) == (2 if tree else 1)
    assert tree or len({model.series.rays.grid for model in models}) == 2
    for model in models:
        shifts = torch.tensor([[one.shift_x, one.shift_y] for one in model.exposures])
        torch.testing.assert_close(shifts, model.series.rays.shifts)
