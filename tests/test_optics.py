import math

import numpy as np
import pytest
import torch
import twins

from tem_taichi import Optics, ctf, form_image
from tem_taichi.device import as_tensor
from tem_taichi.instrument.optics import aberration_phase, envelope, odd_phase
from tem_taichi.physics import wavelength

WAVELENGTH = wavelength(300.0)


def test_aberration_is_its_twin(double):
    optics = Optics(defocus=12000.0, spherical_aberration=2.7, astigmatism=700.0,
                    astigmatism_angle=35.0)
    chi = aberration_phase((33, 40), 1.1, 300.0, optics).numpy()
    expected = twins.aberration((33, 40), 1.1, WAVELENGTH, 12000.0, 2.7e7, 700.0,
                                math.radians(35.0))
    assert np.abs(chi - expected).max() < 1e-12 * np.abs(expected).max()


def test_first_zero_of_the_contrast_transfer_function(double):
    """Without Cs and Q it lies at 1 / sqrt(lambda defocus)."""
    transfer = ctf((1, 4096), 1.0, 300.0, Optics(defocus=10000.0, spherical_aberration=0.0))[0]
    positive = transfer[: 4096 // 2].numpy()
    first = int(np.argmax(positive[1:] > 0)) + 1
    assert first / 4096 == pytest.approx(1 / math.sqrt(WAVELENGTH * 1e4), abs=1 / 4096)
    assert positive[5] < 0  # underfocus: matter is dark


def test_over_focus_reverses_the_contrast():
    under, over = (ctf((32, 32), 2.0, 300.0, Optics(defocus=d, spherical_aberration=0.0))
                   for d in (9000.0, -9000.0))
    assert torch.allclose(under, -over)


def test_amplitude_contrast_at_zero_frequency():
    value = ctf((8, 8), 1.0, 300.0, Optics(defocus=5000.0), 0.07)[0, 0]
    assert float(value) == pytest.approx(-0.07, rel=1e-5)


def test_astigmatism_lies_along_its_angle(double):
    """U = defocus + astigmatism / 2 along the angle, V across, as RELION has it."""
    optics = Optics(defocus=10000.0, astigmatism=1000.0, astigmatism_angle=90.0,
                    spherical_aberration=0.0)
    chi = aberration_phase((64, 64), 1.0, 300.0, optics)
    k = 10 / 64
    assert float(chi[10, 0]) == pytest.approx(-math.pi * WAVELENGTH * 10500 * k**2, rel=1e-12)
    assert float(chi[0, 10]) == pytest.approx(-math.pi * WAVELENGTH * 9500 * k**2, rel=1e-12)
    slanted = aberration_phase((64, 64), 1.0, 300.0, Optics(
        defocus=10000.0, astigmatism=1000.0, astigmatism_angle=45.0, spherical_aberration=0.0))
    assert slanted[10, 10] < slanted[10, -10]  # more underfocus towards +x +y


def spherical(kx, ky, cs):
    return math.pi / 2 * cs * WAVELENGTH**3 * (kx**2 + ky**2) ** 2


def test_beam_tilt_is_the_spherical_aberration_about_a_tilted_beam(double):
    """What is odd in k of chi(k + t / lambda), less its slope at k = 0, which shifts the image."""
    tilt = np.array([2.0, -3.0])
    chi = odd_phase((32, 32), 1.0, 300.0, Optics(beam_tilt_x=tilt[0], beam_tilt_y=tilt[1]))
    kx, ky = 7 / 32, 5 / 32
    tx, ty = tilt * 1e-3 / WAVELENGTH
    odd = (spherical(kx + tx, ky + ty, 2.7e7) - spherical(tx - kx, ty - ky, 2.7e7)) / 2
    h = 1e-4  # central difference, exact to h^2 relative to t^2
    slope = (spherical(tx + h * kx, ty + h * ky, 2.7e7)
             - spherical(tx - h * kx, ty - h * ky, 2.7e7)) / (2 * h)
    assert float(chi[5, 7]) == pytest.approx(odd - slope, rel=1e-6)


def test_coma_and_trefoil_have_one_and_three_arms_at_their_angles(double):
    """chi = (2 pi / (3 lambda)) theta^3 C along an arm (Krivanek's C21 and C23)."""
    k = 6 / 24
    arm = 2 * math.pi / (3 * WAVELENGTH) * (WAVELENGTH * k) ** 3 * 5e4
    coma = odd_phase((24, 24), 1.0, 300.0, Optics(coma=5e4, coma_angle=90.0))
    assert float(coma[6, 0]) == pytest.approx(arm, rel=1e-12)
    assert float(coma[18, 0]) == pytest.approx(-arm, rel=1e-12)
    assert float(coma[0, 6].abs()) < 1e-12 * arm
    trefoil = odd_phase((24, 24), 1.0, 300.0, Optics(trefoil=5e4))
    assert float(trefoil[0, 6]) == pytest.approx(arm, rel=1e-12)
    assert float(trefoil[6, 0].abs()) < 1e-12 * arm
    turned = odd_phase((24, 24), 1.0, 300.0, Optics(trefoil=5e4, trefoil_angle=30.0))
    assert float(turned[6, 0]) == pytest.approx(arm * math.cos(3 * math.radians(60)), rel=1e-12)


def test_odd_aberrations_turn_the_phase_that_the_ctf_transfers(double):
    """A weak phase object's image has the spectrum 2 CTF exp(-i odd) sigma V."""
    optics = Optics(defocus=4e3, coma=3e5, coma_angle=20.0, trefoil=2e5, beam_tilt_x=3.0)
    phase = 1e-4 * torch.randn(15, 15, dtype=torch.float64,
                               generator=torch.Generator().manual_seed(0))
    wave = 1 + 1j * phase
    spectrum = torch.fft.fft2(form_image(wave, 2.0, 300.0, optics, linear=True) - 1)
    expected = (2 * ctf((15, 15), 2.0, 300.0, optics) * torch.polar(
        torch.ones(15, 15, dtype=torch.float64), -odd_phase((15, 15), 2.0, 300.0, optics))
        * torch.fft.fft2(phase))
    assert float((spectrum - expected).abs().max()) < 1e-12 * float(expected.abs().max()) + 1e-13


def test_phase_plate_of_90_degrees_gives_contrast_in_focus():
    optics = Optics(defocus=0.0, spherical_aberration=0.0, phase_shift=90.0)
    transfer = ctf((16, 16), 2.0, 300.0, optics)
    assert transfer[0, 0] == 0
    assert torch.allclose(transfer.flatten()[1:], torch.tensor(-1.0))


def test_envelopes_against_their_formula(double):
    """Temporal: exp(-(pi lambda dE Cc')^2 k^4 / 4); spatial: in focus exp(-(pi Cs lambda^2 k^3
    alpha)^2), both as amplitudes of Rullgard et al. 2011."""
    k = 16 / 64
    rest, volts = 510998.95, 300e3
    spread = 0.7 * 2.7e7 * (1 + volts / rest) / (volts * (1 + volts / (2 * rest)))
    temporal = envelope((64, 64), 1.0, 300.0, Optics(energy_spread=0.7))[0, 16]
    assert float(temporal) == pytest.approx(
        math.exp(-(math.pi * WAVELENGTH * spread) ** 2 * k**4 / 4), rel=1e-8)
    spatial = envelope((64, 64), 1.0, 300.0, Optics(convergence=0.5))[0, 16]
    assert float(spatial) == pytest.approx(
        math.exp(-(math.pi * 2.7e7 * WAVELENGTH**2 * k**3 * 0.5e-3) ** 2), rel=1e-8)


def test_spatial_envelope_narrows_with_defocus():
    near, far = (envelope((64, 64), 1.0, 300.0, Optics(defocus=d, convergence=0.1))[0, 10]
                 for d in (5e3, 4e4))
    assert far < near < 1


def test_aperture_cuts_at_its_angle():
    """50 um over 2 x 3 mm is 8.33 mrad."""
    damping = envelope((1, 512), 0.5, 300.0, Optics(aperture=50.0, focal_length=3.0))[0]
    kept = int((damping[:256] > 0).sum())
    assert kept / 256 == pytest.approx(50e-3 / 6 / WAVELENGTH, abs=1 / 256)


def test_image_of_nothing_is_one():
    wave = torch.ones(24, 32, dtype=torch.complex64)
    image = form_image(wave, 1.0, 300.0, Optics(defocus=1e4, convergence=0.1), phase_shift=20.0)
    assert float((image - 1).abs().max()) < 1e-5


def test_parameters_replace_those_of_the_optics():
    generator = torch.Generator().manual_seed(0)
    wave = torch.randn(16, 16, dtype=torch.complex64, generator=generator)
    base = Optics(defocus=1e4, astigmatism=500.0)
    assert torch.equal(form_image(wave, 1.0, 300.0, base, defocus=2e4),
                       form_image(wave, 1.0, 300.0, Optics(defocus=2e4, astigmatism=500.0)))


def test_a_batch_of_settings_shares_one_exit_wave(double):
    generator = torch.Generator().manual_seed(0)
    wave = torch.randn(12, 16, dtype=torch.complex128, generator=generator)
    defocus = as_tensor([5e3, 1e4, -2e3]).requires_grad_()
    angle = as_tensor([10.0, 20.0, 30.0])
    images = form_image(wave, 1.0, 300.0, defocus=defocus, astigmatism=400.0,
                        astigmatism_angle=angle)
    images.square().sum().backward()
    for n in range(3):
        one = defocus[n].detach().clone().requires_grad_()
        image = form_image(wave, 1.0, 300.0, defocus=one, astigmatism=400.0,
                           astigmatism_angle=angle[n])
        assert torch.allclose(images[n], image, rtol=1e-12)
        image.square().sum().backward()
        assert float(defocus.grad[n]) == pytest.approx(float(one.grad), rel=1e-9)


def test_gradients(double):
    generator = torch.Generator().manual_seed(2)
    wave = torch.randn(8, 9, generator=generator, dtype=torch.complex128).requires_grad_()
    names = ("defocus", "spherical_aberration", "astigmatism", "astigmatism_angle",
             "phase_shift", "chromatic_aberration", "energy_spread", "convergence",
             "beam_tilt_x", "beam_tilt_y", "coma", "coma_angle", "trefoil", "trefoil_angle")
    values = tuple(as_tensor(v).requires_grad_()
                   for v in (8000.0, 2.7, 300.0, 30.0, 20.0, 2.5, 0.7, 0.1,
                             1.0, -2.0, 1e5, 20.0, 8e4, 70.0))
    voltage = as_tensor(300.0).requires_grad_()

    def image(wave, voltage, *values):
        return form_image(wave, 1.0, voltage, **dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(image, (wave, voltage, *values))


@pytest.mark.parametrize(("parameters", "message"), [
    ({"defocus": math.nan}, "defocus=nan: must be from"), ({"defocus": 1e30}, "defocus=1e"),
    ({"convergence": -0.1}, r"convergence=-0.1: must be from 0 up to 100 \[mrad\]"),
    ({"coma": "much"}, 'coma="much": must be a number'),
    ({"aperture": 0.0}, "aperture=0.0: must be positive"),
])
def test_impossible_values(parameters, message):
    with pytest.raises(ValueError, match=message):
        Optics(**parameters)


def test_misspelt_parameter():
    with pytest.raises(TypeError, match="defocuss"):
        form_image(torch.ones(4, 4, dtype=torch.complex64), 1.0, 300.0, defocuss=1.0)
