"""CTF of a whole tilt series: known together where it is unknown image by image."""

import json
import math
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch

from experiments.ctf_bench import Truth, tilted_micrograph
from tem_taichi.estimate import (
    ctf_cut,
    ctf_joint,
    ctf_model,
    ctf_prior,
    ctf_refine,
    ctf_solve,
    ctf_stated,
)
from tem_taichi.estimate.ctf_search import CtfSearch, Sectors
from tem_taichi.estimate.ctf_series import fit_series
from tem_taichi.estimate.ctf_tilt import Strip
from tem_taichi.export.formats import write_formats
from tem_taichi.files.mrc import write_mrc
from tem_taichi.fit import main
from tem_taichi.instrument.optics import round_phase
from tem_taichi.series.read import read_series

PIXEL_SIZE = 5.0
LENS = ctf_model.make_lens(300.0, 2.7, 0.07)
BASIS = ctf_model.make_basis(0.034, 0.095)
SEARCH = CtfSearch((24000.0, 40000.0), 400.0, (29.4, 10.5))
ANGLES = [-60.0, -48.0, -36.0, -24.0, -12.0, 0.0, 12.0, 24.0, 36.0, 48.0, 60.0]
HALF, TURN = 150.0, math.radians(2 * 35)
"""Of the astigmatism [A], and twice its angle."""


def drawn(defoci, contrast: float, generator: np.random.Generator,
          weight: float = 60.0) -> list[ctf_cut.Image]:
    """Images of three strips whose cells are drawn from the model: so many exponential elements."""
    k = torch.linspace(0.035, 0.0945, 40)
    twice = (torch.arange(24) + 0.5) * (2 * math.pi / 24)
    images = []
    for angle, defocus in zip(ANGLES, defoci, strict=True):
        strips = []
        for height in -math.tan(math.radians(angle)) * np.array([-1700.0, 0.0, 1700.0]):
            sectors = Sectors(torch.zeros(24, 40), torch.full((24, 40), weight), k)
            strips.append(Strip(float(height), 1, torch.ones(8, 8), PIXEL_SIZE, sectors))
        image = ctf_cut.Image(strips, math.radians(angle), 2000.0, 0.4, torch.zeros(3))
        cells = ctf_cut.cells_of(image, 1, LENS)
        own = defocus + cells.height + HALF * torch.cos(twice - TURN).repeat_interleave(
            40).repeat(3)
        chi = round_phase(cells.k**2, own, LENS.spherical_aberration, LENS.wavelength) - LENS.lag
        damped = contrast * cells.blur * torch.sinc(
            LENS.wavelength * cells.k**2 * cells.path * 1500)
        power = 1 - torch.tanh(damped) * torch.cos(2 * chi)
        noisy = power * torch.as_tensor(generator.gamma(weight, 1 / weight, len(power))).to(power)
        parts = (noisy - 1).view(3, 24, 40)
        images.append(replace(image, strips=[
            replace(strip, sectors=strip.sectors._replace(residual=part))
            for strip, part in zip(strips, parts, strict=True)]))
    return images


def known(found: ctf_refine.Found) -> ctf_prior.Defoci:
    near = ctf_solve.normal(found.series, found.joint, LENS, BASIS, found.noise, (0, 1, 3))
    return ctf_prior.posterior(ANGLES, *ctf_solve.reduced(near, len(ANGLES)), found.joint.defocus)


@pytest.fixture(scope="module")
def weak() -> ctf_refine.Found:
    """Fit of images whose rings are weak."""
    images = drawn([31000.0] * len(ANGLES), 0.025, np.random.default_rng(5))
    start = ctf_refine.Start(torch.full((len(ANGLES),), 31700.0), (0.0, 0.0, 0.0), 0.02, 300.0)
    return ctf_refine.refine([ctf_cut.cells_of(one, 1, LENS) for one in images], ANGLES, start,
                             1.0, LENS, BASIS, SEARCH)


def test_a_series_is_known_where_its_images_are_not(weak):
    """Maxima of single images lie further off than all of them together say."""
    found = weak
    defoci = known(found)
    error = float(defoci.covariance.mean().sqrt())
    # Four standard errors, of one draw.
    assert abs(float(defoci.mean.mean()) - 31000) < 4 * error < 1000
    grid = torch.arange(24.0, 40.0, 0.25, dtype=torch.float64)
    rows = torch.tensor([[float(ctf_joint.log_likelihood(
        one, replace(found.joint, defocus=torch.full_like(found.joint.defocus, value)), t, LENS,
        BASIS)) for value in grid] for t, one in enumerate(found.series)])
    alone = grid[rows.argmax(dim=1)] - 31
    assert float(alone.square().mean().sqrt()) > 1.5 * error / 1000
    # Elements are independent; the scatter of 264 sectors tells that within 15 %.
    assert found.noise == pytest.approx(1, abs=0.5)
    errors = ctf_stated.shared_errors(ctf_solve.normal(
        found.series, found.joint, LENS, BASIS, found.noise, (0, 1, 3)), ANGLES, found.widths,
        (0, 1, 3))
    for value, truth, one in zip(1000 * found.joint.lens[:2], (
            HALF * math.cos(TURN), HALF * math.sin(TURN)), errors[:2], strict=True):
        assert abs(float(value) - truth) < 4 * float(one) < 1200
    told = ctf_stated.stated(found, ANGLES, LENS, BASIS, (0, 1, 3))
    for (value, one), truth in zip((told.slope, told.phase, told.spherical), (1, 0, 2.7),
                                   strict=True):
        assert abs(value - truth) < 4 * one


def test_how_far_the_defoci_differ_is_told_by_the_data():
    generator = np.random.default_rng(3)
    for width, low, high in ((0.0, 0.0, 60.0), (300.0, 150.0, 600.0)):
        truth = 31000 + width * generator.normal(size=len(ANGLES))
        images = drawn(truth, 0.4, generator)
        series = [ctf_cut.cells_of(one, 1, LENS) for one in images]
        start = ctf_refine.Start(torch.as_tensor(truth), (51.0, 141.0, 0.0), 0.4, 300.0)
        found = ctf_refine.refine(series, ANGLES, start, 1.0, LENS, BASIS, SEARCH)
        defoci = known(found)
        assert low <= defoci.free + defoci.smooth < high
        away = (defoci.mean.numpy() - truth) / defoci.covariance.diagonal().sqrt().numpy()
        assert np.sqrt(np.mean(away**2)) < 2


def test_prior_says_nothing_of_the_mean():
    """And is the inverse of the covariance of differences."""
    precision, _ = ctf_prior.precision(ANGLES, 100.0, 30.0)
    assert float((precision @ torch.ones(len(ANGLES), dtype=torch.float64)).abs().max()) < 1e-9
    steps = np.array(ANGLES) / 3
    wander = np.where(np.outer(steps, steps) > 0, np.minimum.outer(abs(steps), abs(steps)), 0)
    covariance = (100**2 * np.eye(len(ANGLES)) + 30**2 * wander) / 1e6
    contrast = np.diff(np.eye(len(ANGLES)), axis=0)
    np.testing.assert_allclose(
        np.linalg.pinv(precision.numpy()), np.linalg.pinv(contrast) @ contrast @ covariance @ (
            np.linalg.pinv(contrast) @ contrast).T, atol=1e-12)


def test_score_is_the_likelihoods_derivative():
    """Against differences in double precision, of every parameter and every stated number."""
    image = drawn([31000.0] * len(ANGLES), 0.3, np.random.default_rng(0))[1]
    one = ctf_cut.cells_of(image, 1, LENS)

    def double(value):
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point(
            ) else value

    cells = replace(one.cells, **{name: double(value) for name, value in vars(one.cells).items()})
    one = replace(one, cells=cells, height=one.height.double(), blur=one.blur.double(),
                  k=one.k.double())
    basis = replace(BASIS, mean=BASIS.mean.double(), contrast=BASIS.contrast.double())
    joint = ctf_joint.begin(1, basis, torch.tensor([30.9]), (40.0, 120.0, 0.1), 0.2)
    joint = replace(joint, **{name: double(value) for name, value in vars(joint).items()})
    parts = ctf_joint.equations(one, joint, 0, LENS, basis, 1.0, (0, 1, 2, 3), stated=True)
    names = ("mean", "strength", "defocus", "contrast", "noise", "lens")
    place = 0
    for name in names:
        value = getattr(joint, name)
        for n in range(value.numel()):
            step = torch.zeros_like(value).view(-1)
            step[n] = 1e-6
            moved = [float(ctf_joint.log_likelihood(one, replace(
                joint, **{name: value + sign * step.view(value.shape)}), 0, LENS, basis))
                for sign in (1, -1)]
            slope = (moved[0] - moved[1]) / 2e-6
            # Rounding of the sums, 1e-10, over the step.
            assert float(parts.score[place]) == pytest.approx(slope, rel=1e-4, abs=2e-2), (name, n)
            place += 1
    for by, moved in enumerate((
            [(replace(one, height=one.height * (1 + sign * 1e-6)), LENS) for sign in (1, -1)],
            [(one, replace(LENS, lag=LENS.lag + sign * 1e-6)) for sign in (1, -1)],
            [(one, replace(LENS, spherical_aberration=LENS.spherical_aberration + sign * 10))
             for sign in (1, -1)])):
        high, low = (float(ctf_joint.log_likelihood(cells, joint, 0, lens, basis))
                     for cells, lens in moved)
        assert float(parts.score[place + by]) == pytest.approx((high - low) / 2e-6, rel=1e-4,
                                                               abs=2e-2), by
    assert place + 3 == len(parts.score)


def test_rings_under_a_window_are_those_of_the_strong_frequencies():
    """A window's average of k^p exp(i a k^2) has the phase of the k that is said: within 15 %."""
    n, pixel, power, rate = 256, 5.0, -6.0, 2 * math.pi * LENS.wavelength * 30000
    window = np.hanning(n + 1)[:n]
    weight = np.abs(np.fft.fft(window, 16 * n))**2
    away = np.fft.fftfreq(16 * n, pixel)
    near = np.abs(away) < 0.006
    weight, away = weight[near], away[near]
    both = weight[:, None] * weight
    image = ctf_cut.Image([], 0.0, n * pixel, 0.0, torch.tensor([power, 0.0, 0.0]))
    for k in (0.06, 0.08):
        squared = (k + away[:, None])**2 + away**2
        phase = np.angle((both * squared**(power / 2) * np.exp(1j * rate * (squared - k**2))).sum())
        said = rate * (float(ctf_cut.ringing(torch.tensor([k]).double(), image)[0])**2 - k**2)
        assert phase == pytest.approx(said, rel=0.15) and phase < -0.005


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Path:
    """Folder with a series of three tilts about an axis at 20 degrees, of much dose, its table of
    tilts, and its fit."""
    folder = tmp_path_factory.mktemp("series")
    angles, truth = (-45.0, 10.0, 45.0), Truth(30000, 600, 60, 1500)
    write_mrc(folder / "series.mrc", np.stack([
        tilted_micrograph(truth, (angle, 20.0), 256, seed, PIXEL_SIZE)
        for seed, angle in enumerate(angles)]), PIXEL_SIZE)
    (folder / "tilts.csv").write_text("tilt_angle,axis_angle,dose,defocus_um\n" + "".join(
        f"{angle},20.0,3.0,9.0\n" for angle in angles))
    assert main(["recipe=ctf", f"input={folder}/series.mrc", f"angles={folder}/tilts.csv",
                 "joint=true", "defocus=[24000,36000]", f"output={folder}/found"]) == 0
    return folder


def test_recipe_writes_what_other_programs_read(found, tmp_path):
    results = json.loads((found / "found" / "results.json").read_text())
    assert abs(results["defocus_A"] - 30000) < 5 * results["defocus_error_A"] < 500
    assert abs(results["astigmatism_A"] - 600) < 5 * results["astigmatism_error_A"] < 600
    assert results["hand_gain"] > 5 and "amplitude contrast is 0.07" in str(results["assumptions"])
    assert (found / "found" / "series.png").is_file() and (found / "found" / "scene.yaml").is_file()
    # A series read with the table has the defoci, and other programs get them.
    read = read_series(found / "series.mrc", found / "found" / "tilts_ctf.csv", name="found",
                       voltage=300.0, height=64, spherical_aberration=2.7, amplitude_contrast=0.07)
    write_formats(tmp_path, read, ["relion5"])
    rows = starfile.read(tmp_path / "relion5" / "tilt_series" / "found.star")
    np.testing.assert_allclose(sorted(rows.rlnDefocusU), sorted(
        fit["defocus_u"] for fit in results["fits"]), rtol=1e-5)
    assert len(starfile.read(found / "found" / "micrographs_ctf.star")["micrographs"]) == 3


def reconstructed(found: Path, output: Path, *words: str) -> dict:
    assert main(["recipe=reconstruct", "method=gradient", f"input={found}/series.mrc", "bin=8",
                 f"angles={found}/found/tilts_ctf.csv", "thickness=200", "iterations=1", "tv=1",
                 "held_out=0", f"output={output}", *words]) == 0
    return json.loads((output / "results.json").read_text())


def test_what_was_found_goes_into_the_reconstruction(found, tmp_path):
    """In one command; with other defoci, what comes out is another."""
    table = pd.read_csv(found / "found" / "tilts_ctf.csv")
    results = reconstructed(found, tmp_path / "out")
    u, v = table["defocus_u"].max(), table["defocus_v"].min()
    assert f"those of defocus_u and defocus_v, {v:.0f} to {u:.0f} A" in results["assumptions"][1]
    assert results["warnings"] == []
    reconstructed(found, tmp_path / "nominal", f"angles={found}/tilts.csv")
    one, other = (mrcfile.read(tmp_path / name / "tomogram.mrc") for name in ("out", "nominal"))
    assert np.abs(one - other).max() > 0.1 * one.std()


def test_doubtful_defoci_are_said_in_the_reconstruction(found, tmp_path):
    table = pd.read_csv(found / "found" / "tilts_ctf.csv")
    table.assign(reliable=[True, False, False]).to_csv(tmp_path / "doubtful.csv", index=False)
    said = reconstructed(found, tmp_path / "out", f"angles={tmp_path}/doubtful.csv",
                         "amplitude_contrast=0.1")["warnings"]
    assert said[0].startswith("The defoci of 2 of 3 images are doubtful")
    assert said[1] == ("The defoci were found with amplitude_contrast=0.07, the tomogram with "
                       "0.1.") and len(said) == 2


def test_another_defocus_is_judged_by_the_likelihood_of_all_images(weak, monkeypatch):
    assert weak.lead == math.inf

    def led(defocus):
        return ctf_refine.challenged(weak, defocus, ANGLES, LENS, BASIS, SEARCH).lead

    assert 10 < led(24000.0) < math.inf
    assert led(31100.0) == math.inf  # which leads to the same
    joint = replace(weak.joint, defocus=weak.joint.defocus - 7)
    monkeypatch.setattr(ctf_refine, "refine", lambda *_: replace(
        weak, joint=joint, value=weak.value - 3))
    assert led(24000.0) == pytest.approx(3)


def test_a_fit_beside_another_of_less_noise_keeps_its_value(weak, monkeypatch):
    """So that later rivals can be compared with it."""
    far = replace(weak, joint=replace(weak.joint, defocus=weak.joint.defocus - 7),
                  noise=0.9 * weak.noise, value=weak.value - 1e6)
    both = iter([weak, far])
    monkeypatch.setattr(ctf_refine, "refine", lambda *_: next(both))
    monkeypatch.setattr(ctf_refine, "_starts", lambda *_: [ctf_refine.Start(
        torch.full((len(ANGLES),), middle), (0.0, 0.0, 0.0), 0.02, 300.0)
        for middle in (31000.0, 24000.0)])
    found = ctf_refine.best_fit(drawn([31000.0] * len(ANGLES), 0.025, np.random.default_rng(5)),
                                ANGLES, 1, LENS, BASIS, SEARCH)
    assert found.joint is weak.joint and found.value == weak.value
    likelihood = weak.likelihood * (1 / far.noise - 1 / weak.noise)
    assert found.lead == pytest.approx(1e6 + likelihood)


def test_a_series_without_rings_is_doubted():
    noise = np.random.default_rng(1).normal(100, 10, (3, 128, 128)).astype(np.float32)
    found = fit_series(noise, PIXEL_SIZE, [(angle, 0.0) for angle in (-30, 0, 30)], 300.0,
                       2.7, 0.07, CtfSearch((20000.0, 30000.0), 0.0, (30.0, 10.0)))
    assert not found.reliable and any("log-likelihood" in doubt for doubt in found.doubts)


def test_wrong_input_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(1).normal(100, 10, (2, 128, 128)).astype(np.float32)
    write_mrc(Path("series.mrc"), noise, PIXEL_SIZE)
    assert main(["recipe=ctf", "input=series.mrc", "joint=true"]) == 2
    assert "joint=true: must be false where there are no angles" in capsys.readouterr().err
    Path("tilts.csv").write_text("tilt_angle,axis_angle\n0,20\n3,20\n")
    assert main(["recipe=ctf", "input=series.mrc", "joint=true", "angles=tilts.csv"]) == 2
    assert "must be one each, and three or more" in capsys.readouterr().err
