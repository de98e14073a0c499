"""Averaged periodograms: their level, their orientation and their outliers."""

import math

import numpy as np
import pytest
import torch

from tem_taichi.estimate.spectra import (
    average_periodogram,
    centred_frequencies,
    check_image,
    crop_spectrum,
    tile_size,
)


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(3)


def test_white_noise_is_flat_at_its_variance(generator):
    spectrum = average_periodogram(generator.normal(5, 3, (1024, 1024)), 128)
    y, x = np.ogrid[-64:64, -64:64]
    away = torch.as_tensor(np.hypot(y, x) > 3)  # the tiles' means are taken off
    # 225 half-overlapping tiles are worth over 64 independent ones: 1 / sqrt(64) an element.
    assert float(spectrum[away].std()) < 9 * 0.125
    # 16,000 elements, 4 of which share their noise: 9 * 0.125 / sqrt(4000) = 0.018; and clipping
    # takes less than 1 %.
    assert math.isclose(float(spectrum[away].mean()), 9, rel_tol=0.02)


def test_filtered_noise_has_the_filter_squared(generator):
    white = torch.as_tensor(generator.normal(size=(1024, 1024)))
    kx, ky = centred_frequencies((1024, 1024), 1.0)
    # Along a direction of its own, so that a transposed or mirrored spectrum differs.
    gain = torch.fft.ifftshift(1 + torch.exp(-((kx - 2 * ky) / 0.3) ** 2)).double()
    image = torch.fft.ifft2(torch.fft.fft2(white) * gain).real
    spectrum = average_periodogram(image, 128)
    kx, ky = centred_frequencies((128, 128), 1.0)
    expected = (1 + torch.exp(-((kx - 2 * ky) / 0.3) ** 2)) ** 2
    ratio = (spectrum / expected)[torch.hypot(kx, ky) > 0.05]
    assert float(ratio.std()) < 0.125
    assert math.isclose(float(ratio.mean()), 1, rel_tol=0.02)


def test_a_wave_has_its_frequency_in_the_right_place(generator):
    y, x = np.mgrid[:512, :512]
    wave = np.cos(2 * np.pi * (0.25 * x + 0.125 * y)) + 0.01 * generator.normal(size=(512, 512))
    spectrum = average_periodogram(wave, 128)
    row, column = divmod(int(spectrum.argmax()), 128)
    assert (row - 64, column - 64) in ((16, 32), (-16, -32))
    assert torch.allclose(spectrum[1:, 1:], spectrum[1:, 1:].flip(0, 1), rtol=1e-4, atol=1e-6)


def test_a_bad_tile_a_spot_and_hot_pixels_hardly_matter(generator):
    image = generator.normal(size=(1024, 1024))
    clean = average_periodogram(image, 128)
    y, x = np.mgrid[:1024, :1024]
    image[:200, :300] += 8 * generator.normal(size=(200, 300))  # ice contamination
    image[700:900, 700:900] += 3 * np.cos(2 * np.pi * (0.3 * x + 0.1 * y))[700:900, 700:900]
    image.flat[generator.integers(0, image.size, 20)] = 1e4
    spoilt = average_periodogram(image, 128)
    # Some tiles less and 20 clipped pixels: the scatter grows by a few per cent of the mean.
    assert math.isclose(float(spoilt.mean()), float(clean.mean()), rel_tol=0.1)
    assert float(spoilt[20:100, 20:100].max()) < 2.5 * float(clean.mean())


def test_steep_low_frequencies_do_not_leak(generator):
    """A Hann window's sidelobes are below 1e-6 at 20 elements from the peak."""
    slope = 1e3 * np.linspace(-1, 1, 512)[:, None] + generator.normal(size=(512, 512))
    spectrum = average_periodogram(slope, 256)
    assert float(spectrum[128 + 20:, :].mean()) < 1.1


def test_crop_keeps_frequencies():
    kx, _ = centred_frequencies((512, 512), 0.8)
    cropped, pixel_size = crop_spectrum(kx, 0.8, 3.0)
    assert torch.allclose(cropped, centred_frequencies(tuple(cropped.shape), pixel_size)[0])
    assert 2.9 < 2 * pixel_size <= 3.0
    assert crop_spectrum(kx, 0.8, 1.0)[1] == 0.8


@pytest.mark.parametrize("shape, pixel_size", [((4096, 4096), 0.83), ((2048, 2048), 1.35),
                                               ((700, 500), 1.0), ((130, 4000), 5.0)])
def test_tiles_are_even_and_fit(shape, pixel_size):
    tile = tile_size(shape, pixel_size)
    assert tile % 2 == 0 and 100 <= tile <= min(shape)


@pytest.mark.parametrize("image, message", [
    (np.ones((64, 64)), "contrast"),
    (np.full((64, 64), np.nan), "finite"),
    (np.zeros(64), "shape"),
    (np.zeros((2, 64, 64)), "shape"),
])
def test_images_that_can_not_be_used(image, message):
    with pytest.raises(ValueError, match=message):
        check_image(image)


@pytest.mark.parametrize("tile", [7, 33, 128, -2])
def test_tiles_that_do_not_fit(tile, generator):
    with pytest.raises(ValueError, match="tile="):
        average_periodogram(generator.normal(size=(64, 100)), tile)
