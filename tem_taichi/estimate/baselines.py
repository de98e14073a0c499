"""What others take off noise with: non-local means, wavelets, and Topaz where it is installed."""

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi.estimate.noise_law import Law, transfer

NEEDS = {"wavelets": "PyWavelets", "topaz": "topaz-em"}
"""What some need that does not come with the package."""


def installed(name: str) -> bool:
    """Whether what a baseline needs is there."""
    if name == "topaz":
        return _weights() is not None
    return name not in NEEDS or find_spec("pywt") is not None


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


def topaz(electrons: Tensor) -> Tensor:
    """Topaz-Denoise's pre-trained network (Bepler et al. 2020), where the user has installed it.

    Args:
        electrons: recorded, (ny, nx).
    """
    from topaz.denoising.models import UDenoiseNet  # its own loader fails on Python 3.11

    network, weights = UDenoiseNet(base_width=11, top_width=5), _weights()
    assert weights is not None
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    spread, mean = torch.std_mean(electrons)
    with torch.no_grad():
        found = network.eval()(((electrons - mean) / spread).float().cpu()[None, None])[0, 0]
    return found.to(electrons) * spread + mean


def _weights() -> Path | None:
    """Of the network, in the package topaz-em; None if it is not there. Nothing is imported."""
    found = find_spec("topaz")
    for folder in (found.submodule_search_locations or ()) if found else ():
        file = Path(folder) / "pretrained/denoise/unet_L2_v0.2.2.sav"
        if file.is_file():
            return file
    return None


def _unit(electrons: Tensor, law: Law) -> tuple[NDArray[np.float64], float]:
    """Deviations from the mean in those of the noise."""
    power = transfer(law, (electrons.shape[0], electrons.shape[1]))[1].mean()
    sigma = math.sqrt(float(electrons.mean()) * float(power))
    return ((electrons - electrons.mean()) / sigma).double().cpu().numpy(), sigma


def _back(values: NDArray, electrons: Tensor, sigma: float) -> Tensor:
    found = torch.as_tensor(np.ascontiguousarray(values)).to(electrons)
    return (found - found.mean()) * sigma + electrons.mean()
