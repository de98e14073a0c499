"""What a twin has in its ice: its faces, its gold, its crowd's places; and data sets of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from tem_taichi.dataset import main as dataset
from tem_taichi.device import as_tensor
from tem_taichi.estimate.background import BackgroundSpectra
from tem_taichi.estimate.crowd_fit import (
    Lens,
    Sight,
    ball_potential,
    contrast_power,
    fit_crowd,
)
from tem_taichi.estimate.gold_loss import NARROWEST, WIDEST, aperture_of, gold_length
from tem_taichi.estimate.layer_fit import fit_layers
from tem_taichi.estimate.plane_fit import PlaneMap, fit_plane, plane_rays
from tem_taichi.estimate.resampling import ice_spectra
from tem_taichi.estimate.twin import Twin, TwinSettings, make_twin, twin_text
from tem_taichi.rotations import tilt_rotation
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
from tem_taichi.specimen.attenuation import transmitted
from tem_taichi.specimen.ice_shape import IceShape
from tem_taichi.specimen.view import View

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
    assert twin.scene.specimen.ice.absorption is not None and twin.found.layers.explained > 0.7
    again = simulate(replace(twin.scene, tilts=replace(
        twin.scene.tilts, angles=[0.0], defocus_offsets=[0.0], shifts=[[0.0, 0.0]],
        doses=(twin.scene.dose,)))).noise_free[0].numpy()
    flat = real.images[len(ANGLES) // 2].numpy()
    one, two = (gaussian_filter(image / image.mean(), 6)[10:-10, 10:-10] for image in (flat, again))
    # Sides differ by a factor of 1.25; 6 pixels' mean is known to 2 %, and the edge is blurred.
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.9
    assert two.std() == pytest.approx(one.std(), rel=0.25)


def test_faces_that_are_no_planes_look_alike_at_every_tilt() -> None:
    """Ice that gets thicker to the right, on a mid-plane of waves: what layers make of it."""
    x, scene = np.arange(13) - 6, cell()
    ice = replace(scene.specimen.ice, relief=np.tile(1 + 0.25 * np.tanh(x / 1.5), (9, 1)).tolist(),
                  relief_heights=np.tile(150 * np.sin(x / 2), (9, 1)).tolist())
    scene = replace(scene, specimen=replace(scene.specimen, ice=ice))
    real = simulate(scene)
    twin = make_twin(real.images.numpy(), table_of(scene), 10.0, 300.0, TwinSettings(
        tile=32, masses=(100.0, 500.0, 2500.0), bead_diameter=100.0, slice_thickness=400.0, seed=7))
    again = simulate(twin.scene)
    spread = [series.images.numpy().var(axis=(1, 2)) / series.images.numpy().mean(axis=(1, 2))
              for series in (again, real)]
    np.testing.assert_allclose(spread[0] / spread[1], 1, atol=0.15)
    blocks = [np.log(series.noise_free.numpy().reshape(11, 12, 8, 16, 8).mean(axis=(2, 4)))
              for series in (again, real)]
    one, two = (block - block.mean(axis=(1, 2), keepdims=True) for block in blocks)
    # Contrast is 0.06 to 0.10; two faces from a fit of means along rays were 0.13 off.
    assert (one - two).std(axis=(1, 2)).max() < 0.06


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
    rays = plane_rays(table, (0.05, 0.0), places)
    seen = rays.through(800.0)
    truth = 1 + 0.3 * np.tanh(seen[..., 0] / 200)
    values = truth.mean(axis=1) * rays.across[:, None]
    error = np.full(values.shape, 0.05)
    found = fit_plane(values + error * rng.normal(size=values.shape), seen, rays.across, error,
                      200.0, False)
    # Noise of 0.05 in 21 tilts, of about as many parts as knots: 0.05 / 21^0.5 a knot.
    middle = found.knots[0][found.knots.shape[1] // 2]
    x = (np.arange(len(middle)) - len(middle) // 2) * 200.0
    near = np.abs(x) < 900
    np.testing.assert_allclose(middle[near], 1 + 0.3 * np.tanh(x[near] / 200), atol=0.06)
    assert found.explained > 0.95
    even = fit_plane(rays.across[:, None] + error * rng.normal(size=values.shape), seen,
                     rays.across, error, 200.0, False)
    assert even.explained == 0


def seen_through(ice: IceShape, table: pd.DataFrame, shape: tuple[int, int]) -> np.ndarray:
    """What is left of the beam, by the engine, for a mean free path of 2000 A."""
    return np.stack([transmitted(ice, 2000.0, View(
        tilt_rotation(row.tilt_angle, row.axis_angle), as_tensor([row.shift_x, row.shift_y]),
        shape, 10.0, 100.0)).double().numpy() for row in table.itertuples()])


def test_layers_come_back_where_they_are() -> None:
    """A dark ridge in the upper half to the right, a bright one in the lower half to the left."""
    rng = np.random.default_rng(5)
    x = (np.arange(13) - 6) * 400.0
    ridge, valley = (np.tile(one, (5, 1)) for one in (
        1 + 0.8 * np.exp(-(((x - 400) / 500) ** 2)), 1 - 0.6 * np.exp(-(((x + 400) / 500) ** 2))))
    truth = np.stack([valley, valley, ridge, ridge])
    ice = IceShape(1600.0, slope_x=0.05, absorption=truth, absorption_spacing=400.0)
    table = pd.DataFrame({"tilt_angle": np.arange(-60.0, 61, 5), "axis_angle": 4.0,
                          "shift_x": 30.0, "shift_y": -20.0})
    clean = seen_through(ice, table, (96, 192))
    images = rng.poisson(60 * clean).astype(float)
    found = fit_layers(images, table, 10.0, (0.05, 0.0), 1600.0, 0.8, np.full(25, 60.0))
    assert found.absorption is not None and found.explained > 0.9
    layers = found.absorption[:, found.absorption.shape[1] // 2]
    # Which layer takes what is everywhere alike, no tilt tells.
    middle = layers.shape[1] // 2
    layers, known = (one - one.mean(axis=1, keepdims=True) for one in (
        layers[:, middle - 2:middle + 3], truth[:, 2, np.abs(x) <= 900]))
    # Blocks of 64 pixels are known to 0.02 to 0.03, of which a layer takes 0.2 to 0.4; the other
    # way up it is another specimen.
    assert np.sqrt(((layers - known)**2).mean()) < 0.06
    assert np.sqrt(((layers[::-1] - known)**2).mean()) > 0.15
    again = seen_through(replace(ice, absorption=found.absorption,
                                 absorption_spacing=found.spacing), table, (96, 192))
    off = np.log(again * found.beam[:, None, None] / clean)
    # By the engine's own rays, at every tilt, where contrast is 0.1 to 0.3.
    assert np.abs(off - off.mean(axis=(1, 2), keepdims=True)).mean(axis=(1, 2)).max() < 0.015
    assert off.mean(axis=(1, 2)) == pytest.approx(0, abs=0.01)


def test_what_the_crowd_takes_is_not_taken_twice() -> None:
    table = pd.DataFrame({"tilt_angle": np.arange(-60.0, 61, 8), "axis_angle": 0.0,
                          "shift_x": 0.0, "shift_y": 0.0})
    x = (np.arange(13) - 6) * 400.0
    crowd = PlaneMap(np.tile(1 + 0.8 * np.tanh(x / 400), (1, 5, 1)), 400.0, np.zeros(16),
                     np.ones((16, 1)), 1.0)
    ridge = 1 + 0.4 * np.tile(np.exp(-(x / 500) ** 2), (4, 5, 1))
    taken = 0.8 * ridge + 0.2 * crowd.knots
    clean = seen_through(IceShape(1600.0, absorption=taken, absorption_spacing=400.0), table,
                         (96, 192))
    found = fit_layers(clean * 60, table, 10.0, (0.0, 0.0), 1600.0, 0.8, np.full(16, 60.0),
                       (crowd, 0.2))
    middle = found.absorption.mean(axis=0)[found.absorption.shape[1] // 2]
    near = slice(len(middle) // 2 - 2, len(middle) // 2 + 3)
    np.testing.assert_allclose(middle[near], ridge[0, 2, 4:9], atol=0.03)


def test_noise_is_no_layers() -> None:
    images = np.random.default_rng(1).poisson(100.0, (9, 64, 64)).astype(float)
    table = pd.DataFrame({"tilt_angle": np.linspace(-60, 60, 9), "axis_angle": 0.0, "shift_x": 0.0,
                          "shift_y": 0.0})
    across = 1 / np.cos(np.deg2rad(table["tilt_angle"].to_numpy()))
    found = fit_layers(images, table, 10.0, (0.0, 0.0), 500.0, 0.1, 100 * np.exp(0.1 * across))
    assert found.absorption is None and found.explained == 0


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


def test_a_crowd_that_tilts_show_less_of_does_not_fade_by_that() -> None:
    """Of a crowd in the middle high tilts, which come late, have less in their field."""
    w, lens = np.linspace(0.05, 0.5, 20), Lens(10.0, 300.0, 2.7, 3950.0, 4.48)
    sights = [Sight(20000.0, 2000.0, 0.0, exposure, crowd)
              for exposure, crowd in zip(np.linspace(1, 100, 15), np.linspace(1.2, 0.5, 15),
                                         strict=True)]
    power = np.stack([contrast_power(w / 10, sight, lens, 2.0) * sight.crowd for sight in sights])
    ratio = 0.4 + 2e-8 * ball_potential(w / 10, 300.0, 4.48) ** 2 * power * 2000.0 * 40.0 / 100.0
    spectra = BackgroundSpectra(w, ratio, np.full(ratio.shape, 1e4), np.full(15, 40.0), ())
    found = fit_crowd(spectra, sights, lens, (300.0,))
    assert found.damage == pytest.approx(2, abs=0.05)
    assert found.densities == pytest.approx([2e-8], rel=0.02)
    blind = fit_crowd(spectra, [replace(sight, crowd=1.0) for sight in sights], lens, (300.0,))
    assert blind.damage > 2.3


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
