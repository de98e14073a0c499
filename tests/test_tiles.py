"""tiles.py: images of large fields, tile by tile."""

import math
from dataclasses import replace

import pytest
import torch

from tem_taichi.device import as_tensor
from tem_taichi.grid import squared_frequencies
from tem_taichi.instrument.optics import Optics, form_image, lens_transfer
from tem_taichi.instrument.projection import Projection
from tem_taichi.instrument.tiles import (
    Axis,
    background_is_steady,
    cut,
    image_in_tiles,
    margin_of,
)
from tem_taichi.rotations import tilt_rotation

STEP = 0.5 / (math.pi * 0.019687489 / 4 / 10**2)
"""Of the defocus that changes the phase by half a radian at Nyquist, 300 kV and 10 A [A]."""


def strong_phase(n):
    """A wave whose phase fills the band of a potential."""
    k = squared_frequencies((n, n))
    noise = torch.randn(n, n, generator=torch.Generator().manual_seed(4)).to(k)
    phase = torch.fft.ifft2(torch.fft.fft2(noise) * (k < 1 / 9)).real
    return torch.polar(torch.ones_like(phase), 0.15 * phase / phase.std())


def whole_images(wave, lens, rotation, pixel, linear):
    """Each pixel between whole images at the two steps of defocus about its own."""
    n = len(wave)
    along = (torch.arange(n) - n // 2) * pixel
    height = -(along * rotation[0, 2] + along[:, None] * rotation[1, 2]) / rotation[2, 2] / STEP
    images = [(1 - (height - m).abs()).clamp(min=0) * form_image(
        wave, pixel, 300.0, replace(lens, defocus=lens.defocus + m * STEP), linear=linear)
        for m in range(-4, 5)]
    assert float(height.abs().max()) < 4
    return torch.stack(images).sum(0)


@pytest.mark.parametrize(("tilt", "axis", "linear", "source"), [
    (60.0, 0.0, False, 0.03), (-50.0, 37.0, False, 0.2), (0.0, 0.0, False, 0.03),
    (60.0, -90.0, True, 0.03)])
def test_tiles_of_a_large_field_are_its_whole_images(double, tilt, axis, linear, source):
    instrument = Projection((512, 512), (768, 768), 10.0, linear=linear)
    wave, rotation = strong_phase(768), tilt_rotation(tilt, axis)
    lens = Optics(defocus=2e4, astigmatism=2e3, energy_spread=0.4, convergence=source)
    with torch.no_grad():
        found = instrument.field_image(wave, lens, rotation)
        exact = whole_images(wave, lens, rotation, instrument.wave_pixel, linear)
    # A band that ends sharply at Nyquist has tails; see `tiles._SPARE`.
    assert float((found - exact).std() / exact.std()) < 1e-3
    steep = tuple(float(rotation[i, 2] / rotation[2, 2]) / STEP * 20 / 3 for i in (1, 0))
    axes = cut((768, 768), steep, margin_of(lens, 300.0, 20 / 3, 1e4))
    assert any(part.parts > 1 for part in axes)  # it was in tiles
    # Of a wide source each defocus has a background of its own.
    assert background_is_steady(lens, 300.0, 20 / 3, 1e4, STEP) == (source < 0.1)


def test_a_field_is_whole_where_electrons_travel_across_it():
    assert [part.parts for part in cut((512, 512), (0.01, 0.0), 600.0)] == [1, 1]
    far = margin_of(Optics(defocus=1e4, aperture=50.0), 300.0, 5.0, 0.0)
    assert math.isinf(far) and [part.margin for part in cut((512, 512), (0.0, 0.01), far)] == [0, 0]
    # A phase plate takes the mean apart from all else, and that of a tile is another.
    assert math.isinf(margin_of(Optics(defocus=1e4, phase_shift=90.0), 300.0, 5.0, 0.0))


@pytest.mark.parametrize(("steady", "angle"), [
    (True, 50.0), (False, 50.0), (False, 0.0)])  # at 0 all pixels are at one defocus
def test_gradients_through_tiles_are_those_of_finite_differences(double, steady, angle):
    instrument = Projection((160, 160), (240, 240), 10.0)
    phase = torch.angle(strong_phase(240))
    axes = (Axis(240, 2, 192, 32), Axis(240, 3, 128, 24))
    weights = torch.linspace(-1, 1, 240**2, dtype=torch.float64).reshape(240, 240).sin()
    assert instrument.wave_pixel == pytest.approx(20 / 3)

    def score(defocus, tilt, scale):
        rotation = tilt_rotation(tilt, 20.0)
        slopes = [-rotation[i, 2] / rotation[2, 2] * 20 / 3 / STEP for i in (1, 0)]
        image = image_in_tiles(
            torch.polar(torch.ones_like(phase), scale * phase), axes, slopes,
            lambda n: lens_transfer((192, 128), 20 / 3, 300.0, Optics(
                defocus=defocus + n * STEP, convergence=0.03)), steady)
        return (image * weights).sum()

    values = [as_tensor(value).requires_grad_() for value in (2e4, angle, 1.0)]
    gradients = torch.autograd.grad(score(*values), values)
    # The image is linear in the tilt's tangent up to the next defocus, 5 degrees are within it.
    steps = (1.0, 1e-4 if angle else 5.0, 1e-4)
    for n, (gradient, step) in enumerate(zip(gradients, steps, strict=True)):
        with torch.no_grad():
            up, down = (score(*(value + sign * step * (i == n) for i, value in enumerate(values)))
                        for sign in (1, -1))
        if step == 5.0:
            step = math.degrees(math.tan(math.radians(step)))
        # Of the tilt, interpolation has corners: some of 57,600 pixels pass one in the step.
        assert float(gradient) == pytest.approx(float((up - down) / (2 * step)), rel=2e-4), n


def test_a_field_without_tilt_knows_what_a_tilt_would_do(double):
    """By the defocus of its pixels, which are all at one as yet."""
    instrument, lens = Projection((160, 160), (240, 240), 10.0), Optics(2e4)
    wave, along = strong_phase(240), torch.linspace(-1, 1, 240, dtype=torch.float64)

    def score(tilt):
        image = instrument.field_image(wave, lens, tilt_rotation(tilt, 0.0))
        return (image**2 * along).sum()

    tilt = as_tensor(0.0).requires_grad_()
    (gradient,) = torch.autograd.grad(score(tilt), tilt)
    with torch.no_grad():
        step = 5.0
        slope = (score(as_tensor(step)) - score(as_tensor(-step))) / 2
    slope /= math.degrees(math.tan(math.radians(step)))
    assert abs(float(slope)) > 1e-3
    assert float(gradient) == pytest.approx(float(slope), rel=2e-3)  # squares are not linear
