"""inverse/: problems, fits in batches, held-out exposures, error bars, priors and measures."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from experiments.error_bars import deviations
from tem_taichi.device import as_tensor, init
from tem_taichi.experiment import Experiment, images
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.inverse.fisher import error_bars, fisher
from tem_taichi.inverse.measures import (
    affine_fit,
    affine_rmse,
    contrast_to_noise,
    correlation,
    equivalent_looks,
    frequencies,
    peak_signal_to_noise,
    resolution,
    shell_correlation,
    structural_similarity,
)
from tem_taichi.inverse.minimise import Optimiser
from tem_taichi.inverse.priors import gaussian, smooth, sparse, total_variation
from tem_taichi.inverse.problem import Problem, fit
from tem_taichi.inverse.shells import (
    masked_shell_correlation,
    measured_region,
    randomise_phases,
)
from tem_taichi.noise.camera import Camera
from tem_taichi.noise.detector import Detector
from tem_taichi.noise.gaussian import Gaussian
from tem_taichi.rotations import tilt_rotation

SIZE = 16


@dataclass(frozen=True)
class Flat:
    """An instrument that shows what it is given: the plainest inverse problem."""

    def intensity(self, specimen, exposure):
        return specimen.values


@dataclass(frozen=True)
class Values:
    values: torch.Tensor


def photographs(truth, law, count, prior=None, held_out=(), seed=0, dose=20.0):
    """`count` noisy images of one intensity, which is sought as the exponential of its log."""
    exposures = [Exposure(Optics(), dose=dose, stream=n) for n in range(count)]

    def build(values):
        return Experiment(Values(values["log"].exp()), Flat(), law, exposures)

    counts = torch.stack([image.counts for image in images(build({"log": truth.log()}), seed)])
    return Problem({"log": torch.zeros_like(truth)}, build, counts, prior, held_out)


@pytest.fixture
def picture(double):
    y, x = torch.meshgrid(*[torch.arange(SIZE).double()] * 2, indexing="ij")
    return 1 + 0.8 * torch.sin(x / 3) * torch.cos(y / 4)


@pytest.mark.parametrize("optimiser", [
    Optimiser(), Optimiser("adam", 300, rate=0.05), Optimiser("adam", 600, rate=0.05, batch=2,
                                                              schedule=lambda n: 0.99**n)])
def test_many_images_give_their_mean(picture, optimiser):
    """The likeliest intensity under Poisson's law is the mean count over the dose."""
    problem = photographs(picture, Camera(1.0), 6)
    found = fit(problem, optimiser)
    mean = problem.counts.mean(0) / 20
    # A step of Adam is up to 0.05 in the log; its means over steps leave a fraction of that.
    tolerance = 1e-4 if optimiser.name == "lbfgs" else 0.02
    assert float((found.values["log"].exp() - mean).abs().max()) < tolerance


def test_a_batch_sees_every_exposure_once_a_pass(picture):
    problem, seen = photographs(picture, Camera(1.0), 5, held_out=(3,)), []
    terms = problem.terms

    class Watched(Problem):
        def terms(self, values, which):
            seen.append(list(which))
            return terms(values, which)

    watched = Watched(**vars(problem))
    fit(watched, Optimiser("adam", 4, batch=2, seed=1))
    assert [sorted(a + b) for a, b in (seen[:2], seen[2:])] == [[0, 1, 2, 4]] * 2
    assert seen[:2] != seen[2:]  # an order of its own each pass


def test_held_out_exposures_stop_a_fit_that_learns_the_noise(picture):
    """One image per pixel and nothing to smooth it: what comes after a while is noise."""
    problem = photographs(picture, Camera(1.0), 3, held_out=(2,), dose=3.0)
    found = fit(problem, Optimiser("adam", 500, rate=0.02))
    assert found.converged and found.steps < 400
    assert len(found.held_out) == found.steps + 1
    best = float(sum(problem.misfit(found.values, problem.held_out)))
    assert best == pytest.approx(min(found.held_out), rel=1e-12)
    free = fit(replace(problem, held_out=(), counts=problem.counts[:2],
                       build=lambda v: replace(problem.build(v),
                                               exposures=problem.build(v).exposures[:2])),
               Optimiser("adam", 500, rate=0.02))
    errors = [float((one.values["log"].exp() - picture).norm()) for one in (found, free)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("held_out", [(), (1,)])
@pytest.mark.parametrize("last", [7, 8])  # within a pass, and as one of those with held-out ends
def test_an_interrupted_fit_in_batches_goes_on(picture, tmp_path, held_out, last):
    problem = photographs(picture, Camera(1.0), 5, held_out=held_out)
    optimiser = Optimiser("adam", 20, rate=0.05, batch=2, schedule=lambda n: 1 / n)
    whole = fit(problem, optimiser)

    def interrupt(step, loss, values):
        if step == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(problem, optimiser, state_file=tmp_path / "state", progress=interrupt)
    resumed = fit(problem, optimiser, state_file=tmp_path / "state")
    assert resumed.history == whole.history and resumed.held_out == whole.held_out
    assert torch.equal(resumed.values["log"], whole.values["log"])


def test_each_image_may_have_a_value_of_its_own(picture):
    """A batch sees those of its images alone; what no image sees is said after a pass."""
    problem = photographs(picture, Camera(1.0), 3)

    def build(values):
        made = problem.build({"log": picture.log()})
        return replace(made, exposures=[replace(one, dose=values[f"{n}.dose"].exp())
                                        for n, one in enumerate(made.exposures)])

    start = {f"{n}.dose": as_tensor(2.5) for n in range(3)}
    own = replace(problem, start=start, build=build)
    found = fit(own, Optimiser("adam", 300, rate=0.05, batch=1, schedule=lambda n: 0.99**n))
    for n in range(3):  # the likeliest dose gives the counts that there are
        assert float(found.values[f"{n}.dose"].exp() * picture.sum()) == pytest.approx(
            float(problem.counts[n].sum()), rel=0.01)
    with pytest.raises(ValueError, match=r"start.3.dose: the loss does not depend on it"):
        fit(replace(own, start=start | {"3.dose": as_tensor(2.5)}), Optimiser("adam", 9, batch=1))


def test_a_large_volume_is_held_few_times():
    """Values, gradient and Adam's two means; the loss and its graph take some for a moment."""
    init("cpu", "float32")
    n = 4_000_000
    live = []

    class Big:
        def __init__(self, volume):
            self.volume = volume

        def intensity(self, specimen, exposure):
            return (specimen.values.mean() + 1).expand(8, 8)

    problem = Problem({"volume": torch.zeros(n)},
                      lambda v: Experiment(Values(v["volume"]), Big(None), Gaussian(1.0, 1.0),
                                           [Exposure(dose=1.0)]),
                      torch.full((1, 8, 8), 1.5))

    def count(step, loss, values):
        import gc
        gc.collect()
        held = {one.untyped_storage().data_ptr() for one in gc.get_objects()
                if issubclass(type(one), torch.Tensor) and one.numel() == n}
        live.append(len(held))

    fit(problem, Optimiser("adam", 3, batch=1), progress=count)
    # the start, the values, their gradient, two means
    assert max(live) <= 5


@pytest.mark.parametrize(("law", "variance"), [
    (Camera(1.0), lambda mean: mean), (Gaussian(1.0, 3.0), lambda mean: 9.0 + 0 * mean),
    (Camera(1.0, Detector("counting", gain=2.0, dqe=0.5)), lambda mean: 2 * mean / 0.5)])
def test_information_is_that_of_the_textbook(picture, law, variance):
    """Of means mu with slopes J: sum J J / variance; here J = mu, since mu = exp(log) dose."""
    few = picture[:4, :3]
    problem = photographs(few, law, 3)
    log = few.log()
    found = fisher(problem, {"log": log})
    mean = law.expected(few, 20.0)
    expected = torch.diag((3 * mean**2 / variance(mean)).flatten())
    # Differences over half an error bar of exp: (0.5 sigma)^2 / 6, with sigma up to 0.5
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-6 * float(expected.max()))
    bars = error_bars(problem, {"log": log})["log"]
    torch.testing.assert_close(bars, found.diagonal().rsqrt().reshape(4, 3))
    with_prior = replace(problem, prior=lambda v: gaussian(v["log"], 0.0, 0.1))
    added = fisher(with_prior, {"log": log}) - found
    torch.testing.assert_close(added, 100 * torch.eye(12).double(), atol=5, rtol=0)


def test_information_through_coloured_noise(picture):
    """Of a wave's strength: dose DQE sum cos^2, whatever the MTF, which noise and wave share."""
    wave = torch.cos(2 * math.pi * 3 * torch.arange(SIZE).double() / SIZE).expand(SIZE, SIZE)
    law = Camera(1.0, Detector("integrating", mtf=[0.4, 0.2, 0.1, 3, 9], dqe=0.6))
    problem = photographs(picture, law, 2)
    one = replace(problem, build=lambda v: problem.build({"log": (1 + v["a"] * wave).log()}))
    found = float(fisher(one, {"a": as_tensor(0.1)}))
    assert found == pytest.approx(2 * 20 * 0.6 * SIZE**2 / 2, rel=1e-6)


@pytest.mark.parametrize(("law", "key", "value", "dose", "truth"), [
    (lambda v: Gaussian(1.0, v["sigma"]), "sigma", 3.0, 5.0, 2 / 9),
    # n DQE dose / dose^2 of the mean, and 1 / (2 dose^2) of the strength
    (lambda v: Camera(1.0, Detector("integrating", dqe=0.8)), "dose", 0.5, None, 1.6 + 2.0),
    (lambda v: Camera(1.0, Detector("integrating", dqe=0.8)), "dose", 20.0, None,
     0.04 + 1 / 800)])
def test_the_strength_of_noise_has_its_information(double, law, key, value, dose, truth):
    """Of each of 64^2 pixels with a flat intensity of 1."""
    flat = torch.ones(64, 64, dtype=torch.float64)

    def build(values):
        return Experiment(Values(flat), Flat(), law(values),
                          [Exposure(Optics(), dose=values.get("dose", dose))])

    problem = Problem({key: as_tensor(value)}, build, flat[None])
    found = float(fisher(problem, problem.start)) / 64**2
    # Second derivatives scatter by 3 sqrt(2) of their 2: 1.2 % over 8 images of 64^2; four of it
    assert found == pytest.approx(truth, rel=0.05)


def test_what_exposures_do_not_determine_is_named(picture):
    problem = photographs(picture, Camera(1.0), 1)
    twice = replace(problem,
                    build=lambda v: problem.build({"log": picture.log() + v["a"] + v["b"]}))
    with pytest.raises(ValueError, match="does not determine a, b"):
        error_bars(twice, {"a": as_tensor(0.0), "b": as_tensor(0.0)})


def test_an_image_that_is_not_linear_over_an_error_bar_is_said(picture):
    problem = photographs(picture, Camera(1.0), 1, dose=1e-3)
    rough = replace(problem, build=lambda v: problem.build({"log": picture.log() + v["a"] ** 3}),
                    scales={"a": 1.0})
    with pytest.warns(UserWarning, match="the images are not linear in a over its error bar"):
        fisher(rough, {"a": as_tensor(0.3)})


def test_error_bars_of_fits_through_multislice_cover():
    """Eight fits of seven numbers; `experiments.error_bars` has a hundred."""
    init("cpu", "float64")
    found = np.array([deviations(seed) for seed in range(8)])
    # 56 numbers, some of them correlated, of unit deviation: sqrt(1 / (2 56)) = 0.09 of standard
    # error of their deviation were they not; four of it. A wrong factor of 2 would be seen.
    assert 0.64 < found.std() < 1.36
    assert np.mean(np.abs(found) < 1.96) > 0.85
    init("cpu", "float32")


@pytest.mark.parametrize(("changes", "message"), [
    ({"held_out": (7,)}, "held_out=7: must be one of the 2 exposures"),
    ({"held_out": (0, 1)}, "must leave an exposure to fit")])
def test_a_problem_that_cannot_be_is_named(picture, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(photographs(picture, Camera(1.0), 2), **changes)
    with pytest.raises(ValueError, match="batch=2: must be None for lbfgs"):
        Optimiser(batch=2)


def test_priors_are_their_formulas(double):
    step = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 3.0]]).double()
    assert float(gaussian(step, 1.0, 2.0)) == pytest.approx((4 * 1 + 2 * 4) / 8)
    assert float(smooth(step, 2.0)) == pytest.approx(2 * 9 / 8)
    assert float(total_variation(step, 0.5, 1e-9)) == pytest.approx(2 * 3 / 0.5)
    assert float(total_variation(step, 0.5, 4.0)) == pytest.approx(2 * (5 - 4) / 0.5)
    assert float(sparse(step, 0.5, 4.0)) == pytest.approx(2 * (5 - 4) / 0.5)
    assert float(smooth(step[None].expand(2, 2, 3), 2.0)) == pytest.approx(2 * 2 * 9 / 8)


@pytest.mark.parametrize("shape", [(16, 16, 16), (15, 15, 15), (13, 20, 16), (32, 31), (8, 27)])
def test_shells_are_those_of_the_whole_transform(double, shape):
    rng = np.random.default_rng(1)
    one = rng.standard_normal(shape)
    other = one + rng.standard_normal(shape)
    longest = max(shape)
    k = np.sqrt(sum(x**2 for x in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    shell = np.where(k <= 0.5, np.floor(k * longest + 0.5), 0)
    f, g = np.fft.fftn(one), np.fft.fftn(other)
    found = shell_correlation(as_tensor(one), as_tensor(other), 2.0)
    assert len(found.correlation) == longest // 2
    for n in range(1, longest // 2 + 1):
        a, b, here = f[shell == n], g[shell == n], k[shell == n]
        assert float(found.correlation[n - 1]) == pytest.approx(
            np.vdot(b, a).real / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-12)
        assert float(found.frequency[n - 1]) == pytest.approx(here.mean() / 2)
        assert float(found.counts[n - 1]) == len(here) / 2


def test_measures_see_noise_where_it_is(double):
    rng = np.random.default_rng(0)
    n, pixel = 48, 2.0
    signal = torch.as_tensor(rng.standard_normal((n, n, n)))
    k = torch.stack(torch.meshgrid(*[torch.fft.fftfreq(n)] * 3, indexing="ij")).norm(dim=0) / pixel
    low = torch.fft.ifftn(torch.fft.fftn(signal) * (k < 0.1)).real
    noisy = [low + 0.3 * torch.as_tensor(rng.standard_normal((n, n, n))) for _ in range(2)]
    shells = shell_correlation(*noisy, pixel)
    assert float(shells.correlation[(shells.frequency < 0.09)].min()) > 0.8
    # The mean of some 20,000 pairs of independent coefficients
    assert abs(float(shells.correlation[shells.frequency > 0.12].mean())) < 0.03
    assert 1 / resolution(shells) == pytest.approx(0.1, abs=1 / 96)  # from shell to shell
    assert float(shells.frequency[-1]) == pytest.approx(0.25, rel=0.05)
    assert float(shell_correlation(low, 2 * low, pixel).correlation[3]) == pytest.approx(1.0)
    assert float(correlation(low, 3 - 2 * low)) == pytest.approx(-1.0)
    assert resolution(shell_correlation(low, low + 0 * low, pixel)) < 10.5
    with pytest.raises(ValueError, match="must be that of one"):
        shell_correlation(low, low[1:], pixel)
    assert math.isclose(float(shell_correlation(low[0], low[0], pixel).counts.sum()),
                        float((k[0, :, :n // 2 + 1] * pixel <= 0.5).sum() - 1), rel_tol=0.03)


def test_scale_and_offset_do_not_count_where_they_are_fitted(double):
    rng = np.random.default_rng(0)
    truth, error = (torch.as_tensor(rng.standard_normal((40, 30))) for _ in range(2))
    one, other = truth - truth.mean(), error - error.mean()
    error = other - one * (one * other).sum() / one.square().sum()  # of no use to explain the truth
    assert float(affine_rmse(7 - 3 * truth, truth)) < 1e-12
    assert torch.allclose(affine_fit(7 - 3 * truth, truth), truth)
    # The regression of y on y + e, e of variance v: what is left is v / (1 + v) of y's variance.
    v = float(error.square().mean() / one.square().mean())
    left = float(one.square().mean()) * v / (1 + v)
    assert float(affine_rmse(5 + 2 * (truth + error), truth)) == pytest.approx(left**0.5, rel=1e-9)
    assert float(affine_rmse(0 * truth, truth)) == pytest.approx(float(truth.std(correction=0)))
    with pytest.raises(ValueError, match="must be that of what it is compared with"):
        affine_rmse(truth[1:], truth)


def test_differentiable_measures_have_the_gradients_of_differences(double):
    rng = np.random.default_rng(1)
    image, truth = (torch.as_tensor(rng.standard_normal((8, 9))).requires_grad_() for _ in range(2))
    left, right = (slice(None), slice(0, 4)), (slice(None), slice(4, 9))
    for measure in (affine_rmse, correlation,
                    lambda x, y: contrast_to_noise(x, left, right) * equivalent_looks(y, left),
                    lambda x, y: shell_correlation(x, y, 1.0).correlation):
        assert torch.autograd.gradcheck(measure, (image, truth))


def test_similarity_and_peak_signal_are_their_formulas(double):
    truth = torch.zeros(16, 16).double()
    truth[:, 8:] = 10.0
    assert structural_similarity(truth, truth) == pytest.approx(1.0)
    assert peak_signal_to_noise(truth, truth) == math.inf
    assert peak_signal_to_noise(truth + 1, truth) == pytest.approx(20.0)  # 10^2 over 1^2
    # Of flat windows, by hand: (2 a b + C) / (a^2 + b^2 + C), C = (0.01 x 10)^2; of the others the
    # covariance is the variance, and only the means differ.
    found = structural_similarity(truth + 1, truth)
    assert 0.01 / 1.01 < found < (2 * 11 * 10 + 0.01) / (121 + 100 + 0.01)
    for measure in (structural_similarity, peak_signal_to_noise):
        with pytest.raises(ValueError, match="every value is 3; it must have contrast"):
            measure(truth, torch.full_like(truth, 3.0))


def test_contrast_and_looks_of_boxes(double):
    rng = np.random.default_rng(2)
    field = torch.as_tensor(rng.normal(50.0, 2.0, (64, 64)))
    field[:, 32:] += 10
    left, right = (slice(None), slice(0, 32)), (slice(None), slice(32, 64))
    # 2048 values a box: their standard deviation is known within 1.6 %, at 4 deviations 6 %.
    assert float(contrast_to_noise(field, right, left)) == pytest.approx(10 / 2, rel=0.07)
    assert float(equivalent_looks(field, left)) == pytest.approx((50 / 2)**2, rel=0.13)
    with pytest.raises(ValueError, match=r"box=.*must be a slice of each of 2 axes"):
        equivalent_looks(field, (slice(0, 4),))


@pytest.mark.parametrize("axis", [0.0, 30.0, -90.0])
def test_a_view_is_inside_the_region_that_a_series_measures(double, axis):
    """A plane wave along the plane of a view at 20 degrees, and one at 50, of a series to 40."""
    shape = (24, 24, 24)
    z, y, x = torch.meshgrid(*[torch.arange(24).double() - 12] * 3, indexing="ij")
    region = measured_region(shape, -10.0, 40.0, axis)
    rng = np.random.default_rng(0)
    for tilt, inside in ((20.0, True), (-5.0, True), (50.0, False), (-20.0, False)):
        # Waves in the image's plane, seen in the specimen's frame: R^T (u, v, 0).
        turned = tilt_rotation(tilt, axis)
        power = torch.zeros(24, 24, 13).double()
        for _ in range(20):
            u, v = 0.35 * rng.standard_normal(2)
            kx, ky, kz = (turned.T @ as_tensor([u, v, 0.0])).tolist()
            window = torch.exp(-(x**2 + y**2 + z**2) / 30)
            wave = window * torch.cos(2 * math.pi * (kx * x + ky * y + kz * z))
            power += torch.fft.rfftn(wave).abs().square()
        share = float((power * region).sum() / power.sum())
        assert share > 0.75 if inside else share < 0.55
    assert measured_region(shape, -90, 90).all()
    middle = measured_region(shape, 0, 0)
    assert bool(middle[0].all()) and not bool(middle[1:12].any())


def test_shells_of_a_region_leave_the_others_out(double):
    rng = np.random.default_rng(0)
    one, noise = (torch.as_tensor(rng.standard_normal((32, 32, 32))) for _ in range(2))
    region = measured_region(one.shape, -60, 60)
    f = torch.fft.rfftn(one)
    other = torch.fft.irfftn(torch.where(region, f, torch.fft.rfftn(noise)), s=one.shape)
    inside = shell_correlation(one, other, 2.0, region).correlation[3:]
    outside = shell_correlation(one, other, 2.0, ~region).correlation[3:]
    assert float(inside.min()) > 0.97  # planes at Nyquist have no mates in the region
    assert abs(float(outside.mean())) < 0.1
    both = shell_correlation(one, other, 2.0)
    parts = [shell_correlation(one, other, 2.0, part).counts.sum() for part in (region, ~region)]
    assert float(sum(parts)) == pytest.approx(float(both.counts.sum()))
    with pytest.raises(ValueError, match="region of shape"):
        shell_correlation(one, other, 2.0, region[1:])


def test_what_a_mask_has_given_is_seen_by_random_phases(double):
    """Two noises with the same low frequencies: a tight mask makes them alike beyond."""
    rng = np.random.default_rng(3)
    n = 48
    z, y, x = torch.meshgrid(*[torch.arange(n).double() - n // 2] * 3, indexing="ij")
    mask = ((x**2 + y**2 + z**2).sqrt() < 9).double()
    k = frequencies(mask).square().sum(0).sqrt()
    low = torch.fft.irfftn(torch.fft.rfftn(torch.as_tensor(rng.standard_normal((n,) * 3)))
                           * (k < 0.12), s=mask.shape)
    halves = [3 + low + 0.05 * torch.as_tensor(rng.standard_normal((n,) * 3)) for _ in range(2)]
    found = masked_shell_correlation(*halves, mask, 2.0)
    beyond = found.frequency > 0.1
    assert float(found.correlation[beyond].mean()) > 0.5  # by the mask's edge alone
    # A mask of 3 % of the volume leaves some 20 to 60 independent coefficients a shell, 15 shells:
    # a standard deviation of 0.05 of their mean.
    assert abs(float(found.corrected[beyond].mean())) < 0.2
    assert float(found.corrected[found.frequency < 0.05].min()) > 0.8
    again = randomise_phases(low, 2.0, 30.0, seed=1)
    f, g = torch.fft.rfftn(low), torch.fft.rfftn(again)
    assert torch.allclose(f.abs(), g.abs(), atol=1e-8 * float(f.abs().max()))
    inside = k / 2.0 <= 1 / 30
    assert torch.allclose(f[inside], g[inside])
    assert not torch.equal(again, randomise_phases(low, 2.0, 30.0, seed=2))
