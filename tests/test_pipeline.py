import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tem_taichi import simulate
from tem_taichi.rotations import tilt_rotation
from tem_taichi.scene.settings import (
    ComputeSettings,
    DetectorSettings,
    IceSettings,
    InteractionSettings,
    MicroscopeSettings,
    OpticsSettings,
    Scene,
    SpecimenSettings,
    TiltSettings,
    particle_of,
)
from tem_taichi.series.build import build_specimen
from tem_taichi.series.plan import plan
from tem_taichi.series.trial import foreseen_time


@pytest.fixture
def atom(tmp_path: Path) -> str:
    """One gold atom, broad enough for coarse pixels."""
    file = tmp_path / "gold.pdb"
    file.write_text("HETATM    1 AU   AU  A   1       0.000   0.000   0.000  1.00 80.00"
                    "          AU\nEND\n")
    return str(file)


def scene_of(structure, positions=((0.0, 0.0, 0.0),), **changes):
    particle = particle_of(structure=structure, placement="listed",
                           positions=[list(p) for p in positions])
    settings = dict(
        shape=[64, 64], pixel_size=2.0, dose=10.0,
        specimen=SpecimenSettings(ice=IceSettings(thickness=400.0, mean_free_path=None,
                                                  granularity=0.0),
                                  damage=0.0, particles={"atom": particle}),
        optics=OpticsSettings(defocus=3000.0, amplitude_contrast=0.0),
        tilts=TiltSettings(scheme="listed", angles=[0.0]),
        detector=DetectorSettings(kind="counting"))
    return Scene(**{**settings, **changes})


def peak(image):
    """Centre of mass of the strongest contrast [pixel], x and y from the centre n // 2."""
    weight = (image - image.median()).abs() ** 4
    y, x = (torch.arange(n) - n // 2 for n in image.shape)
    return (float((weight * x[None, :]).sum() / weight.sum()),
            float((weight * y[:, None]).sum() / weight.sum()))


def test_mean_counts_are_the_dose(atom):
    scene = scene_of(atom, detector=DetectorSettings(kind="integrating", gain=3.0,
                                                     mtf=[0.7, 0.2, 0.1, 10.0, 40.0]))
    series = simulate(scene)
    assert float(series.noise_free.mean()) == pytest.approx(3.0 * 10.0 * 4.0, rel=1e-4)
    # 64 x 64 pixels of 40 electrons: 1 / sqrt(4096 * 40) = 0.25 %; 4 sigma
    assert float(series.images.mean()) == pytest.approx(120.0, rel=0.01)


def test_ice_attenuates_with_the_tilt(atom):
    scene = scene_of(atom, positions=(), tilts=TiltSettings(scheme="listed", angles=[0.0, 60.0]))
    ice = replace(scene.specimen.ice, mean_free_path=1000.0)
    scene = replace(scene, specimen=replace(scene.specimen, ice=ice))
    means = simulate(scene).noise_free.mean((1, 2))
    expected = [40 * math.exp(-0.4), 40 * math.exp(-0.8)]
    assert np.allclose(means, expected, rtol=1e-5)


@pytest.mark.parametrize(("tilt", "axis"), [(0.0, 0.0), (40.0, 0.0), (-35.0, 20.0), (50.0, 85.0)])
def test_particles_are_where_the_tilt_takes_them(atom, tilt, axis):
    place = np.array([20.0, -14.0, 30.0])
    scene = scene_of(atom, [place], tilts=TiltSettings(scheme="listed", angles=[tilt],
                                                       axis_angle=axis,
                                                       shifts=[[6.0, -4.0]]))
    expected = tilt_rotation(tilt, axis).double().numpy() @ place + [6.0, -4.0, 0.0]
    # the nearest of a symmetric spot's pixels is half a pixel away at most; fringes are even
    assert peak(simulate(scene).noise_free[0]) == pytest.approx(expected[:2] / 2.0, abs=0.05)


def test_height_changes_the_defocus(atom):
    """An atom 150 A downstream looks like one in the centre at 150 A more underfocus."""
    high = simulate(scene_of(atom, [(0.0, 0.0, 150.0)])).noise_free
    more = simulate(scene_of(atom, optics=OpticsSettings(defocus=3150.0, amplitude_contrast=0.0)))
    less = simulate(scene_of(atom, optics=OpticsSettings(defocus=2850.0, amplitude_contrast=0.0)))
    contrast = float((more.noise_free - 40).abs().max())
    # the slices that hold the atoms begin at multiples of 20 A: the atoms lie within 10 A
    assert float((high - more.noise_free).abs().max()) < 0.02 * contrast
    assert float((high - less.noise_free).abs().max()) > 0.05 * contrast


def test_modes_agree_for_a_thin_weak_object(atom):
    carbon = (Path(atom).read_text().replace("AU   AU ", " C   C  ").replace("AU\n", " C\n")
              .replace(" 80.00", "400.00"))  # nothing in the taper of the band limit
    Path(atom).write_text(carbon)
    images = [simulate(scene_of(atom, interaction=InteractionSettings(mode=mode,
                                                                      slice_thickness=0.2)))
              .noise_free for mode in ("multislice", "projection", "weak_phase")]
    contrast = float((images[0] - 40).abs().max())
    # One carbon atom: sigma V is 0.02, which bounds the quadratic term.
    assert float((images[1] - images[0]).abs().max()) < 0.01 * contrast
    assert float((images[2] - images[0]).abs().max()) < 0.03 * contrast


def test_wider_margin_and_finer_waves_change_little(atom):
    # So broad that little is left in the corners of the detector's band, which waves at 1.5
    # times its sampling do not reach: exp(-400 / 4 / 4^2) = 0.2 % at Nyquist.
    Path(atom).write_text(Path(atom).read_text().replace(" 80.00", "400.00"))
    places = [(50.0, 40.0, 0.0), (-20.0, 10.0, 20.0)]
    plain, wide, fine, none = (
        simulate(scene_of(atom, places, interaction=InteractionSettings(**settings))).noise_free
        for settings in ({}, {"margin": 100.0}, {"oversampling": 2.5}, {"margin": 0.0}))
    contrast = float((plain - 40).abs().max())
    assert float((wide - plain).abs().max()) < 0.01 * contrast
    assert float((fine - plain).abs().max()) < 0.01 * contrast
    assert float((none - wide).abs().max()) > 3 * float((wide - plain).abs().max())


def test_default_margin_is_what_nyquist_travels():
    scene = scene_of("", optics=OpticsSettings(defocus=-20000.0), shape=[100, 120], pixel_size=1.0)
    grids = plan(scene).instrument
    margin = 0.0196875 * 20000 / 2
    for n, full, wave in zip([100, 120], grids.detector_shape, grids.wave_shape, strict=True):
        assert full >= n + 2 * margin and full % 4 == 0 and wave == 1.5 * full
        assert full < 1.15 * (n + 2 * margin)
    assert grids.wave_pixel == pytest.approx(2 / 3)


def test_noise_off_is_the_expectation_and_noise_is_seeded(atom):
    scene = scene_of(atom, tilts=TiltSettings(scheme="listed", angles=[0.0, 10.0]))
    one, again = simulate(scene), simulate(scene)
    other = simulate(replace(scene, seed=5))
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.noise_free, other.noise_free)
    assert not torch.equal(one.images, other.images)
    residual = (one.images - one.noise_free)
    # Poisson noise of a mean of 40: standardised residuals of 8192 pixels
    assert float((residual / one.noise_free.sqrt()).std()) == pytest.approx(1, abs=0.04)
    assert abs(float(np.corrcoef(residual[0].flatten(), residual[1].flatten())[0, 1])) < 0.06


def test_adding_tilts_does_not_change_the_others(atom):
    two, three = (simulate(scene_of(atom, tilts=TiltSettings(scheme="listed", angles=angles)))
                  for angles in ([0.0, 10.0], [0.0, 10.0, -10.0]))
    assert torch.equal(two.images, three.images[1:])


def test_empty_ice_and_float64(atom):
    scene = scene_of(atom, positions=(), compute=ComputeSettings(arch="cpu", dtype="float64"))
    series = simulate(scene)
    assert series.images.dtype == torch.float64
    assert float((series.noise_free - 40).abs().max()) < 1e-10


def test_microscope_reaches_the_image(atom):
    plain = simulate(scene_of(atom)).noise_free
    for change in (dict(voltage=200.0), dict(spherical_aberration=50.0), dict(convergence=5.0),
                   dict(energy_spread=50.0), dict(aperture=5.0)):
        other = simulate(scene_of(atom, microscope=MicroscopeSettings(**change))).noise_free
        assert float((other - plain).abs().max()) > 1e-3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is Linux's")
def test_memory_is_foreseen_within_a_third():
    """In a process of its own; getrusage would begin with the peak of the one that starts it."""
    code = ("import tem_taichi as tt; from tem_taichi.series.simulate import plan\n"
            "scene = tt.load_scene(None, ['shape=[1024,1024]', 'pixel_size=1.5', "
            "'tilts={scheme: listed, angles: [0]}', 'interaction.slice_thickness=50'])\n"
            "tt.simulate(scene)\n"
            "peak = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]\n"
            "print(plan(scene).memory, 1024 * float(peak))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreseen, peak = map(float, done.stdout.split()[-2:])
    assert foreseen == pytest.approx(peak, rel=0.35)


def test_time_is_foreseen(atom):
    """Within a factor of 2, on a machine whose other programs come and go; 1.4 of an idle one."""
    scene = scene_of(atom, shape=[256, 256], tilts=TiltSettings(scheme="listed",
                                                                angles=[0, 40, 60]))
    ice = replace(scene.specimen.ice, granularity=1.0)
    scene = replace(scene, specimen=replace(scene.specimen, ice=ice))
    planned, specimen = plan(scene), build_specimen(scene)
    simulate(replace(scene, shape=[64, 64]))  # compiles
    ratios = []
    for _ in range(3):  # the machine may be busier in one of the two
        begun = time.perf_counter()
        simulate(scene, specimen=specimen)
        spent = time.perf_counter() - begun
        ratios.append(foreseen_time(scene, planned, specimen) / spent)
    assert 0.5 < np.median(ratios) < 2


def test_time_is_that_of_the_images_left(atom, monkeypatch):
    scene = scene_of(atom, tilts=TiltSettings(scheme="listed", angles=[0, 40, 60]))
    planned, specimen = plan(scene), build_specimen(scene)
    monkeypatch.setattr("tem_taichi.series.trial._seconds", lambda work: (work(), 1.0)[1])
    whole = foreseen_time(scene, planned, specimen)
    assert foreseen_time(scene, planned, specimen, {0, 2}) == pytest.approx(whole / 3)
    assert foreseen_time(scene, planned, specimen, {0, 1, 2}) == 0


def test_time_has_what_is_made_once(atom, monkeypatch):
    """Kernels were not counted: a small image alone takes several times as long."""
    scene = scene_of(atom, tilts=TiltSettings(scheme="listed", angles=[0, 1, 2, 3]))
    planned, specimen = plan(scene), build_specimen(scene)
    simulate(scene, specimen=specimen)  # compiles
    compiled = False
    exit_wave = type(planned.instrument).exit_wave

    def compiling(*args, **keywords):
        nonlocal compiled
        if not compiled:
            time.sleep(1.0)
        compiled = True
        return exit_wave(*args, **keywords)

    usual = foreseen_time(scene, planned, specimen)
    monkeypatch.setattr(type(planned.instrument), "exit_wave", compiling)
    # Once, not for each image; a busy machine may take some tenths more or less.
    assert foreseen_time(scene, planned, specimen) - usual == pytest.approx(1.0, abs=0.4)
