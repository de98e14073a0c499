"""Exposures of one picture under a camera's noise law, and how they are split to judge.

The sum of registered exposures is all that Poisson's law needs of them, so that a picture is
estimated from it. Independent parts of it, one held out at a time, tell which estimate predicts
what it has not seen.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate.noise_law import Law, event_of, law_of
from tem_taichi.noise import curves
from tem_taichi.noise.detector import IDEAL, Detector, noise_power_spectrum
from tem_taichi.noise.likelihood import log_density
from tem_taichi.streams import Key


@dataclass(frozen=True, eq=False)
class Recording:
    """A picture as it was recorded: the sum of its exposures, and independent parts of it."""

    electrons: Tensor
    """Counts over the gain, of all exposures, (ny, nx)."""
    parts: Tensor
    """The same of each part, (n, ny, nx); they sum to `electrons`."""
    law: Law
    known: Tensor | None = None
    """What is known of the picture from elsewhere, independent of its noise, in any scale, (ny,
    nx); None = nothing."""

    def without(self, part: int) -> Tensor:
        """The electrons of all other parts."""
        return self.electrons - self.parts[part]

    def misfit(self, part: int, predicted: Tensor) -> float:
        """Minus the log-probability of a part, for the picture that the other parts predict.

        Args:
            part: its number.
            predicted: electrons that the other parts together should have had, blurred by the
                camera as they are, (ny, nx).
        """
        share = float(self.parts[part].sum() / self.without(part).sum())
        # No law of Poisson's allows a count where none was expected.
        mean = (predicted * share).clamp(min=1e-3 * float(self.parts[part].mean()))
        gain = as_tensor(self.law.detector.gain)
        return -float(log_density(gain * self.parts[part], gain * mean, mean, self.law.detector))


def record(counts: Tensor, detector: Detector | None = None, *, parts: int = 4, seed: int = 0
           ) -> Recording:
    """Make a recording of registered exposures.

    Counted events are dealt out to the parts by chance, which leaves independent Poisson numbers.
    Of other noise, exposures are dealt out; of a single one parts are made with Gaussian noise of
    the same spectrum that sums to nothing (Neufeld et al. 2023), independent as far as the noise
    is Gaussian and its spectrum right.

    Args:
        counts: (n, ny, nx), of one picture; the exposures may differ in dose.
        detector: that recorded them; None = `law_of` asks the counts.
        parts: at most so many, 2 or more.
        seed: of chance.

    Raises:
        ValueError: as `law_of`; if a part has no electrons.
    """
    law = law_of(counts, detector)
    gain, electrons = as_tensor(law.detector.gain), counts.sum(0)
    generator = Key(seed, "trials").generator(kind=1)
    if law.counts_events:
        found = _dealt(electrons, event_of(law.detector), parts, generator)
    elif len(counts) > 1:
        groups = min(parts, len(counts))
        found = torch.stack([counts[n::groups].sum(0) for n in range(groups)])
    else:
        found = _thinned(electrons, law.detector, parts, generator)
    if not (found.sum((1, 2)) > 0).all():
        raise ValueError(f"images: {float(electrons.sum() / gain):.4g} electrons in all: must be "
                         f"enough for {len(found)} parts")
    return Recording(electrons / gain, found / gain, law)


def record_each(images: Tensor, detector: Detector | None = None, *, parts: int = 4, seed: int = 0
                ) -> list[Recording]:
    """Make a recording of each of several pictures that one camera took.

    Args:
        images: (n, ny, nx), a picture each.
        detector: that recorded them; None = `law_of` asks each. If most are counts of electrons,
            then so are all.
        parts: of each, as of `record`.
        seed: of chance.

    Raises:
        ValueError: as `record`, with the image's number.
    """
    def recorded(number: int, by: Detector | None) -> Recording:
        try:
            return record(images[number:number + 1], by, parts=parts, seed=seed + number)
        except ValueError as error:
            raise ValueError(f"image {number + 1} of {len(images)}: {error}") from error

    found = [recorded(number, detector) for number in range(len(images))]
    counted = sum(one.law.counts_events for one in found)
    if detector is not None or not len(found) / 2 < counted < len(found):
        return found
    return [one if one.law.counts_events else recorded(number, IDEAL)
            for number, one in enumerate(found)]


def _dealt(counts: Tensor, event: Tensor, parts: int, generator: np.random.Generator) -> Tensor:
    """Events dealt out by chance: a multinomial number of each pixel's to each part."""
    rest = (counts.double() / event.double()).round().cpu().numpy().astype(np.int64)
    found = []
    for n in range(parts):
        found.append(generator.binomial(rest, 1 / (parts - n)))
        rest = rest - found[-1]
    return as_tensor(np.stack(found)) * event


def _thinned(counts: Tensor, detector: Detector, parts: int, generator: np.random.Generator
             ) -> Tensor:
    """Equal parts of one image with noise added that sums to nothing."""
    ny, nx = counts.shape
    w = curves.radial_frequency(ny, nx)
    electrons = float(counts.mean()) / float(as_tensor(detector.gain))
    power = electrons / parts * noise_power_spectrum(w, detector, dose=1, pixel_size=1)
    white = as_tensor(generator.standard_normal((parts, ny, nx)))
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * power.sqrt(), s=(ny, nx))
    return counts / parts + noise - noise.mean(0)
