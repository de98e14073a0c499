"""recipe=denoise: noise laws, independent parts, estimates against their formulas and the truth."""

import json
import math
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch

from experiments import bench, tomography
from experiments.denoise import closed, oracle_gaussian, oracle_wiener, table
from tem_taichi.estimate import baselines, denoise, kept, score_fit
from tem_taichi.estimate.baselines import nonlocal_means, wavelets
from tem_taichi.estimate.denoise import Estimate, best, choose, sampled, whole
from tem_taichi.estimate.denoise_error import error_map, measured_error
from tem_taichi.estimate.edge_prior import fit_edges, picture_of
from tem_taichi.estimate.noise_law import blurred, draw, law_of, transfer
from tem_taichi.estimate.recording import record
from tem_taichi.estimate.shrinkage import gaussian, local, smooth, spectral
from tem_taichi.files.mrc import write_mrc
from tem_taichi.fit import main
from tem_taichi.inverse.measures import correlation
from tem_taichi.inverse.priors import smooth as smooth_prior
from tem_taichi.noise.detector import Detector, detect
from tem_taichi.series.camera import detector_of_name

SIZE = 96
PUBLISHED = Detector("integrating", 1.0, (0.7, 0.2, 0.1, 10.0, 40.0))
COUNTING = Detector("counting", 0.5, (2.002, 0.01045, -1.012, 0.8634, 4363.0), 0.5)


def rods(size=SIZE):
    """Periodic along a rod in one half, a disc in the other, of 12 % contrast."""
    y, x = torch.meshgrid(*[torch.arange(size).float()] * 2, indexing="ij")
    rod = ((x - size / 4).abs() < size / 10) * (1 + torch.sin(2 * math.pi * y / 7))
    disc = ((x - 0.72 * size)**2 + (y - 0.5 * size)**2).sqrt() < 0.17 * size
    return 1 - 0.06 * rod - 0.12 * disc


def counts_of(truth, dose, detector=None, exposures=1, seed=0):
    return detect(truth.expand(exposures, -1, -1), pixel_size=1.0, dose=dose,
                  detector=detector or Detector(), seed=seed)


@pytest.mark.parametrize("exposures", [1, 3])
def test_parts_of_counts_are_independent_and_poissonian(exposures):
    """Flat: variance is the mean, and parts know nothing of each other."""
    recording = record(counts_of(torch.ones(128, 128), 12.0, COUNTING, exposures), COUNTING)
    assert recording.law.counts_events
    assert torch.allclose(recording.parts.sum(0), recording.electrons, atol=1e-4)
    events = recording.parts * 0.5  # electrons over those that are detected
    assert torch.allclose(events, events.round(), atol=1e-4)
    # Of 16,384 pixels: a relative deviation of 1.1 % of the variance, 0.8 % of a correlation.
    ratio = events.var((1, 2)) / events.mean((1, 2))
    assert float((ratio - 1).abs().max()) < 0.05
    together = torch.corrcoef(events.flatten(1)) - torch.eye(4)
    assert float(together.abs().max()) < 0.035


def test_parts_of_other_noise_are_independent_too():
    """One image by added noise of its spectrum, several as they are."""
    flat = torch.ones(192, 192)
    one = record(counts_of(flat, 100.0, PUBLISHED), PUBLISHED)
    assert not one.law.counts_events and len(one.parts) == 4
    assert torch.allclose(one.parts.sum(0), one.electrons, atol=1e-3)
    # Blurred noise has some 1/4 as many independent pixels: 4 deviations of 36,864 / 4.
    waves = torch.fft.rfft2(one.parts - one.parts.mean((1, 2), keepdim=True))
    expected = 25 * transfer(one.law, (192, 192))[1]
    for n in range(4):
        assert float((waves[n].abs().square() / 192**2 / expected).mean()) == pytest.approx(
            1, abs=0.03)
        for m in range(n):
            shared = (waves[n] * waves[m].conj()).real / 192**2 / expected
            assert abs(float(shared.mean())) < 0.03
    many = record(counts_of(flat, 100.0, PUBLISHED, 6), PUBLISHED)
    assert torch.allclose(many.parts[1], counts_of(flat, 100.0, PUBLISHED, 6)[1::4].sum(0))


def test_the_law_without_a_detector():
    counts = counts_of(rods(), 20.0)
    assert law_of(counts, None).counts_events
    # Half of the counts are no electrons: exposures differ by what their noise is.
    exposures = counts_of(torch.ones(128, 128), 50.0, PUBLISHED, 8)
    law = law_of(exposures, None)
    assert not law.counts_events and "8 exposures" in law.assumptions[0]
    found, expected = (transfer(one, (128, 128))[1] * float(torch.as_tensor(one.detector.gain))**2
                       * mean for one, mean in ((law, 50.0 / float(law.detector.gain)),
                                                (law_of(exposures, PUBLISHED), 50.0)))
    # Rings of at least 100 coefficients of 7 differences: 4 % each; the power falls by 10 within.
    ratio = (found / expected)[3:60, 3:60]
    assert abs(float(ratio.mean()) - 1) < 0.03 and float((ratio - 1).abs().max()) < 0.4
    single = law_of(0.3 * counts + 0.05, None)
    assert not single.counts_events and "guesses" in single.warnings[0]
    assert float(single.detector.gain) == pytest.approx(0.3, rel=0.15)
    assert law_of(counts, Detector()).warnings == ()
    times = float(law_of(10 * counts, Detector()).warnings[0].split()[6])
    assert times == pytest.approx(10, rel=0.1)
    dark = torch.cat([counts, 0 * counts])
    for bad, said in ((counts - counts.mean(), "must be positive"), (counts[0], "must be .n, ny"),
                      (torch.ones(1, 64, 64), "no noise"), (dark, "the mean of image 2 is 0")):
        with pytest.raises(ValueError, match=said):
            law_of(bad, None)


def test_noise_that_falls_steeply_is_known_again():
    """That of a camera whose power at the corners is a hundredth of that at low frequencies."""
    detector = detector_of_name("falcon4ec_300kv")
    counts = counts_of(torch.ones(256, 256), 40.0, detector)
    assert law_of(counts, detector).warnings == ()
    times = float(law_of(3 * counts, detector).warnings[0].split()[6])
    # Of 30,000 coefficients whose median is theirs to 1 %; counts are cut at events.
    assert times == pytest.approx(3, rel=0.05)


def test_a_single_image_shows_its_noise_where_it_is_flat():
    """Coloured noise and discs in a part: the spectrum is that of the noise, not of the discs."""
    y, x = torch.meshgrid(*[torch.arange(320).float()] * 2, indexing="ij")
    discs = ((y % 40 - 20)**2 + (x % 40 - 20)**2 < 100) & (x < 120)
    counts = counts_of(1 - 0.3 * discs.float(), 50.0, PUBLISHED)
    law = law_of(counts, None)
    assert "flat regions" in law.assumptions[0] and "guesses" in law.warnings[0]
    mean = float(counts.mean())
    found = transfer(law, (64, 64))[1] * float(law.detector.gain) * mean
    expected = transfer(law_of(counts, PUBLISHED), (64, 64))[1] * 50
    # Six regions of 80^2 pixels: rings of 64^2 have at least 200 coefficients beyond the third.
    ratio = (found / expected)[3:30, 3:30]
    assert abs(float(ratio.mean()) - 1) < 0.06 and float((ratio - 1).abs().max()) < 0.25


def test_smooth_is_the_minimum_of_its_prior(double):
    """In closed form and by gradient: periodic inside, so that borders do not matter."""
    recording = record(counts_of(rods(64).double(), 40.0, COUNTING), COUNTING)
    seen = smooth(recording.electrons, recording.law, 0.03)
    mtf, noise = transfer(recording.law, (64, 64))
    mean = float(recording.electrons.mean())
    picture = smooth(recording.electrons, recording.law, 0.03, keep=False).requires_grad_()
    residual = torch.fft.rfft2(recording.electrons) - mtf * torch.fft.rfft2(picture)
    weight = torch.full_like(mtf, 2.0)
    weight[:, 0] = weight[:, -1] = 1
    loss = (weight * residual.abs().square() / (noise * mean)).sum() / (2 * 64**2)
    slope, = torch.autograd.grad(loss + smooth_prior(picture, 0.03 * mean), picture)
    flat = torch.full_like(picture, mean).requires_grad_()
    residual = torch.fft.rfft2(recording.electrons) - mtf * torch.fft.rfft2(flat)
    loss = (weight * residual.abs().square() / (noise * mean)).sum() / (2 * 64**2)
    before, = torch.autograd.grad(loss + smooth_prior(flat, 0.03 * mean), flat)
    inside = (slice(12, -12), slice(12, -12))
    assert float(slope[inside].norm()) < 0.02 * float(before[inside].norm())
    assert torch.allclose(blurred(picture.detach(), recording.law)[inside], seen[inside],
                          atol=0.02 * mean)


@pytest.mark.parametrize("detector", [None, PUBLISHED, COUNTING])
def test_estimates_keep_electrons_and_divide_the_mtf_out(detector):
    truth = rods()
    recording = record(counts_of(truth, 400.0, detector), detector)
    for name, strength in (("smooth", (0.05,)), ("spectral", (0.0,)), ("spectral", (2.0,)),
                           ("local", (16.0, 2.0)), ("total_variation", (0.02,)),
                           ("gaussian", (1.0,)), ("nonlocal_means", (0.8,)), ("wavelets", (1.0,))):
        if name == "wavelets":
            pytest.importorskip("pywt")
        seen = whole(name, strength, recording, 20)
        assert float(seen.mean()) == pytest.approx(float(recording.electrons.mean()), rel=1e-3)
        aim = blurred(truth * 400, recording.law)
        assert float(correlation(seen, aim)) > float(correlation(recording.electrons, aim)), name
        if detector is PUBLISHED and name in ("spectral", "local", "total_variation"):
            sharp = whole(name, strength, recording, 20, keep=False)
            contrast = [float(((one - one.mean()) * (truth - truth.mean())).sum())
                        for one in (sharp, seen)]
            assert contrast[0] > 1.02 * contrast[1], name
            # What the camera makes of it is the estimate; windows blur the MTF a little.
            again = blurred(sharp, recording.law)
            assert float((again - seen).std()) < 0.15 * float(aim.std()), name


def test_a_known_spectrum_gives_the_filter_of_wiener():
    """Of a spectrum with as much power as the noise a half is kept, of none nothing."""
    rng = np.random.default_rng(0)
    k = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256))
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((256, 256))) * (k < 0.2))
    truth = torch.as_tensor(1 + 0.1 * field).float()
    counts = counts_of(truth, 100.0)[0]  # 0.01 of variance in both below 0.2, relative to the mean
    law = law_of(counts[None], Detector())
    for width in (0.0, 4.0):
        found = spectral(counts, law, width)
        ratio = (torch.fft.rfft2(found) / torch.fft.rfft2(counts)).abs()
        # The border is an image of the edge, not periodic: some tenths leak at single ones.
        assert float(ratio[(k > 0.03) & (k < 0.17)].mean()) == pytest.approx(0.5, abs=0.05)
        assert float(ratio[k > 0.25].mean()) < 0.1


def test_windows_sum_to_the_image_where_nothing_is_shrunk(double):
    """Of so many electrons that their noise is a millionth of the contrast, squared."""
    contrast = torch.as_tensor(np.random.default_rng(0).standard_normal((77, 90)))
    image = 1e10 * (1 + 0.01 * contrast)
    law = law_of(counts_of(rods(), 20.0), Detector())
    assert float((local(image, law, 16, image) - image).abs().max()) < 1e-3 * 1e8
    assert float((gaussian(image, law, 1e-3) - image).abs().max()) < 1e-3 * 1e8


def test_what_was_held_out_chooses_as_the_truth_would():
    """Of the strengths of a method, one within 0.03 of the best correlation, over two draws."""
    truth = rods(128)
    for seed in range(2):
        recording = record(counts_of(truth, 60.0, seed=seed), None, seed=seed)
        for name in ("gaussian", "spectral"):
            found = best(name, recording)
            every = [float(correlation(whole(name, one, recording), truth)) for one in found.tried]
            assert float(correlation(found.electrons, truth)) > max(every) - 0.03, name


def test_the_default_beats_the_gaussian_that_knows_the_truth():
    """Total doses as of the experiment: 2,000 e-/nm^2 at 4 A pixels are 320 electrons a pixel."""
    truth = rods()
    for detector, exposures in ((PUBLISHED, 2), (None, 1)):
        counts = counts_of(truth, 320.0 / exposures, detector, exposures, seed=3)
        recording = record(counts, detector)
        chosen = choose([best(name, recording) for name in ("smooth", "spectral", "local")],
                        recording)
        aim = blurred(truth * 320, recording.law)
        default, oracle = (float(correlation(one, aim)) for one in (
            chosen.electrons, oracle_gaussian(recording, aim)))
        assert default > oracle
        assert float(correlation(oracle_wiener(recording, aim), aim)) > oracle
        # 9,216 pixels of 320 electrons: the mean is known to 0.06 %.
        assert float(chosen.electrons.mean() / aim.mean()) == pytest.approx(1, abs=0.0025)


def test_total_variation_ends_where_it_explains_best(tmp_path):
    """Its held-out loss has a least value that it keeps; a state file goes on from there."""
    recording = record(counts_of(rods(), 60.0), None)
    flat = torch.full_like(recording.electrons, float(recording.electrons.mean()))
    fit = fit_edges(recording, 0.5, flat, held_out=0, steps=40)
    # Nearly no prior: it fits noise after some steps, and what is held out says when.
    assert fit.held_out.index(min(fit.held_out)) < len(fit.held_out) - 1
    whole_fit = fit_edges(recording, 0.1, flat, steps=12)
    half = fit_edges(recording, 0.1, flat, steps=6, state_file=tmp_path / "state")
    assert half.steps == 6
    resumed = fit_edges(recording, 0.1, flat, steps=12, state_file=tmp_path / "state")
    assert torch.allclose(picture_of(resumed, recording), picture_of(whole_fit, recording),
                          rtol=1e-4)


def test_the_published_loss_loses_the_scale_and_the_corrected_does_not():
    truth = rods(48)
    counts = counts_of(truth, 40.0, PUBLISHED, 4)
    settings = {"steps": 60, "samples": 4, "seed": 1}
    corrected = score_fit.fit_samples(counts, PUBLISHED, corrected=True, **settings)
    published = score_fit.fit_samples(counts, PUBLISHED, corrected=False, **settings)
    again = score_fit.fit_samples(counts, PUBLISHED, corrected=False, **settings)
    assert torch.equal(published, again)
    mean = float(counts.mean())
    assert float(corrected.mean()) == pytest.approx(mean, rel=0.05)
    recording = record(counts, PUBLISHED)
    found = {name: sampled(name, counts, recording, **settings)
             for name in ("surrogate", "corrected")}
    aim = blurred(truth * 160, recording.law)
    assert all(one.gain is None for one in found.values())
    near = {name: float(correlation(one.electrons, aim)) for name, one in found.items()}
    assert near["corrected"] > near["surrogate"] > 0
    assert near["corrected"] > 0.6 * float(correlation(recording.electrons, aim))


@pytest.mark.parametrize("name", ["spectral", "local"])
def test_the_map_of_errors_has_the_size_of_the_errors(name):
    """Root mean squares of map and true error; and more error where more electrons are."""
    truth = rods(128) * torch.where(torch.arange(128) < 64, 1.0, 0.5)[:, None]
    recording = record(counts_of(truth, 200.0), None)
    chosen = best(name, recording)
    found = error_map(chosen, recording, draws=3)
    error = chosen.electrons - 200 * truth
    rms = float(error.square().mean().sqrt())
    assert float(found.values.square().mean().sqrt()) == pytest.approx(rms, rel=0.2)
    # Of three quarters of the electrons: by a third more where all of it is noise.
    mean, scatter = measured_error(chosen, recording)
    assert -3 * scatter < mean - rms**2 < rms**2 / 3 + 3 * scatter
    # Each of 4 parts of 16,384 pixels has, scaled to the whole, the variance 4 x 150 electrons.
    assert scatter == pytest.approx(600 * (2 / 16384)**0.5 / 2, rel=0.1)
    if name == "local":
        top, bottom = (float(found.values[half].mean()) for half in (slice(0, 60), slice(68, 128)))
        assert top > 1.1 * bottom


def test_drawn_again_the_noise_is_the_same():
    flat = torch.full((128, 128), 30.0)
    for detector in (COUNTING, PUBLISHED):
        law = law_of(counts_of(flat / 30, 30.0, detector), detector)
        one = draw(flat, law, np.random.default_rng(0))
        expected = 30 * float(transfer(law, (128, 128))[1].mean())  # nearly that of all
        assert float(one.mean()) == pytest.approx(30, abs=0.4)
        assert float(one.var()) == pytest.approx(expected, rel=0.08)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with four exposures of a picture."""
    monkeypatch.chdir(tmp_path)
    counts = counts_of(rods(), 64.0, None, 4).numpy().astype(np.float32)
    write_mrc(Path("a.mrc"), counts, 2.0)
    return tmp_path


def test_the_recipe_writes_electrons_with_their_pixel_size(here, capsys):
    assert main(["recipe=denoise", "input=a.mrc", "output=o", "prior=spectral", "draws=2",
                 "compare=[average,gaussian,surrogate]", "steps=5"]) == 0
    found = json.loads(Path("o/results.json").read_text())
    with mrcfile.open("o/denoised.mrc") as file:
        assert float(file.voxel_size.x) == pytest.approx(2.0)
        picture = file.data.copy()
    dose = float(mrcfile.read("a.mrc").sum(0).mean()) / 2.0**2
    assert float(picture.mean()) == pytest.approx(dose, rel=1e-3)
    assert found["electrons_per_A2"] == pytest.approx(dose, rel=1e-5)
    assert found["denoised_electrons_per_A2"] == pytest.approx(dose, rel=1e-3)
    assert found["prior"] == "spectral" and found["exposures"] == 4
    assert found["rms_error_e_per_A2"] == pytest.approx(
        float(np.sqrt(np.mean(mrcfile.read("o/error.mrc")**2))), rel=0.1)
    truth = rods().numpy()
    error = picture - 64 * truth
    assert float(np.sqrt(np.mean(error**2))) == pytest.approx(found["rms_error_e_per_A2"], rel=0.25)
    assert np.corrcoef(picture.ravel(), truth.ravel())[0, 1] > 0.9
    rows = pd.read_csv("o/compared.csv")
    assert list(rows["method"]) == ["spectral", "average", "gaussian", "surrogate"]
    assert mrcfile.read("o/compared.mrc").shape == (4, SIZE, SIZE)
    np.testing.assert_allclose(mrcfile.read("o/compared.mrc")[1],
                               mrcfile.read("a.mrc").sum(0) / 4, rtol=1e-6)
    assert Path("o/denoised.png").stat().st_size > 10_000
    assert "assumption: " in capsys.readouterr().out and not Path(".o.unfinished").exists()


def test_an_interrupted_run_goes_on(here, monkeypatch):
    """What was judged is not judged again, and the result is the same."""
    words = ["recipe=denoise", "input=a.mrc", "image=2", "prior=spectral", "draws=0",
             "compare=[gaussian,average]"]
    assert main([*words, "output=o"]) == 0
    real, seen = denoise.gains, []

    def interrupted(name, *rest):
        if name == "average":
            raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(denoise, "gains", interrupted)
    with pytest.raises(KeyboardInterrupt):
        from tem_taichi.cli.recipes import do_recipe

        do_recipe([*words, "output=p"])
    assert not Path("p").exists() and list(Path(".p.unfinished").glob("*.json"))
    monkeypatch.setattr(denoise, "gains",
                        lambda name, *rest: seen.append(name) or real(name, *rest))
    assert main([*words, "output=p"]) == 0
    assert seen == ["average"]
    np.testing.assert_array_equal(mrcfile.read("p/denoised.mrc"), mrcfile.read("o/denoised.mrc"))


def test_what_cannot_be_denoised_is_refused_in_a_line(here, capsys):
    counts = mrcfile.read("a.mrc").copy()
    Path("a.tlt").write_text("0\n1\n2\n3\n")
    write_mrc(Path("b.mrc"), counts[:, :64], 2.0)
    write_mrc(Path("c.mrc"), counts - counts.mean(), 2.0)
    for words, said in (
            (["input=a.mrc"], "image=null: a.mrc has tilt angles beside it (a.tlt)"),
            (["input=a.mrc", "image=5"], "image=5: must be from 1 to 4"),
            (["input=[a.mrc,b.mrc]"], "input: images of (64, 96) and (96, 96) pixels"),
            (["input=c.mrc"], "input: images: their mean is"),
            (["input=a.mrc", "image=1", "prior=median"], 'prior="median": must be one of'),
            (["input=a.mrc", "image=1", "strength=[1]"], "strength=[1.0]: must be null"),
            (["input=a.mrc", "image=1", "prior=local", "strength=[1]"],
             "strength=[1.0]: must be 2 for prior=local"),
            (["input=a.mrc", "image=1", "prior=smooth", "strength=[0]"],
             "strength=[0.0]: must be 1 for prior=smooth, numbers above 0"),
            (["input=a.mrc", "image=1", "prior=local", "strength=[64,2]"],
             "strength=[64.0, 2.0]: must be a window of a multiple of 8 from 8 to 48 pixels"),
            (["input=a.mrc", "image=1", "detector=mine"], "detector=mine: must be a YAML file")):
        assert main(["recipe=denoise", "output=q", *words]) == 2
        assert said in capsys.readouterr().err, words
    assert not Path("q").exists()


def test_the_table_of_the_experiment_counts_wins():
    row = {"scene": "TMV", "dose": 1000, "exposures": 2, "seed": 0, "mean": 1.004, "correlation": {
        "default": 0.8, "average": 0.5, "gaussian": 0.6, "oracle_gaussian": 0.6, "wiener": 0.6,
        "oracle_wiener": 0.7}}
    low = {**row, "dose": 100, "correlation": {**row["correlation"], "default": 0.55}}
    text = table([row, low])
    assert closed(row) == pytest.approx(2.0) and "| 2.0 | 0.40% |" in text
    assert "average in 1 of 1" in text and "by the truth in 1 of 1" in text
    assert "worse than the Gaussian of held-out width in 1 of 1" in text


def test_baselines_take_noise_off():
    counts = counts_of(rods(), 300.0)[0]
    law = law_of(counts[None], None)
    for method in (nonlocal_means, wavelets):
        if method is wavelets:
            pytest.importorskip("pywt")
        found = method(counts, law, 0.8)
        assert float(correlation(found, rods())) > float(correlation(counts, rods())) + 0.05


def test_topaz_is_used_where_it_is_installed(tmp_path, monkeypatch):
    """A package in its place, whose network halves what it is given."""
    for folder in ("denoising", "pretrained/denoise"):
        (tmp_path / "topaz" / folder).mkdir(parents=True)
    for package in ("", "denoising/"):
        (tmp_path / f"topaz/{package}__init__.py").write_text("")
    (tmp_path / "topaz/denoising/models.py").write_text("""import torch
class UDenoiseNet(torch.nn.Module):
    def __init__(self, base_width, top_width):
        super().__init__()
        assert (base_width, top_width) == (11, 5)
        self.factor = torch.nn.Parameter(torch.ones(()))
    def forward(self, image):
        assert image.ndim == 4 and abs(float(image.std()) - 1) < 1e-4
        return image * self.factor
""")
    torch.save({"factor": torch.tensor(0.5)},
               tmp_path / "topaz/pretrained/denoise/unet_L2_v0.2.2.sav")
    monkeypatch.syspath_prepend(tmp_path)
    assert baselines.installed("topaz")
    image = counts_of(rods(40), 5.0)[0]
    found = baselines.topaz(image)
    assert torch.allclose(found - image.mean(), (image - image.mean()) / 2, atol=1e-4)
    for name in [name for name in sys.modules if name.split(".")[0] == "topaz"]:
        del sys.modules[name]


def test_what_is_kept_is_not_computed_again(tmp_path):
    here = kept.Kept(tmp_path / "x", "a")
    picture = torch.arange(12.0).reshape(3, 4)
    assert here.numbers("n", lambda: [1.0, 2.5]) == [1.0, 2.5]
    assert here.numbers("n", lambda: [0.0]) == [1.0, 2.5]
    assert torch.equal(here.picture("p", picture, lambda: picture), picture)
    assert torch.equal(here.picture("p", picture, lambda: picture + 1), picture)
    other = kept.Kept(tmp_path / "x", "b")
    assert other.numbers("n", lambda: [0.0]) == [0.0]


def estimates_of(gains):
    return [Estimate(name, (1.0,), torch.ones(2, 2), gain, 0.0) for name, gain in gains.items()]


def test_total_variation_must_be_better_on_the_same_parts(monkeypatch):
    """On the part that chose its strength, then in the mean over all that judged the other."""
    ones = estimates_of({"spectral": 50.0, "local": 60.0, "total_variation": 70.0})
    recording = record(counts_of(rods(), 900.0), None)
    assert len(recording.parts) >= 4
    by_part = {"local": [75.0, 50.0, 55.0, 60.0], "total_variation": [70.0, 90.0, 90.0, 90.0]}
    monkeypatch.setattr(denoise, "gains", lambda name, _, __, parts: [
        by_part[name][part] for part in parts] + ([3.0] if name == "total_variation" else []))
    assert choose(ones, recording).name == "local"
    by_part["local"][0] = 65.0
    assert choose(ones, recording).name == "total_variation"
    by_part["local"][0] = 69.0  # 1 nat less proves nothing
    assert choose(ones, recording).name == "local"
    by_part["local"][0] = 65.0
    by_part["total_variation"] = [70.0, 57.0, 57.0, 57.0]
    assert choose(ones, recording).name == "local"
    assert choose(ones[2:], recording).name == "total_variation"


@pytest.mark.parametrize(("gains", "name"), [
    ({"smooth": 10.0, "spectral": 6.9, "local": 6.9}, "smooth"),
    ({"smooth": 10.0, "spectral": 7.1, "local": 6.9}, "spectral"),
    ({"smooth": 0.2, "spectral": -6.0, "local": -0.1}, "local"),
    ({"local": 10.0, "smooth": 13.1}, "smooth")])
def test_of_filters_that_chance_alone_tells_apart_one_that_adapts_is_taken(gains, name):
    assert choose(estimates_of(gains), record(counts_of(rods(), 900.0), None)).name == name


def test_a_map_grows_to_the_error_that_was_measured():
    """Of an image blurred far too much nothing scatters, and all that is wrong stays."""
    recording = record(counts_of(rods(), 900.0), None)
    blurry = best("gaussian", recording, given=(8.0,))
    found = error_map(blurry, recording, draws=2)
    rms = float((blurry.electrons - 900 * rods()).square().mean().sqrt())
    assert found.factor > 2
    assert float(found.values.square().mean().sqrt()) == pytest.approx(rms, rel=0.1)


def test_every_method_has_its_row_in_one_table(monkeypatch):
    """Small phantoms: what is measured is what the pictures and tomograms are."""
    monkeypatch.setattr(bench, "truths", lambda _: {"TMV": rods(64), "crowd": rods(64)})
    monkeypatch.setitem(bench.CASES, "cell", lambda _: tomography.balls())
    rows = [bench.row("picture", "TMV", "average"), bench.row("picture", "crowd", "spectral"),
            *(bench.row("tomogram", "cell", name) for name in ("wbp", "sirt", "sirt_tv"))]
    assert rows[1]["correlation"] > rows[0]["correlation"]
    assert rows[3]["correlation"] > 0.2 and 0 < rows[3]["rmse"] < 1
    assert [one["gain"] > 20 for one in rows[2:]] == [True] * 3
    assert all(one["seconds"] > 0 and one["MB"] >= 0 for one in rows)
    assert ["wedge" in one for one in rows] == [False, False, True, True, True]
    cells = [line.split(" | ") for line in bench.table(rows).splitlines()]
    assert len(cells) == 7 and cells[2][2] == "average"
    assert cells[4][3] == f"{rows[2]['correlation']:.3f}"
    assert set(bench.PICTURES) >= {"local", "total_variation", "surrogate", "corrected"}
    truth = tomography.balls().truth
    exact = bench.measures(3 * truth - 1, truth, 10.0)
    assert exact["correlation"] == pytest.approx(1, abs=1e-4) and exact["rmse"] < 1e-4
    assert exact["wedge"] == pytest.approx(1, abs=1e-3) and exact["resolution"] < 22


@pytest.mark.parametrize("method", [
    lambda y, law: gaussian(y, law, 1.3), lambda y, law: smooth(y, law, 0.05, False),
    lambda y, law: spectral(y, law, 2.0, False), lambda y, law: spectral(y, law, 0.0),
    lambda y, law: local(y, law, 16, 0.9 * y + 3, False), lambda y, law: blurred(y, law)])
def test_filters_have_the_gradient_of_differences(double, method):
    """In every electron, along one direction: what a fit through them would follow."""
    law = law_of(counts_of(rods(48), 30.0, COUNTING), COUNTING)
    rng = np.random.default_rng(0)
    electrons = counts_of(rods(48), 30.0, COUNTING)[0] / 0.5 + 0.1
    along, weight = (torch.as_tensor(rng.standard_normal((48, 48))) for _ in range(2))
    point = electrons.clone().requires_grad_()
    slope, = torch.autograd.grad((method(point, law) * weight).sum(), point)
    ends = [float((method(electrons + sign * 1e-5 * along, law) * weight).sum())
            for sign in (1, -1)]
    assert float((slope * along).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)
