"""From relative intensity to the counts that a detector records.

With w the frequency in cycles/pixel (Nyquist 0.5) and electrons = intensity dose pixel_size^2,
the expectation is always  gain F^-1[MTF(w) F electrons]  and a flat field's noise power spectrum
NPS(w) = gain^2 dose pixel_size^2 MTF(w)^2 / DQE(w).  What is known of the DQE decides its colour:

- a table of DQE(w), for either kind: the MTF is the product of where electrons are registered,
  sqrt(DQE(w) / DQE(0)), and of how each one is drawn, the rest, which alone blurs the noise
  (Vulovic et al. 2013).
- one number, DQE(0), of an integrating detector: each electron deposits a random charge where it
  arrives, and the MTF blurs signal and noise alike: DQE(w) = DQE(0).
- one number of a counting detector: events are counted after the blur, one pixel each. The noise
  is white, and DQE(w) = DQE(0) MTF(w)^2.

NPS is the mean of |rfft2(counts - expectation)|^2 / pixels. The MTF multiplies the discrete
transform and so wraps around the edges: pad the intensity where that matters.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tem_taichi.arguments import to_field
from tem_taichi.checks import whole
from tem_taichi.device import as_tensor, many_threads
from tem_taichi.noise import curves, draws
from tem_taichi.noise.curves import (
    Curve,
    Scalar,
    check_positive,
    evaluate,
    is_scalar,
    numbers,
    requires_grad,
)
from tem_taichi.streams import ROOM, Key

_HIGHEST = 100.0
"""[cycles/pixel]; Nyquist is 0.5."""

_KINDS = ("integrating", "counting")


@dataclass(frozen=True, eq=False)
class Detector:
    """A camera; every number may be a tensor, and the expectation is differentiable in it.

    The default is ideal: it counts every electron once, where it arrives.

    Attributes:
        kind: "integrating" or "counting", see the module's text.
        gain: counts per incident electron, > 0. A counting detector whose gain equals its DQE(0)
            records the detected electrons themselves, whole numbers.
        mtf: modulation transfer function over frequency [cycles/pixel]: five numbers
            (a, b, c, alpha, beta) of `mtf_parametric`, a table (frequencies, values), or None
            for 1. A table's value at 0 multiplies the mean; it should be 1.
        dqe: detective quantum efficiency in (0, 1]: DQE(0), or a table (frequencies
            [cycles/pixel], DQE(w)). None is DQE(0) = 1.
        integer: whether `detect` rounds noisy counts to whole numbers, which adds up to
            1/12 count^2 of variance; the expectation is never rounded.
    """

    kind: str = "counting"
    gain: Scalar = 1.0
    mtf: Curve = None
    dqe: Curve = None
    integer: bool = False

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind={self.kind!r}: must be one of {', '.join(_KINDS)}")
        if not is_scalar(self.gain):
            raise ValueError(f"gain={self.gain}: must be one number [counts per electron]")
        check_positive("gain", self.gain, "counts per electron")
        self._check_mtf()
        self._check_dqe()

    def _check_mtf(self) -> None:
        if self.mtf is None:
            return
        rows = curves.count_rows(self.mtf)
        if rows == 5:
            curves.check_parameters("mtf", self.mtf)
        elif rows == 2:
            curves.check_table("mtf", self.mtf)
        else:
            raise ValueError(f"mtf={self.mtf}: must be five numbers a, b, c, alpha, beta, or a "
                             "table (frequencies, values), or None")

    def _check_dqe(self) -> None:
        if self.dqe is None:
            return
        if is_scalar(self.dqe):
            value = float(numbers(self.dqe))
            if not 0 < value <= 1:
                raise ValueError(f"dqe={value:g}: must be in (0, 1]")
        elif curves.count_rows(self.dqe) != 2:
            raise ValueError(f"dqe={self.dqe}: must be one number, DQE(0), or a table "
                             "(frequencies, values), or None")
        else:
            curves.check_table("dqe", self.dqe, positive=True, highest=1)


IDEAL = Detector()
"""Counts every electron once, where it arrives."""


def expected_counts(intensity: Tensor, *, pixel_size: Scalar, dose: Scalar,
                    detector: Detector = IDEAL) -> Tensor:
    """Mean counts, gain F^-1[MTF(w) F(intensity dose pixel_size^2)].

    Args:
        intensity: electrons that reach each pixel relative to the incident beam, >= 0, mean about
            1, shape (ny, nx) or (n, ny, nx). Pad it: the MTF wraps around the edges.
        pixel_size: edge of a pixel at the specimen [A], > 0.
        dose: exposure of an image [e-/A^2], > 0; one number, or (n,) for n images.
        detector: the camera.

    Returns:
        Counts, the shape of `intensity`; differentiable in intensity, pixel_size, dose and every
        tensor in the detector but the DQE, which does not change the mean.

    Raises:
        ValueError: if the intensity is negative or not finite, or dose or pixel_size is not
            positive.
    """
    electrons = _electrons(intensity, pixel_size, dose)
    return as_tensor(detector.gain) * _blur(electrons, detector)


def detect(intensity: Tensor, *, pixel_size: Scalar, dose: Scalar, detector: Detector = IDEAL,
           noise: bool = True, seed: int = 0, stream: int = 0, halves: bool = False) -> Tensor:
    """Counts of one exposure, noise and all.

    Image i of a stack draws from its own random numbers, those of (seed, stream + i), so that it
    does not depend on how many others are made. The same arguments give the same bytes on the
    same machine and version of NumPy; a GPU draws numbers of its own, of the same distribution.

    Args:
        intensity: as in `expected_counts`.
        pixel_size: edge of a pixel at the specimen [A], > 0.
        dose: exposure of an image [e-/A^2], > 0; one number, or (n,) for n images.
        detector: the camera.
        noise: False gives exactly `expected_counts`, with its gradients.
        seed: of the random numbers, 0 to 2^64 - 1.
        stream: number of the first image under this seed, 0 to 2^32 - 1.
        halves: give each electron to one of two images by the toss of a coin: their noise is
            independent, and the image is their sum.

    Returns:
        Counts, the shape of `intensity`, or `(2, *shape)` for halves. Blurred noise can be negative
        where electrons are few.

    Raises:
        ValueError: as `expected_counts`; or if seed or stream is out of range; or if a gradient
            is asked for where there is noise, which has none.
    """
    if not noise:
        counts = expected_counts(intensity, pixel_size=pixel_size, dose=dose, detector=detector)
        return torch.stack([counts / 2, counts / 2]) if halves else counts
    if torch.is_grad_enabled():
        for name, value in (("intensity", intensity), ("pixel_size", pixel_size), ("dose", dose),
                            *vars(detector).items()):
            if requires_grad(value):
                raise ValueError(f"{name}: has no gradient through noise; take noise=False, or "
                                 "tem_taichi.noise.likelihood, or detach the tensor")
    whole("stream", stream, 0, ROOM - 1)
    with torch.no_grad():
        electrons = _electrons(intensity, pixel_size, dose)
        # One image at a time: a batched transform may round differently from a single one.
        images = [_sample(image, detector, Key(seed, "noise", stream + i), 2 if halves else 1)
                  for i, image in enumerate(electrons.reshape(-1, *electrons.shape[-2:]))]
        counts = torch.stack(images, dim=1).reshape(-1, *electrons.shape)
        counts = counts.round() if detector.integer else counts
        return counts if halves else counts[0]


def noise_power_spectrum(w: Tensor, detector: Detector, *, dose: Scalar,
                         pixel_size: Scalar) -> Tensor:
    """Expected noise power spectrum of a flat field of intensity 1, without rounding to integers.

    Args:
        w: frequency [cycles/pixel], any shape.
        detector: the camera.
        dose: exposure [e-/A^2], > 0.
        pixel_size: edge of a pixel at the specimen [A], > 0.

    Returns:
        Mean of |rfft2(counts - mean)|^2 / number of pixels [counts^2], the shape of w;
        differentiable in everything. Its mean over all frequencies is a pixel's variance.

    Raises:
        ValueError: if dose or pixel_size is not positive.
    """
    check_positive("dose", dose, "e-/A^2")
    check_positive("pixel_size", pixel_size, "A")
    w = to_field("w", w)
    if w.numel() and float(w.detach().abs().max()) > _HIGHEST:
        raise ValueError(f"w up to {float(w.detach().abs().max()):g}: must be at most {_HIGHEST:g} "
                         "[cycles/pixel]")
    electrons = as_tensor(dose) * as_tensor(pixel_size) ** 2
    power = as_tensor(detector.gain) ** 2 * electrons / evaluate(detector.dqe, w)
    return power if _is_white(detector) else power * evaluate(detector.mtf, w) ** 2


def quantum_efficiency(w: Tensor, detector: Detector) -> Tensor:
    """DQE(w) of a detector, whatever is known of it.

    Args:
        w: frequency [cycles/pixel], any shape.
        detector: the camera.

    Returns:
        (Signal over noise, squared) of the counts over that of the electrons, the shape of w;
        differentiable in the MTF and the DQE.
    """
    w = as_tensor(w)
    efficiency = evaluate(detector.dqe, w)
    return efficiency * evaluate(detector.mtf, w) ** 2 if _is_white(detector) else efficiency


def _electrons(intensity: Tensor, pixel_size: Scalar, dose: Scalar) -> Tensor:
    """Checked number of electrons that reach each pixel on average."""
    check_positive("dose", dose, "e-/A^2")
    check_positive("pixel_size", pixel_size, "A")
    intensity = to_field("intensity", intensity)
    dose, pixel_size = as_tensor(dose), as_tensor(pixel_size)
    if intensity.ndim not in (2, 3) or intensity.numel() == 0:
        raise ValueError(f"intensity has shape {tuple(intensity.shape)}: must be (ny, nx) or "
                         "(n, ny, nx)")
    if dose.shape not in ((), intensity.shape[:-2]) or pixel_size.ndim:
        raise ValueError(f"dose has shape {tuple(dose.shape)}, pixel_size "
                         f"{tuple(pixel_size.shape)}: must be one number, or one dose an image")
    lowest, highest = (float(bound) for bound in torch.aminmax(intensity.detach()))
    if not (lowest >= 0 and highest < np.inf):
        raise ValueError(f"intensity runs from {lowest:g} to {highest:g}: must be finite and not "
                         "negative")
    return intensity * dose[..., None, None] * pixel_size**2


def _filter(image: Tensor, transfer: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(image) * transfer, s=image.shape[-2:])


def _blur(electrons: Tensor, detector: Detector) -> Tensor:
    if detector.mtf is None:
        return electrons
    ny, nx = electrons.shape[-2:]
    return _filter(electrons, curves.over_image(detector.mtf, ny, nx))


def _is_white(detector: Detector) -> bool:
    return detector.kind == "counting" and (detector.dqe is None or is_scalar(detector.dqe))


def _efficiency(detector: Detector) -> Scalar:
    """DQE(0)."""
    if detector.dqe is None:
        return 1.0
    # A number as it was given: in single precision counts would not be whole multiples of it.
    if isinstance(detector.dqe, (int, float)):
        return detector.dqe
    return evaluate(detector.dqe, as_tensor([0.0]))[0]


def _factors(detector: Detector, ny: int, nx: int) -> tuple[Tensor | None, Tensor | None]:
    """MTF as where electrons are registered times how each is drawn; None is 1 everywhere.

    Over the rfft2 of an image (ny, nx).
    """
    mtf = None if detector.mtf is None else curves.over_image(detector.mtf, ny, nx)
    if detector.dqe is None or is_scalar(detector.dqe):
        return (None, mtf) if detector.kind == "integrating" else (mtf, None)
    place = (curves.over_image(detector.dqe, ny, nx) / _efficiency(detector)).sqrt()
    return place, (1 if mtf is None else mtf) / place


def _sample(electrons: Tensor, detector: Detector, key: Key, parts: int) -> Tensor:
    """Counts (parts, ny, nx) of one image from the mean electrons of its pixels."""
    place, draw = _factors(detector, electrons.shape[0], electrons.shape[1])
    efficiency = float(numbers(_efficiency(detector)))
    counting = detector.kind == "counting"
    blurred = electrons if place is None else _filter(electrons, place)
    # The blurred mean rings a little below 0 beside sharp edges.
    mean = blurred.clamp(min=0)
    registered = mean * efficiency if counting else mean
    spread = 0.0 if counting else 1 / efficiency - 1
    charges = []
    for charge in (_drawn_on_device if many_threads() else _drawn)(registered, spread, key, parts):
        if counting:
            charge = charge / efficiency
        # What ringing took from the mean comes back where counts need not be whole anyway.
        charges.append(charge if draw is None else
                       _filter(charge + (blurred - mean) / parts, draw))
    return as_tensor(detector.gain) * torch.stack(charges)


def _drawn(mean: Tensor, spread: float, key: Key, parts: int) -> list[Tensor]:
    """Electrons that arrive, or the charge that they leave, in one part or two, by NumPy."""
    generator = key.generator()
    drawn = generator.poisson(mean.double().cpu().numpy())
    first = generator.binomial(drawn, 0.5) if parts == 2 else drawn
    return [as_tensor(_deposit(part, spread, generator))
            for part in (first, drawn - first)[:parts]]


def _drawn_on_device(mean: Tensor, spread: float, key: Key, parts: int) -> list[Tensor]:
    """The same by kernels: what a coin shares out are independent numbers of half the mean."""
    return [draws.deposit(draws.poisson(mean / parts, key, 2 * part), spread, key, 2 * part + 1)
            for part in range(parts)]


def _deposit(arrived: np.ndarray, spread: float, generator: np.random.Generator) -> np.ndarray:
    """Charge that whole numbers of electrons leave, in units of the mean charge of one.

    Each electron leaves an inverse-Gaussian charge of mean 1 and variance 1/DQE(0) - 1, the spread
    (the choice of TEM-simulator, Rullgard et al. 2011). The sum over N electrons is inverse
    Gaussian again, of mean N and shape N^2 / spread.
    """
    if spread == 0:
        return arrived
    count = np.maximum(arrived, 1)  # no law of mean 0: empty pixels are set back below
    return np.where(arrived > 0, generator.wald(count, count**2 / spread), 0)
