"""What the images of a series look like at any tilt, for a clean series to look alike.

Mean, deviation and white noise are each a parabola over the tilt, as FakET has them (Harar et al.
2023), so that one image with an edge or a bead in it does not decide alone.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi.estimate.tomogram_fit import noise_of
from tem_taichi.inverse.measures import frequencies
from tem_taichi.noise.pyramid import Pyramid
from tem_taichi.noise.style import Features, Style
from tem_taichi.noise.vgg import read_vgg

FEATURES: dict[str, Callable[[str | None], Features]] = {
    "pyramid": lambda weights: Pyramid(), "vgg": read_vgg}
"""By what looks are compared, made of a file of weights or None."""
_DEGREE = 2
_MOST = 0.98
"""Largest part of the deviation that noise may be."""


class Looks:
    """What images of a series look like at any tilt."""

    def __init__(self, images: Tensor, tilt_angles: NDArray) -> None:
        """Measured of all images.

        Args:
            images: (n, ny, nx), with their noise.
            tilt_angles: of each [deg].

        Raises:
            ValueError: if an image is flat.
        """
        deviation = images.std((1, 2), correction=0)
        if not float(deviation.min()) > 0:
            raise ValueError(f"style: image {int(deviation.argmin()) + 1} is flat")
        self.images, self.tilt_angles = images, np.asarray(tilt_angles, float)
        self.measured = torch.stack([images.mean((1, 2)), deviation, noise_of(images)]
                                    ).double().cpu().numpy()
        degree = min(_DEGREE, len(np.unique(self.tilt_angles)) - 1)
        self._fits = [np.polynomial.Polynomial.fit(self.tilt_angles, values, degree)
                      if degree else np.polynomial.Polynomial([values.mean()])
                      for values in self.measured]
        self.fitted = self._at(self.tilt_angles)

    def _at(self, tilt_angles: NDArray) -> NDArray:
        """Mean, deviation and noise (3, n), within the tilts that there are."""
        inside = np.clip(tilt_angles, self.tilt_angles.min(), self.tilt_angles.max())
        mean, deviation, noise = (np.broadcast_to(fit(inside), inside.shape)
                                  for fit in self._fits)
        deviation = np.maximum(deviation, self.measured[1].min())
        return np.stack([mean, deviation, np.clip(noise, 0, _MOST * deviation)])

    def nearest(self, tilt_angle: float) -> int:
        """Number of the image nearest in tilt [deg]."""
        return int(np.abs(self.tilt_angles - tilt_angle).argmin())

    def law(self, tilt_angle: float, like: Style) -> Style:
        """That of images at a tilt.

        Args:
            tilt_angle: [deg].
            like: law whose settings it takes.
        """
        mean, deviation, noise = self._at(np.array([tilt_angle]))[:, 0].tolist()
        return replace(like, image=self.images[self.nearest(tilt_angle)], mean=mean,
                       deviation=deviation, noise=noise)


def settings_of(features: Features, scaled: bool, steps: int, rate: float, keep: float,
                content_noise: float, tile: int) -> Style:
    """A law without a picture, for `Looks.law`; see `Style`.

    Args:
        features: by which looks are compared.
        scaled: whether the deviation is the style's.
        steps: of Adam.
        rate: of a step, in deviations.
        keep: weight of the content.
        content_noise: part of the noise that the content has.
        tile: pixels a side that are made at a time.
    """
    return Style(image=torch.zeros(1, 1), mean=0.0, deviation=1.0, noise=0.0, features=features,
                 scaled=scaled, steps=steps, rate=rate, keep=keep, content_noise=content_noise,
                 tile=tile)


def spectrum(image: Tensor) -> tuple[Tensor, Tensor]:
    """Power of an image in rings an eighth of an octave wide.

    Args:
        image: (ny, nx).

    Returns:
        Mean frequency of each ring [cycles/pixel], to 0.5, and power, in the image's unit squared.
    """
    k = frequencies(image).square().sum(0).sqrt()
    power = torch.fft.rfft2(image - image.mean()).abs().square() / image.numel()
    ring = (8 * torch.log2(k.clamp(min=1e-9) * max(image.shape))).floor().long()
    inside = (k > 0) & (k <= 0.5)
    _, ring = torch.unique(ring[inside], return_inverse=True)
    count = torch.bincount(ring)
    return (torch.bincount(ring, k[inside]) / count, torch.bincount(ring, power[inside]) / count)


def spectral_distance(image: Tensor, other: Tensor, within: tuple[float, float] = (0.01, 0.5)
                      ) -> float:
    """Root mean square of the natural log of two images' powers' ratio, over octaves alike.

    Args:
        image: (ny, nx).
        other: of any size, of pixels as wide.
        within: frequencies [cycles/pixel].
    """
    curves = [spectrum(one) for one in (image, other)]
    at = torch.logspace(np.log2(within[0]), np.log2(within[1] * 0.96), 64, 2.0)
    logs = [np.interp(at.log(), x.log().cpu(), (y + 1e-30).log().cpu())
            for x, y in curves]
    return float(np.sqrt(np.mean((logs[0] - logs[1])**2)))
