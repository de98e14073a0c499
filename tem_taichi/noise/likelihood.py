"""Gradients through the noise: a detector's likelihood, and losses on noisy samples.

Three ways to the parameters of an image, from best to last resort:

- `log_prob`: how probable recorded counts are; the gradient is exact and has no noise of its own.
- `reparametrised_sample`: counts as a smooth function of the intensity and of standard normal
  noise. One sample gives a gradient with little noise; the law is Gaussian, not Poisson.
- `score_function_gradient`: d E[L]/d lambda = E[L d log p(N | lambda)/d lambda] (Williams 1992,
  REINFORCE) for a loss L on samples that need not be differentiable; the law is Poisson's and the
  noise of the gradient large.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tem_taichi.arguments import to_field
from tem_taichi.device import as_tensor
from tem_taichi.noise import curves
from tem_taichi.noise.curves import Scalar, requires_grad
from tem_taichi.noise.detector import (
    IDEAL,
    Detector,
    _deposit,
    _efficiency,
    _factors,
    _filter,
    _is_white,
    expected_counts,
    noise_power_spectrum,
)
from tem_taichi.streams import Key

_CREDITS = ("reach", "all", "own")


@dataclass(frozen=True)
class ScoreFunction:
    """How `score_function_gradient` turns the losses of samples into a gradient.

    Attributes:
        samples: number K of samples, >= 1; >= 2 with leave_one_out.
        credit: the loss that a pixel's log-probability is multiplied with:
            "reach", that of the pixels at most `radius` away along either axis. Without bias if a
            count changes no loss farther away; the rest of the image then adds no noise.
            "all", that of the whole image. Never biased.
            "own", that of the same pixel. Biased wherever the MTF spreads counts to neighbours;
            for comparison only.
        radius: [pixel], >= 0: reach of the MTF's point spread, plus that of the loss itself if it
            compares neighbours. Only for credit="reach".
        leave_one_out: subtract from each credit its mean over the other samples, which leaves the
            mean of the gradient as it is and lowers its variance.
    """

    samples: int = 16
    credit: str = "reach"
    radius: int = 3
    leave_one_out: bool = True

    def __post_init__(self) -> None:
        if self.credit not in _CREDITS:
            raise ValueError(f"credit={self.credit!r}: must be one of {', '.join(_CREDITS)}")
        if self.radius < 0:
            raise ValueError(f"radius={self.radius}: must not be negative [pixel]")
        least = 2 if self.leave_one_out else 1
        if self.samples < least:
            raise ValueError(f"samples={self.samples}: must be at least {least}")


def log_prob(counts: Tensor, intensity: Tensor, *, pixel_size: Scalar, dose: Scalar,
             detector: Detector = IDEAL) -> Tensor:
    """Log of the probability density of recorded counts.

    White counting detector (DQE one number or None): exact. N = counts DQE / gain is Poisson of
    mean DQE MTF electrons, and the density is P(N) DQE / gain: the probability where counts come
    in steps gain / DQE of 1. N need not be whole, so that gain and DQE can be fitted.

    Every other detector: with R the transform of counts - expectation and S the noise power
    spectrum of a flat field with the image's mean number of electrons (Whittle 1953),
        log p = -1/2 sum_k [ |R_k|^2 / (n S_k) + log(2 pi S_k) ],  n the number of pixels.
    Exact for large counts and flat images: it takes the noise to be Gaussian and the same
    everywhere. The 1/12 count^2 of rounding is part of S where `detector.integer` is set.

    Args:
        counts: recorded, shape of `intensity`. Of a white counting detector they are taken as not
            rounded: `integer` is left out.
        intensity: electrons relative to the incident beam, >= 0, (ny, nx) or (n, ny, nx).
        pixel_size: edge of a pixel at the specimen [A], > 0.
        dose: exposure of an image [e-/A^2], > 0; one number, or (n,) for n images.
        detector: the camera.

    Returns:
        Scalar, the sum over the independent images; differentiable in intensity, dose, pixel_size
        and every tensor in the detector. -inf where a counting detector with white noise recorded
        electrons that were not expected at all.

    Raises:
        ValueError: as `expected_counts`; if shapes differ, or counts are not finite; if counts are
            negative for a white counting detector; if the noise power is 0 somewhere.
    """
    electrons = expected_counts(intensity, pixel_size=pixel_size, dose=dose)
    mean = expected_counts(intensity, pixel_size=pixel_size, dose=dose, detector=detector)
    return log_density(counts, mean, electrons, detector)


def log_density(counts: Tensor, expected: Tensor, electrons: Tensor, detector: Detector) -> Tensor:
    """`log_prob` where the expectation of the counts is at hand.

    Args:
        counts: recorded, (ny, nx) or (n, ny, nx).
        expected: their expectation, of the same shape.
        electrons: that reach each pixel on average, of the same shape; of a detector whose noise
            is not white only their means count.
        detector: the camera.

    Returns:
        Scalar, as `log_prob`.

    Raises:
        ValueError: as `log_prob`.
    """
    counts = to_field("counts", counts)
    if counts.shape != expected.shape:
        raise ValueError(f"counts has shape {tuple(counts.shape)}: must be the intensity's, "
                         f"{tuple(expected.shape)}")
    if not _is_white(detector):
        return _whittle(counts - expected, electrons.mean(dim=(-2, -1)), detector)
    if counts.min() < 0:
        raise ValueError(f"counts={float(counts.min()):g}: must not be negative for a counting "
                         "detector with white noise")
    step = _counts_per_event(detector)
    events = counts / step
    # In double precision: the terms nearly cancel, and fits compare sums that differ by 1 in 1e5.
    events, mean = (counts / step).double(), (expected / step).clamp(min=0).double()
    terms = _log_poisson(events, mean) - torch.lgamma(events + 1)
    return terms.sum() - counts.numel() * step.log()


def score_function_gradient(loss_of_sample: Callable[[Tensor], Tensor], intensity: Tensor, *,
                            pixel_size: Scalar, dose: Scalar, detector: Detector = IDEAL,
                            estimator: ScoreFunction | None = None, seed: int = 0) -> Tensor:
    """Mean loss of noisy samples, with a gradient that passes through the Poisson noise.

    Let N_i be the Poisson number of electrons that are registered in pixel i, of mean lambda_i: the
    detected ones of a counting detector, which reach no neighbour afterwards if its noise is white,
    all of an integrating one. With the credit A_i of a pixel and its baseline b_i, the gradient is
        mean_k sum_i (A_i(k) - b_i(k)) d log p(N_i(k) | lambda_i).
    Gain, MTF and a counting detector's DQE also have one through the counts at fixed N.

    Args:
        loss_of_sample: from counts (K, ny, nx) of K samples to the loss of each of their pixels,
            same shape; the loss of a sample is the sum over its pixels. Its own parameters keep
            their gradients.
        intensity: electrons relative to the incident beam, (ny, nx), > 0: where nothing arrives
            the score cannot tell what an electron would do.
        pixel_size: edge of a pixel at the specimen [A], > 0.
        dose: exposure [e-/A^2], > 0.
        detector: the camera. An integrating one's DQE can have no gradient here: it shapes the
            charge of each electron.
        estimator: number of samples, credit and baseline; None is `ScoreFunction()`.
        seed: of the random numbers, 0 to 2^64 - 1; another one for each step of a fit.

    Returns:
        Scalar, the mean loss of the samples; `backward` gives the gradient above.

    Raises:
        ValueError: as `expected_counts`, or if the detector, the seed or a shape is not allowed.
    """
    estimator = estimator or ScoreFunction()
    if detector.kind == "integrating" and requires_grad(detector.dqe):
        raise ValueError("detector.dqe: requires a gradient, which the samples of an integrating "
                         "detector do not have: must be detached")
    if torch.as_tensor(intensity).ndim != 2:
        raise ValueError(f"intensity has shape {tuple(intensity.shape)}: must be (ny, nx)")
    mean, electrons, counts = _samples(intensity, pixel_size, dose, detector, estimator.samples,
                                       Key(seed, "noise").generator())
    if detector.integer:
        # Rounding has no derivative; gain and MTF see through it.
        counts = counts + (counts.round() - counts).detach()
    losses = loss_of_sample(counts)
    if losses.shape != counts.shape:
        raise ValueError(f"loss_of_sample returns shape {tuple(losses.shape)}: must be the "
                         f"counts', {tuple(counts.shape)}")
    score = _log_poisson(electrons, mean)
    weighted = _credit(losses.detach(), estimator) * (score - score.detach())  # of value 0
    return (losses + weighted).sum() / estimator.samples


def reparametrised_sample(intensity: Tensor, *, pixel_size: Scalar, dose: Scalar,
                          detector: Detector = IDEAL, noise: Tensor) -> Tensor:
    """Counts as a smooth function of everything but the noise, without rounding.

    Poisson numbers N(lambda) become lambda + sqrt(lambda) z. Mean and covariance of the counts,
    and so the mean of every quadratic loss and its gradient, are those of `detect`; the mean of
    any other loss is so only for large counts.

    Args:
        intensity: electrons relative to the incident beam, (ny, nx) or (n, ny, nx), > 0: the
            derivative of sqrt(lambda) is infinite at 0.
        pixel_size: edge of a pixel at the specimen [A], > 0.
        dose: exposure of an image [e-/A^2], > 0; one number, or (n,) for n images.
        detector: the camera.
        noise: z, independent standard normal numbers, shape of `intensity` or (..., ny, nx) for
            more samples of it.

    Returns:
        Counts, the broadcast shape of intensity and noise; differentiable in both, in dose,
        pixel_size and every tensor in the detector.

    Raises:
        ValueError: as `expected_counts`, or if the noise's shape does not match.
    """
    expected = expected_counts(intensity, pixel_size=pixel_size, dose=dose, detector=detector)
    noise = to_field("noise", noise)
    if noise.shape[-expected.ndim:] != expected.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}: must end in the intensity's, "
                         f"{tuple(expected.shape)}")
    place, draw = _factors(detector, expected.shape[-2], expected.shape[-1])
    electrons = expected_counts(intensity, pixel_size=pixel_size, dose=dose)
    mean = electrons if place is None else _filter(electrons, place)
    shot = (mean.clamp(min=0) / as_tensor(_efficiency(detector))).sqrt() * noise
    return expected + as_tensor(detector.gain) * (shot if draw is None else _filter(shot, draw))


def _counts_per_event(detector: Detector) -> Tensor:
    """Counts that a white counting detector records for each electron that it detects."""
    return as_tensor(detector.gain) / as_tensor(_efficiency(detector))


def _log_poisson(events: Tensor, mean: Tensor) -> Tensor:
    """Log-probability of each number of events without its constant, log N!."""
    # Where none came, log(mean) must not matter, not even to the gradient at a mean of 0.
    return events * torch.where(events > 0, mean, 1.0).log() - mean


def _whittle(residual: Tensor, electrons: Tensor, detector: Detector) -> Tensor:
    """Log-density of stationary Gaussian noise; `electrons` a pixel, one number an image."""
    ny, nx = residual.shape[-2:]
    w = curves.radial_frequency(ny, nx)
    spectrum = noise_power_spectrum(w, detector, dose=1, pixel_size=1)  # of one electron
    power = electrons[..., None, None] * spectrum + (1 / 12 if detector.integer else 0)
    if not (power > 0).all():
        raise ValueError("noise power is 0 at some frequency (the MTF, or the image): the counts "
                         "have no density")
    # Not of its modulus, whose second derivative at 0, where an information is asked, is lost.
    periodogram = torch.view_as_real(torch.fft.rfft2(residual)).square().sum(-1) / (ny * nx)
    weight = torch.full((nx // 2 + 1,), 2.0, dtype=w.dtype, device=w.device)
    weight[0] = 1  # its own mirror image in the full transform, like an even width's Nyquist
    if nx % 2 == 0:
        weight[-1] = 1
    return -0.5 * (weight * (periodogram / power + (2 * math.pi * power).log())).sum()


def _samples(intensity: Tensor, pixel_size: Scalar, dose: Scalar, detector: Detector,
             samples: int, generator: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Mean number of electrons (ny, nx), the numbers drawn and their counts (samples, ny, nx)."""
    def draw_numbers(mean: Tensor) -> Tensor:
        drawn = mean.detach().double().cpu().expand(samples, -1, -1).numpy()
        return as_tensor(generator.poisson(drawn))

    place, draw = _factors(detector, intensity.shape[-2], intensity.shape[-1])
    efficiency, counting = as_tensor(_efficiency(detector)), detector.kind == "counting"
    mean = expected_counts(intensity, pixel_size=pixel_size, dose=dose)
    mean = (mean if place is None else _filter(mean, place)).clamp(min=0)
    mean = mean * efficiency if counting else mean
    electrons = draw_numbers(mean)
    if counting:
        charge = electrons / efficiency
    else:
        charge = as_tensor(_deposit(electrons.double().cpu().numpy(),
                                    1 / float(efficiency.detach()) - 1, generator))
    charge = charge if draw is None else _filter(charge, draw)
    return mean, electrons, as_tensor(detector.gain) * charge


def _credit(losses: Tensor, estimator: ScoreFunction) -> Tensor:
    """Credit less baseline of every pixel, from the losses (K, ny, nx)."""
    if estimator.credit == "all":
        losses = losses.sum(dim=(-2, -1), keepdim=True)
    elif estimator.credit == "reach":
        rows, columns = (_within(n, estimator.radius, losses) for n in losses.shape[-2:])
        losses = rows @ losses @ columns
    if estimator.leave_one_out:
        # A minus the mean of the K - 1 others.
        losses = (losses - losses.mean(dim=0)) * (len(losses) / (len(losses) - 1))
    return losses


def _within(n: int, radius: int, like: Tensor) -> Tensor:
    """Matrix (n, n), 1 where two pixels of a periodic axis are at most `radius` apart, else 0."""
    index = torch.arange(n, device=like.device)
    distance = (index[:, None] - index).abs()
    return (torch.minimum(distance, n - distance) <= radius).to(like.dtype)
