from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tem_taichi.estimate.background import background_spectra
from tem_taichi.estimate.crowd_fit import Lens, Sight, ball_potential, contrast_power, held_out
from tem_taichi.estimate.thickness_fit import mean_intensities
from tem_taichi.estimate.twin import Twin, TwinSettings, make_twin, twin_text
from tem_taichi.estimate.twin_table import complete_table
from tem_taichi.scene.load import load_scene
from tem_taichi.scene.particle import particle_of
from tem_taichi.scene.settings import (
    DetectorSettings,
    InteractionSettings,
    MicroscopeSettings,
    OpticsSettings,
    Scene,
    TiltSettings,
)
from tem_taichi.scene.specimen import IceSettings, SpecimenSettings
from tem_taichi.series.record import TiltSeries
from tem_taichi.series.simulate import simulate

ANGLES = [0.0, 15.0, -15.0, -30.0, 30.0, 45.0, -45.0, -60.0, 60.0]
SETTINGS = TwinSettings(tile=32, masses=(100.0, 500.0, 2500.0), seed=5)


def tiny(masses: dict[float, float], detector: DetectorSettings | None = None) -> Scene:
    """A series of nine tilts of 1500 A of ice, and balls of mass [kDa]: volume fraction."""
    size, thickness = [3000.0, 2000.0], 1500.0
    volume = size[0] * size[1] * thickness
    particles = {f"ball_{mass:g}": particle_of(
                     globule=mass, count=round(part * volume / mass / 1230))
                 for mass, part in masses.items()}
    return Scene(
        shape=[96, 96], pixel_size=10.0, dose=4.0, seed=2,
        microscope=MicroscopeSettings(voltage=300.0),
        optics=OpticsSettings(defocus=25000.0),
        detector=detector or DetectorSettings(gain=0.3, dqe=0.8),
        tilts=TiltSettings(scheme="listed", angles=ANGLES, axis_angle=20.0),
        interaction=InteractionSettings(slice_thickness=100.0),
        specimen=SpecimenSettings(ice=IceSettings(thickness=thickness, slope=[0.06, 0.02]),
                                  size=size, particles=particles))


def table_of(scene: Scene) -> pd.DataFrame:
    n = len(scene.tilts.angles)
    return pd.DataFrame({
        "tilt_angle": scene.tilts.angles, "dose": scene.dose, "defocus": scene.optics.defocus,
        "acquisition_index": range(n), "axis_angle": scene.tilts.axis_angle,
    }).sort_values("tilt_angle", ignore_index=True)


@pytest.fixture(scope="module")
def made() -> tuple[Scene, TiltSeries, Twin, TiltSeries]:
    scene = tiny({500.0: 0.03})
    real = simulate(scene)
    twin = make_twin(real.images.numpy(), table_of(scene), 10.0, 300.0, SETTINGS)
    return scene, real, twin, simulate(twin.scene)


def test_thickness_and_normal_come_back(made) -> None:
    _, _, twin, _ = made
    fit, ice = twin.thickness, twin.scene.specimen.ice
    # 3 % of protein absorb as 1 % of ice more do; the crowd is known to a third.
    assert fit.thickness(3950.0) == pytest.approx(1515, abs=15 + 2 * 3950 * fit.ratio_error)
    assert ice.thickness == pytest.approx(1500, abs=15 + 2 * 3950 * fit.ratio_error)
    axis = np.deg2rad(20.0)
    across = np.cos(axis) * 0.06 + np.sin(axis) * 0.02
    assert fit.normal_angle == pytest.approx(np.rad2deg(np.arctan(across)),
                                             abs=3 * fit.normal_error + 0.3)
    # Of the slope only what is across the axis can be seen.
    assert ice.slope[0] * np.cos(axis) + ice.slope[1] * np.sin(axis) == pytest.approx(
        across, abs=0.01 + 3 * np.deg2rad(fit.normal_error))


def test_a_crowd_that_late_images_do_not_show_is_doubted(made) -> None:
    """Of the first three images the crowd, of the others the noise of even ice."""
    scene, real, twin, _ = made
    rng = np.random.default_rng(1)
    detector = scene.detector
    even = detector.gain * rng.poisson(
        detector.dqe * real.noise_free.mean((1, 2), keepdim=True).numpy() / detector.gain,
        real.images.shape) / detector.dqe
    table = table_of(scene)
    late = table["acquisition_index"].to_numpy() > 2
    images = np.where(late[:, None, None], even, real.images.numpy())
    doubted = make_twin(images, table, 10.0, 300.0, SETTINGS)
    assert any("as fast as is looked for" in line for line in doubted.warnings)
    assert not any("as fast as is looked for" in line for line in twin.warnings)


def test_means_agree(made) -> None:
    _, real, _, twin = made
    assert np.array_equal(real.tilt_angles, twin.tilt_angles)
    means = [mean_intensities(series.images) for series in (real, twin)]
    # Shot noise of a mean is 0.1 %, the crowd's 0.5 %.
    np.testing.assert_allclose(means[1], means[0], rtol=0.02)


def test_gain_and_noise_come_back(made) -> None:
    _, _, twin, _ = made
    camera = twin.scene.detector
    assert camera.kind == "counting"
    assert camera.gain == pytest.approx(0.3, rel=0.05)
    # Nine small tilts tell noise from crowd to about 10 %.
    assert camera.gain / camera.dqe == pytest.approx(0.3 / 0.8, rel=0.15)
    assert twin.implied_dose == pytest.approx(0.8 * 4.0, rel=0.15)


def test_spectra_of_the_background_agree(made) -> None:
    _, real, _, twin = made
    spectra = [background_spectra(series.images, 32) for series in (real, twin)]
    k = spectra[0].w / 10
    inside = (k > 1 / 200) & (k < 1 / 25)
    pooled = [np.nansum(one.ratio * one.weight, 0) / one.weight.sum(0) for one in spectra]
    away = np.log(pooled[1] / pooled[0])[inside]
    # The tilts see the same balls, in 9 tiles of 32^2: the lowest rings have 60 ordinates, which
    # scatter by 13 % in either series and are half crowd, half noise.
    assert np.abs(away).max() < np.log(1.4)
    assert abs(away.mean()) < np.log(1.1)


def test_tiles_of_one_noise_scatter_as_their_weights_say() -> None:
    images = np.random.default_rng(3).poisson(9.0, (2, 320, 320)).astype(float)
    spectra = background_spectra(images)
    assert min(len(tiles) for tiles in spectra.tiles) >= 15
    for ratio, weight, tiles in zip(spectra.ratio, spectra.weight, spectra.tiles, strict=True):
        # Poisson: 1 at all frequencies; 32 rings of 15 tiles or more.
        np.testing.assert_allclose(ratio[3:], 1, atol=5 * weight[3:].min()**-0.5)
        scatter = tiles.std(axis=0, ddof=1)[3:] * (weight[3:] / len(tiles))**0.5
        # A deviation of 15 tiles is known to 19 %, the mean of 29 rings to 4 %; the image that
        # tiles share was taken away, at the cost of one.
        assert scatter.mean() == pytest.approx(1, abs=0.15)


def test_each_half_of_the_tilts_predicts_the_other(made) -> None:
    _, _, twin, _ = made
    spectra, masses = twin.spectra, SETTINGS.masses
    predicted = held_out(spectra, twin.sights, twin.lens, masses)
    inside = (spectra.w > 0.05) & (spectra.w < 0.4)
    away = np.log(predicted / spectra.ratio)[:, inside]
    # Rings scatter by 5 to 13 %; four tilts know the crowd to a third, which is half the power.
    assert np.sqrt((away**2).mean()) < 0.2
    changed = replace(spectra, ratio=np.where(np.arange(9)[:, None] == 4, 9.9, spectra.ratio))
    again = held_out(changed, twin.sights, twin.lens, masses)
    assert np.array_equal(again[4], predicted[4])  # itself it has no say
    assert not np.allclose(again[3], predicted[3], rtol=0.05)


def test_the_crowd_is_seen_where_there_is_one(made) -> None:
    _, _, twin, _ = made
    scene = tiny({})
    without = make_twin(simulate(scene).images.numpy(), table_of(scene), 10.0, 300.0, SETTINGS)
    assert without.crowd.volume_fraction < 0.004 < 0.015 < twin.crowd.volume_fraction < 0.06


def test_the_model_of_the_spectrum_is_that_of_the_simulator() -> None:
    # Balls alone, far from each other, in an image almost without noise.
    scene = tiny({500.0: 0.01}, DetectorSettings(gain=1e3, dqe=1.0))
    scene = replace(scene, dose=1e6, tilts=TiltSettings(scheme="listed", angles=[0.0]),
                    shape=[192, 192],
                    specimen=replace(scene.specimen, damage=0.0, ice=IceSettings(
                        thickness=1500.0, granularity=0.0)))
    image = simulate(scene).noise_free[0].numpy().astype(float)
    image = image / image.mean() - 1
    k = np.hypot(np.fft.fftfreq(192)[:, None], np.fft.rfftfreq(192)) / 10
    power = np.abs(np.fft.rfft2(image)) ** 2 / image.size * 100  # [A^2]
    lens = Lens(10.0, 300.0, 2.7, 3950.0, 4.48)
    volume = scene.specimen.size[0] * scene.specimen.size[1] * 1500.0
    number = scene.specimen.particles["ball_500"].placing.count / volume
    model = (contrast_power(k.ravel(), Sight(25000.0, 1500.0, 0.0, 0.0), lens, 0.0)
             * ball_potential(k.ravel(), 500.0, 4.48) ** 2).reshape(k.shape) * number * 1500
    for low, high in ((1 / 250, 1 / 120), (1 / 60, 1 / 40)):
        ring = (k > low) & (k < high)
        # 60 and 400 ordinates or more: 13 and 5 %; weak scattering and independent places.
        assert power[ring].mean() == pytest.approx(model[ring].mean(), rel=0.3)


def test_the_scene_is_written_and_read_back(made, tmp_path) -> None:
    _, _, twin, _ = made
    (tmp_path / "twin.yaml").write_text(twin_text(twin), encoding="utf-8")
    assert load_scene(tmp_path / "twin.yaml", []) == twin.scene
    text = (tmp_path / "twin.yaml").read_text()
    assert all(f"# {line}" in text for line in twin.assumptions)
    assert any("mean free path" in line for line in twin.assumptions)


def test_particles_of_interest_and_other_shapes_are_kept(made) -> None:
    scene, real, *_ = made
    ferritin = particle_of(structure="4v1w", count=3)
    twin = make_twin(real.images.numpy(), table_of(scene), 10.0, 300.0, replace(
        SETTINGS, particles={"apoferritin": ferritin}, shape=(64, 96), masses=()))
    assert twin.scene.specimen.particles == {"apoferritin": ferritin}
    assert twin.scene.shape == (64, 96) and twin.crowd.volume_fraction == 0


def test_fewer_electrons_than_the_noise_needs_raise_the_dose(made) -> None:
    scene, real, *_ = made
    twin = make_twin(real.images.numpy(), table_of(scene).assign(dose=2.0), 10.0, 300.0, SETTINGS)
    assert twin.nominal_dose == 2.0 and twin.scene.detector.dqe == pytest.approx(1)
    assert twin.scene.dose == pytest.approx(twin.implied_dose, rel=1e-4)
    assert any("more than the nominal" in line for line in twin.assumptions)


def test_resampled_images_have_coloured_noise(made) -> None:
    scene, real, *_ = made
    blur = np.exp(-3 * (np.fft.fftfreq(96)[:, None] ** 2 + np.fft.rfftfreq(96) ** 2))
    images = np.fft.irfft2(np.fft.rfft2(real.images.numpy()) * blur, s=(96, 96))
    twin = make_twin(images, table_of(scene), 10.0, 300.0, SETTINGS)
    camera = twin.scene.detector
    assert camera.kind == "integrating" and any("coloured" in line for line in twin.assumptions)
    w, mtf = np.array(camera.mtf_table).T
    # Half a period a pixel is damped to exp(-0.75); known to a tenth beside the crowd.
    assert np.interp(0.5, w, mtf) == pytest.approx(np.exp(-0.75), abs=0.12)


def test_doses_come_from_prior_doses_in_any_order() -> None:
    given = pd.DataFrame({"tilt_angle": [-3.0, 0, 3, 6], "prior_dose": [5.0, 0, 2, 9],
                          "defocus": 1e4})
    table, notes = complete_table(given, np.zeros((4, 64, 64)), 10.0, 300.0, 2.7)
    assert table["acquisition_index"].tolist() == [2, 0, 1, 3]
    assert table["dose"].tolist() == [4, 2, 3, 3]
    assert len(notes) == 1


def test_images_that_were_left_out_give_no_dose_to_others() -> None:
    """Brightness tells a long exposure from a gap."""
    angles = np.arange(-60.0, 61, 6)
    rng = np.random.default_rng(0)
    slab = 100 * np.exp(-0.7 / np.cos(np.deg2rad(angles)))[:, None, None]
    prior = np.argsort(np.argsort(np.abs(angles), kind="stable"), kind="stable") * 3.0
    there = ~np.isin(np.arange(len(angles)), [3, 9, 14])
    given = pd.DataFrame({"tilt_angle": angles, "prior_dose": prior, "defocus": 1e4})[there]
    images = rng.poisson(np.broadcast_to(slab, (len(angles), 64, 64)))[there]
    table, notes = complete_table(given, images, 10.0, 300.0, 2.7)
    assert (table["dose"] == 3).all() and any("left out" in line for line in notes)
    # The first image has five times the dose of each that follows, and shows it.
    first = prior == 0
    images = rng.poisson(slab * np.where(first, 5, 1)[:, None, None] * np.ones((64, 64)))
    given = pd.DataFrame({"tilt_angle": angles, "prior_dose": np.where(first, 0.0, prior + 12),
                          "defocus": 1e4})
    table, notes = complete_table(given, images, 10.0, 300.0, 2.7)
    assert table["dose"].tolist() == np.where(first, 15.0, 3.0).tolist()
    assert not any("left out" in line for line in notes)


@pytest.mark.parametrize(("change", "message"), [
    ({"tilt_angle": np.nan}, "tilt_angle"),
    ({"dose": np.nan}, "dose and prior_dose"),
    ({"dose": -1.0}, "dose=-1"),
    ({"defocus": np.nan}, "defocus_u and defocus_v"),
])
def test_bad_tables_are_refused(change: dict, message: str) -> None:
    table = table_of(tiny({})).assign(**change)
    with pytest.raises(ValueError, match=message) as caught:
        make_twin(np.ones((9, 64, 64)), table, 10.0, 300.0, SETTINGS)
    assert "\n" not in str(caught.value)


def test_images_and_rows_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="9 rows"):
        make_twin(np.ones((8, 64, 64)), table_of(tiny({})), 10.0, 300.0, SETTINGS)


def test_a_real_series_gives_a_scene(shared) -> None:
    from experiments.twin import real_series

    images, table = (part[::2] for part in real_series())
    twin = make_twin(images, table.reset_index(drop=True), 10.0, 300.0, TwinSettings(
        shape=(96, 96), bead_diameter=100.0, cut_from=(0.0, -1600.0)))
    assert twin.scene.tilts.angles[0] == pytest.approx(-0.01)
    # A counting camera's DQE(0), by means and noise alone.
    assert 0.5 < twin.scene.detector.dqe < 1
    k = twin.spectra.w / 10
    inside = (k > 1 / 200) & (k < 1 / 25)
    for power in (twin.crowd.model,
                  held_out(twin.spectra, twin.sights, twin.lens, twin.crowd.masses)):
        away = np.log(twin.spectra.ratio / power)[:, inside]
        # Single rings of single tilts scatter by 3 to 9 %.
        assert np.abs(away).max() < np.log(1.3)
        assert np.abs(away.mean(axis=0)).max() < np.log(1.1)  # over the tilts
