"""A filter matched to a ball's shadow in an image's own noise, and how high noise alone gets.

Of images without beads the filter's values, over their deviation, are a Gaussian field, whose
maxima are rare by a known law (Adler and Taylor 2007, Random Fields and Geometry, ch. 11).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import brentq
from scipy.special import jv

Array = NDArray[np.float64]

_SEEN = 0.4
"""Of a bead, at least, for it to be found."""


@dataclass(frozen=True, eq=False)
class MatchedFilters:
    """Filters matched to the shadows of balls, on one image."""

    dark: Array
    """Of what is relative to the mean about it, (ny, nx)."""
    use: NDArray[np.bool_]
    """Pixels that count; where they do not, `dark` is 0."""
    pixel: float
    """[A]"""
    diameters: Sequence[float]
    """Of the balls, growing [A]."""

    @property
    def width(self) -> float:
        """Standard deviation of the mean of surroundings that `dark` is relative to [pixel]."""
        return 2 * self.diameters[-1] / self.pixel

    @cached_property
    def pad(self) -> int:
        """Pixels beside the image."""
        return math.ceil(self.diameters[-1] / self.pixel)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Of the padded image."""
        ny, nx = (scipy.fft.next_fast_len(n + self.pad, real=True) for n in self.dark.shape)
        return ny, nx

    @cached_property
    def frequencies(self) -> tuple[Array, Array]:
        """Along y and x [cycles/pixel]."""
        return (np.asarray(np.fft.fftfreq(self.shape[0])[:, None]),
                np.asarray(np.fft.rfftfreq(self.shape[1])[None]))

    @cached_property
    def wave(self) -> NDArray:
        """Transform of the image."""
        return np.asarray(scipy.fft.rfft2(self.dark, self.shape))

    @cached_property
    def used(self) -> NDArray:
        """Transform of the pixels that count."""
        return np.asarray(scipy.fft.rfft2(self.use.astype(float), self.shape))

    @cached_property
    def noise(self) -> Array:
        """Power of the image on rings."""
        k = np.hypot(*self.frequencies)
        count = 64
        ring = np.minimum((k * 2 * count).astype(int), count).ravel()
        number = np.bincount(ring)
        mean = np.bincount(ring, (np.abs(self.wave) ** 2).ravel()) / number
        at = np.bincount(ring, k.ravel()) / number
        # What is below has been taken off with the surroundings: it is not free of noise.
        lowest = int(np.searchsorted(at, 0.3 / self.width))
        mean[:lowest] = np.maximum(mean[:lowest], mean[min(lowest, count)])
        return np.asarray(np.exp(np.interp(k, at, np.log(np.maximum(mean, 1e-12 * mean.max())))))

    def ball(self, diameter: float) -> Array:
        """Transform of a ball's shadow, sqrt(1 - (r / radius)^2)."""
        return _shadow(self.shape, diameter / 2 / self.pixel)

    def seen(self, diameter: float) -> Array:
        """Share of the square of a ball's shadow that falls on pixels that count."""
        return self._back(self.used * _squared(self.shape, diameter / 2 / self.pixel))

    def _back(self, wave: NDArray) -> Array:
        ny, nx = self.dark.shape
        return np.asarray(scipy.fft.irfft2(wave, self.shape)[:ny, :nx])

    def filtered(self, diameter: float, noise: Array | None = None) -> tuple[Array, Array, float]:
        """Of a bead in each pixel.

        Args:
            diameter: [A].
            noise: its power, of `noise`; None = this image's.

        Returns:
            Signal over noise, 0 where most of the bead is not seen, contrast, and the variance of
            the first's slope [1/pixel^2].
        """
        ky, kx = self.frequencies
        noise = self.noise if noise is None else noise
        ball = self.ball(diameter)
        twice = np.where((kx == 0) | (kx == 0.5), 1.0, 2.0)
        weight = twice * ball**2 / noise
        total = weight.sum()
        slope = (2 * np.pi) ** 2 * math.sqrt(
            (weight * ky**2).sum() * (weight * kx**2).sum()) / total
        seen = self.seen(diameter)
        whole = np.where(seen > _SEEN, np.minimum(seen, 1), np.inf)
        best = self._back(self.wave * ball / noise) * (self.shape[0] * self.shape[1] / total)
        return best * np.sqrt(total / whole), best / whole, slope

    def level(self, values: Array) -> Array:
        """Local root mean square of a filter's values, large ones taken as what they exceed."""
        spread = 1.4826 * np.median(np.abs(values[self.use]))
        square = np.minimum(values**2, (3 * spread) ** 2) / 0.995  # E min(x^2, 9)
        width = 4 * self.diameters[-1] / self.pixel
        return np.sqrt(surroundings(square, self.use, width))


def _phase(shape: tuple[int, int], radius: float) -> Array:
    k = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    return 2 * np.pi * np.maximum(radius * k, 1e-3)  # below, the limits' own digits are lost


@lru_cache(maxsize=32)
def _shadow(shape: tuple[int, int], radius: float) -> Array:
    q = _phase(shape, radius)
    return np.asarray(2 * np.pi * radius**2 * (np.sin(q) - q * np.cos(q)) / q**3)


@lru_cache(maxsize=32)
def _squared(shape: tuple[int, int], radius: float) -> Array:
    q = _phase(shape, radius)
    fine = np.arange(1e-3, q.max() + 0.02, 0.02)  # Bessel's function is slow
    return np.asarray(np.interp(q, fine, 8 * jv(2, fine) / fine**2))


def expected_maxima(height: float, pixels: float, slope: float) -> float:
    """Maxima of a Gaussian field of deviation 1 above a height well over 1, on average.

    Args:
        height: u.
        pixels: of the field.
        slope: variance of its slope along either axis [1/pixel^2].

    Returns:
        pixels slope u exp(-u^2 / 2) / (2 pi)^1.5.
    """
    return pixels * slope / (2 * math.pi) ** 1.5 * height * math.exp(-height**2 / 2)


def threshold(pixels: float, slope: float, false_finds: float) -> float:
    """Height that maxima of a Gaussian field of deviation 1 exceed so many times on average.

    Args:
        pixels: of the field.
        slope: variance of its slope along either axis [1/pixel^2].
        false_finds: maxima above.

    Returns:
        u of so many `expected_maxima`, at least 2.
    """
    rate = pixels * slope / (2 * math.pi) ** 1.5

    def log_excess(u: float) -> float:
        return math.log(rate * u / false_finds) - u * u / 2

    return float(brentq(log_excess, 2.0, 40.0)) if log_excess(2.0) > 0 else 2.0


def surroundings(data: Array, use: NDArray[np.bool_], width: float) -> Array:
    """Gaussian mean of the pixels that are used about each pixel.

    Args:
        data: image (ny, nx).
        use: pixels of it.
        width: standard deviation [pixel].
    """
    block = max(1, int(width / 4))  # so wide a mean needs no finer samples
    size = [-(-n // block) * block for n in data.shape]
    after = [(0, m - n) for m, n in zip(size, data.shape, strict=True)]
    sums = [gaussian_filter(binned(np.pad(one, after), block), width / block, mode="constant")
            for one in (use.astype(float), np.where(use, data, 0.0))]
    rows, columns = (_interpolation(n, block) for n in data.shape)
    weight, total = (rows @ one @ columns.T for one in sums)
    mean = data[use].mean() if use.any() else 0.0
    # Far from every pixel that is used, the mean of all.
    return np.asarray(np.where(weight > 1e-6, total / np.maximum(weight, 1e-6), mean))


def _interpolation(count: int, block: int) -> Array:
    """Weights by which values of blocks give those of pixels, linear."""
    at = (np.arange(count) + 0.5) / block - 0.5
    far = np.abs(at[:, None] - np.arange(-(-count // block)))
    weights = np.maximum(1 - far, 0)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def binned(image: Array, size: int) -> Array:
    """Means of blocks of size^2 pixels; what is left at the end is cut off."""
    ny, nx = (n // size for n in image.shape)
    return image[:ny * size, :nx * size].reshape(ny, size, nx, size).mean((1, 3))
