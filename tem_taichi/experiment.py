"""Where the halves meet: a specimen, an instrument and a noise law make images, and explain them.

Each of the three is anything with the methods of its protocol. An instrument gives the intensity of
a specimen at an exposure, a noise law the counts of an intensity. Forward, `images` records one
exposure after another; backward, `negative_log_prob` says how badly an experiment explains counts,
with a gradient in every tensor of its parts.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from tem_taichi.device import as_tensor
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.physics import Value
from tem_taichi.specimen.view import Specimen as Specimen
from tem_taichi.streams import Key
from tem_taichi.timing import Stages


class Instrument(Protocol):
    """What makes a specimen an image: `tem.TEM`, `projection.Projection`, `stem.STEM`."""

    def intensity(self, specimen: Specimen, exposure: Exposure) -> torch.Tensor:
        """Electrons on each pixel relative to no specimen, (ny, nx), not negative."""


class NoiseLaw(Protocol):
    """What makes an intensity counts: `camera.Camera`, `gaussian.Gaussian`."""

    def expected(self, intensity: torch.Tensor, dose: Value) -> torch.Tensor:
        """Mean counts of an intensity at a dose [e-/A^2]; differentiable in both."""

    def sample(self, intensity: torch.Tensor, dose: Value, key: Key) -> torch.Tensor:
        """Counts, of the shape that `expected` has; the same for the same key."""


@runtime_checkable
class Likelihood(NoiseLaw, Protocol):
    """A noise law that knows how probable counts are."""

    def log_prob(
        self, counts: torch.Tensor, intensity: torch.Tensor, dose: Value
    ) -> torch.Tensor:
        """Log of the probability density of counts, a scalar."""


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a series of images."""

    specimen: Specimen
    instrument: Instrument
    noise: NoiseLaw
    exposures: Sequence[Exposure]


@dataclass(frozen=True)
class Image:
    """One recorded exposure."""

    counts: torch.Tensor
    """With noise, of the noise law's shape."""
    expected: torch.Tensor
    """Without noise."""
    exposure: Exposure


def images(
    experiment: Experiment, seed: int, stages: Stages = nullcontext
) -> Iterator[Image]:
    """Record the exposures one by one; only one is in memory.

    The noise of an image depends on the seed and its exposure's `stream` alone, whichever others
    are made.

    Args:
        experiment: what is seen, by what, and how often.
        seed: of the noise.
        stages: times what the noise law takes, as "detector".
    """
    for exposure in experiment.exposures:
        with torch.no_grad():  # not around the yield, or it would hold in the caller's loop
            intensity = experiment.instrument.intensity(experiment.specimen, exposure)
            image = recorded(experiment.noise, intensity, exposure, seed, stages)
        yield image


def recorded(law: NoiseLaw, intensity: torch.Tensor, exposure: Exposure, seed: int,
             stages: Stages = nullcontext, mean: torch.Tensor | None = None) -> Image:
    """An intensity as it is recorded once.

    Args:
        law: of the noise.
        intensity: of an instrument.
        exposure: its dose and the number of its noise.
        seed: of the noise.
        stages: as in `images`.
        mean: what `law.expected` gave of this intensity and dose, if it is at hand.
    """
    dose = exposure.dose
    with stages("detector"):
        counts = law.sample(intensity, dose, Key(seed, "noise", exposure.stream))
        return Image(counts, law.expected(intensity, dose) if mean is None else mean, exposure)


def expected(experiment: Experiment, number: int) -> torch.Tensor:
    """Mean counts of one exposure; differentiable in every tensor of the experiment.

    Args:
        experiment: with the exposure.
        number: of the exposure, from 0.
    """
    exposure = experiment.exposures[number]
    intensity = experiment.instrument.intensity(experiment.specimen, exposure)
    return experiment.noise.expected(intensity, exposure.dose)


def negative_log_prob(
    experiment: Experiment, counts: torch.Tensor, which: Sequence[int] | None = None
) -> torch.Tensor:
    """How badly an experiment explains recorded counts.

    Args:
        experiment: with a noise law that is a `Likelihood`.
        counts: of all exposures, (n, ny, nx), in their order.
        which: numbers of the exposures that count; None = all.

    Returns:
        Minus the log of the counts' probability density, a scalar: the sum over the exposures.
        Differentiable in every tensor of the experiment; the memory for gradients grows with the
        number of exposures, so call it for some at a time and add the gradients.

    Raises:
        ValueError: if the noise law has no likelihood, or counts are not one image an exposure.
    """
    law = experiment.noise
    if not isinstance(law, Likelihood):
        raise ValueError(f"noise={type(law).__name__}: must have log_prob to explain counts; it "
                         "can only draw samples")
    if len(counts) != len(experiment.exposures):
        raise ValueError(f"counts of {len(counts)} images: must be one for each of the "
                         f"{len(experiment.exposures)} exposures")
    total = as_tensor(0.0)
    for n in range(len(counts)) if which is None else which:
        exposure = experiment.exposures[n]
        intensity = experiment.instrument.intensity(experiment.specimen, exposure)
        total = total - law.log_prob(as_tensor(counts[n]), intensity, exposure.dose)
    return total
