"""What others take off noise with: non-local means, wavelets, and Topaz where it is installed."""

import math
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi.estimate.recording import Law, transfer

NEEDS = {"nonlocal_means": "skimage", "wavelets": "pywt", "topaz": "topaz"}
"""The package that each needs."""


def installed(name: str) -> bool:
    """Whether what a baseline needs is there."""
    return name not in NEEDS or find_spec(NEEDS[name]) is not None


def nonlocal_means(electrons: Tensor, law: Law, strength: float) -> Tensor:
    """Means over pixels whose surroundings are alike (Buades et al. 2005), by scikit-image.

    Args:
        electrons: recorded, (ny, nx).
        law: of the noise, taken as white.
        strength: decay of the weights, in deviations of the noise.
    """
    from skimage.restoration import denoise_nl_means

    values, sigma = _unit(electrons, law)
    found = denoise_nl_means(values, patch_size=5, patch_distance=6, h=strength, sigma=1.0,
                             fast_mode=True, preserve_range=True)
    return _back(found, electrons, sigma)


def wavelets(electrons: Tensor, law: Law, strength: float) -> Tensor:
    """Wavelet coefficients below a threshold of their own scale left out, by scikit-image.

    Args:
        electrons: recorded, (ny, nx).
        law: of the noise, taken as white.
        strength: of the noise that is told to BayesShrink (Chang et al. 2000), in its deviation.
    """
    from skimage.restoration import denoise_wavelet

    values, sigma = _unit(electrons, law)
    with np.errstate(divide="ignore", invalid="ignore"):  # of scales that hold noise alone
        found = denoise_wavelet(values, sigma=strength, wavelet="sym4", mode="soft",
                                method="BayesShrink", rescale_sigma=False)
    return _back(np.nan_to_num(found), electrons, sigma)


def _unit(electrons: Tensor, law: Law) -> tuple[NDArray[np.float64], float]:
    """Deviations from the mean in those of the noise."""
    power = transfer(law, (electrons.shape[0], electrons.shape[1]))[1].mean()
    sigma = math.sqrt(float(electrons.mean()) * float(power))
    return ((electrons - electrons.mean()) / sigma).double().cpu().numpy(), sigma


def _back(values: NDArray, electrons: Tensor, sigma: float) -> Tensor:
    found = torch.as_tensor(np.ascontiguousarray(values)).to(electrons)
    return (found - found.mean()) * sigma + electrons.mean()
