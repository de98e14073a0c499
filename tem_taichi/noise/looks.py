"""What the images of a series look like at any tilt, for clean images to look alike.

Mean, deviation and white noise are each a parabola over the tilt, as FakET has them (Harar et al.
2023), so that one image with an edge or a bead in it does not decide alone.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi.noise.style import Style

_DEGREE = 2
_MOST = 0.98
"""Largest part of the deviation that noise may be."""
_RING = (0.3, 0.475)
"""Frequencies at which images are taken for noise [cycles/pixel]."""


def noise_of(images: Tensor) -> Tensor:
    """Standard deviation of each image's noise, by its power where it hardly has another part.

    Args:
        images: (n, ny, nx).

    Returns:
        (n,).
    """
    _, ny, nx = images.shape
    ky = torch.fft.fftfreq(ny, device=images.device)[:, None]
    k = (ky**2 + torch.fft.rfftfreq(nx, device=images.device)**2).sqrt()
    ring = (k > _RING[0]) & (k < _RING[1])
    power = torch.fft.rfft2(images).abs().square()[:, ring].mean(1) / (ny * nx)
    return power.sqrt()


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
