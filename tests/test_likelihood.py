"""The likelihood and the gradients through noise, against enumeration of every possible count."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, poisson
from torch.autograd import grad, gradcheck

from tem_taichi.device import as_tensor, init
from tem_taichi.noise.detector import Detector, detect, expected_counts, noise_power_spectrum
from tem_taichi.noise.likelihood import (
    ScoreFunction,
    log_prob,
    reparametrised_sample,
    score_function_gradient,
)

pytestmark = pytest.mark.usefixtures("double", "one_thread")

PAGE = Path(__file__).parent.parent / "docs" / "stochastic.md"
PARAMETERS = (0.7, 0.2, 0.1, 10.0, 40.0)
DQE_TABLE = ([0.0, 0.2, 0.5], [0.8, 0.7, 0.3])
DETECTORS = {
    "integrating": Detector("integrating", gain=3.0, mtf=PARAMETERS, dqe=0.4),
    "counting": Detector("counting", gain=0.8, mtf=PARAMETERS, dqe=0.8),
    "coloured": Detector("counting", gain=2.0, mtf=PARAMETERS, dqe=DQE_TABLE),
    "spreading": Detector("integrating", gain=2.0, mtf=PARAMETERS, dqe=DQE_TABLE),
}
UNIT = {"pixel_size": 1.0, "dose": 1.0}  # intensity is then electrons a pixel

# A row of 16 pixels whose MTF 0.6 + 0.4 cos(2 pi w) spreads counts as (0.2, 0.6, 0.2), no farther.
N = 16
W = np.arange(N // 2 + 1) / N
ROW = Detector("integrating", mtf=(W, 0.6 + 0.4 * np.cos(2 * np.pi * W)))
MEAN = 2 + np.sin(np.arange(N))  # electrons, 1 to 3
TARGET = as_tensor(2 + 1.5 * np.cos(1.7 * np.arange(N))).double()
RUNS, SAMPLES = 500, 16


@pytest.fixture(scope="module")
def one_thread():
    """Images this small only lose time to threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def absolute(counts):
    return (counts - TARGET).abs()


def quadratic(counts):
    return (counts - TARGET).square()


def exact_gradient(loss) -> torch.Tensor:
    """d E[L] / d lambda by summing over all counts 0 to 20 of the three pixels that reach one.

    P(N > 20) < 1e-11 at lambda = 3.
    """
    number = torch.arange(21.0, dtype=torch.float64)
    mean = as_tensor(MEAN).requires_grad_()
    logs = number * mean[:, None].log() - mean[:, None] - torch.lgamma(number + 1)
    p = logs.exp()
    counts = 0.2 * number[:, None, None] + 0.6 * number[:, None] + 0.2 * number
    losses = loss(counts[..., None].expand(-1, -1, -1, N))  # pixel last, as TARGET
    total = torch.einsum("abci,ia,ib,ic->", losses, p.roll(1, 0), p, p.roll(-1, 0))
    return grad(total, mean)[0]


def score_gradients(loss, **options) -> torch.Tensor:
    """Gradient (RUNS, N) of independent runs."""
    estimator = ScoreFunction(samples=SAMPLES, **options)
    intensity = as_tensor(MEAN)[None].requires_grad_()
    return torch.stack([
        grad(score_function_gradient(loss, intensity, detector=ROW, estimator=estimator,
                                     seed=seed, **UNIT), intensity)[0][0]
        for seed in range(RUNS)])


def reparametrised_gradients(loss) -> torch.Tensor:
    intensity = as_tensor(MEAN).expand(RUNS, 1, N).clone().requires_grad_()
    noise = as_tensor(np.random.default_rng(1).normal(size=(SAMPLES, RUNS, 1, N)))
    counts = reparametrised_sample(intensity, detector=ROW, noise=noise, **UNIT)
    return grad(loss(counts).sum() / SAMPLES, intensity)[0][:, 0]


def sigmas(gradients, exact) -> float:
    """Largest deviation of a pixel's mean gradient, in standard errors."""
    error = gradients.std(dim=0) / math.sqrt(len(gradients))
    return float(((gradients.mean(dim=0) - exact).abs() / error).max())


@pytest.fixture(scope="module")
def gradients(one_thread) -> dict[str, torch.Tensor]:
    """Every estimator's gradients of E|y - t|; of module scope, and so set up before `double`."""
    init("cpu", "float64")
    return {
        "own": score_gradients(absolute, credit="own"),
        "reach, radius 1": score_gradients(absolute, credit="reach", radius=1),
        "reach, radius 1, no baseline": score_gradients(absolute, credit="reach", radius=1,
                                                        leave_one_out=False),
        "all": score_gradients(absolute, credit="all"),
        "all, no baseline": score_gradients(absolute, credit="all", leave_one_out=False),
        "Gaussian reparametrisation": reparametrised_gradients(absolute),
    }


@pytest.mark.parametrize("name", DETECTORS)
def test_log_prob_gradients(name):
    """Against central differences, at gradcheck's own tolerances."""
    base = DETECTORS[name]
    random = np.random.default_rng(0)
    counts = as_tensor(random.poisson(9.0, (4, 6)) * 1.5)
    table = base.dqe if isinstance(base.dqe, tuple) else None
    dqe = table[1] if table else base.dqe

    def density(intensity, dose, gain, mtf, dqe):
        curve = (table[0], dqe) if table else dqe
        return log_prob(counts, intensity, pixel_size=1.2, dose=dose,
                        detector=Detector(base.kind, gain=gain, mtf=mtf, dqe=curve))

    values = [random.uniform(0.8, 1.2, (4, 6)), 5.0, base.gain, PARAMETERS, dqe]
    assert gradcheck(density, [as_tensor(value).requires_grad_() for value in values])


def test_probabilities_of_all_counts_sum_to_one():
    """P(N > 30) < 1e-16 at these means."""
    numbers = torch.cartesian_prod(torch.arange(31.0), torch.arange(31.0)).double()
    p = [log_prob(pair[None], as_tensor([[2.0, 3.5]]), **UNIT).exp() for pair in numbers]
    assert float(sum(p)) == pytest.approx(1, abs=1e-12)


def test_white_counting_is_poisson_per_step_of_the_counts():
    """Against scipy; the density is the probability over the step gain / DQE."""
    counter = Detector(gain=2.0, mtf=PARAMETERS, dqe=0.5)
    intensity = as_tensor(np.random.default_rng(0).uniform(3, 5, (4, 4)))
    events = np.random.default_rng(1).poisson(2.0, (4, 4))
    rate = expected_counts(intensity, detector=counter, **UNIT).numpy() / 4
    found = log_prob(as_tensor(events * 4.0), intensity, detector=counter, **UNIT)
    expected = poisson.logpmf(events, rate).sum() - 16 * math.log(4)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_small_changes_of_many_electrons_are_seen_in_single_precision():
    """Where LBFGS compares losses, near the best fit, an image changes by some 1e-4 of itself."""
    init("cpu", "float32")
    rng = np.random.default_rng(0)
    before = as_tensor(1 + 0.1 * rng.standard_normal((256, 256)))
    counts, setting = as_tensor(rng.poisson(350 * before.numpy())), {"pixel_size": 1.0, "dose": 350}
    errors = []
    for _ in range(4):
        after = before * as_tensor(1 + 1e-4 * rng.standard_normal((256, 256)))
        found = log_prob(counts, after, **setting) - log_prob(counts, before, **setting)
        mean, moved = (350 * one.double().numpy() for one in (before, after))
        exact = (counts.double().numpy() * np.log(moved / mean) - moved + mean).sum()
        errors.append(float(found) - float(exact))
    init("cpu", "float64")
    # Means are rounded by up to 6e-8 of them: 6e-8 sqrt(350) 256 = 3e-4 in the sum; four of it
    assert np.abs(errors).max() < 1.2e-3


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (1, 3)])
def test_whittle_is_the_gaussian_of_the_circulant_covariance(shape):
    """Against scipy, for even and odd widths (the weights of a half transform)."""
    coloured = DETECTORS["coloured"]
    random = np.random.default_rng(0)
    intensity, counts = random.uniform(5, 6, shape), random.uniform(5, 20, shape)
    wy, wx = np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), indexing="ij")
    power = noise_power_spectrum(as_tensor(np.hypot(wy, wx)), coloured, dose=intensity.mean(),
                                 pixel_size=1)
    kernel = np.fft.ifft2(power.numpy()).real
    covariance = np.array([np.roll(kernel, (y, x), (0, 1)).ravel() for y, x in np.ndindex(shape)])
    mean = expected_counts(as_tensor(intensity), detector=coloured, **UNIT).numpy()
    expected = multivariate_normal(mean.ravel(), covariance).logpdf(counts.ravel())
    found = log_prob(as_tensor(counts), as_tensor(intensity), detector=coloured, **UNIT)
    assert float(found) == pytest.approx(expected, rel=1e-10)


def test_whittle_meets_poisson_at_large_counts():
    """Flat counting image, gain 2: the two differ by O(1/lambda) a pixel (Stirling: 1/12 lambda;
    skewness: of the same order), here under 1e-3 of 10^4 electrons' log-density per pixel."""
    counting = Detector(gain=2.0, dqe=0.5)
    table = Detector(gain=2.0, dqe=([0.0, 1.0], [0.5, 0.5]))  # the same camera, taken as Gaussian
    flat = torch.ones(1, 64, 64, dtype=torch.float64)
    counts = detect(flat, pixel_size=1, dose=1e4, detector=counting)
    exact, whittle = (float(log_prob(counts, flat, pixel_size=1, dose=1e4, detector=detector))
                      for detector in (counting, table))
    assert whittle / 4096 == pytest.approx(exact / 4096, abs=1e-3)


@pytest.mark.parametrize("name", DETECTORS)
def test_expected_score_is_zero(name):
    """Mean of d log p / d intensity over 300 images of `detect`, within 5 standard errors.

    Exact for a flat image and any number of electrons: Whittle's S is the detector's own.
    """
    flat = torch.full((300, 8, 8), 1.0, dtype=torch.float64)
    exposure = {"pixel_size": 1.0, "dose": 6.0, "detector": DETECTORS[name]}
    counts = detect(flat, seed=3, **exposure)
    intensity = flat.requires_grad_()
    score = grad(log_prob(counts, intensity, **exposure), intensity)[0].reshape(300, -1)
    assert sigmas(score, 0) < 5


@pytest.mark.parametrize(("kind", "integer"), [("integrating", False), ("integrating", True),
                                               ("counting", False)])
def test_flat_fields_give_dose_and_gain_back(kind, integer):
    """Newton's maximum of log_prob over (dose, gain) is the truth within 4 sigma.

    Sigma from the curvature: about 1 % for 8 images of 32 x 32 pixels.
    """
    truth = torch.tensor([50.0, 3.0], dtype=torch.float64)
    flat = torch.ones(8, 32, 32, dtype=torch.float64)
    camera = Detector(kind, gain=truth[1], mtf=PARAMETERS, dqe=0.7, integer=integer)
    counts = detect(flat, pixel_size=2, dose=truth[0], detector=camera, seed=5)

    def density(logarithms):
        dose, gain = logarithms.exp()
        camera = Detector(kind, gain=gain, mtf=PARAMETERS, dqe=0.7, integer=integer)
        return log_prob(counts, flat, pixel_size=2, dose=dose, detector=camera)

    found = (truth * torch.tensor([1.1, 0.93])).log()
    for _ in range(8):
        curvature = torch.autograd.functional.hessian(density, found)
        slope = torch.autograd.functional.jacobian(density, found)
        found = found - torch.linalg.solve(curvature, slope)
    assert slope.abs().max() < 1e-6  # converged: sigma times this is far below sigma
    assert torch.linalg.eigvalsh(curvature).max() < 0  # a maximum
    sigma = torch.linalg.inv(-curvature).diagonal().sqrt()
    assert sigma.max() < 0.03
    assert ((found - truth.log()).abs() / sigma).max() < 4


@pytest.mark.parametrize("name", ["all", "all, no baseline", "reach, radius 1",
                                  "reach, radius 1, no baseline"])
def test_score_function_is_unbiased(gradients, name):
    """Every pixel within 4 standard errors of the enumeration."""
    assert sigmas(gradients[name], exact_gradient(absolute)) < 4


def test_own_credit_is_biased(gradients):
    assert sigmas(gradients["own"], exact_gradient(absolute)) > 5


def test_baseline_and_reach_reduce_the_variance(gradients):
    """Each at least halves it here; the page gives the factors."""
    variance = {name: float(runs.var(dim=0).mean()) for name, runs in gradients.items()}
    assert 2 * variance["all"] < variance["all, no baseline"]
    assert 2 * variance["reach, radius 1"] < variance["reach, radius 1, no baseline"]
    assert 2 * variance["reach, radius 1"] < variance["all"]
    assert 2 * variance["Gaussian reparametrisation"] < variance["reach, radius 1"]


def test_reparametrisation_is_exact_for_a_quadratic_loss():
    """The noises +-sqrt(n) e_i have mean 0 and covariance 1 exactly, so no chance is left."""
    noise = math.sqrt(N) * torch.cat([torch.eye(N), -torch.eye(N)]).double()[:, None]
    intensity = as_tensor(MEAN)[None].requires_grad_()
    counts = reparametrised_sample(intensity, detector=ROW, noise=noise, **UNIT)
    found = grad(quadratic(counts).sum() / (2 * N), intensity)[0][0]
    # The counts above 20 that the enumeration leaves out weigh 20^2 P(N > 20) < 1e-8.
    torch.testing.assert_close(found, exact_gradient(quadratic), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", DETECTORS)
def test_reparametrised_covariance_is_the_detectors(name):
    """Flat image: the mean periodogram is the noise power spectrum, by noises +-sqrt(n) e_i."""
    shape = (4, 6)
    noise = math.sqrt(24) * torch.eye(24, dtype=torch.float64).reshape(24, *shape)
    flat = torch.ones(shape, dtype=torch.float64)
    exposure = {"pixel_size": 1.5, "dose": 4.0, "detector": DETECTORS[name]}
    residual = reparametrised_sample(flat, noise=noise, **exposure) \
        - expected_counts(flat, **exposure)
    found = torch.fft.rfft2(residual).abs().square().mean(dim=0) / 24
    w = np.hypot(np.fft.fftfreq(4)[:, None], np.fft.rfftfreq(6))
    expected = noise_power_spectrum(as_tensor(w), DETECTORS[name], dose=4.0, pixel_size=1.5)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", DETECTORS)
def test_gain_dose_and_dqe_have_gradients_through_the_samples(name):
    """E sum (y - 5)^2 of a flat image is n [(gain lambda - 5)^2 + S], S the mean of the NPS."""
    base = DETECTORS[name]
    flat = torch.ones(8, 8, dtype=torch.float64)
    gain, dose = as_tensor(base.gain).requires_grad_(), as_tensor(4.0).requires_grad_()
    table = isinstance(base.dqe, tuple)
    dqe = as_tensor(base.dqe[1] if table else base.dqe).requires_grad_(base.kind == "counting")
    camera = Detector(base.kind, gain=gain, mtf=base.mtf, dqe=(base.dqe[0], dqe) if table else dqe)
    wanted = [gain, dose, *([dqe] if dqe.requires_grad else [])]
    w = as_tensor(np.hypot(np.fft.fftfreq(8)[:, None], np.fft.fftfreq(8)))
    power = noise_power_spectrum(w, camera, dose=dose, pixel_size=1).mean()

    def flattened(value):
        return torch.cat([own.reshape(-1) for own in grad(value, wanted)])

    exact = flattened(64 * ((gain * dose - 5).square() + power))

    def gradient(seed):
        return flattened(score_function_gradient(
            lambda y: (y - 5).square(), flat, pixel_size=1, dose=dose, detector=camera, seed=seed,
            estimator=ScoreFunction(credit="reach", radius=4)))

    assert sigmas(torch.stack([gradient(seed) for seed in range(100)]), exact) < 4


def test_same_seed_same_gradient_and_radius_of_the_whole_image_is_all():
    intensity = as_tensor(MEAN)[None].requires_grad_()

    def gradient(seed, **options):
        loss = score_function_gradient(absolute, intensity, detector=ROW, seed=seed,
                                       estimator=ScoreFunction(**options), **UNIT)
        return grad(loss, intensity)[0]

    whole = gradient(1, credit="reach", radius=N // 2)
    torch.testing.assert_close(whole, gradient(1, credit="all"), rtol=1e-10, atol=1e-12)
    assert not torch.equal(whole, gradient(2, credit="all"))


def test_refusals():
    flat = torch.ones(4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="credit='near'"):
        ScoreFunction(credit="near")
    with pytest.raises(ValueError, match="samples=1: must be at least 2"):
        ScoreFunction(samples=1)
    with pytest.raises(ValueError, match="radius=-1"):
        ScoreFunction(radius=-1)
    with pytest.raises(ValueError, match="counts has shape"):
        log_prob(flat[:2], flat, **UNIT)
    with pytest.raises(ValueError, match="counts=-1"):
        log_prob(-flat, flat, **UNIT)
    with pytest.raises(ValueError, match="noise power is 0"):
        log_prob(flat, 0 * flat, detector=DETECTORS["integrating"], **UNIT)
    fitted = Detector("integrating", dqe=as_tensor(0.5).requires_grad_())
    with pytest.raises(ValueError, match=r"detector\.dqe: requires a gradient"):
        score_function_gradient(torch.abs, flat, detector=fitted, **UNIT)
    with pytest.raises(ValueError, match="loss_of_sample returns shape"):
        score_function_gradient(torch.sum, flat, **UNIT)
    with pytest.raises(ValueError, match="noise has shape"):
        reparametrised_sample(flat, noise=flat[0], **UNIT)


def test_table_of_the_documentation_is_this_one(gradients):
    """TEM_TAICHI_WRITE_DOCS=1 writes it; otherwise it must list these estimators."""
    exact = exact_gradient(absolute)
    rows = []
    for name, runs in gradients.items():
        bias = float((runs.mean(dim=0) - exact).norm() / exact.norm())
        chance = float(runs.var(dim=0).sum().sqrt() / exact.norm()) / math.sqrt(RUNS)
        variance = float(runs.var(dim=0).sum() / exact.square().sum())
        rows.append(f"| {name} | {bias:.3f} | {chance:.3f} | "
                    f"{sigmas(runs, exact):.1f} | {variance:.3f} |")
    if os.environ.get("TEM_TAICHI_WRITE_DOCS"):
        head, _, _ = PAGE.read_text("utf-8").partition("| estimator |")
        PAGE.write_text(head + "| estimator | bias | expected by chance | largest pixel [sigma] | "
                        "variance |\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n",
                        encoding="utf-8")
    listed = [line.split("|")[1].strip() for line in PAGE.read_text("utf-8").splitlines()
              if line.startswith("| ")][2:]
    assert listed == list(gradients)
