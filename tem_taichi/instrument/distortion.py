"""A projector lens that magnifies one direction more than the other."""

import math

import torch

from tem_taichi.arguments import check_number
from tem_taichi.device import as_tensor
from tem_taichi.grid import frequencies
from tem_taichi.physics import Value


def anisotropic(anisotropy: Value, angle: Value) -> torch.Tensor:
    """Matrix (2, 2) from undistorted to distorted x, y about the image's centre.

    Args:
        anisotropy: difference of the two magnifications over their mean.
        angle: direction of the larger one [deg], from +x towards +y.
    """
    check_number("anisotropy", anisotropy, "1", above=-1.0, below=1.0)
    check_number("angle", angle, "deg")
    half, twice = as_tensor(anisotropy) / 2, 2 * torch.deg2rad(as_tensor(angle))
    c, s = half * torch.cos(twice), half * torch.sin(twice)
    return torch.stack([1 + c, s, s, 1 - c]).reshape(2, 2)


def _resample(image: torch.Tensor, scale: torch.Tensor, shear: torch.Tensor) -> torch.Tensor:
    """image(scale x + shear y, y) with x, y from the centre, by its own Fourier series in x."""
    ny, nx = image.shape
    x, y = (torch.arange(n, device=image.device, dtype=image.dtype) - n // 2 for n in (nx, ny))
    spectrum = torch.fft.rfft(torch.roll(image, -(nx // 2), 1), dim=1)
    k = 2 * math.pi * frequencies(nx, half=True)
    once = torch.ones_like(k)
    once[1:] = 2  # a real series: all but the mean stand for a pair
    if nx % 2 == 0:
        once[-1] = 0  # the Nyquist frequency has no direction
    spectrum = spectrum * torch.polar(once.expand(ny, -1), y[:, None] * shear * k)
    angle = k[:, None] * scale * x
    return (spectrum.real @ torch.cos(angle) - spectrum.imag @ torch.sin(angle)) / nx


def distort(image: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """An image under a linear map of its coordinates: out(M r) = image(r), r from n // 2.

    Two passes, each along one axis and exact for the image's Fourier series, cost 2 n^3
    multiplications. What is outside the image continues it periodically.

    Args:
        image: real (ny, nx).
        matrix: M, (2, 2), near the identity, acting on (x, y).

    Returns:
        Real tensor (ny, nx), differentiable in image and matrix; values are kept, so that the
        number of electrons is that of the distorted field.
    """
    (a, b), (c, d) = torch.linalg.inv(matrix)
    rows = _resample(image, a - b * c / d, b / d)
    return _resample(rows.T, d, c).T
