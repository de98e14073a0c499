"""MTF from pairs of noise images by focal frequency loss: a published recipe, kept to compare.

Two independent noise images have no pixel and no Fourier phase in common, so that a distance
between them is least for the smoothest prediction, not for the right MTF. `noise_fit` compares
spectra instead.
"""

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.inverse.minimise import Fit, Optimiser, Values, minimise
from tem_taichi.noise.curves import mtf_parametric, radial_frequency
from tem_taichi.streams import Key

_MOST = 1e7
"""Electrons a pixel; in single precision the noise of more would be lost in the scaling."""


def focal_frequency_loss(predicted: Tensor, target: Tensor, gamma: float = 1.0) -> Tensor:
    """Mean of v |D|^2, D the difference of the orthonormal transforms (Jiang et al. 2021).

    The weight v = |D|^gamma over its maximum in an image, without gradient, favours the
    frequencies that are still wrong.

    Args:
        predicted: images (..., ny, nx).
        target: the same shape.
        gamma: >= 0; 0 weighs all frequencies alike, which is the mean squared error.
    """
    distance = (torch.fft.fft2(predicted, norm="ortho") - torch.fft.fft2(target, norm="ortho")
                ).abs()
    weight = distance.detach() ** gamma
    weight = weight / weight.amax(dim=(-2, -1), keepdim=True).clamp(min=1e-30)
    return (weight * distance.square()).mean()


def unit_range(images: Tensor) -> Tensor:
    """Each image (..., ny, nx) scaled to run from 0 to 1."""
    low, high = images.amin((-2, -1), keepdim=True), images.amax((-2, -1), keepdim=True)
    return (images - low) / (high - low)


def mtf_by_focal_loss(crops: Tensor, electrons: float, *, gamma: float = 0.5, steps: int = 300,
                      seed: int = 0, start: tuple[float, ...] = (0.5, 0.3, 0.2, 5.0, 20.0)) -> Fit:
    """Five MTF parameters by mean squared error plus focal frequency loss.

    Each step draws new Poisson noise, blurs it by the MTF, scales both images to [0, 1] and
    compares; Adam of rate 0.1 and betas (0.8, 0.992).

    Args:
        crops: (n, ny, nx) of flat background.
        electrons: mean electrons per pixel.
        gamma: of the focal frequency loss.
        steps: of Adam.
        seed: of the noise.
        start: a, b, c, alpha, beta to begin with.

    Returns:
        Its values["mtf"] are the five parameters.

    Raises:
        ValueError: if electrons is no rate of Poisson noise, or a crop is constant.
    """
    if not 0 < electrons <= _MOST:
        raise ValueError(f"electrons={electrons:g}: must be above 0, up to {_MOST:g} a pixel")
    crops = as_tensor(crops)
    constant = crops.amax((-2, -1)) == crops.amin((-2, -1))
    if constant.any():
        raise ValueError(f"crops[{int(constant.int().argmax())}]: is constant, must hold noise")
    target = unit_range(crops)
    w = radial_frequency(*crops.shape[-2:])
    generator = Key(seed, "trials").torch_generator(crops.device)
    mean = torch.full_like(crops, electrons)

    def loss(values: Values) -> Tensor:
        transfer = mtf_parametric(w, *positive_widths(values["mtf"]))
        arrived = torch.fft.rfft2(torch.poisson(mean, generator=generator))
        predicted = unit_range(torch.fft.irfft2(arrived * transfer, s=crops.shape[-2:]))
        return ((predicted - target).square().mean()
                + focal_frequency_loss(predicted, target, gamma))

    return minimise(loss, {"mtf": as_tensor(start)},
                    Optimiser("adam", steps, rate=0.1, betas=(0.8, 0.992)))


def positive_widths(parameters: Tensor) -> list[Tensor]:
    """The five parameters, alpha and beta made positive."""
    a, b, c, alpha, beta = parameters
    return [a, b, c, alpha.abs(), beta.abs()]
