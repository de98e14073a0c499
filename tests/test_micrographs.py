"""A network and a law of noise under the transmission microscope's instrument."""

import json

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch

from tem_taichi.device import as_tensor
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.micrographs import Micrographs
from tem_taichi.estimate.stem_fit import Plan, fitted
from tem_taichi.estimate.tilt_images import Grid, series_of
from tem_taichi.estimate.tomogram_fit import exposures_of
from tem_taichi.estimate.tomogram_model import Lens
from tem_taichi.files.mrc import write_mrc
from tem_taichi.fit import main
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.projection import Projection
from tem_taichi.inverse.measures import correlation
from tem_taichi.noise.flow import Layers, learned
from tem_taichi.specimen.field import voxels
from tem_taichi.specimen.implicit import small

ANGLES, VOXEL, DEFOCUS = np.arange(-60, 61, 6.0), 8.0, 4000.0
SHAPE, DEEP = (18, 20), 8
LENS = Lens(300.0, 2.7, 0.1)
PLACES = ((4, -3, 1, 1.0), (-4, 2, -2, 0.7))
"""x, y, z of two balls and their potentials; their mirror images are elsewhere."""


def potential():
    z, y, x = np.meshgrid(*[np.arange(n) - n // 2 for n in (DEEP, *SHAPE)], indexing="ij")
    return torch.tensor(25 * sum(w * np.clip(2.5 - np.sqrt((x - a)**2 + (y - b)**2 + (z - c)**2),
                                             0, 1) for a, b, c, w in PLACES)).float()


def seen(charge=1.0):
    """Images of electrons of random charge, whose noise is skewed, and their tilts."""
    specimen, rng = voxels(potential(), VOXEL), np.random.default_rng(0)
    instrument = Projection(SHAPE, SHAPE, VOXEL, 300.0, 0.1)
    clean = np.stack([instrument.intensity(specimen, Exposure(
        Optics(defocus=DEFOCUS, spherical_aberration=2.7), float(angle))).numpy()
        for angle in ANGLES])
    electrons = rng.poisson(400 * clean / charge)
    counts = charge * rng.gamma(electrons + 1e-9)
    return clean, counts, pd.DataFrame({"tilt_angle": ANGLES, "axis_angle": 0.0,
                                        "defocus": DEFOCUS})


def taken(images, tilts):
    series = series_of(images, tilts, VOXEL, Grid(DEEP * VOXEL))
    return Micrographs(series, exposures_of(series, tilts, LENS), LENS)


def quiet(done, total):
    assert done <= total


def test_images_are_the_instruments():
    """Of the same potential, but for the mean of each, in units of its noise, pixels left out."""
    clean, counts, tilts = seen()
    images = taken(counts, tilts)
    images.series.weights[3, 2:5] = 0
    assert images.counts[3, 2:5].isnan().all() and images.counts.isfinite().sum() == 21 * 360 - 60
    made = images.expected(potential())
    for n in (0, 10):
        expected = clean[n] / clean[n].mean() * made[n].mean().numpy()
        np.testing.assert_allclose(made[n], expected, rtol=2e-3)
        left = images.counts[n] - made[n]
        # The strength is that of the high frequencies of 360 pixels.
        assert float(left.std()) == pytest.approx(1, rel=0.25)
    some = images.some([3, 10])
    torch.testing.assert_close(some.expected(potential()), made[[3, 10]], rtol=1e-5, atol=1e-5)


def test_the_laws_gradient_is_that_of_differences(double):
    """By the potential and by the law's numbers, through the lens and the free brightness."""
    _, counts, tilts = seen()
    images = taken(counts, tilts).some([0, 8, 20])
    flow = fitted(images, Plan("voxels", "flow", passes=1, warm=0, batch=3, law_steps=3, unit=5.0),
                  0, quiet, Kept()).flow
    rng = np.random.default_rng(1)

    def loss(volume, fixed):
        law = learned(flow, Layers(fixed, *flow.layers[1:]))
        return -law.log_density(images.counts, images.expected(volume)).sum()

    start = (potential().double(), flow.layers.fixed.double())
    ways = [as_tensor(rng.standard_normal(tuple(one.shape))) for one in start]
    free = [one.clone().requires_grad_() for one in start]
    slopes = torch.autograd.grad(loss(*free), free)
    step = 1e-5
    for n, (way, slope) in enumerate(zip(ways, slopes, strict=True)):
        ends = [loss(*[one + sign * step * way if k == n else one for k, one in enumerate(start)])
                for sign in (1, -1)]
        # Kinks of the layers and knots of the clean value may lie between.
        assert float((way * slope).sum()) == pytest.approx(
            float(ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_a_law_is_learned_beside_a_networks_potential():
    """It is skewed as the noise is, and what is left of the images does not know the specimen."""
    _, counts, tilts = seen(charge=8.0)
    images = taken(counts, tilts)
    plan = Plan("implicit", "flow", small(20, 16, 1), tv=0.5, passes=8, warm=30, batch=4,
                law_steps=60, rate=0.01, unit=5.0)
    found = fitted(images, plan, 7, quiet, Kept())
    assert float(correlation(found.volume, potential())) > 0.6
    with torch.no_grad():
        expected, truth = images.expected(found.volume), images.expected(potential())
        drawn = found.flow.residual(torch.randn(40000), torch.full((40000,), float(truth.mean())))
    left, noise = images.counts - expected, images.counts - truth

    def skewness(some):
        return float(((some - some.mean()) / some.std()).pow(3).mean())

    assert skewness(noise) > 0.2  # of 50 electrons of random charge
    assert skewness(drawn) == pytest.approx(skewness(noise), rel=0.5)
    assert abs(float(correlation(left, truth))) < 0.12


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tem")
    _, counts, tilts = seen()
    write_mrc(folder / "series.mrc", counts.astype(np.float32), VOXEL)
    tilts.to_csv(folder / "tilts.csv")
    return folder


@pytest.mark.parametrize("words", [
    ["specimen=implicit", "tv=0.2", "iterations=25", "width=16", "rate=0.01"],
    ["noise=flow", "tv=0.2", "iterations=5", "warm=12", "law_layers=4"]])
def test_the_recipe_finds_the_potential(stack, tmp_path, words):
    assert main(["recipe=reconstruct", f"input={stack}/series.mrc", f"angles={stack}/tilts.csv",
                 f"thickness={DEEP * VOXEL}", "method=gradient", "amplitude_contrast=0.1",
                 "margin=0", "held_out=7", f"output={tmp_path}/out", *words]) == 0
    volume = torch.as_tensor(mrcfile.read(tmp_path / "out/tomogram.mrc").copy())
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["unit"] == "V" and results["tv"] == pytest.approx(0.2)
    assert any("noise" in line.lower() for line in results["assumptions"])
    assert float(correlation(volume, potential())) > 0.6
    for axis in range(3):  # the even grid's middle is n // 2: its mirror image is a voxel on
        mirrored = potential().flip(axis).roll(1, axis)
        assert float(correlation(volume, mirrored)) < 0.5
    assert 8 < float(volume.max()) < 40


@pytest.mark.parametrize(("words", "said"), [
    (["noise=flow"], 'noise="flow": must be gauss with method=wbp'),
    (["method=gradient", "noise=flow", "model=multislice"], "gauss with model=multislice"),
    (["method=gradient", "noise=flow", "specimen=octree"], "gauss with specimen=octree"),
    (["method=gradient", "specimen=implicit", "model=multislice"], "projection with specimen"),
    (["method=gradient", "rate=0"], "rate=0")])
def test_what_cannot_be_is_one_line(stack, tmp_path, capsys, words, said):
    assert main(["recipe=reconstruct", f"input={stack}/series.mrc",
                 f"angles={stack}/tilts.csv", f"output={tmp_path}/out", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_waves_through_slices_are_refused():
    _, counts, tilts = seen()
    with pytest.raises(ValueError, match="model"):
        series = series_of(counts, tilts, VOXEL, Grid(DEEP * VOXEL))
        Micrographs(series, exposures_of(series, tilts, LENS), Lens(model="multislice"))
