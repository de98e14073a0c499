"""recipe=denoise joint=true: tilts of one specimen, each predicted by the others."""

import json
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch

from tem_taichi.cli.recipes import do_recipe
from tem_taichi.estimate import denoise, other_tilts
from tem_taichi.estimate.denoise import whole
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.noise_law import law_of
from tem_taichi.estimate.other_tilts import Noise, predictions
from tem_taichi.estimate.recording import record
from tem_taichi.estimate.shrinkage import explained, sharpened
from tem_taichi.estimate.tilt_images import Grid, series_of
from tem_taichi.files.mrc import write_mrc
from tem_taichi.fit import main
from tem_taichi.inverse.measures import correlation
from tem_taichi.inverse.posterior import Views, deviations, posterior_mean
from tem_taichi.noise.detector import Detector
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.rays import Rays, project

SIZE, DEPTH, PIXEL, DOSE = 40, 16, 8.0, 60.0
ANGLES = np.linspace(-60, 60, 25)


def balls() -> torch.Tensor:
    """Of 3 voxels' radius, in a slab wider than the field."""
    generator = np.random.default_rng(1)
    volume = torch.zeros(DEPTH, SIZE, 3 * SIZE)
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in volume.shape), indexing="ij")
    for middle in generator.uniform((4, 3, 0), (DEPTH - 4, SIZE - 3, 3 * SIZE), (36, 3)):
        volume[(z - middle[0])**2 + (y - middle[1])**2 + (x - middle[2])**2 < 3**2] = 0.004
    return volume


@pytest.fixture(scope="module")
def tilts() -> tuple[np.ndarray, np.ndarray]:
    """Electrons and their means: 12 % of contrast in noise of 16 %."""
    rotations = torch.stack([tilt_rotation(float(angle)) for angle in ANGLES])
    rays = Rays(rotations, torch.zeros(len(ANGLES), 2), (DEPTH, SIZE, 3 * SIZE), PIXEL,
                (SIZE, SIZE), PIXEL)
    means = (DOSE * (1 - project(balls(), rays))).numpy()
    return np.random.default_rng(2).poisson(means).astype(np.float32), means


def table(angles=ANGLES) -> pd.DataFrame:
    return pd.DataFrame({"tilt_angle": angles, "axis_angle": 0.0})


def noise_in(images) -> Noise:
    laws = [law_of(torch.as_tensor(image[None]), Detector()) for image in images]
    return Noise(laws, [float(image.mean()) for image in images])


def series_in(images, size=1):
    return series_of(images, table(), PIXEL, Grid(DEPTH * PIXEL, size, margin=150.0))


@pytest.fixture(scope="module")
def here(tmp_path_factory, tilts) -> Path:
    """A working folder with the series and its angles."""
    folder = tmp_path_factory.mktemp("series")
    write_mrc(folder / "s.mrc", tilts[0], PIXEL)
    table().to_csv(folder / "s.csv", index=False)
    return folder


def words(here: Path, *more: str) -> list[str]:
    return ["recipe=denoise", f"input={here}/s.mrc", "joint=true", "prior=spectral",
            "detector=ideal", "strength=[0]", f"thickness={DEPTH * PIXEL}", "draws=0", "folds=3",
            *more]


def denoised(here, output, *more) -> tuple[dict, np.ndarray]:
    assert main([*words(here, *more), f"output={output}"]) == 0
    return (json.loads((output / "results.json").read_text()),
            mrcfile.read(output / "denoised.mrc") * PIXEL**2)


def likeness(images, truth) -> np.ndarray:
    return np.array([np.corrcoef(one.ravel(), other.ravel())[0, 1]
                     for one, other in zip(images, truth, strict=True)])


def test_what_is_seen_and_what_is_spread_are_adjoint(double):
    rotations = torch.stack([tilt_rotation(angle, 10.0) for angle in (-40.0, 0.0, 55.0)])
    generator = torch.Generator().manual_seed(0)
    rays = Rays(rotations, torch.zeros(3, 2), (6, 20, 18), 2.0, (20 + 8, 18 + 8), 2.0)
    views = Views(rays, torch.rand(3, 28, 14, generator=generator, dtype=torch.float64), 4)
    field = torch.randn(6, 20, 18, generator=generator, dtype=torch.float64)
    images = torch.randn(3, 20, 18, generator=generator, dtype=torch.float64)
    # The last column of an rfft2 of an even side is real: as a filter it is its own adjoint.
    assert float((views.seen(field) * images).sum()) == pytest.approx(
        float((field * views.spread(images)).sum()), rel=1e-10)


def test_the_posterior_is_where_its_slope_is_0(double):
    """Of |images - H A s u|^2 + |u|^2, by automatic differentiation."""
    rotations = torch.stack([tilt_rotation(angle) for angle in (-40.0, 0.0, 40.0)])
    generator = torch.Generator().manual_seed(0)
    views = Views(Rays(rotations, torch.zeros(3, 2), (4, 16, 16), 1.0, (20, 20), 1.0),
                  torch.full((1, 20, 11), 0.7, dtype=torch.float64), 2)
    images = torch.randn(3, 16, 16, generator=generator, dtype=torch.float64)
    images -= images.mean((1, 2), keepdim=True)
    deviation = 0.5 + torch.rand(4, 16, 16, generator=generator, dtype=torch.float64)
    field = posterior_mean(images, views, deviation, iterations=60)
    free = (field / deviation).requires_grad_()
    loss = (images - views.seen(free * deviation)).square().sum() + free.square().sum()
    slope, = torch.autograd.grad(loss, free)
    assert float(slope.norm()) < 1e-6 * float(images.norm())
    again = posterior_mean(images, views, deviation, field, 1)
    torch.testing.assert_close(again, field, rtol=0, atol=1e-8)


def test_deviations_are_of_the_neighbourhood():
    field = torch.zeros(5, 9, 9)
    field[:, 4, 4] = 3.0
    found = deviations(field)
    assert float(found.square().mean()) == pytest.approx(1, abs=0.02)  # all but at the edges
    # Averaged by 6/16 in the middle, 4/16 beside it along either axis: the root of the product.
    assert float(found[2, 4, 4] / found[2, 4, 5]) == pytest.approx((6 / 4)**0.5, rel=1e-5)
    assert float(found[0, 0, 0]) == 0
    assert torch.equal(deviations(torch.zeros(3, 4, 5)), torch.ones(3, 4, 5))


def test_a_prediction_knows_nothing_of_its_own_fold(tilts):
    """To the last bit; and that it does know the others shows that it is one."""
    images, means = tilts
    found = predictions(series_in(images), noise_in(images), 2, Kept())
    truth = 1 - means / means.mean((1, 2), keepdims=True)
    assert likeness(found.numpy(), truth)[5:-5].min() > 0.6  # of half of the images
    changed = images.copy()
    changed[12] = np.random.default_rng(5).poisson(60, changed[12].shape)
    again = predictions(series_in(changed), noise_in(changed), 2, Kept())
    same = [torch.equal(one, other) for one, other in zip(again, found, strict=True)]
    assert same == [n % 2 == 0 for n in range(len(images))]


def test_each_tilt_gets_better_by_the_others(here, tilts, tmp_path):
    results, together = denoised(here, tmp_path / "a")
    truth = tilts[1]
    some = [3, 12, 20]
    alone = [whole("spectral", (0.0,), record(torch.as_tensor(tilts[0][n:n + 1]), Detector()))
             for n in some]
    # What is wrong of the contrast: 1 - c^2 of its power.
    left, left_alone = (1 - likeness(np.stack(of), truth[some])**2 for of in (
        together[some], alone))
    assert (left < 0.75 * left_alone).all()
    assert results["with_others"] == len(ANGLES) and results["warnings"] == []
    assert 0.3 < results["median_from_others"] < 1.1
    rows = pd.read_csv(tmp_path / "a" / "tilts.csv")
    assert (rows["held_out_gain_nats"] > rows["held_out_gain_alone_nats"]).all()
    np.testing.assert_allclose(together.mean((1, 2)), tilts[0].mean((1, 2)), rtol=0.001)
    others = mrcfile.read(tmp_path / "a" / "from_others.mrc")
    assert others.shape == together.shape and likeness(others, truth).mean() > 0.7
    assert (tmp_path / "a" / "denoised.png").stat().st_size > 10_000


def test_a_series_that_does_not_fit_together_is_denoised_tilt_by_tilt(here, tmp_path):
    """Angles in a wrong order: nothing is taken from others, and it is said."""
    angles = np.random.default_rng(0).permutation(ANGLES)
    table(angles).assign(shift_x=np.random.default_rng(1).uniform(-150, 150, len(angles))).to_csv(
        tmp_path / "wrong.csv", index=False)
    results, together = denoised(here, tmp_path / "a", f"angles={tmp_path}/wrong.csv", "bin=2",
                                 "folds=2")
    assert results["with_others"] < len(ANGLES) / 3
    assert "are denoised alone" in results["warnings"][0]
    assert "Shifts, axis or angles may be wrong" in results["warnings"][0]
    number, = [n for n, row in enumerate(results["tilts"]) if not row["with_others"]][:1]
    assert results["tilts"][number]["from_others"] == 0
    alone = whole("spectral", (0.0,), record(torch.as_tensor(mrcfile.read(here / "s.mrc")[
        number:number + 1]), Detector()), keep=False)
    np.testing.assert_allclose(together[number], alone, rtol=1e-4)


def test_binned_predictions_and_errors_are_in_the_images_pixels(here, tilts, tmp_path):
    results, together = denoised(here, tmp_path / "a", "bin=2", "draws=1", "mtf=kept")
    assert results["voxel_size_A"] == 2 * PIXEL and together.shape == tilts[1].shape
    assert results["with_others"] > 0.8 * len(ANGLES)
    error = mrcfile.read(tmp_path / "a" / "error.mrc") * PIXEL**2
    true = np.sqrt(((together - tilts[1])**2).mean((1, 2)))
    said = np.array([row["rms_error_e_per_A2"] for row in results["tilts"]]) * PIXEL**2
    np.testing.assert_allclose(np.sqrt((error**2).mean((1, 2))), said, rtol=1e-4)
    # Of 2,304 pixels and one draw; the prediction's error is known from parts held out alone.
    assert 0.5 < np.median(said / true) < 1.5


def test_an_interrupted_run_goes_on(tilts, tmp_path, monkeypatch):
    """To the same bytes, without predicting again what was predicted."""
    write_mrc(tmp_path / "s.mrc", tilts[0][::3], PIXEL)
    table(ANGLES[::3]).to_csv(tmp_path / "s.csv", index=False)
    more = ["bin=2", "folds=2", "draws=1"]
    real, calls, judged = other_tilts.predicted, [], []

    def predicted(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(other_tilts, "predicted", predicted)
    with pytest.raises(KeyboardInterrupt):
        do_recipe([*words(tmp_path, *more), f"output={tmp_path}/a"])
    assert (tmp_path / ".a.unfinished").is_dir()
    gains = denoise.gains

    def counted(*given):
        judged.append(given)
        if len(judged) == 8:
            raise KeyboardInterrupt
        return gains(*given)

    monkeypatch.setattr(denoise, "gains", counted)
    with pytest.raises(KeyboardInterrupt):
        do_recipe([*words(tmp_path, *more), f"output={tmp_path}/a"])
    _, again = denoised(tmp_path, tmp_path / "a", *more)
    assert len(calls) == 2 + 1
    assert len(judged) < 8 + 2 * 9  # of each tilt alone and with the others: not all again
    _, at_once = denoised(tmp_path, tmp_path / "b", *more)
    np.testing.assert_array_equal(again, at_once)
    assert not (tmp_path / ".a.unfinished").exists()


@pytest.mark.parametrize(("more", "said"), [
    (["folds=20"], "folds=20: must be at most 12, half of the 25 images"),
    (["folds=1"], "folds=1"), (["image=3"], "image=3: must be null for joint=true"),
    (["prior=total_variation", "strength=null"],
     'prior="total_variation": must be auto, smooth, spectral or local for joint=true'),
    (["joint=false", "angles=s.csv"], 'angles="s.csv": must be null unless joint=true'),
    (["thickness=0"], "thickness=0"), (["bin=0"], "bin=0"), (["bin=64"], "bin=64: must leave"),
    (["axis_angle=400"], "axis_angle=400"), (["cut_from=[1]"], "cut_from"),
    (["shifts=[dx,dy]"], "shifts=dx: must be a column of the table"),
    (["angles=none.csv"], "angles: [Errno 2]")])
def test_what_cannot_be_is_one_line(here, tmp_path, monkeypatch, capsys, more, said):
    monkeypatch.chdir(tmp_path)
    assert main([*words(here, *more), f"output={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_image_without_electrons_is_named(here, tilts, tmp_path, capsys):
    images = tilts[0].copy()
    images[4] = 0
    write_mrc(tmp_path / "d.mrc", images, PIXEL)
    table().to_csv(tmp_path / "d.csv", index=False)
    assert main([*words(here), f"input={tmp_path}/d.mrc", f"output={tmp_path}/out"]) == 2
    assert "input: image 5 of 25: images: their mean is 0" in capsys.readouterr().err


def test_what_is_explained_is_what_is_shared():
    """All of what is known but its scale, and nothing of what is not shared."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*[torch.arange(96).float()] * 2, indexing="ij")
    picture = 10 * torch.exp(-((x - 40)**2 + (y - 50)**2) / 200)
    electrons = 50 + picture + 2 * torch.randn(96, 96, generator=generator)
    found = explained(electrons, 0.03 * picture + 7)
    assert float(correlation(found, picture)) > 0.99
    assert float((found * picture).sum() / ((picture - picture.mean()) * picture).sum()
                 ) == pytest.approx(1, abs=0.03)
    noise = explained(electrons, torch.randn(96, 96, generator=generator))
    # Half of some 100 independent regressions are positive by chance, few by much.
    assert float(noise.var()) < 0.01 * float(electrons.var())
    law = law_of(electrons[None], Detector("integrating", 1.0, (0.7, 0.2, 0.1, 10.0, 40.0)))
    assert float(sharpened(picture, law).max()) > float(picture.max())
