"""The noise law of images: a camera's, or what the images themselves tell of it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate.crops import pick_background
from tem_taichi.estimate.noise_fit import estimate_noise
from tem_taichi.noise import curves
from tem_taichi.noise.detector import (
    IDEAL,
    Detector,
    expected_counts,
    noise_power_spectrum,
    quantum_efficiency,
)

_HIGH = 0.35
"""[cycles/pixel] from which on an image is taken for noise alone."""
_POISSON = (0.9, 2.0)
"""Power at high frequencies over the mean that whole counts of Poisson's law may have: what is
beyond 1 is the picture's, and much more is a camera's with several counts an electron."""
_DOUBTFUL = 2.0
"""Times by which noise at high frequencies may differ from a detector's without a warning."""
_WHOLE = 1e-3
"""Of an event, within which a number of them is whole."""
_LEAST = 0.01
"""Mean over standard deviation that counts have at least: that of 1e-4 electrons a pixel."""
_GUESSED = ("Colour and scale of the noise are guesses from a single image, and so is the scale in "
            "electrons; give a detector.")
_REGION, _REGIONS = 128, 6
"""Pixels a side at most, and number, of flat regions that show the noise."""
_ASKED = 4
"""Exposures at most that are looked at for their power at high frequencies."""
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


def law_of(counts: Tensor, detector: Detector | None) -> Law:
    """The noise law of registered exposures.

    Args:
        counts: (n, ny, nx), at least 32 a side.
        detector: that recorded them. None = Poisson's law if the counts are whole and the power at
            high frequencies is about their mean; otherwise a spectrum from what differs between
            exposures or, of a single one, from its flattest regions; where there are none white
            noise of the power at high frequencies.

    Raises:
        ValueError: if the shape is another, the mean is not positive or there is no noise.
    """
    if counts.ndim != 3 or min(counts.shape[-2:]) < 32:
        raise ValueError(f"counts of shape {tuple(counts.shape)}: must be (n, ny, nx), at least "
                         "32 x 32 pixels")
    if not float(counts.mean()) > _LEAST * float(counts.std()):
        raise ValueError(f"images: their mean is {float(counts.mean()):.4g}: must be positive "
                         "counts; take the camera's offset off, not the mean")
    if not (counts.mean((1, 2)) > 0).all():
        number = int((counts.mean((1, 2)) <= 0).int().argmax())
        raise ValueError(f"images: the mean of image {number + 1} is "
                         f"{float(counts[number].mean()):.4g}: must be positive counts")
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
    return _of_flat_regions(counts[0]) or Law(
        _of_power(torch.tensor([0.0, 0.5]), torch.full((2,), high)), False, (
            "The noise is white and its power that of the highest frequencies: no detector was "
            "given, and there are no flat regions. An electron is what makes this noise Poisson's, "
            f"{high:.4g} counts.",), (_GUESSED,))


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
    """The law of a camera that is known; of events only if there are whole numbers of them.

    Args:
        counts: that it recorded.
        detector: the camera.
    """
    w = curves.radial_frequency(counts.shape[-2], counts.shape[-1])
    expected = noise_power_spectrum(w, detector, dose=1, pixel_size=1) / as_tensor(detector.gain)
    ratio = _white_power(counts, expected.clamp(min=1e-30)) / float(counts.mean())
    warnings = () if 1 / _DOUBTFUL < ratio < _DOUBTFUL else (
        f"At high frequencies these images have {ratio:.3g} times the noise of the detector: its "
        "gain or its noise is not theirs.",)
    white = detector.kind == "counting" and (
        detector.dqe is None or curves.is_scalar(detector.dqe))
    if not white:
        return Law(detector, False, ("The noise is Gaussian, with the spectrum of the detector.",),
                   warnings)
    if _are_whole(counts, float(event_of(detector))):
        return Law(detector, True, ("Counts are whole events of Poisson's law.",), warnings)
    w = torch.linspace(0, 0.75, 76)
    table = (w.numpy(), quantum_efficiency(w, detector).clamp(min=1e-6).cpu().numpy())
    same = Detector("counting", detector.gain, detector.mtf, table)
    said = ("The noise is Gaussian, with the power of the detector: counts are no whole multiples "
            f"of {float(event_of(detector)):.4g}, an event.")
    return Law(same, False, (said,), warnings)


def event_of(detector: Detector) -> Tensor:
    """Counts of one detected electron of a white counting detector."""
    return as_tensor(detector.gain) / as_tensor(1.0 if detector.dqe is None else detector.dqe)


def _are_whole(counts: Tensor, step: float) -> bool:
    """Whether all are multiples of a step, not negative; image by image, for the memory."""
    def whole(image: Tensor) -> bool:
        events = image.double() / step
        return bool((events > -_WHOLE).all() and ((events - events.round()).abs() < _WHOLE).all())

    return all(whole(image) for image in counts)


def _white_power(counts: Tensor, spectrum: Tensor | None = None) -> float:
    """Power at high frequencies of one exposure, without what a picture and its edges have.

    Args:
        counts: (n, ny, nx).
        spectrum: that the noise is relative to, (ny, nx // 2 + 1); None = 1.
    """
    counts = counts[::-(-len(counts) // _ASKED)]
    ny, nx = counts.shape[-2:]
    window = [torch.hann_window(n, dtype=counts.dtype, device=counts.device) for n in (ny, nx)]
    both = window[0][:, None] * window[1]
    deviation = (counts - counts.mean((-2, -1), keepdim=True)) * both
    power = torch.fft.rfft2(deviation).abs().square() / both.square().sum()
    if spectrum is not None:
        power /= spectrum
    high = curves.radial_frequency(ny, nx) > _HIGH
    # The median of an exponential law is log 2 of its mean: spots of a crystal count for little.
    return float(power[:, high].median(-1).values.mean() / np.log(2))


def _of_differences(counts: Tensor) -> Law:
    """Gaussian noise with the spectrum of what differs between exposures."""
    n, ny, nx = counts.shape
    means = counts.mean((-2, -1))
    mean = float(means.mean())
    # Exposures of another dose would differ by more than noise.
    average = torch.zeros_like(counts[0])
    for image, own in zip(counts, means, strict=True):
        average += image * (mean / own / n)
    power = torch.zeros(ny, nx // 2 + 1, dtype=counts.dtype, device=counts.device)
    for image, own in zip(counts, means, strict=True):
        power += torch.fft.rfft2(image * (mean / own) - average).abs().square()
    power /= (n - 1) * ny * nx
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
    return Law(_of_power(middle[there.cpu()], table / mean), False, (
        f"The noise is Gaussian, with the spectrum of what differs between {n} exposures: no "
        "detector was given. An electron is what makes this noise Poisson's where it is least.",))


def _of_flat_regions(image: Tensor) -> Law | None:
    """Gaussian noise with the spectrum of the flattest parts of an image; None if it has none."""
    size = min(min(image.shape) // 4 // 8 * 8, _REGION)
    if size < 32:
        return None
    try:
        crops = pick_background(image, size=size, count=_REGIONS).crops
        band = estimate_noise(list(crops)).nps
    except ValueError:
        return None
    power = torch.as_tensor(band.values) / float(image.mean())
    return Law(_of_power(torch.as_tensor(band.w), power), False, (
        f"The noise is Gaussian, with the spectrum of {len(crops)} flat regions of the image, ice "
        "and all: no detector was given. An electron is what makes this noise Poisson's where it "
        "is least.",), (_GUESSED,))


def _of_power(w: Tensor, power: Tensor) -> Detector:
    """Detector without an MTF whose noise power, over the mean counts, is this.

    Its efficiency is 1 where the power is least: a gain that gives no camera more than it can have.
    """
    gain = float(power.min())
    return Detector("counting", gain, None, (w.double().numpy(), (gain / power).double().numpy()))


def draw(electrons: Tensor, law: Law, generator: np.random.Generator) -> Tensor:
    """What a picture would be recorded as, once more.

    Args:
        electrons: expected, blurred as the camera does, (ny, nx).
        law: of the noise; where it is no Poisson law, its power follows the mean of the image.
        generator: of the noise.
    """
    expected = electrons.clamp(min=0)
    if law.counts_events:
        event = float(event_of(law.detector) / as_tensor(law.detector.gain))
        drawn = generator.poisson((expected / event).double().cpu().numpy())
        return as_tensor(drawn) * event
    white = as_tensor(generator.standard_normal(tuple(electrons.shape)))
    power = expected.mean() * transfer(law, (electrons.shape[0], electrons.shape[1]))[1]
    return expected + torch.fft.irfft2(torch.fft.rfft2(white) * power.sqrt(), s=electrons.shape)
