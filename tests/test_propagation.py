import math

import numpy as np
import pytest
import torch
import twins
from hypothesis import given, settings
from hypothesis import strategies as st

from tem_taichi import form_image, multislice
from tem_taichi.device import as_tensor
from tem_taichi.grid import band_limit
from tem_taichi.instrument.multislice import MODES, fresnel_propagator
from tem_taichi.instrument.optics import Optics, ctf
from tem_taichi.physics import interaction_constant, wavelength

SIGMA, WAVELENGTH = interaction_constant(300.0), wavelength(300.0)


def smooth_slices(rng, shape, strength=20.0):
    """Random slices whose spectrum falls off well inside the band."""
    spectrum = np.fft.fft2(rng.standard_normal(shape))
    spectrum *= np.exp(-200 * twins.k_squared(shape[-2:], 1.0))
    slices = np.fft.ifft2(spectrum).real
    return slices / slices.std() * strength


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(4, 33), st.integers(4, 33), st.floats(0.3, 5.0),
       st.floats(1.0, 100.0), st.floats(0.0, 0.5), st.integers(0, 2**31), st.booleans())
@pytest.mark.usefixtures("double")
def test_is_its_twin(n, ny, nx, pixel_size, thickness, contrast, seed, limited):
    slices = np.random.default_rng(seed).uniform(-100, 300, (n, ny, nx))
    wave = multislice(as_tensor(slices), pixel_size, thickness, 300.0,
                      amplitude_contrast=contrast,
                      band=as_tensor(twins.band_limit((ny, nx))) if limited else None)
    expected = twins.multislice(slices, pixel_size, thickness, WAVELENGTH, SIGMA, contrast,
                                twins.band_limit((ny, nx)) if limited else 1.0)
    assert np.abs(wave.numpy() - expected).max() < 1e-12


# Tolerances as the reference's README states them: its slices are stored in single precision.
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float64", 3e-7)])
def test_exit_wave_and_image_of_an_outside_program(shared, request, precision, tolerance):
    if precision == "float64":
        request.getfixturevalue("double")
    folder = shared / "reference/abtem"
    slices = np.load(folder / "apoferritin_256_1.0A_lobato_slices.npz")["slices"]
    theirs = np.load(folder / "apoferritin_256_1.0A_lobato_infinite.npz")
    slices = as_tensor(slices.transpose(0, 2, 1).copy())
    wave = multislice(slices, 1.0, 10.0, 300.0, band=band_limit((256, 256)))
    assert relative(wave.numpy(), theirs["exit_wave"].T) < tolerance
    for name, defocus in (("underfocus_1um", 1e4), ("overfocus_1um", -1e4),
                          ("in_focus_Cs2p7", 0.0)):
        image = form_image(wave, 1.0, 300.0, defocus=defocus, spherical_aberration=2.7)
        assert relative(image.numpy(), theirs[f"intensity_{name}"].T) < tolerance


def test_without_a_limit_waves_are_nearer_to_those_of_a_finer_grid(shared, double):
    """The outside program's slices, interpolated to three times the pixels, as the truth."""
    stored = np.load(shared / "reference/abtem/apoferritin_256_1.0A_lobato_slices.npz")["slices"]
    coarse = as_tensor(stored.transpose(0, 2, 1).copy())
    fine = torch.stack([refined(potential, 768) for potential in coarse])
    truth = torch.fft.fft2(multislice(fine, 1 / 3, 10.0, 300.0))
    inside = twins.in_band((256, 256)).nonzero()
    truth = truth[tuple(np.where(index < 128, index, index + 512) for index in inside)] / 9

    def error(band):
        found = torch.fft.fft2(multislice(coarse, 1.0, 10.0, 300.0, band=band))[inside]
        return relative(found, truth)

    assert error(None) < 2e-4  # 1.5e-4: what scatters thrice aliases back
    assert error(band_limit((256, 256))) > 10 * error(None)


def refined(image, n):
    """The same function on n pixels a side."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(image))
    spectrum[0] = spectrum[:, 0] = 0  # the Nyquist frequency has no sign
    low = n // 2 - len(image) // 2
    padded = torch.nn.functional.pad(spectrum, [low, n - len(image) - low] * 2)
    return torch.fft.ifft2(torch.fft.ifftshift(padded)).real * (n / len(image)) ** 2


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_free_space_leaves_a_plane_wave_alone():
    wave = multislice(torch.zeros(5, 32, 40), 1.0, 30.0, 300.0)
    assert float((wave - 1).abs().max()) < 1e-6


def test_propagation_spreads_a_gaussian_beam_as_its_formula(double):
    """exp(-pi r^2 / w^2) after distance d is exp(-pi r^2 / (w^2 + i lambda d)) / (1 + ...)."""
    n, width, distance = 128, 12.0, 3000.0
    r = torch.arange(n, dtype=torch.float64) - n // 2
    squared = r[:, None] ** 2 + r[None, :] ** 2
    beam = torch.exp(-math.pi * squared / width**2).to(torch.complex128)
    wave = multislice(torch.zeros(3, n, n, dtype=torch.float64), 1.0, distance / 3, 300.0,
                      incident=beam)
    spread = width**2 + 1j * WAVELENGTH * distance
    expected = width**2 / spread * torch.exp(-math.pi * squared / spread)
    # the beam's tail at the rim of the box and the band limit: exp(-pi 64^2 / spread)
    assert float((wave - expected).abs().max()) < 1e-6


def test_underfocus_undoes_propagation():
    """Sign of the propagator: 200 A downstream are undone by 200 A of underfocus."""
    rng = np.random.default_rng(0)
    thin = as_tensor(smooth_slices(rng, (1, 64, 64)))
    empty = torch.cat([thin, torch.zeros(20, 64, 64)])
    at_once = multislice(thin, 1.0, 1e-6, 300.0)
    later = multislice(empty, 1.0, 10.0, 300.0)
    focused = form_image(later, 1.0, 300.0, defocus=210.0, spherical_aberration=0.0)
    wrong = form_image(later, 1.0, 300.0, defocus=-210.0, spherical_aberration=0.0)
    flat = at_once.abs() ** 2
    error = float((focused - flat).abs().max())
    assert error < 1e-5  # rounding in float32
    assert float((wrong - flat).abs().max()) > 100 * error


def test_matter_is_dark_under_focus_and_bright_over_focus():
    n = 64
    r = torch.arange(n) - n // 2
    blob = 50 * torch.exp(-(r[:, None] ** 2 + r[None, :] ** 2) / 50.0)[None]
    wave = multislice(blob, 2.0, 10.0, 300.0)
    under, over = (form_image(wave, 2.0, 300.0, defocus=d) for d in (2e4, -2e4))
    assert float(under[n // 2, n // 2]) < 1 < float(over[n // 2, n // 2])


def test_a_scatterer_downstream_is_further_under_focus(double):
    """A weak object z behind the centre looks as at defocus + z: its slice is nearer the lens."""
    shape, dz = (1, 64, 64), 25.0
    thin = as_tensor(smooth_slices(np.random.default_rng(1), shape, 1e-3))
    empty = torch.zeros_like(thin)
    first = multislice(torch.cat([thin, empty, empty]), 1.0, dz, 300.0)
    last = multislice(torch.cat([empty, empty, thin]), 1.0, dz, 300.0)
    upstream = form_image(first, 1.0, 300.0, defocus=1e4 + 2 * dz)
    downstream = form_image(last, 1.0, 300.0, defocus=1e4)
    assert relative(upstream - 1, downstream - 1) < 1e-6  # second order in sigma V = 1e-6
    assert relative(form_image(last, 1.0, 300.0, defocus=1e4 + 2 * dz) - 1, downstream - 1) > 0.01


def test_weak_phase_image_is_the_contrast_transfer_function(double):
    contrast, optics = 0.07, Optics(defocus=8000.0, spherical_aberration=2.7, astigmatism=900.0,
                                    astigmatism_angle=25.0, phase_shift=30.0, convergence=0.1,
                                    energy_spread=0.5)
    potential = as_tensor(smooth_slices(np.random.default_rng(2), (1, 64, 64), 1e-3))
    transfer = ctf((64, 64), 1.5, 300.0, optics, contrast)
    expected = 1 + 2 * torch.fft.ifft2(transfer * torch.fft.fft2(SIGMA * potential[0])).real
    for mode in ("weak_phase", "projection"):
        wave = multislice(potential, 1.5, 1e-3, 300.0, amplitude_contrast=contrast, mode=mode)
        image = form_image(wave, 1.5, 300.0, optics)
        # quadratic terms: sigma V = 3e-6, so their square over the signal
        assert relative(image - 1, expected - 1) < 1e-5
        assert relative(form_image(wave, 1.5, 300.0, optics, linear=True) - 1,
                        expected - 1) < 1e-5


def test_electrons_are_conserved_without_absorption():
    """However strongly they scatter: sigma V reaches 2.5 from pixel to pixel here."""
    slices = as_tensor(np.random.default_rng(3).normal(0, 1000, (8, 64, 64)))
    wave = multislice(slices, 1.0, 20.0, 300.0)
    assert float((wave.abs() ** 2).mean()) == pytest.approx(1.0, abs=1e-5)
    image = form_image(wave, 1.0, 300.0, defocus=1e4)
    assert float(image.mean()) == pytest.approx(float((wave.abs() ** 2).mean()), rel=1e-5)


def test_absorption_follows_beer_and_lambert():
    slices = torch.full((10, 16, 16), 30.0)
    wave = multislice(slices, 1.0, 10.0, 300.0, amplitude_contrast=0.1)
    expected = math.exp(-2 * SIGMA * 0.1 * 300.0)
    assert float((wave.abs() ** 2).mean()) == pytest.approx(expected, rel=1e-5)
    complex_wave = multislice(torch.complex(slices * math.sqrt(0.99), slices * 0.1), 1.0, 10.0,
                              300.0)
    assert torch.allclose(complex_wave, wave, atol=1e-5)


def test_one_slice_is_a_projection_and_order_matters():
    slices = as_tensor(smooth_slices(np.random.default_rng(4), (4, 48, 48), 80.0))
    whole = slices.sum(0, keepdim=True)
    assert torch.allclose(multislice(whole, 1.0, 1e-6, 300.0),
                          multislice(slices, 1.0, 10.0, 300.0, mode="projection"), atol=2e-5)
    forward, backward = (multislice(s, 1.0, 500.0, 300.0) for s in (slices, slices.flip(0)))
    assert relative(forward, backward) > 0.01


def test_stages_in_a_row_are_one_stack(double):
    slices = as_tensor(smooth_slices(np.random.default_rng(5), (7, 32, 32), 50.0))
    whole = multislice(slices, 1.0, 10.0, 300.0)
    part = multislice(slices[3:], 1.0, 10.0, 300.0,
                      incident=multislice(slices[:3], 1.0, 10.0, 300.0))
    assert torch.equal(whole, part)


def test_propagator_is_unitary():
    propagator = fresnel_propagator((20, 31), 0.7, WAVELENGTH, 55.0)
    assert float((propagator.abs() - 1).abs().max()) < 1e-6


def test_a_batch_of_incident_waves_is_the_waves_one_by_one(double):
    generator = torch.Generator().manual_seed(2)
    slices = 50 * torch.rand(5, 12, 16, generator=generator, dtype=torch.float64)
    waves = torch.randn(3, 12, 16, generator=generator, dtype=torch.complex128)
    for mode in MODES:
        together = multislice(slices, 1.0, 10.0, 300.0, incident=waves, mode=mode)
        alone = [multislice(slices, 1.0, 10.0, 300.0, incident=wave, mode=mode) for wave in waves]
        assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients(double, dtype):
    generator = torch.Generator().manual_seed(1)
    slices = 100 * torch.rand(7, 6, 9, generator=generator, dtype=dtype)
    incident = torch.randn(6, 9, generator=generator, dtype=torch.complex128)
    inputs = (slices, as_tensor(12.0), as_tensor(250.0), as_tensor(0.1), incident)
    for t in inputs:
        t.requires_grad_()

    def wave(slices, thickness, voltage, contrast, incident):
        return torch.view_as_real(multislice(slices, 1.0, thickness, voltage,
                                             amplitude_contrast=contrast, incident=incident))

    assert torch.autograd.gradcheck(wave, inputs)


@pytest.mark.parametrize("n", [3, 18])
def test_a_gradient_may_be_asked_for_again(double, n):
    """The waves that were kept are not worked on: with a kept wave each, and between kept ones."""
    rng = np.random.default_rng(7)
    slices = torch.as_tensor(rng.uniform(-100, 300, (n, 6, 5)) + 20j).requires_grad_()
    voltage, given = as_tensor(300.0).requires_grad_(), torch.ones(6, 5, dtype=torch.complex128)
    wave = multislice(slices, 1.0, 10.0, voltage, amplitude_contrast=0.1, incident=given)
    assert torch.equal(given, torch.ones_like(given))
    loss = (wave * as_tensor(rng.standard_normal((6, 5)))).abs().square().sum()
    first, again = (torch.autograd.grad(loss, (slices, voltage), retain_graph=True)
                    for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert all(float(one.abs().max()) > 0 for one in first)


def test_gradients_with_a_band_limit(double):
    slices = 100 * torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(1),
                              dtype=torch.complex128)
    assert torch.autograd.gradcheck(lambda v, thickness, contrast: torch.view_as_real(multislice(
        v, 1.0, thickness, 300.0, amplitude_contrast=contrast, band=band_limit((6, 9)))),
        (slices.requires_grad_(), as_tensor(12.0).requires_grad_(),
         as_tensor(0.1).requires_grad_()))


@pytest.mark.parametrize(("changed", "message"), [
    ({"voltage": 0.0}, "voltage=0.0"), ({"pixel_size": -1.0}, "pixel_size=-1.0"),
    ({"slice_thickness": math.nan}, "slice_thickness=nan"),
    ({"voltage": 300000.0}, r"voltage=300000.0: must be from 10 up to 3000 \[kV\]"),
    ({"incident": torch.ones(4, 8)}, r"incident of shape \(4, 8\): must be \(8, 8\), or"),
    ({"incident": torch.ones(1, 2, 8, 8)}, "incident of shape"),
    ({"slices": torch.full((1, 8, 8), math.nan)}, "slices: must be finite"),
    ({"amplitude_contrast": 1.0}, "amplitude_contrast=1.0: must be from 0 and below 1"),
    ({"mode": "multi"}, "mode='multi': must be one of multislice, projection, weak_phase"),
    ({"slices": torch.zeros(4, 4)}, r"slices of shape \(4, 4\)"),
])
def test_impossible_values(changed, message):
    arguments = dict(slices=torch.zeros(1, 8, 8), pixel_size=1.0, slice_thickness=1.0,
                     voltage=300.0)
    with pytest.raises(ValueError, match=message):
        multislice(**{**arguments, **changed})
