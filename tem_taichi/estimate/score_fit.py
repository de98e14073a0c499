"""Pictures by losses on samples of the noise: a published recipe as written, and corrected.

Diff-TEM (2024) seeks the picture x whose Poisson samples, blurred by the MTF, are next to the
images, by the surrogate loss mean(L(image - MTF n) ln p(n | x)), n ~ Poisson(x), with images and
samples scaled to run from 0 to 1. As written each pixel's score meets its own error alone, which is
biased where the MTF spreads counts to neighbours, and the scaling loses the electrons. Corrected,
the loss is in counts, a score meets the errors of all pixels that its electrons reach, and their
mean over the other samples is taken off. Neither has a prior: they tend to the average, with the
MTF divided out.
"""

from pathlib import Path

import torch
from torch import Tensor

from tem_taichi.estimate.focal_loss import unit_range
from tem_taichi.inverse.minimise import Optimiser, Values, minimise
from tem_taichi.noise.detector import Detector
from tem_taichi.noise.likelihood import ScoreFunction, score_function_gradient
from tem_taichi.streams import Key

_LEAST = 0.05
"""Electrons a pixel has at least: where none are expected no sample tells what one would do."""


def fit_samples(counts: Tensor, detector: Detector, *, corrected: bool, steps: int = 200,
                samples: int = 4, seed: int = 0, state_file: Path | None = None) -> Tensor:
    """The picture of exposures by the surrogate loss.

    Adam of rate 1 electron and betas (0.8, 0.992), as published from random values; where it is
    corrected from a flat image, with a rate that falls as 1 / (1 + step / 20), or the noise of the
    steps would stay.

    Args:
        counts: (n, ny, nx) exposures of about the same dose.
        detector: that recorded them, whose counts samples are.
        corrected: whether the estimator is the corrected one.
        steps: of Adam.
        samples: of each step.
        seed: of the start and the samples.
        state_file: see `minimise`.

    Returns:
        Electrons of one exposure before the camera, (ny, nx), on a scale of their own where not
        corrected.
    """
    gain = torch.as_tensor(detector.gain).to(counts)
    target = counts / gain if corrected else unit_range(counts)
    mean = float(counts.mean() / gain)
    estimator = (ScoreFunction(samples, "reach", 3) if corrected
                 else ScoreFunction(samples, "own", leave_one_out=False))
    # Of the mean over exposures: what they scatter about it no picture changes.
    middle, scatter = target.mean(0), target.var(0, correction=0)

    def loss_of_sample(drawn: Tensor) -> Tensor:
        drawn = drawn / gain if corrected else unit_range(drawn)
        return ((drawn - middle).square() + scatter) / middle.numel()

    drawn = [0]

    def loss(values: Values) -> Tensor:
        drawn[0] += 1
        number = int(Key(seed, "trials", drawn[0]).generator(kind=3).integers(2**63))
        return score_function_gradient(
            loss_of_sample, values["electrons"].clamp(min=_LEAST), pixel_size=1, dose=1,
            detector=detector, estimator=estimator, seed=number)

    noise = Key(seed, "trials").generator(kind=3).uniform(0.5, 1.5, tuple(counts.shape[-2:]))
    start = torch.full_like(middle, mean) if corrected else mean * torch.as_tensor(noise).to(counts)
    # The loss is random: the last values are as good as any, and the best met was luck.
    found: list[Tensor] = []
    minimise(loss, {"electrons": start},
             Optimiser("adam", steps, rate=1.0, betas=(0.8, 0.992), patience=steps,
                       schedule=(lambda n: 1 / (1 + n / 20)) if corrected else None),
             progress=lambda _n, _loss, values: found.__setitem__(
                 slice(None), [values["electrons"]]), state_file=state_file)
    return found[0].detach().clone().clamp(min=_LEAST)
