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
from tem_taichi.noise import curves
from tem_taichi.noise.detector import (
    IDEAL,
    Detector,
    expected_counts,
    noise_power_spectrum,
    quantum_efficiency,
)
from tem_taichi.noise.likelihood import log_density
from tem_taichi.streams import Key

_HIGH = 0.35
"""[cycles/pixel] from which on an image is taken for noise alone."""
_POISSON = (0.9, 2.0)
"""Power at high frequencies over the mean that whole counts of Poisson's law may have: what is
beyond 1 is the picture's, and much more is a camera's with several counts an electron."""
_WHOLE = 1e-3
"""Of an event, within which a number of them is whole."""
_LEAST = 0.01
"""Mean over standard deviation that counts have at least: that of 1e-4 electrons a pixel."""
_RINGS = 48
"""Of an estimated noise spectrum, from 0 to the corner."""


@dataclass(frozen=True, eq=False)
class Law:
    """Of the noise, and where it was taken from."""

    detector: Detector
    counts_events: bool
    """Whether every pixel holds a whole, Poisson number of events."""
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Recording:
    """A picture as it was recorded: the sum of its exposures, and independent parts of it."""

    electrons: Tensor
    """Counts over the gain, of all exposures, (ny, nx)."""
    parts: Tensor
    """The same of each part, (n, ny, nx); they sum to `electrons`."""
    law: Law

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
        ValueError: as `law_of`.
    """
    law = law_of(counts, detector)
    gain, electrons = as_tensor(law.detector.gain), counts.sum(0)
    generator = Key(seed, "trials").generator()
    if law.counts_events:
        found = _dealt(electrons, _event(law.detector), parts, generator)
    elif len(counts) > 1:
        groups = min(parts, len(counts))
        found = torch.stack([counts[n::groups].sum(0) for n in range(groups)])
    else:
        found = _thinned(electrons, law.detector, parts, generator)
    return Recording(electrons / gain, found / gain, law)


def law_of(counts: Tensor, detector: Detector | None) -> Law:
    """The noise law of registered exposures.

    Args:
        counts: (n, ny, nx), at least 32 a side.
        detector: that recorded them. None = Poisson's law if the counts are whole and the power at
            high frequencies is about their mean; otherwise a spectrum from what differs between
            exposures or, of a single one, white noise of the power at high frequencies.

    Raises:
        ValueError: if the shape is another, the mean is not positive or there is no noise.
    """
    if counts.ndim != 3 or min(counts.shape[-2:]) < 32:
        raise ValueError(f"counts of shape {tuple(counts.shape)}: must be (n, ny, nx), at least "
                         "32 x 32 pixels")
    if not float(counts.mean()) > _LEAST * float(counts.std()):
        raise ValueError(f"images: their mean is {float(counts.mean()):.4g}: must be positive "
                         "counts; take the camera's offset off, not the mean")
    if detector is not None:
        return _known(counts, detector)
    high = _white_power(counts) / float(counts.mean())
    if _are_whole(counts, 1.0) and _POISSON[0] < high < _POISSON[1]:
        return Law(IDEAL, True, ("Counts are electrons of Poisson's law, each in the pixel where "
                                 "it arrived: no detector was given, and they are whole with a "
                                 f"power at high frequencies of {high:.3g} of their mean.",))
    if len(counts) > 1:
        return _of_differences(counts)
    if not high > 0:
        raise ValueError("images: have no noise at high frequencies: nothing to take off")
    return Law(_of_power(torch.tensor([0.0, 0.5]), torch.full((2,), high)), False, (
        "The noise is white and its power that of the highest frequencies: no detector was given. "
        f"An electron is what makes this noise Poisson's, {high:.4g} counts.",),
        ("Colour and scale of the noise are guesses from a single image; give a detector, of "
         "recipe=detector pick=true for one.",))


def transfer(law: Law, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Of each coefficient of an image's rfft2 the MTF, and the noise power of one electron.

    Args:
        law: of the noise.
        shape: (ny, nx) of the image.

    Returns:
        Two tensors (ny, nx // 2 + 1), for images in electrons.
    """
    w = curves.radial_frequency(*shape)
    power = noise_power_spectrum(w, law.detector, dose=1, pixel_size=1)
    return (curves.over_image(law.detector.mtf, *shape),
            power / as_tensor(law.detector.gain) ** 2)


def blurred(electrons: Tensor, law: Law) -> Tensor:
    """What the camera makes of electrons on average, still in electrons."""
    clamped = electrons.clamp(min=0)
    return expected_counts(clamped, pixel_size=1, dose=1, detector=law.detector) / as_tensor(
        law.detector.gain)


def _known(counts: Tensor, detector: Detector) -> Law:
    """The law of a camera that is known; of events only if there are whole numbers of them."""
    white = detector.kind == "counting" and (
        detector.dqe is None or curves.is_scalar(detector.dqe))
    if not white:
        return Law(detector, False, ("The noise is Gaussian, with the spectrum of the detector.",))
    if _are_whole(counts, float(_event(detector))):
        return Law(detector, True, ("Counts are whole events of Poisson's law.",))
    w = torch.linspace(0, 0.75, 76)
    table = (w.numpy(), quantum_efficiency(w, detector).clamp(min=1e-6).cpu().numpy())
    same = Detector("counting", detector.gain, detector.mtf, table)
    return Law(same, False, (f"The noise is Gaussian, with the power of the detector: counts are "
                             f"not whole multiples of {float(_event(detector)):.4g}, an event.",))


def _event(detector: Detector) -> Tensor:
    """Counts of one detected electron of a white counting detector."""
    return as_tensor(detector.gain) / as_tensor(1.0 if detector.dqe is None else detector.dqe)


def _are_whole(counts: Tensor, step: float) -> bool:
    events = counts.double() / step
    off = (events - events.round()).abs()
    return bool((events > -_WHOLE).all()) and bool((off < _WHOLE).all())


def _white_power(counts: Tensor) -> float:
    """Power at high frequencies of one exposure, without what a picture and its edges have."""
    ny, nx = counts.shape[-2:]
    window = [torch.hann_window(n, dtype=counts.dtype, device=counts.device) for n in (ny, nx)]
    both = window[0][:, None] * window[1]
    deviation = (counts - counts.mean((-2, -1), keepdim=True)) * both
    power = torch.fft.rfft2(deviation).abs().square() / both.square().sum()
    high = curves.radial_frequency(ny, nx) > _HIGH
    # The median of an exponential law is log 2 of its mean: spots of a crystal count for little.
    return float(power[:, high].median(-1).values.mean() / np.log(2))


def _of_differences(counts: Tensor) -> Law:
    """Gaussian noise with the spectrum of what differs between exposures."""
    n, ny, nx = counts.shape
    means = counts.mean((-2, -1), keepdim=True)
    scaled = counts / means * means.mean()  # exposures of another dose differ by more than noise
    deviation = scaled - scaled.mean(0)
    power = torch.fft.rfft2(deviation).abs().square().sum(0) / ((n - 1) * ny * nx)
    w = curves.radial_frequency(ny, nx)
    ring = (w / 0.7072 * _RINGS).long().clamp(max=_RINGS - 1)
    middle = (torch.arange(_RINGS) + 0.5) * 0.7072 / _RINGS
    use = torch.ones_like(w, dtype=torch.bool)
    use[0, 0] = False
    number = torch.bincount(ring[use], minlength=_RINGS)
    total = torch.bincount(ring[use], power[use].double(), minlength=_RINGS)
    there = number > 0
    table = (total[there] / number[there]).cpu()
    if not (table > 0).all():
        raise ValueError("images: exposures do not differ at some frequency: must be independent")
    return Law(_of_power(middle[there.cpu()], table / float(means.mean())), False, (
        f"The noise is Gaussian, with the spectrum of what differs between {n} exposures: no "
        "detector was given. An electron is what makes this noise Poisson's where it is least.",))


def _of_power(w: Tensor, power: Tensor) -> Detector:
    """Detector without an MTF whose noise power, over the mean counts, is this.

    Its efficiency is 1 where the power is least: a gain that gives no camera more than it can have.
    """
    gain = float(power.min())
    return Detector("counting", gain, None, (w.double().numpy(), (gain / power).double().numpy()))


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


def draw(electrons: Tensor, law: Law, generator: np.random.Generator) -> Tensor:
    """What a picture would be recorded as, once more.

    Args:
        electrons: expected, blurred as the camera does, (ny, nx).
        law: of the noise; where it is no Poisson law, its power follows the mean of the image.
        generator: of the noise.
    """
    expected = electrons.clamp(min=0)
    if law.counts_events:
        event = float(_event(law.detector) / as_tensor(law.detector.gain))
        drawn = generator.poisson((expected / event).double().cpu().numpy())
        return as_tensor(drawn) * event
    white = as_tensor(generator.standard_normal(tuple(electrons.shape)))
    power = expected.mean() * transfer(law, (electrons.shape[0], electrons.shape[1]))[1]
    return expected + torch.fft.irfft2(torch.fft.rfft2(white) * power.sqrt(), s=electrons.shape)
