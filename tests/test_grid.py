import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from twins import band_limit as twin_band

from tem_taichi import grid


@given(st.integers(1, 40), st.integers(1, 40))
def test_band_limit_is_its_twin(ny, nx):
    # float32 rounding of the frequencies, magnified by pi / taper = 314
    assert np.allclose(grid.band_limit((ny, nx)).numpy(), twin_band((ny, nx)), atol=2e-5)


def test_band_limit_keeps_the_mean_and_stops_at_two_thirds():
    band = grid.band_limit((96, 96))
    assert band[0, 0] == 1
    assert band[0, 33] == 0 and band[24, 24] == 0  # 33 / 96 and sqrt(2) 24 / 96 > 1/3
    assert band[0, 30] == 1


@given(st.integers(8, 20), st.integers(8, 20), st.integers(0, 3), st.integers(0, 3))
def test_fourier_crop_keeps_slow_waves_about_the_same_centre(half_y, half_x, fy, fx):
    fine, coarse = (2 * half_y, 2 * half_x), (2 * (half_y - 2), 2 * (half_x - 2))

    def wave(shape):
        y = (torch.arange(shape[0]) - shape[0] // 2) / shape[0]
        x = (torch.arange(shape[1]) - shape[1] // 2) / shape[1]
        return 1 + torch.cos(2 * math.pi * (fy * y[:, None] + fx * x[None, :]) + 0.3)

    assert torch.allclose(grid.fourier_crop(wave(fine), coarse), wave(coarse), atol=1e-5)


def test_fourier_crop_keeps_the_mean():
    image = torch.rand(48, 36)
    assert float(grid.fourier_crop(image, (32, 24)).mean()) == pytest.approx(float(image.mean()),
                                                                            rel=1e-5)


@pytest.mark.parametrize("pixel_size", [0.0, -1.0, math.nan, math.inf])
def test_impossible_pixel_size(pixel_size):
    with pytest.raises(ValueError, match=r"pixel_size=.*must be positive \[A\]"):
        grid.check_pixel_size(pixel_size)
