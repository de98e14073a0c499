"""Frequencies and the band limit of a periodic grid."""

import math

import torch

from tem_taichi.arguments import check_positive_number, no_gradient
from tem_taichi.device import as_tensor, current, number

BAND_LIMIT = 2 / 3
"""Fraction of the Nyquist frequency up to which potentials are exact, zero beyond: products of two
such functions do not alias back. At an oversampling of 1.5 it is the detector's Nyquist."""

_TAPER = 0.01
"""Width of the band limit's cosine edge [cycles/pixel], as in abTEM."""


def frequencies(
    n: int, pixel_size: float | torch.Tensor = 1.0, half: bool = False
) -> torch.Tensor:
    """Frequencies [1/A] of an axis of n pixels in FFT order, shape (n,), or of its rfft.

    Args:
        n: pixels along the axis.
        pixel_size: [A]; differentiable.
        half: whether of the rfft, n // 2 + 1 of them.
    """
    device = current()
    if isinstance(pixel_size, torch.Tensor):
        return frequencies(n, half=half) / as_tensor(pixel_size)
    make = torch.fft.rfftfreq if half else torch.fft.fftfreq
    return make(n, d=pixel_size, dtype=device.dtype, device=device.torch_device)


def squared_frequencies(
    shape: tuple[int, int], pixel_size: float | torch.Tensor = 1.0, half: bool = False
) -> torch.Tensor:
    """|k|^2 [1/A^2] in FFT order, shape (ny, nx), or (ny, nx // 2 + 1) with `half`.

    Args:
        shape: (ny, nx).
        pixel_size: [A]; differentiable.
        half: whether of the rfft along x.
    """
    ky = frequencies(shape[0], pixel_size)
    kx = frequencies(shape[1], pixel_size, half)
    return ky[:, None] ** 2 + kx[None, :] ** 2


def radial_frequencies(
    shape: tuple[int, int], pixel_size: float | torch.Tensor
) -> torch.Tensor:
    """|k| [1/A] in FFT order, shape (ny, nx); differentiable in the pixel size, also at k = 0.

    Args:
        shape: (ny, nx).
        pixel_size: [A].
    """
    if isinstance(pixel_size, torch.Tensor):  # a root has no slope at zero
        return squared_frequencies(shape).sqrt() / as_tensor(pixel_size)
    return squared_frequencies(shape, pixel_size).sqrt()


def band_limit(shape: tuple[int, int]) -> torch.Tensor:
    """Tapered aperture A(k) at 2/3 Nyquist as other programs apply it, shape (ny, nx), FFT order.

    A = 1 below kc - w, 0.5 (1 + cos(pi (k - kc + w) / w)) up to kc, 0 beyond, with
    kc = 1/3 and w = 0.01 cycles/pixel, as in abTEM. Only for comparison, see `multislice`: acting
    in every slice it takes the last 3 % below 2/3 Nyquist.
    """
    k = squared_frequencies(shape).sqrt()
    cutoff = BAND_LIMIT / 2
    edge = ((k - cutoff + _TAPER) / _TAPER).clamp(0, 1)
    return 0.5 * (1 + torch.cos(math.pi * edge)) * (k <= cutoff)


def check_pixel_size(pixel_size: float | torch.Tensor) -> float:
    """The pixel size [A] as a float.

    Raises:
        ValueError: unless it is positive and finite, and no tensor that requires a gradient.
    """
    no_gradient("pixel_size", pixel_size, "it makes the grid")
    return number(pixel_length(pixel_size))


def pixel_length(pixel_size: float | torch.Tensor) -> float | torch.Tensor:
    """The pixel size [A] where it is no more than a length: a tensor stays one.

    Raises:
        ValueError: unless it is positive and finite.
    """
    check_positive_number("pixel_size", pixel_size, "A")
    return pixel_size if isinstance(pixel_size, torch.Tensor) else float(pixel_size)


def fourier_crop(image: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The same field on fewer pixels, without what the coarser grid cannot hold.

    Args:
        image: real (ny, nx).
        shape: even numbers of pixels, at most (ny, nx). The centre n // 2 stays the centre if ny
            and nx are even too.

    Returns:
        Real tensor of that shape with the same mean; its Nyquist frequency is zero.
    """
    ny, nx = shape
    if tuple(image.shape) == tuple(shape):
        return image
    spectrum = torch.fft.rfft2(image)[:, : nx // 2]
    half = torch.cat([spectrum[: ny // 2], torch.zeros_like(spectrum[:1]),
                      spectrum[spectrum.shape[0] - ny // 2 + 1:]])
    scale = ny * nx / image.numel()
    return torch.fft.irfft2(torch.nn.functional.pad(half, (0, 1)), s=(ny, nx)) * scale
