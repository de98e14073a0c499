"""How near the images of a styled series are to those whose looks they took."""

import numpy as np
import torch
from torch import Tensor

from tem_taichi.inverse.measures import frequencies


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
