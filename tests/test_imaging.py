"""imaging.py: attenuation, the energy filter, and the depth of tilted fields."""

import math
import re
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tem_taichi.device import as_tensor
from tem_taichi.grid import squared_frequencies
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.projection import Projection
from tem_taichi.instrument.tem import TEM, after_loss
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.ice_shape import IceShape
from tem_taichi.specimen.particles import Ice, ParticlesInIce, kind_of
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.view import View

SHAPE = (48, 48)
MODES = {"multislice": TEM, "projection": Projection,
         "weak_phase": partial(Projection, linear=True)}


def empty(ice, **changes):
    """Image of ice alone."""
    instrument = TEM(SHAPE, (72, 72), 4.0, **changes)
    exposure = Exposure(Optics(defocus=2e4), tilt_angle=40.0)
    specimen = ParticlesInIce((), (), ice)
    return instrument.intensity(specimen, exposure)


def test_ice_attenuates_along_the_tilted_ray():
    image = empty(Ice(500.0, 4.48, 3950.0))
    expected = math.exp(-500 / (3950 * math.cos(math.radians(40))))
    assert torch.allclose(image, torch.full_like(image, expected), rtol=1e-5)


def test_without_an_energy_filter_all_electrons_arrive():
    image = empty(Ice(500.0, 4.48, 3950.0), energy_filter=False)
    assert torch.allclose(image, torch.ones_like(image), rtol=1e-5)


def test_electrons_that_lost_energy_are_over_focus(double):
    """Cc 25 eV / 300 keV, 2250 A at Cc = 2.7 mm, times (1 + U/E0) / (1 + U/2E0)."""
    lens = after_loss(Optics(defocus=1e4, chromatic_aberration=2.7), 300.0)
    assert 1e4 - float(lens.defocus) == pytest.approx(2.7e7 * 25 / 300e3 * 1.587 / 1.2935, rel=1e-3)


def test_the_documents_have_the_defocus_of_a_loss(double):
    text = (Path(__file__).parents[1] / "docs" / "realism.md").read_text(encoding="utf-8")
    stated, = re.findall(r"(\d+) A\s+\(25 eV at Cc = 2.7 mm and 300 kV\) further over focus", text)
    lens = after_loss(Optics(defocus=1e4, chromatic_aberration=2.7), 300.0)
    assert float(stated) == pytest.approx(1e4 - float(lens.defocus), abs=0.5)  # whole A


def test_a_lens_of_ice_and_its_film_darken_the_rim(double):
    shape = IceShape(300.0, 900.0, 400.0, carbon_thickness=200.0)
    ice = Ice(300.0, 4.48, 3950.0, shape=shape)
    view = View(tilt_rotation(0.0), as_tensor([0.0, 0.0]), (256, 256), 5.0, 20.0)
    left, _ = ParticlesInIce((), (), ice).attenuation(view)
    # Rays are 40 A apart: between them a path is off by 1200 / 400^2 x 40^2 / 8 = 1.5 A.
    assert float(left[128, 128]) == pytest.approx(math.exp(-300 / 3950), rel=1e-3)
    half_way = math.exp(-(300 + 600 * 0.25) / 3950)  # at half the radius, 40 pixels from the centre
    assert float(left[128, 168]) == pytest.approx(half_way, rel=1e-3)
    assert float(left[128, 240]) < math.exp(-900 / 3950)  # carbon takes more than ice


def two_atoms(tilt, mode, **changes):
    """Noise-free image of heavy atoms far left and right of the tilt axis."""
    atoms = Atoms(torch.tensor([79]), torch.zeros(1, 3), torch.full((1,), 100.0), torch.ones(1),
                  torch.zeros(1, dtype=torch.bool))
    kind = replace(kind_of(atoms), displaced=None)
    poses = Poses(np.array([[-800.0, 0, 0], [800.0, 0, 0]]), np.tile(np.eye(3), (2, 1, 1)))
    instrument = MODES[mode]((128, 512), (192, 768), 3.0, amplitude_contrast=0.0,
                            slice_thickness=40.0, **changes)
    exposure = Exposure(Optics(defocus=6000.0), tilt_angle=tilt)
    specimen = ParticlesInIce((kind,), (poses,), Ice(0.0, 0.0))
    return instrument.intensity(specimen, exposure)


@pytest.mark.parametrize("tilt", [45.0, -45.0])
def test_strips_of_a_projection_have_the_defocus_gradient_of_multislice(tilt):
    """Atoms at 565 A above and below the centre: 2.1 rad of phase at Nyquist, were they not."""
    exact = two_atoms(tilt, "multislice") - 1
    strips = two_atoms(tilt, "projection") - 1
    flat = two_atoms(-tilt, "projection") - 1  # the same positions, with the gradient reversed
    # Neighbouring strips differ by half a radian: interpolation leaves 1 - cos(1/4) = 3 %; slices
    # of 40 A round depths by 20 A, 0.07 rad at Nyquist.
    assert float((strips - exact).norm() / exact.norm()) < 0.06
    assert float((flat - exact).norm() / exact.norm()) > 0.5


def random_atoms(n, box, b_factor):
    """Carbon, all over a cube."""
    rng = np.random.default_rng(5)
    return Atoms(torch.full((n,), 6), torch.as_tensor((rng.random((n, 3)) - 0.5) * box),
                 torch.full((n,), b_factor, dtype=torch.float64),
                 torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.bool))


@pytest.mark.parametrize(("pixel", "b_factor", "voltage"), [(1.0, 0.0, 300.0), (1.0, 20.0, 100.0),
                                                            (2.0, 20.0, 300.0)])
def test_images_hold_their_signal_up_to_nyquist(double, pixel, b_factor, voltage):
    """Rings beside those of a threefold oversampled image: amplitudes to 5 %, to the very last.

    What is left differs by what atoms scatter twice by way of frequencies beyond the band. The
    corners of the square beyond Nyquist are said to be nearly empty.
    """
    atoms, n, instrument = random_atoms(3000, 0.9 * 96 * pixel, b_factor), 96, TEM(
        (96, 96), (144, 144), pixel, voltage, 0.0)
    specimen = ParticlesInIce((kind_of(atoms),), (Poses(np.zeros((1, 3)), np.eye(3)[None]),), Ice())
    spectra = []
    for sampling in (1.5, 3):
        here = replace(instrument, wave_shape=(round(n * sampling),) * 2)
        exposure = Exposure(Optics(defocus=8e3))
        spectra.append(torch.fft.fft2(here.intensity(specimen, exposure)))
    k = squared_frequencies((n, n)).sqrt()
    for low, high in ((0.40, 0.45), (0.45, 0.485), (0.485, 0.4999)):
        ring = (k >= low) & (k < high)
        ours, fine = (spectrum[ring].abs().square().sum().sqrt() for spectrum in spectra)
        assert float(ours / fine) == pytest.approx(1.0, abs=0.05)
        assert torch.linalg.norm((spectra[0] - spectra[1])[ring]) < 0.15 * fine
    corner = k > 0.51
    ours, fine = (spectrum[corner].abs().square().sum().sqrt() for spectrum in spectra)
    assert float(ours / fine) < 0.3


@pytest.mark.parametrize(("mode", "number", "defocus"), [
    ("weak_phase", 79, 0.0), ("weak_phase", 6, 0.0), ("multislice", 79, 5000.0)])
def test_electrons_that_a_linear_image_makes_up_are_said(mode, number, defocus):
    """The mean of 1 + 2 Re(psi - 1) of a phase object is 1, whatever of it is below zero."""
    x, y, z = np.meshgrid(*(np.arange(count) - count // 2 for count in (13, 13, 20)))
    points = torch.as_tensor(np.stack([4 * x, 4 * y, 3 * z], axis=-1).reshape(-1, 3) * 1.0)
    n = len(points)
    atoms = Atoms(torch.full((n,), number), points, torch.full((n,), 20.0), torch.ones(n),
                  torch.zeros(n, dtype=torch.bool))
    specimen = ParticlesInIce((replace(kind_of(atoms), displaced=None),),
                        (Poses(np.zeros((1, 3)), np.eye(3)[None]),), Ice(0.0, 0.0))
    instrument = MODES[mode]((96, 96), (144, 144), 1.0, amplitude_contrast=0.0)
    exposure = Exposure(Optics(defocus=defocus))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        image = instrument.intensity(specimen, exposure)
    assert float(image.min()) >= 0
    strong = mode == "weak_phase" and number == 79
    assert (float(image.mean()) > 1.001) == strong
    assert all("thousandth" in str(one.message) for one in said)
    assert len(said) == strong


@pytest.mark.parametrize("mode", ["multislice", "projection"])
@pytest.mark.parametrize("contrast", [None, 0.0, 0.07])
def test_an_amplitude_contrast_is_that_of_particles_alone(mode, contrast):
    """A film of carbon and grains of ice leave what they leave without one: exp(-path / L)."""
    film = IceShape(200.0, hole_radius=1e-9, carbon_thickness=300.0)
    instrument = MODES[mode](SHAPE, (72, 72), 4.0, amplitude_contrast=contrast)
    for ice in (Ice(200.0, 4.48, 3950.0, granularity=1.0, shape=film),
                Ice(800.0, 4.48, 3950.0, granularity=1.0)):
        specimen = ParticlesInIce((), (), ice)
        left, _ = specimen.attenuation(View(torch.eye(3), torch.zeros(2), SHAPE, 4.0, 20.0))
        image = instrument.intensity(specimen, Exposure())
        assert float(image.mean()) == pytest.approx(float(left.mean()), rel=1e-5)


def test_particles_have_the_same_contrast_in_grains_and_in_a_continuum(double):
    """Grains so weak that nothing else differs."""
    atoms = random_atoms(300, 80.0, 20.0)
    kinds, poses = (kind_of(atoms),), (Poses(np.zeros((1, 3)), np.eye(3)[None]),)
    instrument = TEM((48, 48), (72, 72), 2.0, amplitude_contrast=0.1)
    waves = [instrument.exit_wave(
        ParticlesInIce(kinds, poses, Ice(200.0, 4.48, granularity=granularity)), Exposure())[0]
             for granularity in (0.0, 1e-6)]
    assert float(waves[0].abs().mean()) < 0.99995  # so that there is something to compare
    assert torch.allclose(waves[0].abs().mean(), waves[1].abs().mean(), rtol=1e-6)
