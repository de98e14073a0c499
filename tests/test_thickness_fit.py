import numpy as np
import pytest

from tem_taichi.estimate.thickness_field import fit_images_thickness
from tem_taichi.estimate.thickness_figure import thickness_figure
from tem_taichi.estimate.thickness_fit import fit_thickness, mean_intensities

TILTS = np.arange(-60.0, 61.0, 3.0)


def means_of(ratio: float, normal: float, intensity: float, tilts: np.ndarray = TILTS):
    return intensity * np.exp(-ratio / np.cos(np.deg2rad(tilts - normal)))


def noise(seed: int, n: int, size: float) -> np.ndarray:
    return 1 + size * np.random.default_rng(seed).standard_normal(n)


def drift(seed: int, n: int, size: float, together: float) -> np.ndarray:
    """First-order autoregression of standard deviation `size` and unit mean."""
    drawn = np.random.default_rng(seed).standard_normal(n)
    out = np.empty(n)
    out[0] = drawn[0]
    for i in range(1, n):
        out[i] = together * out[i - 1] + np.sqrt(1 - together**2) * drawn[i]
    return 1 + size * out


@pytest.mark.parametrize(("ratio", "normal"), [(0.05, 0.0), (0.8, 5.0), (2.5, -9.0)])
def test_without_noise_the_parameters_come_back(ratio: float, normal: float) -> None:
    fit = fit_thickness(means_of(ratio, normal, 40.0), TILTS)
    # The minimiser ends at 1e-8 of the parameters.
    assert fit.ratio == pytest.approx(ratio, rel=1e-6)
    assert fit.normal_angle == pytest.approx(normal, abs=1e-4)
    assert fit.intensity == pytest.approx(40.0, rel=1e-6)
    assert fit.thickness(3950.0) == pytest.approx(3950 * ratio, rel=1e-6)
    np.testing.assert_allclose(fit.expected(TILTS), means_of(ratio, normal, 40.0), rtol=1e-6)
    assert fit.used.all()


@pytest.mark.parametrize(("tilts", "off"), [
    (TILTS, 0.0), (np.arange(-42.0, 43, 6), 0.0), (TILTS, 0.5), (np.arange(-42.0, 43, 6), 0.5),
    (np.arange(-60.0, 61, 20), 0.5)], ids=["41", "15 to 42 deg", "41 off", "15 off", "7 off"])
def test_intervals_hold_the_truth(tilts: np.ndarray, off: float) -> None:
    # Gains that drift by 0.5 to 1 %, and by as little as 0.05 % where the angles are off, by up to
    # 0.5 deg. The 95 % intervals of 100 series hold the truth 95 +- 2.2 times; 90 to 99 is 2.3
    # deviations below and 1.8 above. As if the angles were right, they would hold it 53 to 91
    # times, by the scatter of all the means alike.
    held, series = np.zeros(3), 100 if len(tilts) > 7 else 300
    for seed in range(series):
        rng = np.random.default_rng([1, seed])
        truth = rng.uniform(0.2, 1.2), rng.uniform(-6, 6), rng.uniform(20, 200)
        gain = rng.uniform(0.005, 0.01) * (rng.uniform(0.1, 1) if off else 1)
        true = tilts + rng.uniform(0.4, 1) * off * rng.standard_normal(len(tilts))
        means = means_of(*truth, true) * noise(seed, len(tilts), gain)
        fit = fit_thickness(means, tilts)
        for n, name in enumerate(("ratio", "normal_angle", "intensity")):
            low, high = fit.interval(name)
            held[n] += 100 * (low <= truth[n] <= high) / series
    assert (held >= 90).all() and (held <= 99).all(), held


def test_angles_that_are_off_are_seen_and_an_offset_moves_the_normal_alone() -> None:
    rng = np.random.default_rng(11)
    off = 0.4 * rng.standard_normal(41)
    fit = fit_thickness(means_of(0.8, 2.0, 50.0, TILTS + off) * noise(2, 41, 0.001), TILTS)
    # A deviation of 41, of which those near 0 deg say little, is known to some 15 %.
    assert fit.angle_error == pytest.approx(0.4, rel=0.45)
    exact = fit_thickness(means_of(0.8, 2.0, 50.0) * noise(2, 41, 0.001), TILTS)
    assert exact.angle_error < 0.05 and exact.ratio_error < fit.ratio_error / 3
    offset = fit_thickness(means_of(0.8, 2.0, 50.0, TILTS + 0.4) * noise(2, 41, 0.001), TILTS)
    assert offset.normal_angle == pytest.approx(exact.normal_angle - 0.4, abs=0.01)
    assert offset.ratio == pytest.approx(exact.ratio, abs=exact.ratio_error)


def test_intervals_hold_the_truth_of_a_beam_that_drifts() -> None:
    # Neighbours correlated by 0.6; as if independent, the intervals would hold it 67 times.
    held = held_if_independent = 0
    for seed in range(100):
        fit = fit_thickness(means_of(0.7, 2.0, 50.0) * drift(seed, 41, 0.007, 0.6), TILTS)
        low, high = fit.interval()
        held += low <= 0.7 <= high
        half = (high - low) / 2
        text = [line for line in fit.warnings if "go together" in line]
        if text:
            half /= float(text[0].split("errors are ")[1].split()[0])
        held_if_independent += abs(fit.ratio - 0.7) <= half
    assert held >= 85 and held_if_independent < held - 8, (held, held_if_independent)


def test_dark_tilts_do_not_matter() -> None:
    means = means_of(0.8, 3.0, 50.0) * noise(3, len(TILTS), 0.005)
    clean = fit_thickness(means, TILTS)
    bad = [0, 1, 2, 17, 39, 40]  # blocked at high tilts, as by a grid bar, and one lost beam
    means[bad] *= [0.02, 0.3, 0.6, 0.1, 0.8, 0.5]
    fit = fit_thickness(means, TILTS)
    assert np.flatnonzero(~fit.used).tolist() == bad
    assert abs(fit.ratio - clean.ratio) < 2 * fit.ratio_error
    assert any("6 of 41 tilts" in line and "-60" in line for line in fit.warnings)


def test_given_errors_set_the_scale_unless_too_small() -> None:
    means, sigma = means_of(0.5, 0.0, 100.0), 0.5
    means = means + sigma * np.random.default_rng(5).standard_normal(41)
    fit = fit_thickness(means, TILTS, np.full(41, sigma))
    # chi2 of 38 degrees of freedom: 38 +- 8.7.
    assert 15 < fit.chi2 < 65 and fit.degrees == 38
    assert not any("enlarged" in line for line in fit.warnings)
    small = fit_thickness(means, TILTS, np.full(41, sigma / 5))
    assert any("enlarged" in line for line in small.warnings)
    assert small.ratio_error == pytest.approx(fit.ratio_error, rel=0.4)  # by chi2's own scatter
    wide = fit_thickness(means, TILTS, np.full(41, 3 * sigma))
    assert wide.ratio_error == pytest.approx(3 * fit.ratio_error, rel=0.1)


def test_the_covariance_is_that_of_repeated_series() -> None:
    found, told = [], []
    for seed in range(100):
        fit = fit_thickness(means_of(0.6, 2.0, 50.0) * noise([7, seed], 41, 0.007), TILTS)
        found.append([fit.ratio, fit.normal_angle, np.log(fit.intensity)])
        told.append(fit.covariance)
    # Deviations of 100 draws scatter by 7 %; autocorrelations by chance widen a few.
    np.testing.assert_allclose(np.sqrt(np.diag(np.median(told, axis=0))), np.std(found, axis=0),
                               rtol=0.2)


def test_low_confidence_is_said() -> None:
    tilts = np.arange(-20.0, 21, 5)
    fit = fit_thickness(means_of(0.05, 0.0, 50.0, tilts) * noise(2, 9, 0.02), tilts)
    assert any("Low confidence" in line for line in fit.warnings)
    low, high = fit.interval()
    assert high - low > 0.2


def test_what_is_no_slab_is_said() -> None:
    fit = fit_thickness([9.0, 1, 7, 2, 8, 3, 9], [-60, -40, -20, 0, 20, 40, 60])
    assert any("Low confidence" in line for line in fit.warnings)


@pytest.mark.parametrize("scattered", [0.05, 0.2, 0.5])
def test_dark_field_is_refused(scattered: float) -> None:
    """What a slab scatters onto a dark-field detector grows with the tilt."""
    means = 100 * (1 - means_of(scattered, 2.0, 1.0)) * noise(4, 41, 0.005)
    with pytest.raises(ValueError, match="brighter when tilted") as caught:
        fit_thickness(means, TILTS)
    assert "\n" not in str(caught.value)


def test_hardly_any_ice_is_no_dark_field() -> None:
    # Of t / L = 0.002 with means that scatter by 1 %, half of the fits are below 0.
    fits = [fit_thickness(means_of(0.002, 0.0, 50.0) * noise([9, seed], 41, 0.01), TILTS)
            for seed in range(10)]
    assert any(fit.ratio < 0 for fit in fits)
    assert all(any("Low confidence" in line for line in fit.warnings) for fit in fits)


def test_four_tilts_are_enough_and_their_interval_is_wide() -> None:
    tilts = np.array([-60.0, -20, 20, 60])
    fit = fit_thickness(means_of(0.8, 2.0, 50.0, tilts) * noise(1, 4, 0.005), tilts)
    low, high = fit.interval()
    assert low < 0.8 < high and high - low > 10 * fit.ratio_error  # Student's t of one degree


@pytest.mark.parametrize(("means", "tilts", "message"), [
    ([3.0, 2, 1], [0, 30, 60], "at least 4"),
    ([3.0, 2, 1, 1], [0, 30, 60], "same length"),
    ([3.0, 2, -1, 1], [0, 30, 50, 60], "means=-1: must be positive"),
    ([3.0, 2, np.nan, 1], [0, 30, 50, 60], "means: must be finite"),
    ([3.0, 2, 1, 1], [0, 30, 50, np.inf], "tilt_angles: must be finite"),
    ([3.0, 2, 1, 1], [0, 30, 50, 90], "within 90"),
    ([3.0, 3, 3, 3], [40, -40, 40, -40], "change the path"),
    ([3.0, 3, 3, 3], [1, 2, 3, 4], "change the path"),
])
def test_bad_input_is_one_line(means: list, tilts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fit_thickness(means, tilts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("errors", [[1.0, 1, 1], [1.0, 1, 1, 0], [1.0, 1, 1, np.nan]])
def test_bad_errors_are_refused(errors: list) -> None:
    with pytest.raises(ValueError, match="errors"):
        fit_thickness([4.0, 3, 2, 1], [0, 30, 50, 60], errors)


def test_mean_intensities_ignore_fiducials_and_are_not_biased() -> None:
    rng = np.random.default_rng(0)
    electrons = np.array([3.0, 16.0, 40.0])
    images = rng.poisson(electrons[:, None, None], (3, 200, 300)).astype(float)
    clean = mean_intensities(images)
    # 48,000 pixels: a standard error of 0.3 % at 3 electrons, and less above.
    np.testing.assert_allclose(clean, electrons, rtol=8e-3)
    for _ in range(20):
        y, x = rng.integers(0, 190), rng.integers(0, 290)
        images[:, y:y + 10, x:x + 10] = 0
    images[:, :, 0] = 1e4  # a bright edge
    np.testing.assert_allclose(mean_intensities(images), clean, rtol=0.015)
    assert (images.mean(axis=(1, 2)) / clean - 1 > 0.05).all()


@pytest.mark.parametrize("images", [np.ones((4, 8, 100)), np.ones((32, 32)),
                                    np.full((2, 32, 32), np.nan)])
def test_images_of_another_kind_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="images"):
        mean_intensities(images)


def wedge(deviation: float, seed: int = 0) -> np.ndarray:
    """Images of specimens whose t / L, 0.8 in the mean, goes from side to side; (41, 96, 120)."""
    rng = np.random.default_rng(seed)
    across = np.linspace(-1, 1, 120) * 3**0.5 * deviation
    means = np.stack([100 * np.exp(-(0.8 + across) / np.cos(np.deg2rad(tilt - 2)))
                      for tilt in TILTS]) * noise([seed, 1], 41, 0.005)[:, None]
    return rng.poisson(np.broadcast_to(means[:, None], (41, 96, 120))).astype(float)


def test_the_error_holds_that_the_field_varies() -> None:
    fit = fit_images_thickness(wedge(0.1), TILTS)
    # Thirds of an even spread deviate by 0.94 of it; what is thick shows less of itself when
    # tilted, which makes it look thinner by a tenth.
    assert fit.field_deviation == pytest.approx(0.1, rel=0.2)
    assert fit.ratio_error == pytest.approx(np.hypot(fit.statistical_error, fit.field_deviation))
    assert fit.statistical_error < 0.01
    low, high = fit.interval()
    assert low < 0.8 - 0.12 and high > 0.8 + 0.12  # where the outer thirds are in the mean
    assert fit.parts.shape == (3, 3) and (np.diff(fit.parts, axis=1) > 0.05).all()
    assert any("no slab" in line and f"{np.min(fit.parts):.3g}" in line for line in fit.warnings)


def test_a_slab_stays_one() -> None:
    fits = [fit_images_thickness(wedge(0.0, seed), TILTS) for seed in range(8)]
    # Ninths are known to 0.006 each by 1280 pixels of 20 to 45 electrons at 41 tilts; a variance
    # of nine that is not there comes out as half of theirs at most.
    assert all(fit.field_deviation < 0.008 for fit in fits)
    held = [low <= 0.8 <= high for low, high in (fit.interval() for fit in fits)]
    assert sum(held) >= 6  # of 8 at 95 %, with a chance of 0.994


def test_doses_are_divided_out_and_small_images_say_what_they_cannot_tell() -> None:
    doses = np.linspace(0.5, 2, 41)
    images = wedge(0.0) * doses[:, None, None]
    fit = fit_images_thickness(images, TILTS, doses)
    assert fit.ratio == pytest.approx(fit_images_thickness(wedge(0.0), TILTS).ratio, rel=1e-6)
    small = fit_images_thickness(images[:, :40], TILTS, doses)
    assert small.field_deviation is None and any("too small" in line for line in small.warnings)


def test_of_a_real_series_the_error_covers_the_thirds_of_its_columns(shared) -> None:
    from tem_taichi.files.mrc import read_image_stack

    angles = np.loadtxt(shared / "data" / "tilt" / "empiar10499_00254.tsv")[:, 0]
    images, _ = read_image_stack(shared / "data" / "tilt" / "empiar10499_00254_y0-310.mrc")
    fit = fit_images_thickness(images, angles)
    low, high = fit.interval()
    thirds = [fit_thickness(mean_intensities(part), angles).ratio
              for part in np.array_split(images, 3, axis=2)]
    assert thirds[0] > thirds[1] > thirds[2]
    assert low < thirds[2] and high > thirds[0]
    # No wider than what they scatter by asks for: 95 % of nine parts.
    assert high - low == pytest.approx(2 * 2.02 * np.std(thirds, ddof=1), rel=0.3)


def test_of_a_real_series_the_half_and_the_full_frame_agree(shared) -> None:
    from tem_taichi.files.mrc import read_image_stack

    table = np.loadtxt(shared / "data" / "tilt" / "empiar10499_00254.tsv")
    images, _ = read_image_stack(shared / "data" / "tilt" / "empiar10499_00254_y0-310.mrc")
    full = fit_thickness(table[:, 6], table[:, 0])
    half = fit_thickness(mean_intensities(images), table[:, 0])
    for fit in (full, half):
        assert fit.used.sum() >= 39 and fit.scatter < 0.01
        assert fit.ratio_error < 0.01 * fit.ratio
    # The frame's halves are different places of the specimen: to a few per cent.
    assert half.ratio == pytest.approx(full.ratio, rel=0.03)
    assert half.normal_angle == pytest.approx(full.normal_angle, abs=0.5)
    assert 250 < full.thickness(3950.0) / 10 < 400


def test_the_figure_is_written(tmp_path) -> None:
    means = means_of(0.8, 3.0, 50.0) * noise(3, len(TILTS), 0.005)
    means[4] = 1.0
    thickness_figure(fit_thickness(means, TILTS)).savefig(tmp_path / "fit.png")
    assert (tmp_path / "fit.png").stat().st_size > 5000
    thickness_figure(fit_images_thickness(wedge(0.1), TILTS)).savefig(tmp_path / "parts.png")
    assert (tmp_path / "parts.png").stat().st_size > (tmp_path / "fit.png").stat().st_size


@pytest.mark.parametrize("offset", [-20.0, 20.0])
def test_an_offset_of_the_counts_is_doubted_and_its_effect_foreseen(offset):
    """5 % of I0 = 400 change t / L = 0.8 by a seventh, twenty errors; without it nothing is said.

    The foreseen counts all tilts alike, where the fit trusts steep ones less: 11 % here. The second
    order of a twentieth of the offset is 1.5 % of its effect, that of all of it 30 %.
    """
    angles = np.arange(-60, 61, 3.0)
    means = 400 * np.exp(-0.8 / np.cos(np.radians(angles - 3)))
    means *= 1 + 0.002 * np.random.default_rng(3).standard_normal(len(angles))
    right, wrong = fit_thickness(means, angles), fit_thickness(means + offset, angles)
    assert not right.warnings
    assert any("do not fall as a slab's" in line for line in wrong.warnings)
    assert abs(wrong.ratio - right.ratio) > 0.08
    little = fit_thickness(means + offset / 20, angles)
    assert little.ratio - right.ratio == pytest.approx(right.by_offset(offset / 8000), rel=0.15)
