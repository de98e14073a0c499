"""absorption.py: what matter takes from the image, calibrated on ice."""

import math

import numpy as np
import pytest
import torch

from tem_taichi import multislice, simulate
from tem_taichi.device import init
from tem_taichi.physics import SCATTERING_TO_POTENTIAL, interaction_constant, wavelength
from tem_taichi.scene.load import load_scene
from tem_taichi.series.build import build_specimen
from tem_taichi.specimen.absorption import (
    absorption_ratios,
    amplitude_contrast_of_protein,
    elastic_beyond,
    ice_elastic_beyond,
    imaginary_potential,
    inelastic_ratios,
    loss_with_aperture,
    mean_free_path,
    protein_potentials,
)
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.cross_sections import elastic_cross_section
from tem_taichi.specimen.ice import ICE_DENSITY, _amplitudes
from tem_taichi.specimen.particles import Ice, ParticlesInIce, kind_of
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.potential import peng_table
from tem_taichi.specimen.view import View

WAVELENGTH = wavelength(300.0)


def test_a_slab_of_ice_leaves_exp_of_its_thickness_over_the_mean_free_path(double):
    imaginary = imaginary_potential(3950.0, 300.0)
    assert imaginary == pytest.approx(0.194, abs=5e-4)  # V, physics of zero-loss imaging
    wave = multislice(torch.full((4, 8, 8), 100 * (4.48 + 1j * imaginary),
                                 dtype=torch.complex128), 1.0, 100.0, 300.0)
    assert float(wave.abs().square().mean()) == pytest.approx(math.exp(-400 / 3950), rel=1e-9)


def test_water_molecules_make_the_imaginary_potential_of_ice():
    forward = SCATTERING_TO_POTENTIAL * peng_table()[:, 0].sum(1)
    absorbed = forward * absorption_ratios()
    assert ICE_DENSITY * float(2 * absorbed[1] + absorbed[8]) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(("kept", "given"), [(inelastic_ratios, ()), (_amplitudes, ("ice", 2.0))])
def test_what_is_kept_is_the_same_whatever_was_computed_before(kept, given):
    """Of a process that begins in float64, too: else the images' last digits would be others."""
    found = []
    for precision in ("float64", "float32"):
        kept.cache_clear()
        init("cpu", precision)
        found.append(np.asarray(kept(*given)))
    assert (found[0] == found[1]).all()


def test_mean_free_path_follows_the_velocity():
    """(v/c)^2 is 0.6030 at 300 kV and 0.4835 at 200 kV."""
    assert mean_free_path(3950.0, 300.0) == pytest.approx(3950.0)
    assert mean_free_path(3950.0, 200.0) == pytest.approx(3950 * 0.4835 / 0.6030, rel=1e-3)


def test_protein_absorbs_more_than_ice_and_its_contrast_grows_at_low_voltage():
    real, imaginary = protein_potentials()
    assert 7 < real < 9 and 1 < imaginary < 2
    contrasts = [amplitude_contrast_of_protein(mean_free_path(3950.0, u), u)
                 for u in (300.0, 200.0, 100.0)]
    assert 0 < contrasts[0] < contrasts[1] < contrasts[2] < 0.1


def block_of(numbers, edge, rng):
    """Atoms at random in a cube, and their view as one slice."""
    n = len(numbers)
    atoms = Atoms(torch.as_tensor(numbers), torch.as_tensor((rng.random((n, 3)) - 0.5) * edge),
                  torch.zeros(n), torch.ones(n), torch.full((n,), 8 in numbers))
    return kind_of(atoms)


def test_water_in_ice_has_no_mean_absorption_and_protein_has_that_of_its_composition(double):
    """The mean over a slice is the sum over atoms: the potential at k = 0."""
    rng = np.random.default_rng(0)
    area, volume = 64.0**2, 100.0 / ICE_DENSITY
    imaginary = imaginary_potential(3950.0, 300.0)
    view = View(rotation=torch.eye(3, dtype=torch.float64),
                shift=torch.zeros(2, dtype=torch.float64), shape=(64, 64), pixel_size=1.0,
                slice_thickness=100.0, entrance=-50.0, n_slices=1, amplitude_contrast=None)

    def mean(numbers):
        kind = block_of(numbers, 10.0, rng)
        specimen = ParticlesInIce((kind,), (Poses(np.zeros((1, 3)), np.eye(3)[None]),),
                                  Ice(100.0, 4.48, 3950.0))
        return complex(specimen.slices(view, 0, 1).mean())

    alone = float((SCATTERING_TO_POTENTIAL * peng_table()[:, 0].sum(1) * absorption_ratios())[6])
    kind = block_of([6], 1.0, rng)
    displaced = SCATTERING_TO_POTENTIAL * float(kind.displaced.weight[0])
    assert mean([6]).imag == pytest.approx(imaginary * (alone + displaced) / area,
                                             rel=1e-3)  # stencils leave 2e-4 of a Gaussian out
    water = mean([8, 1, 1] * 100).imag * area / imaginary
    assert abs(water) < 1e-3 * volume


def test_protein_of_a_given_mean_free_path_absorbs_by_it():
    """A solid of average residues in place of ice leaves exp(-t / L) with the L asked for."""
    real, imaginary = protein_potentials()
    assert 3950 / imaginary == pytest.approx(3010, abs=10)  # what the scene's help says
    scene = load_scene(overrides=["specimen=empty", "specimen.ice.protein_mean_free_path=2000"])
    ice = build_specimen(scene).ice
    of_ice = imaginary_potential(ice.mean_free_path, 300.0)
    assert of_ice * imaginary * ice.particle_absorption == pytest.approx(
        imaginary_potential(2000.0, 300.0), rel=1e-6)
    contrast = amplitude_contrast_of_protein(3950.0, 300.0, 4.48, ice.particle_absorption)
    assert contrast == pytest.approx(
        (imaginary_potential(2000.0, 300.0) - of_ice) / (real - 4.48), rel=1e-6)


def test_elastic_scattering_beyond_a_frequency_is_its_integral(double):
    """Against a plain sum of Peng's factors, and Wentzel's closed form of the whole atom."""
    k = torch.linspace(0.6, 4.0, 20001, dtype=torch.float64)
    a, b = peng_table()[8]
    factor = (a * torch.exp(-b * k[:, None] ** 2)).sum(1)
    held = float(torch.trapezoid(2 * math.pi * k * factor**2, k))
    scale = (interaction_constant(300.0) * SCATTERING_TO_POTENTIAL) ** 2
    assert elastic_beyond(8, 0.6, 300.0) - elastic_beyond(8, 4.0, 300.0) == pytest.approx(
        scale * held, rel=1e-6)
    for number in (6, 8, 26, 79):  # a screened Coulomb potential is another model of the atom
        alone = elastic_beyond(number, 1.0, 300.0)
        assert alone == pytest.approx(elastic_cross_section(number, 300.0) - elastic_cross_section(
            number, 300.0, wavelength(300.0)), rel=0.3)
        # Far out every model is the bare nucleus; Peng's Gaussians end at 4 / A.
        assert elastic_beyond(number, 30.0, 300.0) == pytest.approx(
            elastic_cross_section(number, 300.0) - elastic_cross_section(
                number, 300.0, 30 * wavelength(300.0)), rel=0.02)


def test_ice_loses_to_an_aperture_what_its_molecules_scatter_beyond():
    """Beyond the rings of its structure a molecule of ice is two atoms of H and one of O."""
    alone = ICE_DENSITY * (2 * elastic_beyond(1, 1.5, 300.0) + elastic_beyond(8, 1.5, 300.0))
    assert ice_elastic_beyond(1.5, 300.0) == pytest.approx(alone, rel=0.02)
    assert 1 / ice_elastic_beyond(0.5, 300.0) == pytest.approx(12458, rel=0.05)  # by others
    assert 1 / ice_elastic_beyond(0.7256, 300.0) == pytest.approx(18531, rel=0.1)


@pytest.mark.parametrize("granularity", [0.0, 1.0])
def test_what_an_aperture_leaves_does_not_depend_on_the_pixel(granularity):
    """exp(-t / L) of both losses, whether the wave holds what the aperture cuts or not."""
    means, size = [], 150.0
    expected = math.exp(-1000 * (1 / 3950 + ice_elastic_beyond(0.05 / 3.5 / WAVELENGTH, 300.0)))
    for pixel in (0.6, 1.0, 3.0):
        n = 2 * round(size / pixel / 2)
        series = simulate(load_scene(overrides=[
            "specimen=empty", "specimen.ice.thickness=1000", f"pixel_size={pixel}",
            f"shape=[{n},{n}]", "tilts={scheme: listed, angles: [0.0]}", "microscope.aperture=100",
            "microscope.focal_length=3.5", "detector=ideal", "interaction.margin=0",
            f"dose={1 / pixel**2}", f"specimen.ice.granularity={granularity}"]))
        means.append(float(series.noise_free.mean()))
    # Of 150 A x 150 A of grains, the part that goes beyond is known to 1e-3.
    assert means == pytest.approx([expected] * 3, abs=2e-3 if granularity else 1e-5)


def test_an_aperture_takes_more_of_gold_than_of_carbon():
    loss = loss_with_aperture(3950.0, 300.0, 0.5, 0.5)
    bare = absorption_ratios()
    gain = absorption_ratios(loss.ratios) / (bare * (1 - loss.stopped))
    assert gain[79] > 3 * gain[6] > 3
    assert loss.mean_free_path == pytest.approx(1 / (1 / 3950 + ice_elastic_beyond(0.5, 300.0)))


def test_an_energy_filter_has_no_say_in_what_an_aperture_stops():
    """Without the filter the inelastic electrons come back and the others do not."""
    scene = ["specimen=empty", "specimen.ice={thickness: 2000, granularity: 0}", "shape=[32,32]",
             "tilts={scheme: listed, angles: [0.0]}", "microscope.aperture=70", "pixel_size=1.0",
             "microscope.focal_length=3.5", "detector=ideal", "dose=1"]
    kept, all_losses = (float(simulate(load_scene(overrides=[
        *scene, f"microscope.energy_filter={f}"])).noise_free.mean()) for f in ("true", "false"))
    rate = ice_elastic_beyond(0.035 / 3.5 / WAVELENGTH, 300.0)
    assert kept == pytest.approx(math.exp(-2000 * (rate + 1 / 3950)), abs=1e-5)
    stopped = (1 - kept) * rate / (rate + 1 / 3950)
    assert all_losses == pytest.approx(1 - stopped, abs=1e-5)
