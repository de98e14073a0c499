"""What textures look like, without weights that someone learned: statistics of a steerable pyramid.

Bands an octave wide in so many directions, complex, so that their magnitudes say how much of a
structure is where. What is told of them is after Portilla & Simoncelli 2000, Int. J. Comput. Vis.
40:49: magnitudes' products within a scale and with the next wider one, their means, and the
moments of all pixels.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tem_taichi.checks import whole

_LEAST = 8
"""Pixels a side of the widest scale."""


@dataclass(frozen=True)
class Pyramid:
    """Features for `style.transfer`."""

    scales: int = 8
    """Octaves, from the pixels' own; fewer where the image is small."""
    directions: int = 4
    """Over 180 degrees."""

    def __post_init__(self) -> None:
        whole("scales", self.scales, 1, 16)
        whole("directions", self.directions, 2, 16)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the statistics, alike, against a content of 1."""
        return (10.0,)

    def __call__(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What an image shows, and what it looks like.

        Args:
            image: (ny, nx), in units of the style's deviation, about 0.

        Returns:
            The image below an eighth of a cycle a pixel, where noise is least of it, and
            statistics: of the pixels, of each scale, and of each with the next.
        """
        waves = torch.fft.fft2(image)
        rest = torch.fft.ifft2(waves * _low(tuple(image.shape), 0.125).to(image)).real
        return rest, [_moments(image), *self._bands(waves)]

    def _bands(self, waves: Tensor) -> list[Tensor]:
        ny, nx = waves.shape
        found: list[Tensor] = []
        finer: Tensor | None = None
        for scale in range(self.scales):
            size = tuple(2 * math.ceil(n / 2 ** (scale + 1)) for n in (ny, nx))
            if min(size) < _LEAST and scale:
                break
            masks = _masks((ny, nx), size, scale, self.directions).to(waves.real)
            part = _middle(waves, size) * (size[0] * size[1] / (ny * nx))
            # The square of a number that may be 0 has a slope there; its magnitude has none.
            power = torch.view_as_real(torch.fft.ifft2(part * masks)).square().sum(-1)
            magnitudes = (power + 1e-8).sqrt()
            flat = magnitudes.flatten(1)
            found += [flat @ flat.T / flat.shape[1], flat.mean(1)]
            if finer is not None:
                pooled = interpolate(finer[None], size=magnitudes.shape[1:], mode="area")[0]
                found.append(pooled.flatten(1) @ flat.T / flat.shape[1])
            finer = magnitudes
        return found


def _moments(image: Tensor) -> Tensor:
    """Mean, variance, and the third and fourth moment in units of a normal law's."""
    centred = image - image.mean()
    return torch.stack([image.mean(), centred.square().mean(), centred.pow(3).mean(),
                        centred.pow(4).mean() / 3])


def _middle(waves: Tensor, size: tuple[int, ...]) -> Tensor:
    """The lowest frequencies, in the order of a transform of that size."""
    for axis, n in enumerate(size):
        if n < waves.shape[axis]:
            waves = torch.cat([waves.narrow(axis, 0, n // 2),
                               waves.narrow(axis, waves.shape[axis] - n // 2, n // 2)], axis)
        elif n > waves.shape[axis]:  # an odd number of pixels: one frequency more, empty
            gap = torch.zeros_like(waves.narrow(axis, 0, 1))
            half = n // 2
            waves = torch.cat([waves.narrow(axis, 0, half), gap,
                               waves.narrow(axis, half, waves.shape[axis] - half)], axis)
    return waves


@lru_cache(maxsize=32)
def _low(shape: tuple[int, int], edge: float) -> Tensor:
    """1 below a frequency [cycles/pixel], 0 from its double on, a cosine in its logarithm."""
    ky, kx = (torch.fft.fftfreq(n, dtype=torch.float64) for n in shape)
    octave = torch.log2((ky[:, None]**2 + kx**2).sqrt().clamp(min=1e-9) / edge)
    return torch.cos(math.pi / 2 * octave.clamp(0, 1))


@lru_cache(maxsize=64)
def _masks(shape: tuple[int, int], size: tuple[int, int], scale: int, directions: int) -> Tensor:
    """Of a scale's band in each direction, of half a plane each, (directions, *size).

    The mean squares of all bands sum to the variance of the image, but for what is wider than the
    widest.
    """
    # Frequencies that `_middle` leaves, in cycles of the image's own pixels.
    ky, kx = (torch.fft.fftfreq(m, dtype=torch.float64) * (m / n)
              for m, n in zip(size, shape, strict=True))
    k, angle = (ky[:, None]**2 + kx**2).sqrt(), torch.atan2(ky[:, None].expand(size),
                                                           kx.expand(size))
    octave = torch.log2(k.clamp(min=1e-9) / (0.5 / 2**scale))  # 0 at the end of the band
    ring = torch.cos(math.pi / 2 * (octave + 1).clamp(0, 1) if scale else torch.zeros_like(k))
    ring = ring * torch.sin(math.pi / 2 * (octave + 2).clamp(0, 1))
    order = directions - 1
    # A frequency and its opposite have, of all directions, squares that sum to 2.
    strength = math.sqrt(2.0) * math.factorial(order) * 2**order / math.sqrt(
        directions * math.factorial(2 * order))
    turned = angle - torch.arange(directions)[:, None, None] * math.pi / directions
    return ring * strength * torch.cos(turned).clamp(min=0).pow(order)
