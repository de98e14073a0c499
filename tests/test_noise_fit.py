from pathlib import Path

import numpy as np
import pytest
import yaml

from tem_taichi.device import as_tensor
from tem_taichi.estimate.crops import pick_background, ring_spectrum
from tem_taichi.estimate.flatness import doubts_of_flatness
from tem_taichi.estimate.focal_loss import focal_frequency_loss, unit_range
from tem_taichi.estimate.noise_fit import FREQUENCIES, Known, estimate_noise
from tem_taichi.estimate.power_curves import power_curve
from tem_taichi.noise.curves import evaluate, numbers
from tem_taichi.noise.detector import Detector, detect, noise_power_spectrum
from tem_taichi.series.camera import detector_from_config

TMV = (0.7, 0.2, 0.1, 10.0, 40.0)
ELECTRONS = 22.0
INTEGRATING = Detector("integrating", gain=10.0, mtf=TMV, dqe=0.4)
COUNTING = Detector("counting", gain=2.0, mtf=TMV, dqe=0.8)
KNOWN = Known("integrating", gain=10.0, dqe=0.4)
PERIODIC = {"taper": 0.0, "order": 0, "shared": False}
RESOLVED = (FREQUENCIES >= 2 / 256) & (FREQUENCIES <= 0.5)


def flat(detector, seed=0, count=10, side=256, margin=0):
    """Crops cut from fields larger by a margin."""
    field = as_tensor(np.ones((count, side + margin, side + margin)))
    counts = detect(field, pixel_size=1.0, dose=ELECTRONS, detector=detector, seed=seed)
    return numbers(counts)[:, margin // 2:side + margin // 2, margin // 2:side + margin // 2]


def at(curve):
    return numbers(evaluate(curve, as_tensor(FREQUENCIES)))


def spectrum(detector, electrons=ELECTRONS):
    return numbers(noise_power_spectrum(as_tensor(FREQUENCIES), detector, dose=electrons,
                                        pixel_size=1.0))


def inside(band, truth, chosen=RESOLVED):
    return ((band.lower <= truth) & (truth <= band.upper))[chosen].mean()


# --- the spectrum of crops ---

@pytest.mark.parametrize(("taper", "order", "count"), [(0.0, 0, 2), (0.0, 2, 3), (0.3, 1, 5)])
def test_white_noise_has_a_flat_spectrum_whatever_is_removed(taper, order, count):
    noise = np.random.default_rng(2).standard_normal((200, count, 64, 48)) * 3 + 100
    rings = [ring_spectrum(crops, taper=taper, order=order) for crops in noise]
    power = np.array([one.power for one in rings]) / 9
    weight = np.mean([one.weight for one in rings], axis=0)
    # 5 errors of the mean of 200, for each of 35 rings.
    assert (np.abs(power.mean(0) - 1) < 5 / np.sqrt(200 * weight)).all()
    # Weights add up to the inverse variance of the mean over rings; 200 values give a variance
    # to 10 %. Without the taper's loss the last case would be at 1.4.
    total = np.average(power, axis=1, weights=weight).var() * weight.sum()
    assert total == pytest.approx(1, abs=0.3)
    assert rings[0].mean == pytest.approx(100, abs=0.5)


def test_gradients_and_gain_errors_leave_the_spectrum_alone():
    crops = flat(INTEGRATING, side=64, count=12, margin=16)
    generator = np.random.default_rng(5)
    gain = 1 + 0.02 * generator.standard_normal((64, 64))
    slope = np.linspace(-0.1, 0.1, 64) * generator.standard_normal((12, 1, 1))
    clean = ring_spectrum(crops)
    # Without the subtraction the pattern would add 0.02^2 of the squared mean: 10 % at the corner.
    dirty = ring_spectrum(crops * gain * (1 + slope))
    assert (0.02 * 220) ** 2 / clean.power[-1] > 0.05
    np.testing.assert_allclose(dirty.power, clean.power, rtol=0.02)


def test_leakage_of_a_cut_crop_is_small():
    steep = Detector("integrating", mtf=(0.97, 0.0, 0.03, 60.0, 0.0))
    crops = np.concatenate([flat(steep, seed=seed, side=64, margin=64) for seed in range(6)])
    rings = ring_spectrum(crops)
    expected = numbers(noise_power_spectrum(as_tensor(rings.w), steep, dose=ELECTRONS,
                                            pixel_size=1.0))
    high = rings.w > 0.3  # where a twentieth of the low frequencies' power is left, or less
    error = 1 / np.sqrt(rings.weight[high].sum())
    assert (rings.power / expected)[high].mean() == pytest.approx(1, abs=5 * error)


def test_crops_that_differ_widen_the_bands():
    same = [flat(INTEGRATING, seed=seed, side=64, count=4) for seed in range(2)]
    sharp = flat(Detector("integrating", gain=10.0, dqe=0.4), seed=9, side=64, count=4) / 3
    assert ring_spectrum(np.concatenate(same)).dispersion.max() < 1.5
    assert ring_spectrum(np.concatenate([same[0], sharp])).dispersion.max() > 3


# --- MTF of an integrating detector ---

def test_parametric_curve_of_known_scale_is_within_a_hundredth():
    for seed in range(3):
        fit = estimate_noise(flat(INTEGRATING, seed), KNOWN, form="parametric", **PERIODIC)
        # Three Cramer-Rao deviations at the worst frequency, 0.0033 each.
        assert np.abs(fit.mtf.values - at(TMV))[RESOLVED].max() < 0.01
        assert fit.misfit > 0.001
        assert np.interp(0, fit.mtf.w, fit.mtf.values) == 1


@pytest.mark.parametrize("form", ["parametric", "free"])
def test_curve_of_unknown_scale(form):
    fit = estimate_noise(flat(INTEGRATING, 1), Known("integrating"), form=form, **PERIODIC)
    # Three Cramer-Rao deviations of 0.0099.
    assert np.abs(fit.mtf.values - at(TMV))[RESOLVED].max() < 0.03
    assert inside(fit.mtf, at(TMV)) > 0.8
    assert inside(fit.nps, spectrum(INTEGRATING)) > 0.8
    assert any("extrapolated" in line for line in fit.assumptions)


def test_free_curve_falls_and_follows_the_truth():
    table = (np.array([0, 0.1, 0.25, 0.3, 0.5]), np.array([1, 0.97, 0.6, 0.58, 0.3]))
    camera = Detector("integrating", gain=10.0, mtf=table, dqe=0.4)
    fit = estimate_noise(flat(camera, 3, margin=32), KNOWN)
    assert (np.diff(fit.mtf.values) <= 0).all()
    # Four deviations where few rings help each other (0.005), and rounded corners.
    assert np.abs(fit.mtf.values - at(table))[RESOLVED].max() < 0.02
    misfitting = estimate_noise(flat(camera, 3, margin=32), KNOWN, form="parametric")
    assert misfitting.misfit < 1e-6
    assert "does not fit" in misfitting.warnings[-1]
    assert inside(misfitting.mtf, at(table)) > 0.8  # not confident although wrong


@pytest.mark.parametrize(("power", "at_nyquist"), [(2.0, 1.5), (1.0, 0.8)])
def test_a_power_law_of_the_loss_is_met_at_low_frequency(power, at_nyquist):
    # A Gaussian and a Lorentzian point spread: straight lines of log(-log M) over log w.
    w = np.linspace(0, 0.75, 300)
    camera = Detector("integrating", gain=10.0, dqe=0.4,
                      mtf=(w, np.exp(-at_nyquist * (2 * w) ** power)))
    crops = flat(camera, 5)
    rings = ring_spectrum(crops, taper=0.0, order=0, shared=False)
    level = np.full(len(rings.w), np.log(10 * rings.mean / 0.4))
    curve = power_curve(rings, level, FREQUENCIES)
    # Strength and power of the two-parameter form have errors of a percent; bends that the prior
    # allows double them. Rings alone, without the prior, know M below 0.02 to 0.03 only.
    assert np.abs(np.exp(curve.mean) - at(camera.mtf))[RESOLVED].max() < 0.008
    assert curve.mean[0] == 0
    assert (curve.mean[1:] < 0).all()


def test_a_shared_image_costs_one_crop():
    crops = flat(INTEGRATING, side=64, count=5)
    whole, less = (ring_spectrum(crops, taper=0.0, order=0, shared=own) for own in (False, True))
    assert not whole.shared_removed
    # Dispersion is 1 in most rings of equal noise.
    assert np.median(less.weight / whole.weight) == pytest.approx(4 / 5)
    # The removed image holds a fifth of the same power.
    np.testing.assert_allclose(less.power[8:].mean(), whole.power[8:].mean(), rtol=0.03)


@pytest.mark.parametrize("form", ["parametric", "free"])
def test_bands_hold_the_truth_as_often_as_they_say(form):
    generator = np.random.default_rng(8)
    chosen = (FREQUENCIES >= 2 / 64) & (FREQUENCIES <= 0.5)
    shares = []
    for seed in range(16 if form == "parametric" else 40):
        gain = 1 + 0.02 * generator.standard_normal((64, 64))
        crops = flat(INTEGRATING, seed, count=6, side=64, margin=16)
        crops = crops * gain * (1 + np.linspace(-0.05, 0.05, 64))
        shares.append(inside(estimate_noise(crops, KNOWN, form=form).mtf, at(TMV), chosen))
    # Frequencies of a fit go together: about 5 independent ones each, 80 or more in all, so that
    # 0.95 scatters by 0.025.
    assert 0.89 < np.mean(shares) < 0.999


# --- what is not an MTF ---

def test_noise_of_a_counting_camera_is_not_called_an_mtf():
    for known in (None, Known("counting", gain=2.0), Known("counting", gain=2.0, dqe=0.8)):
        fit = estimate_noise(flat(COUNTING, margin=32), known)
        assert fit.mtf is None
        assert any("do not show the MTF" in line for line in fit.assumptions)
        # White noise of 5 x 10^5 ordinates; the bands are some 0.03 wide at low frequency.
        np.testing.assert_allclose(fit.nps.values, 4 * ELECTRONS / 0.8, rtol=0.04)
        assert inside(fit.nps, spectrum(COUNTING)) > 0.8


def test_known_mtf_gives_the_dqe_and_known_dqe_the_mtf():
    crops = flat(COUNTING, margin=32)
    dqe = 0.8 * at(TMV) ** 2
    fit = estimate_noise(crops, Known("counting", gain=2.0, mtf=TMV))
    np.testing.assert_allclose(fit.dqe.values, dqe, rtol=0.04)
    fit = estimate_noise(crops, Known("counting", gain=2.0, dqe=(FREQUENCIES, dqe)))
    np.testing.assert_allclose(fit.mtf.values, at(TMV), rtol=0.02)


@pytest.mark.parametrize(("detector", "known"), [
    (INTEGRATING, KNOWN), (INTEGRATING, Known("integrating")), (COUNTING, None),
    (COUNTING, Known("counting", gain=2.0)), (COUNTING, Known("counting", gain=2.0, mtf=TMV)),
    (COUNTING, Known("counting", gain=2.0, dqe=(FREQUENCIES, 0.8 * at(TMV) ** 2))),
], ids=["integrating", "unscaled", "nothing", "gain", "mtf", "dqe"])
def test_the_configuration_has_the_measured_noise(detector, known):
    crops = flat(detector, side=128, margin=32)
    fit = estimate_noise(crops, known)
    made = detector_from_config(fit.to_config())
    again = spectrum(made, electrons=crops.mean() / float(made.gain))
    low = FREQUENCIES < 0.5
    # Fit and truth differ by the bands (a few percent), the configuration only rounds; an MTF
    # that has been made to fall may differ from the plain curve by a percent or two.
    np.testing.assert_allclose(again[low], fit.nps.values[low], rtol=0.12)
    np.testing.assert_allclose(again[low], spectrum(detector)[low], rtol=0.2)


# --- what is not flat ---

def specimen(kind, seed=0, n=4, side=256):
    """Poisson images of 20 e-/pixel through something that is no flat field."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    scene = np.ones((n, side, side))
    if kind == "holes":  # a film that takes a fifth, holes of 64 pixels
        scene[:] = np.where(np.hypot(x % 128 - 64, y % 128 - 64) < 32, 1, 0.8)
        scene = np.stack([np.roll(one, 37 * i) for i, one in enumerate(scene)])
    elif kind == "corner":  # particles of 20 % contrast in a quarter of the field
        for image in scene:
            for row, column in generator.integers(10, side // 2 - 10, (4, 2)):
                image -= 0.2 * (np.hypot(x - column, y - row) < 8)
    elif kind == "particles":  # on a tenth of the field
        for image in scene:
            for row, column in generator.integers(20, side - 20, (12, 2)):
                image -= 0.05 * (np.hypot(x - column, y - row) < 12)
    elif kind == "tilts":
        scene *= np.exp(-0.5 / np.cos(np.linspace(0, np.pi / 3, n)))[:, None, None]
    elif kind == "waves":  # everywhere alike, 3 % of slow variation
        slow = np.fft.rfft2(generator.standard_normal(scene.shape))
        w = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
        slow = np.fft.irfft2(slow * (w < 0.02), s=(side, side))
        scene += 0.03 * slow / slow.std()
    return generator.poisson(20 * scene).astype(float)


@pytest.mark.parametrize(("kind", "said"), [
    ("holes", "Slow variations have"), ("holes", "from place to place"),
    ("corner", "from place to place"), ("particles", "Slow variations have"),
    ("tilts", "means run from"), ("waves", "Slow variations have"),
])
def test_what_is_no_flat_field_is_doubted(kind, said):
    crops = specimen(kind)
    warnings = doubts_of_flatness(crops, ring_spectrum(crops))
    assert any(said in line for line in warnings), warnings


def test_a_dqe_of_next_to_nothing_is_doubted():
    few = specimen("flat", side=64)
    (said,) = estimate_noise(few, Known("counting", gain=1.0, electrons=0.2)).warnings
    assert "the DQE would be 0.0" in said  # 0.01
    holes = estimate_noise(specimen("holes"), Known("counting", gain=1.0)).warnings
    assert len(holes) >= 2  # what it is, and the DQE that comes of it


@pytest.mark.parametrize("change", [lambda counts: counts + 100, lambda counts: 0.2 * counts])
def test_counts_of_another_scale_or_with_an_offset_are_doubted(change):
    """Where gain and DQE(0) say how large the noise must be: else it is the MTF that pays."""
    crops = specimen("flat", side=64)
    known = Known("integrating", gain=1.0, dqe=1.0)
    assert not estimate_noise(crops, known).warnings
    fit = estimate_noise(change(crops), known)
    assert fit.mtf.values[64] < 0.6  # of 1
    assert any("the noise is that of a DQE of" in line for line in fit.warnings)


def widest_curve():
    """Falcon 2's, the widest of all that are shipped."""
    folder = Path(__file__).parent.parent / "conf" / "detector"
    rows = yaml.safe_load((folder / "falcon2_300kv.yaml").read_text("utf-8"))["mtf_table"]
    return tuple(np.transpose(rows))


@pytest.mark.parametrize("size", [(6, 64), (2, 256), (12, 128)])
def test_flat_fields_are_not_doubted(size):
    """Of 24 sets none, with beam drift, gain errors, blur by the widest measured point spread."""
    count, side = size
    generator = np.random.default_rng(3)
    for camera in (COUNTING, INTEGRATING, Detector("integrating", mtf=widest_curve(), dqe=0.6)):
        for seed in range(2 if side > 64 else 4):
            gain = 1 + 0.01 * generator.standard_normal((side, side))
            drift = 1 + 0.02 * generator.standard_normal((count, 1, 1))
            crops = flat(camera, seed, count=count, side=side, margin=32)
            crops = crops * gain * drift * (1 + np.linspace(-0.02, 0.02, side))
            assert doubts_of_flatness(crops, ring_spectrum(crops)) == ()


# --- errors ---

@pytest.mark.parametrize(("crops", "message"), [
    (np.zeros((0, 64, 64)), r"crops has shape \(0, 64, 64\): must be \(n, ny, nx\)"),
    (np.zeros((64, 64)), "must be"),
    (np.zeros((3, 16, 64)), "at least 32 pixels"),
    (np.ones((3, 64, 64)), r"crops\[0\]: is constant"),
    (np.full((3, 64, 64), np.nan), "crops: must be finite"),
    (np.tile(np.random.default_rng(0).random((64, 64)), (3, 1, 1)), "copies of one image"),
    ([np.ones((64, 64)), np.ones((32, 64))], "images of one size"),
])
def test_unusable_crops_are_refused(crops, message):
    with pytest.raises(ValueError, match=message) as error:
        estimate_noise(crops)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("known", "message"), [
    ({"kind": "ccd"}, "kind='ccd'"),
    ({"gain": 0.0}, "gain=0.0: must be positive"),
    ({"dqe": 1.5}, "dqe=1.5"),
    ({"kind": "integrating", "mtf": TMV}, "mtf: is given"),
])
def test_contradictory_knowledge_is_refused(known, message):
    with pytest.raises(ValueError, match=message):
        Known(**known)


def test_counts_without_a_mean_need_the_electrons():
    crops = np.random.default_rng(0).standard_normal((4, 64, 64))
    crops -= 0.1
    with pytest.raises(ValueError, match="electrons must be given"):
        estimate_noise(crops, KNOWN)
    assert estimate_noise(crops, Known("integrating")).mtf is not None


@pytest.mark.parametrize("options", [{"form": "linear"}, {"taper": 2.0}, {"order": 3}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        estimate_noise(flat(INTEGRATING, side=64, count=3), **options)


# --- picking the background ---

def test_picked_tiles_avoid_particles_and_carbon():
    generator = np.random.default_rng(4)
    ny, nx = 768, 1024
    image = generator.poisson(ELECTRONS, (ny, nx)).astype(float)
    y, x = np.mgrid[:ny, :nx]
    empty = x > 600
    for row, column in generator.integers(0, (ny, 560), (40, 2)):
        image -= 3 * (np.hypot(y - row, x - column) < 12)
    image[:, 940:] += 12 * generator.standard_normal((ny, 84))  # carbon
    found = pick_background(image, size=64, count=10)
    assert found.crops.shape == (10, 64, 64)
    for (row, column), crop in zip(found.corners, found.crops, strict=True):
        assert empty[row, column]
        assert column + 64 <= 940
        np.testing.assert_array_equal(crop, image[row:row + 64, column:column + 64])
    apart = np.abs(found.corners[:, None] - found.corners).max(axis=-1)
    assert (apart[~np.eye(10, dtype=bool)] >= 64).all()


def test_picking_does_not_bias_the_noise():
    powers = []
    for seed in range(6):
        image = np.random.default_rng(seed).standard_normal((640, 640))
        rings = ring_spectrum(pick_background(image, size=64, count=12).crops)
        slow = rings.w < 0.0625  # what the choice looks at
        powers.append(np.average(rings.power[slow], weights=rings.weight[slow]))
    # Each mean is worth about 600 ordinates: 4 % each, 1.7 % together; the twelve tiles of the
    # very lowest variance would lie 15 % below 1.
    assert np.mean(powers) == pytest.approx(1, abs=0.06)


def test_flat_tiles_are_from_all_over_the_image():
    """Noise alone has no better place than another."""
    image = np.random.default_rng(1).standard_normal((768, 768))
    found = pick_background(image, size=64, count=12)
    # Twelve of a uniform distribution lie within half of a side once in 2000 images.
    assert (np.ptp(found.corners, axis=0) > 384).all()


def test_a_micrograph_without_background_is_refused():
    image = np.random.default_rng(0).standard_normal((256, 256))
    with pytest.raises(ValueError, match=r"only .* separate flat tiles"):
        pick_background(image, size=64, count=30)
    with pytest.raises(ValueError, match="size=60"):
        pick_background(image, size=60)


# --- the recipe to compare with ---

def test_focal_loss_at_gamma_0_is_the_mean_squared_error():
    generator = np.random.default_rng(1)
    a, b = (as_tensor(generator.random((2, 8, 8))) for _ in range(2))
    # Parseval's theorem; float32 rounding.
    assert float(focal_frequency_loss(a, b, 0.0)) == pytest.approx(
        float((a - b).square().mean()), rel=1e-5)
    assert focal_frequency_loss(a, b, 2.0) < focal_frequency_loss(a, b, 0.5)
    assert float(unit_range(3 * a + 1).max()) == 1
