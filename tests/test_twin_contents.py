"""What a twin has in its ice: its faces, its gold, its crowd's places; and data sets of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from tem_taichi.dataset import main as dataset
from tem_taichi.estimate.background import BackgroundSpectra
from tem_taichi.estimate.crowd_fit import Lens, Sight
from tem_taichi.estimate.gold_loss import NARROWEST, WIDEST, aperture_of, gold_length
from tem_taichi.estimate.plane_fit import fit_plane, plane_rays
from tem_taichi.estimate.relief_fit import fit_relief
from tem_taichi.estimate.resampling import ice_spectra
from tem_taichi.estimate.twin import Twin, TwinSettings, make_twin, twin_text
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

ANGLES = np.arange(-60.0, 61.0, 12.0)
# Thin ice to the left, thick to the right, as at the edge of a cell.
RELIEF = np.tile([0.8, 0.8, 0.85, 1.2, 1.25, 1.25], (4, 1))
BEADS = ((-350.0, -250.0, 300.0), (300.0, 200.0, -250.0), (120.0, -300.0, 100.0))


def cell() -> Scene:
    return Scene(
        shape=[96, 128], pixel_size=10.0, dose=8.0, seed=3, optics=OpticsSettings(defocus=20000.0),
        microscope=MicroscopeSettings(aperture=60.0), detector=DetectorSettings(gain=0.3, dqe=0.8),
        tilts=TiltSettings("listed", angles=ANGLES.tolist(), axis_angle=5.0),
        interaction=InteractionSettings(slice_thickness=400.0),
        specimen=SpecimenSettings(
            IceSettings(1500.0, relief=RELIEF.tolist(), relief_spacing=300.0),
            size=(3000.0, 1200.0), particles={
                "gold": particle_of(fiducial=100.0, placement="listed", positions=BEADS),
                "ball": particle_of(globule=500.0, count=250, density=[[0, 0, 1, 1]] * 2,
                                    density_spacing=500.0)}))


def table_of(scene: Scene) -> pd.DataFrame:
    return pd.DataFrame({"tilt_angle": ANGLES, "dose": scene.dose, "axis_angle": 5.0,
                         "defocus": scene.optics.defocus})


@pytest.fixture(scope="module")
def made() -> tuple[Scene, TiltSeries, Twin]:
    scene = cell()
    real = simulate(scene)
    settings = TwinSettings(tile=32, masses=(100.0, 500.0, 2500.0), bead_diameter=100.0, seed=7)
    return scene, real, make_twin(real.images.numpy(), table_of(scene), 10.0, 300.0, settings)


def test_gold_is_where_it_is_and_as_dark(made) -> None:
    scene, _, twin = made
    beads = twin.found.beads[["x", "y", "z"]].to_numpy(float)
    away = np.linalg.norm(np.array(BEADS)[:, None] - beads, axis=2)
    assert len(beads) == 3 and away.min(axis=1).max() < 30  # two pixels in a tilt, more in depth
    gold = twin.scene.specimen.particles["gold"]
    assert gold.source.fiducial == pytest.approx(100, abs=15)
    assert len(gold.placing.positions) == 3
    # Of a bead of ten pixels the middle is known to some 3 %, and its loss of a half to a tenth.
    lengths = [gold_length(one.microscope.aperture, 300.0, 3950.0, 10.0)
               for one in (scene, twin.scene)]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.3)


def test_the_edge_of_a_cell_is_in_the_ice(made) -> None:
    _, real, twin = made
    assert twin.scene.specimen.ice.relief is not None and twin.found.relief.explained > 0.7
    again = simulate(replace(twin.scene, tilts=replace(
        twin.scene.tilts, angles=[0.0], defocus_offsets=[0.0], shifts=[[0.0, 0.0]],
        doses=(twin.scene.dose,)))).noise_free[0].numpy()
    flat = real.images[len(ANGLES) // 2].numpy()
    one, two = (gaussian_filter(image / image.mean(), 6)[10:-10, 10:-10] for image in (flat, again))
    # Sides differ by a factor of 1.25; 6 pixels' mean is known to 2 %, and the edge is blurred.
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.9
    assert two.std() == pytest.approx(one.std(), rel=0.25)


def test_the_scene_is_read_again(made, tmp_path) -> None:
    _, _, twin = made
    (tmp_path / "twin.yaml").write_text(twin_text(twin), encoding="utf-8")
    assert load_scene(tmp_path / "twin.yaml", []) == twin.scene


def test_a_map_comes_back_from_its_means() -> None:
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(np.linspace(-900, 900, 19), np.linspace(-600, 600, 13)),
                      axis=-1).reshape(-1, 2)
    table = pd.DataFrame({"tilt_angle": np.arange(-60.0, 61, 6), "axis_angle": 10.0,
                          "shift_x": 20.0, "shift_y": -30.0})
    rays = plane_rays(table, (0.05, 0.0), 800.0, places)
    truth = 1 + 0.3 * np.tanh(rays.places[..., 0] / 200)
    values = truth.mean(axis=(0, 2)) * rays.across[:, None]
    error = np.full(values.shape, 0.05)
    found = fit_plane(values + error * rng.normal(size=values.shape), rays, rays.across, error,
                      200.0, False)
    # Noise of 0.05 in 21 tilts, of about as many parts as knots: 0.05 / 21^0.5 a knot.
    middle = found.knots[0][found.knots.shape[1] // 2]
    x = (np.arange(len(middle)) - len(middle) // 2) * 200.0
    seen = np.abs(x) < 900
    np.testing.assert_allclose(middle[seen], 1 + 0.3 * np.tanh(x[seen] / 200), atol=0.06)
    assert found.explained > 0.95
    even = fit_plane(rays.across[:, None] + error * rng.normal(size=values.shape), rays,
                     rays.across, error, 200.0, False)
    assert even.explained == 0


def test_noise_is_no_relief() -> None:
    images = np.random.default_rng(1).poisson(100.0, (9, 64, 64)).astype(float)
    table = pd.DataFrame({"tilt_angle": np.linspace(-60, 60, 9), "axis_angle": 0.0, "shift_x": 0.0,
                          "shift_y": 0.0})
    across = 1 / np.cos(np.deg2rad(table["tilt_angle"].to_numpy()))
    found = fit_relief(images, table, 10.0, (0.0, 0.0), 500.0, 0.1, 100 * np.exp(0.1 * across))
    assert found.knots is None and found.explained == 0


def test_apertures_make_gold_dark() -> None:
    lengths = [gold_length(aperture, 300.0, 3950.0, 10.0) for aperture in (30.0, 60.0, 120.0)]
    assert lengths == sorted(lengths)
    assert aperture_of(lengths[1], 300.0, 3950.0, 10.0) == pytest.approx(60, rel=1e-2)
    assert aperture_of(1.0, 300.0, 3950.0, 10.0) == NARROWEST
    assert aperture_of(1e6, 300.0, 3950.0, 10.0) == WIDEST
    assert aperture_of(None, 300.0, 3950.0, 10.0) is None


SERIES = """
defaults: [simulate, override specimen: empty, _self_]
name: real
shape: [64, 64]
pixel_size: 10.0
dose: 4.0
specimen: {ice: {thickness: 1000}, size: [1500, 700], particles: {ball: {globule: 500, count: 60}}}
tilts: {minimum: -50, maximum: 50, step: 20}
compute: {arch: cpu}
output: real
"""


def test_one_command_from_a_series_to_a_labelled_set(tmp_path, monkeypatch, capsys) -> None:
    from tem_taichi.simulate import main

    monkeypatch.chdir(tmp_path)
    Path("real.yaml").write_text(SERIES)
    assert main(["real.yaml"]) == 0
    words = ["twin.input=real/real.mrc", "twin.tile=32", "twin.masses=[500]", "twin.beads=null",
             "samples=2", "output=set", "formats=[coordinates]", "workers=1",
             "overrides={specimen.particles.wanted: {globule: 2000, count: 3}}"]
    assert dataset([*words, "--check"]) == 2 and "not there yet" in capsys.readouterr().err
    assert dataset(words) == 0
    for n in range(2):
        folder = Path(f"set/samples/set_000{n}")
        assert (folder / f"set_000{n}.mrc").is_file()
        assert Path(folder / f"set_000{n}_particles.star").read_text().count("wanted") == 3
    assert dataset(words) == 0 and "2 kept" in capsys.readouterr().out
    assert dataset([*words[:1], "twin.tile=40", *words[2:]]) == 2
    assert "twin.tile=40" in capsys.readouterr().err


def test_grains_of_the_ice_are_no_noise() -> None:
    # Ice alone, whose own spectrum is that of the simulator, at 5 A so that it is well seen.
    scene = Scene(shape=[256, 256], pixel_size=5.0, dose=10.0,
                  optics=OpticsSettings(defocus=20000.0),
                  tilts=TiltSettings("listed", angles=[0.0]),
                  interaction=InteractionSettings(slice_thickness=500.0),
                  specimen=SpecimenSettings(IceSettings(2000.0)))
    image = simulate(scene).noise_free[0].numpy().astype(float)
    power = np.abs(np.fft.rfft2(image - image.mean())) ** 2 / image.size / image.mean()
    w = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256))
    spectra = BackgroundSpectra(w.ravel(), np.zeros((1, w.size)), np.ones((1, w.size)),
                                np.array([image.mean()]), (np.zeros((1, w.size)),))
    model = ice_spectra(spectra, [Sight(20000.0, 2000.0, 0.0, 0.0)],
                        Lens(5.0, 300.0, 2.7, 3950.0, 4.48)).reshape(w.shape)
    for low, high in ((0.1, 0.2), (0.2, 0.3), (0.3, 0.45)):
        ring = (w > low) & (w < high)
        # 3000 ordinates or more: 2 %; CTF rings are averaged over the ice's depth in the model.
        assert power[ring].mean() == pytest.approx(model[ring].mean(), rel=0.1)
