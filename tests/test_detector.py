from dataclasses import replace
from importlib import import_module
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
import yaml
from scipy.stats import ks_2samp

from tem_taichi.device import as_tensor, current, init
from tem_taichi.noise.detector import (
    Detector,
    detect,
    expected_counts,
    noise_power_spectrum,
)

PIXEL_SIZE = 2.0  # [A]
DOSE = 50.0  # [e-/A^2]
ELECTRONS = DOSE * PIXEL_SIZE**2  # a pixel; so many that the sums below are nearly Gaussian
EXPOSURE = {"pixel_size": PIXEL_SIZE, "dose": DOSE}

PARAMETERS = (0.7, 0.2, 0.1, 10.0, 40.0)
TABLE = ([0.0, 0.25, 0.5], [1.0, 0.6, 0.3])
DQE_TABLE = ([0.0, 0.2, 0.5], [0.8, 0.7, 0.3])
INTEGRATING = Detector("integrating", gain=10.0, mtf=PARAMETERS, dqe=0.4)
COUNTING = Detector("counting", gain=2.0, mtf=PARAMETERS, dqe=0.8)
COLOURED = Detector("counting", gain=2.0, mtf=TABLE, dqe=DQE_TABLE)
SPREADING = Detector("integrating", gain=3.0, mtf=TABLE, dqe=DQE_TABLE)
DETECTORS = {"integrating": INTEGRATING, "counting": COUNTING, "coloured": COLOURED,
             "spreading": SPREADING}


@pytest.fixture(params=DETECTORS)
def detector(request) -> Detector:
    return DETECTORS[request.param]


@pytest.fixture
def float64():
    before = current()
    init(before.arch, "float64")
    yield
    init(before.arch, str(before.dtype).removeprefix("torch."))


def tmv_mtf(w):
    return 0.7 / (1 + 10 * w**2) + 0.2 / (1 + 40 * w**2) + 0.1


def stated_mtf(detector: Detector, w: np.ndarray) -> np.ndarray:
    return np.interp(w, *TABLE) if detector.mtf is TABLE else tmv_mtf(w)


def stated_dqe(detector: Detector, w: np.ndarray) -> np.ndarray:
    """DQE(w) by its definition for each kind, written independently of the code."""
    if detector is INTEGRATING:
        return np.full_like(w, 0.4)
    return 0.8 * tmv_mtf(w) ** 2 if detector is COUNTING else np.interp(w, *DQE_TABLE)


def random_intensity(*shape: int) -> torch.Tensor:
    return as_tensor(np.random.default_rng(3).uniform(0.2, 1.8, shape))


def flat_fields(detector: Detector, images: int = 64, side: int = 64, **options) -> np.ndarray:
    counts = detect(as_tensor(np.ones((images, side, side))), detector=detector, **EXPOSURE,
                    **options)
    return counts.cpu().double().numpy()


def binned_power(noise: np.ndarray, bins: int = 12):
    """Frequencies and periodograms, averaged over images, of one group per radial bin.

    Columns 0 and Nyquist of rfft2 hold conjugate pairs and are left out; all others are
    independent, each with a relative variance of 1/images.
    """
    images, ny, nx = noise.shape
    inner = slice(1, nx // 2)
    power = (np.abs(np.fft.rfft2(noise)) ** 2).mean(0)[:, inner] / (ny * nx)
    w = np.hypot(np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx)[None, inner])
    index = np.digitize(w, np.linspace(0, 0.71, bins + 1))
    for i in np.unique(index):
        chosen = index == i
        yield w[chosen], power[chosen], 1 / np.sqrt(images * chosen.sum())


# --- the expectation ---

@pytest.mark.parametrize("shape", [(12, 16), (13, 15), (3, 9, 8)])
def test_noise_off_is_exactly_the_expectation(detector, shape):
    intensity = random_intensity(*shape)
    counts = detect(intensity, detector=detector, noise=False, **EXPOSURE)
    assert torch.equal(counts, expected_counts(intensity, detector=detector, **EXPOSURE))
    w = np.hypot(np.fft.fftfreq(shape[-2])[:, None], np.fft.fftfreq(shape[-1])[None])
    spectrum = np.fft.fft2(intensity.cpu().double().numpy()) * stated_mtf(detector, w)
    twin = detector.gain * ELECTRONS * np.fft.ifft2(spectrum).real
    # float32 holds 6e-8; a small transform loses a few digits of the last place.
    np.testing.assert_allclose(counts.cpu(), twin, rtol=2e-6)


def test_ideal_detector_passes_the_electrons_on_unchanged():
    intensity = random_intensity(7, 5)
    assert torch.equal(expected_counts(intensity, **EXPOSURE), intensity * DOSE * PIXEL_SIZE**2)


@pytest.mark.parametrize("shape", [(16, 16), (15, 17)])
def test_mtf_keeps_the_number_of_electrons(detector, shape):
    spot = torch.zeros(shape)
    spot[4, 5] = 1000
    counts = expected_counts(as_tensor(spot), detector=detector, **EXPOSURE)
    assert counts.max() < 0.7 * 1000 * ELECTRONS * detector.gain  # it has spread
    # float32 rounding of a sum of 256 terms.
    assert float(counts.sum()) == pytest.approx(1000 * ELECTRONS * detector.gain, rel=1e-5)


def test_one_dose_per_image():
    intensity = random_intensity(2, 6, 6)
    counts = expected_counts(intensity, pixel_size=1.5, dose=as_tensor([3.0, 40.0]))
    for image, dose, expected in zip(intensity, (3.0, 40.0), counts, strict=True):
        assert torch.equal(expected, expected_counts(image, pixel_size=1.5, dose=dose))


def test_expectation_gradients(float64):
    intensity = random_intensity(5, 6).requires_grad_()
    numbers = [as_tensor(value).requires_grad_() for value in (30.0, 1.3, 2.5)]

    def from_parameters(intensity, dose, pixel_size, gain, *mtf):
        return expected_counts(intensity, pixel_size=pixel_size, dose=dose,
                               detector=Detector(gain=gain, mtf=mtf))

    def from_table(values):
        return expected_counts(intensity.detach(), detector=Detector(mtf=(TABLE[0], values)),
                               **EXPOSURE)

    parameters = [as_tensor(value).requires_grad_() for value in PARAMETERS]
    assert torch.autograd.gradcheck(from_parameters, (intensity, *numbers, *parameters))
    assert torch.autograd.gradcheck(from_table, as_tensor(TABLE[1]).requires_grad_())


def test_noise_spectrum_gradients(float64):
    w = as_tensor([0.05, 0.31])

    def spectrum(kind, dqe):
        return lambda gain, dose, value, mtf: noise_power_spectrum(
            w, Detector(kind, gain=gain, mtf=mtf, dqe=dqe(value)), dose=dose, pixel_size=1.2)

    numbers = [as_tensor(value).requires_grad_() for value in (2.5, 30.0, 0.6, PARAMETERS)]
    assert torch.autograd.gradcheck(spectrum("integrating", lambda value: value), numbers)
    assert torch.autograd.gradcheck(
        spectrum("counting", lambda value: ([0.0, 0.5], [0.9, value])), numbers)


# --- the noise ---

@pytest.mark.parametrize(("kind", "dqe", "excess", "kurtosis"), [
    ("integrating", None, 1, 1),
    # E[g^4] / E[g^2]^2 of an inverse-Gaussian gain g of mean 1 and variance 1.5: 94.4 / 6.25.
    ("integrating", 0.4, 2.5, 15.1),
    ("counting", None, 1, 1),
    ("counting", 0.8, 1.25, 1.25),
])
def test_flat_field_mean_and_variance(kind, dqe, excess, kurtosis):
    counts = flat_fields(Detector(kind, gain=3.0, dqe=dqe), images=16, side=128)
    variance = 9 * ELECTRONS * excess
    # 5 standard errors; that of a variance is sqrt((2 + excess kurtosis)/n), the excess kurtosis
    # of a compound Poisson sum being E[g^4]/(E[g^2]^2 electrons).
    assert counts.mean() == pytest.approx(3 * ELECTRONS, abs=5 * np.sqrt(variance / counts.size))
    error = np.sqrt((2 + kurtosis / ELECTRONS) / counts.size)
    assert counts.var() == pytest.approx(variance, rel=5 * error)


def test_deposited_charge_is_a_sum_of_inverse_gaussian_gains():
    dose, dqe, pixels = 4.0, 0.4, 128**2
    counts = detect(as_tensor(np.ones((128, 128))), pixel_size=1.0, dose=dose,
                    detector=Detector("integrating", dqe=dqe)).cpu().numpy().ravel()
    generator = np.random.default_rng(5)
    electrons = generator.poisson(dose, pixels)
    pixel = np.repeat(np.arange(pixels), electrons)
    one_by_one = np.bincount(pixel, generator.wald(1, 1 / (1 / dqe - 1), len(pixel)), pixels)
    # Exact laws give a uniform p; a gain of the same mean and variance but another shape
    # (gamma) gives p < 1e-5 with so many pixels.
    assert ks_2samp(counts, one_by_one.astype(np.float32)).pvalue > 1e-3
    assert (counts == 0).mean() == pytest.approx(np.exp(-dose), abs=5 * np.sqrt(
        np.exp(-dose) / pixels))


def test_noise_spectrum_and_dqe_are_recovered_from_flat_fields(detector):
    noise = flat_fields(detector, seed=7) - detector.gain * ELECTRONS
    for w, power, error in binned_power(noise):
        expected = noise_power_spectrum(as_tensor(w), detector, **EXPOSURE).cpu().double().numpy()
        # Periodogram ordinates are exponential, their mean over n has relative deviation
        # 1/sqrt(n): 5 of those.
        assert (power / expected).mean() == pytest.approx(1, abs=5 * error)
        signal = (detector.gain * ELECTRONS * stated_mtf(detector, w)) ** 2
        noise_per_dqe = power * ELECTRONS * stated_dqe(detector, w)
        assert (noise_per_dqe / signal).mean() == pytest.approx(1, abs=5 * error)


def test_integrating_flat_fields_give_the_mtf():
    noise = flat_fields(INTEGRATING, seed=8) - INTEGRATING.gain * ELECTRONS
    for w, power, error in binned_power(noise, bins=40):
        mtf = np.sqrt(power.mean() * INTEGRATING.dqe / (INTEGRATING.gain**2 * ELECTRONS))
        # Half the relative error of the power, plus the curvature of the MTF inside a bin.
        stated = np.sqrt((tmv_mtf(w) ** 2).mean())
        assert mtf == pytest.approx(stated, rel=5 * error / 2)


def test_flat_fields_give_a_measured_curve():
    """The shipped table of a real camera, on an integrating detector whose noise shows it."""
    folder = Path(str(import_module("tem_taichi.conf").__file__)).parent / "detector"
    rows = yaml.safe_load((folder / "falcon4ec_300kv.yaml").read_text("utf-8"))["mtf_table"]
    frequencies, values = np.array(rows).T
    camera = Detector("integrating", dqe=0.5, mtf=(frequencies, values))
    noise = flat_fields(camera, seed=11) - ELECTRONS
    for w, power, error in binned_power(noise, bins=40):
        mtf = np.sqrt(power.mean() * 0.5 / ELECTRONS)
        stated = np.sqrt((np.interp(w, frequencies, values) ** 2).mean())
        assert mtf == pytest.approx(stated, rel=5 * error / 2)


def test_counting_noise_is_white_although_the_signal_is_not():
    noise = flat_fields(COUNTING, seed=9) - COUNTING.gain * ELECTRONS
    white = COUNTING.gain**2 * ELECTRONS / 0.8
    for _, power, error in binned_power(noise):
        assert power.mean() == pytest.approx(white, rel=5 * error)


def test_spectrum_adds_up_to_the_variance_of_a_pixel(detector):
    w = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None])
    spectrum = noise_power_spectrum(as_tensor(w), detector, **EXPOSURE)
    counts = flat_fields(detector)
    # 5 standard errors; blurred pixels are correlated, which leaves this fraction of them.
    independent = float(spectrum.mean() ** 2 / (spectrum**2).mean())
    error = np.sqrt(2 / (counts.size * independent))
    assert counts.var() == pytest.approx(float(spectrum.mean()), rel=5 * error)


def test_an_edge_gives_the_mtf_of_every_kind(detector):
    ny, nx, images = 128, 64, 32
    edge = np.ones((images, ny, nx))
    edge[:, :, nx // 2:] = 0.2
    counts = detect(as_tensor(edge), detector=detector, seed=2, **EXPOSURE).cpu().double().numpy()
    odd = np.arange(1, nx // 2, 2)  # a half-filled square wave holds nothing else
    measured = np.fft.rfft(counts.sum((0, 1)))[odd]
    ideal = detector.gain * ELECTRONS * np.fft.rfft(edge.sum((0, 1)))[odd]
    spectrum = noise_power_spectrum(as_tensor(odd / nx), detector, **EXPOSURE)
    # Noise of a sum over images and rows; that of the bright half is an upper bound.
    error = np.sqrt(spectrum.cpu().double().numpy() * images * ny * nx) / np.abs(ideal)
    assert error.max() < 0.02  # so that the comparison means something
    assert (np.abs(measured / ideal - stated_mtf(detector, odd / nx)) < 5 * error).all()


def test_agrees_with_the_noise_of_tem_simulator(shared):
    folder = shared / "reference" / "temsim" / "tmv3"
    noisy = mrcfile.read(folder / "tiltseries.mrc").astype(float)
    clean = mrcfile.read(folder / "tiltseries_nonoise.mrc").astype(float)
    # 100 e-/nm^2 at 5 A; the ice absorbs a part, so the dose comes from the mean counts.
    dose = clean.mean() / (INTEGRATING.gain * 25)
    for w, power, error in binned_power(noisy - clean):
        expected = noise_power_spectrum(as_tensor(w), INTEGRATING, dose=dose, pixel_size=5.0)
        ratio = (power / expected.cpu().double().numpy()).mean()
        assert ratio == pytest.approx(1, abs=5 * error)
    counts = detect(as_tensor(np.ones(clean.shape)), pixel_size=5.0, dose=dose,
                    detector=INTEGRATING)
    assert float(counts.mean()) == pytest.approx(noisy.mean(), rel=0.005)  # 220 counts +- 0.1
    # Three images hold 480,000 pixels of which the blur leaves a sixth independent: 0.35 % of
    # the variance each, five times their difference's.
    assert float(counts.var()) == pytest.approx((noisy - clean).var(), rel=0.025)


# --- random numbers ---

def test_the_same_seed_gives_the_same_bytes_and_another_does_not(detector):
    options = {"detector": detector, **EXPOSURE}
    intensity = random_intensity(16, 16)
    first = detect(intensity, seed=4, stream=2, **options).cpu().numpy().tobytes()
    assert detect(intensity, seed=4, stream=2, **options).cpu().numpy().tobytes() == first
    for other in ({"seed": 4, "stream": 3}, {"seed": 2, "stream": 4}, {"seed": 5, "stream": 2}):
        assert detect(intensity, **other, **options).cpu().numpy().tobytes() != first


def test_an_image_does_not_depend_on_the_others(detector):
    intensity = random_intensity(3, 17, 18)
    options = {"detector": detector, "seed": 6, **EXPOSURE}
    stack = detect(intensity, stream=10, **options)
    assert torch.equal(stack[:2], detect(intensity[:2], stream=10, **options))
    for i, image in enumerate(intensity):
        assert torch.equal(stack[i], detect(image, stream=10 + i, **options))


def test_streams_are_independent():
    noise = flat_fields(Detector("integrating", dqe=0.4), images=2, side=256).reshape(2, -1)
    correlation = np.corrcoef(noise)[0, 1]
    assert abs(correlation) < 5 / 256  # 5 / sqrt(pixels)


def test_noise_refuses_a_gradient_and_counts_can_be_whole_numbers():
    intensity = random_intensity(16, 16).requires_grad_()
    for detector in (Detector("integrating", gain=3.3, mtf=PARAMETERS, dqe=0.5, integer=True),
                     Detector("counting", gain=0.8, mtf=PARAMETERS, dqe=0.8)):
        with pytest.raises(ValueError, match="intensity: has no gradient through noise"):
            detect(intensity, detector=detector, **EXPOSURE)
        gain = replace(detector, gain=torch.tensor(2.0, requires_grad=True))
        with pytest.raises(ValueError, match="gain: has no gradient through noise"):
            detect(intensity.detach(), detector=gain, **EXPOSURE)
        with torch.no_grad():
            detect(intensity, detector=gain, **EXPOSURE)
        counts = detect(intensity.detach(), detector=detector, **EXPOSURE)
        assert torch.equal(counts, counts.round())
        assert detect(intensity, detector=detector, noise=False, **EXPOSURE).requires_grad


@pytest.mark.parametrize("kind", ["integrating", "counting"])
def test_dark_pixels_beside_an_edge(kind):
    knife = torch.ones(32, 32)
    knife[:, 16:] = 0
    detector = Detector(kind, mtf=([0.2, 0.3], [1.0, 0.0]), dqe=0.5)
    exposure = {"pixel_size": 1.0, "dose": 0.5, "detector": detector}
    assert expected_counts(as_tensor(knife), **exposure).min() < 0  # so steep an MTF rings
    counts = detect(as_tensor(knife), **exposure)
    assert counts.isfinite().all()
    assert kind == "integrating" or (counts >= 0).all()


@pytest.mark.parametrize("kind", ["integrating", "counting"])
def test_a_dqe_table_keeps_the_mean_where_the_blur_rings(kind):
    knife = torch.ones(16, 32)
    knife[:, 16:] = 0
    camera = Detector(kind, mtf=([0.2, 0.3], [1.0, 0.5]), dqe=([0.2, 0.3], [0.8, 0.1]))
    exposure = {"pixel_size": 1.0, "dose": 9.0, "detector": camera}
    counts = detect(as_tensor(knife).expand(200, -1, -1), **exposure).mean(dim=(0, 1))
    expected = expected_counts(as_tensor(knife), **exposure).mean(dim=0)
    # 3200 pixels a column of a variance of at most 9 / 0.8 + 2 and as many columns: 5 deviations.
    # Electrons left out where the blurred mean is below 0 (9 % of a step) would add up to 0.7.
    assert (counts - expected).abs().max() < 5 * np.sqrt(13.3 / 3200)


def test_counts_of_a_dqe_table_scatter_as_the_local_mean():
    """Noise belongs to the electrons of its place: a dark side stays quiet."""
    half = torch.ones(256, 256)
    half[:, 128:] = 0.1
    counts = detect(as_tensor(half), detector=COLOURED, **EXPOSURE)
    bright, dark = float(counts[:, 32:96].var()), float(counts[:, 160:224].var())
    assert dark / bright == pytest.approx(0.1, rel=0.1)  # 16,384 pixels, a third independent: 2 %


# --- errors ---

@pytest.mark.parametrize(("field", "value", "message"), [
    ("kind", "ccd", "must be one of integrating, counting"),
    ("gain", 0.0, r"gain=0.0: must be positive"),
    ("gain", float("nan"), "must be positive"),
    ("gain", (1.0, 2.0), "must be one number"),
    ("dqe", 0.0, r"dqe=0: must be in \(0, 1\]"),
    ("dqe", 1.01, "must be in"),
    ("dqe", float("nan"), "must be in"),
    ("dqe", ([0, 0.5], [0.9, 0.0]), "must be > 0 and <= 1"),
    ("dqe", ([0, 0.5], [1.2, 0.5]), "must be > 0 and <= 1"),
    ("dqe", (1, 2, 3), "must be one number"),
    ("mtf", (1.0, 1.0, 1.0, -1.0, 2.0), "alpha and beta"),
    ("mtf", (1.0, 1.0, 1.0, 1.0, -2.0), "alpha and beta"),
    ("mtf", (1.0, -1.0, 0.0, 1.0, 2.0), "must be positive"),
    ("mtf", (1.0, float("nan"), 0.0, 1.0, 2.0), "five finite numbers"),
    ("mtf", (1.0, 2.0, 3.0), "five numbers"),
    ("mtf", "k3.star", "five numbers"),
    ("mtf", ([0, 0.3, 0.3], [1, 0.5, 0.4]), "increase"),
    ("mtf", ([0, 0.5], [1, float("nan")]), "finite"),
    ("mtf", ([0, 0.5], [1, -0.1]), ">= 0"),
    ("mtf", ([0, 0.5], [1, 0.5, 0.2]), "same length"),
])
def test_bad_detectors_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        Detector(**{field: value})


@pytest.mark.parametrize(("changes", "message"), [
    ({"intensity": [[1.0, -1e-3]]}, "not negative"),
    ({"intensity": [[1.0, float("nan")]]}, "finite"),
    ({"intensity": [[1.0, float("inf")]]}, "finite"),
    ({"intensity": [1.0, 2.0]}, "must be"),
    ({"dose": -1}, r"dose=-1.0: must be positive \[e-/A\^2\]"),
    ({"dose": float("nan")}, "dose"),
    ({"dose": [1.0, 2.0]}, "one dose an image"),
    ({"pixel_size": 0}, r"pixel_size=0.0: must be positive \[A\]"),
    ({"seed": -1}, "seed=-1"),
    ({"stream": 2**64}, "stream"),
])
def test_bad_exposures_are_refused(changes, message):
    arguments = {"intensity": [[1.0, 1.0]], **EXPOSURE, **changes}
    with pytest.raises(ValueError, match=message):
        detect(as_tensor(arguments.pop("intensity")), **arguments)
