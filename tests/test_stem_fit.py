"""estimate/stem_fit.py: densities from scanned images, beside a law of noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tem_taichi.estimate import stem_fit
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.stem_fit import Images, Plan, explained, fitted, split, unit_of
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.stem import STEM
from tem_taichi.inverse.measures import correlation
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.field import voxels
from tem_taichi.specimen.implicit import small
from tem_taichi.specimen.rays import Rays

SIZE, ANGLES = 14, np.arange(-66, 67, 6.0)
NET = small(SIZE, width=16, layers=1)


def series(cone=0.0, seed=0):
    """Noisy images of two balls, electrons of random charge; the clean images and the density."""
    z, y, x = np.meshgrid(*[np.arange(SIZE) - SIZE // 2] * 3, indexing="ij")
    truth = sum(np.clip(r + 0.5 - np.sqrt((x - a)**2 + (y - b)**2 + (z - c)**2), 0, 1) * w
                for r, w, a, b, c in ((3.0, 1.0, -2, 1, 0), (1.5, 0.6, 3, -3, 2)))
    density = torch.tensor(0.025 * truth).float()
    rays = Rays(torch.stack([tilt_rotation(a) for a in ANGLES]), torch.zeros(len(ANGLES), 2),
                (SIZE,) * 3, 10.0, (SIZE, SIZE), 10.0)
    images = Images(torch.zeros(len(ANGLES), SIZE, SIZE), rays,
                    [Exposure(tilt_angle=float(a), dose=1.0) for a in ANGLES],
                    STEM((SIZE, SIZE), 10.0, convergence=cone))
    clean = images.expected(density)
    rng = np.random.default_rng(seed)
    counts = 4 * rng.gamma(np.maximum(rng.poisson(clean.numpy() / 4), 1e-9))
    return replace(images, counts=torch.tensor(counts).float()), clean, density


def quiet(done, total):
    assert done <= total


def test_images_are_the_instruments():
    """The same as the seam gives them one by one."""
    images, clean, density = series(cone=30.0)
    for n in (0, 7, 20):
        alone = images.instrument.intensity(voxels(density, 10.0), images.exposures[n]) * 100
        assert torch.allclose(clean[n], alone, rtol=1e-4)


@pytest.mark.parametrize(("specimen", "loss"), [
    ("voxels", "l2"), ("voxels", "l1"), ("implicit", "l2"), ("implicit", "flow")])
def test_a_fit_finds_the_density(specimen, loss):
    """Nearer than nothing by half, and what it leaves of the images knows little of the truth."""
    images, clean, density = series()
    rate = 0.01 if specimen == "implicit" else None
    plan = Plan(specimen, loss, NET, tv=0.1, passes=20, warm=20, batch=4, law_steps=60, rate=rate)
    found = fitted(images, plan, 7, quiet, Kept())
    wrong = (found.volume - density).norm() / density.norm()
    assert wrong < 0.6
    assert (found.volume > 0).all()
    assert abs(float(correlation(images.counts - images.expected(found.volume), clean))) < 0.12
    if loss == "flow":
        # The law's mean is the clean image: whatever was learned, noise is even about it.
        drawn = found.flow.residual(torch.randn(20000), torch.full((20000,), 60.0))
        assert abs(float(drawn.mean())) < 0.05
        with torch.no_grad():
            nll = -found.flow.log_density(images.counts, clean).mean()
            sigma = (images.counts - clean).std()
        assert nll < (sigma * (2 * np.pi * np.e)**0.5).log()  # better than one normal law


def test_turns_and_images_held_out_choose_the_variation():
    images, _, density = series()
    plan = Plan("voxels", "flow", tv=None, passes=4, warm=10, batch=8, turns=2, law_steps=20)
    found = fitted(images, plan, 7, quiet, Kept())
    assert 0.01 <= found.tv <= 100
    assert (found.volume - density).norm() < 0.8 * density.norm()
    with pytest.raises(ValueError, match="held_out"):
        fitted(images, plan, 0, quiet, Kept())


def test_the_rate_does_not_rise_again_where_a_law_begins(monkeypatch):
    """It goes on from where it was, after some small first steps, and ends at nothing."""
    rates, real = [], stem_fit.minimise_parts

    def spied(*given, optimiser, **more):
        rates.append([optimiser.schedule(n) for n in range(1, optimiser.steps + 1)])
        return real(*given, optimiser=optimiser, **more)

    monkeypatch.setattr(stem_fit, "minimise_parts", spied)
    plan = Plan("voxels", "flow", passes=15, warm=5, batch=8, law_steps=5)
    fitted(series()[0], plan, 7, quiet, Kept())
    first, second = rates
    assert first[0] == 1 and max(second) < first[-1] < 1
    assert second[0] < 0.1 < max(second) and second[-1] < 0.01


def test_an_interrupted_fit_goes_on(tmp_path):
    images, _, _ = series()
    plan = Plan("implicit", "flow", NET, passes=3, warm=3, batch=8, law_steps=20)
    whole = fitted(images, plan, 7, quiet, Kept())

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    kept = Kept(tmp_path, "this")
    with pytest.raises(KeyboardInterrupt):
        fitted(images, plan, 7, stop, kept)
    seen = []
    again = fitted(images, plan, 7, lambda done, total: seen.append(done), kept)
    assert seen[0] == 6
    assert torch.allclose(again.volume, whole.volume, rtol=1e-4)


def test_the_beams_cone_is_approached():
    """From half of it, of clean images: a blurred density explains them nearly as well, so that it
    comes a quarter of the way in these passes, and not beyond."""
    images, clean, _ = series(cone=200.0)
    given = replace(images, counts=clean, instrument=replace(images.instrument, convergence=100.0))
    plan = Plan("voxels", "l2", passes=60, batch=8, patience=60, free_cone=True)
    found = fitted(given, plan, 7, quiet, Kept())
    assert 125.0 < found.cone < 220.0
    with pytest.raises(ValueError, match="convergence"):
        fitted(replace(given, instrument=replace(images.instrument, convergence=0.0)),
               Plan("voxels", "l2", free_cone=True), 7, quiet, Kept())


def test_held_out_images_judge_whatever_made_the_density():
    images, clean, density = series()
    shown, held = split(images, 7)
    assert not set(shown) & set(held) and len(shown) + len(held) == len(ANGLES)
    right = explained(images, density, shown, held, steps=60)
    assert right["rms"] == pytest.approx(float((images.counts - clean)[held].square().mean()
                                               .sqrt()), rel=1e-5)
    assert explained(images, 0 * density, shown, held, steps=60)["nll"] > right["nll"] + 0.1


def test_the_unit_is_about_the_density():
    images, clean, density = series()
    unit = unit_of(replace(images, counts=clean))
    assert 0.1 * float(density.max()) < unit < 3 * float(density.max())


@pytest.mark.parametrize(("key", "value"), [
    ("specimen", "tree"), ("loss", "l3"), ("tv", -1.0), ("passes", 0), ("law_rate", -1.0)])
def test_impossible_plans_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        replace(Plan(), **{key: value})
