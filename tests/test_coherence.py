"""coherence.py: what partial coherence takes from interference stays in the image."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.coherence import VOLTAGE, deviations
from tem_taichi import Optics, ctf, form_image
from tem_taichi.device import as_tensor
from tem_taichi.instrument.coherence import blur
from tem_taichi.instrument.optics import _source


def speckle(n, strength, seed=0):
    """Wave behind a random phase object, white up to the grid's corners."""
    generator = torch.Generator().manual_seed(seed)
    phase = strength * torch.randn(n, n, generator=generator, dtype=torch.float64)
    return torch.polar(torch.ones_like(phase), phase)


@settings(deadline=None, max_examples=40)
@given(st.floats(-5e4, 5e4), st.floats(0, 20), st.floats(0, 2), st.floats(0.3, 5),
       st.floats(60, 400), st.floats(-3, 3))
@pytest.mark.usefixtures("double")
def test_every_electron_of_the_wave_is_in_the_image(defocus, spread, convergence, pixel, kv, cs):
    wave = speckle(24, 0.5)
    image = form_image(wave, pixel, kv, defocus=defocus, energy_spread=spread,
                       convergence=convergence, spherical_aberration=cs)
    assert float(image.mean()) == pytest.approx(1.0, rel=1e-12)
    assert float(image.min()) >= 0


def test_an_aperture_takes_electrons_and_coherence_does_not(double):
    wave, stop = speckle(32, 0.3), Optics(defocus=1e4, aperture=40.0, convergence=0.1,
                                          energy_spread=0.7)
    coherent = form_image(wave, 1.0, 300.0, stop, convergence=0.0, energy_spread=0.0)
    assert float(coherent.mean()) < 0.97
    image = form_image(wave, 1.0, 300.0, stop)
    assert float(image.mean()) == pytest.approx(float(coherent.mean()), rel=1e-12)


def test_contrast_is_still_that_of_the_transfer_function(double):
    """Twice E sin(chi) sigma V; what stays of the second order is sigma V / 2 of it."""
    phase = 1e-6 * (speckle(32, 1.0).real - 0.5)
    optics = Optics(defocus=9e3, convergence=0.2, energy_spread=1.0)
    image = form_image(torch.polar(torch.ones_like(phase), phase), 1.2, 300.0, optics)
    expected = 2 * torch.fft.ifft2(ctf((32, 32), 1.2, 300.0, optics) * torch.fft.fft2(phase)).real
    assert torch.linalg.norm(image - 1 - expected) < 1e-5 * torch.linalg.norm(expected)


@pytest.mark.parametrize("case", [(1.0, 400.0, 2e4, 0.42, 0.03), (0.7, 200.0, 2e4, 0.42, 0.1)])
def test_images_of_ice_are_averages_over_the_source(double, case):
    """800 sources, whose noise is 1 % of the contrast; an even background is off by 7 and 30 %."""
    _, (even, unblurred, ours) = deviations(48, 800, case)
    assert ours < 0.1
    assert ours < 0.6 * min(even, unblurred)


def test_electrons_stay_where_they_went(double):
    """Beside a scattering half of the field the empty half has none of its electrons."""
    n = 128
    wave = torch.ones(n, n, dtype=torch.complex128)
    wave[:, : n // 2] = speckle(n, 0.4)[:, : n // 2]
    image = form_image(wave, 1.0, 300.0, defocus=100.0, spherical_aberration=0.0,
                       energy_spread=5.0)
    # 20 pixels from either edge: a scattered electron moves by wavelength k D = 1 A, and the
    # blur, with a focus that spreads by 550 A, by some 5.
    for half in (image[:, 20 : n // 2 - 20], image[:, n // 2 + 20 : -20]):
        assert float(half.mean()) == pytest.approx(1.0, abs=2e-3)
    gone = form_image(wave, 1.0, 300.0, defocus=100.0, spherical_aberration=0.0,
                      energy_spread=5.0, aperture=60.0)
    assert float(gone[:, 20 : n // 2 - 20].mean()) < 0.99  # so that there is something to see


def test_blur_is_a_mean_over_directions_and_beams(double):
    """Against the plain sum over beams and angles."""
    optics = Optics(defocus=8e3, convergence=0.15, energy_spread=0.9)
    source = _source(VOLTAGE, optics)
    found = blur((32, 32), 1.0, source)
    kappa = 2 * math.pi * 5 / 32
    q = torch.linspace(0, 2 * math.pi / 3, 2001, dtype=torch.float64)[1:]
    turn = torch.linspace(0, math.pi, 2001, dtype=torch.float64)[:-1, None]
    length = float(2 * math.pi / source.wave_number)
    tilt = 2.7e7 * (q * length / 2 / math.pi) ** 2
    across, along = ((0.15e-3 * kappa * (8e3 - n * tilt) / 2) ** 2 for n in (1, 3))
    along = along + (float(source.spread) * q * kappa * length / (4 * math.pi)) ** 2
    weight = q * (1 - torch.exp(-2 * source.lost(q).flatten()))
    expected = (torch.exp(-across * turn.sin() ** 2 - along * turn.cos() ** 2).mean(0)
                * weight).sum() / weight.sum()
    assert float(found[0, 5]) == pytest.approx(float(expected), abs=2e-3)  # its two tables
    assert float(found[0, 0]) == 1
    spread = torch.fft.irfft2(found, s=(32, 32))
    assert float(spread.min()) > -5e-3 * float(spread.max())  # rings where the grid ends it


def test_gradients_of_the_source(double):
    wave = speckle(10, 0.5)
    inputs = [as_tensor(v).requires_grad_() for v in (5e3, 0.8, 0.2, 2.7, 2.0, 250.0)]

    def image(defocus, spread, convergence, cs, cc, voltage):
        return form_image(wave, 1.1, voltage, defocus=defocus, energy_spread=spread,
                          convergence=convergence, spherical_aberration=cs,
                          chromatic_aberration=cc)

    assert torch.autograd.gradcheck(image, inputs, rtol=1e-3)
    assert torch.autograd.gradcheck(lambda w: form_image(
        w, 1.1, 300.0, defocus=5e3, energy_spread=0.8, convergence=0.2), wave.requires_grad_())


def test_a_perfect_source_has_gradients_of_zero(double):
    """E = 1 is the envelope's maximum; where the root has no slope, none is made up."""
    inputs = [as_tensor(0.0).requires_grad_() for _ in range(2)]
    form_image(speckle(12, 0.5), 1.0, 300.0, defocus=5e3, energy_spread=inputs[0],
               convergence=inputs[1])[3, 4].backward()
    assert all(float(value.grad) == 0 for value in inputs)


def test_a_batch_of_settings_is_its_images(double):
    wave, spreads = speckle(16, 0.4), as_tensor([0.3, 1.5])
    batch = form_image(wave, 1.0, 300.0, defocus=as_tensor([4e3, 9e3]), energy_spread=spreads)
    for n, defocus in enumerate((4e3, 9e3)):
        alone = form_image(wave, 1.0, 300.0, defocus=defocus, energy_spread=spreads[n])
        assert torch.allclose(batch[n], alone, rtol=1e-12)
