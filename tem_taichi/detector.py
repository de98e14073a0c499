"""From relative intensity to the counts that a detector records.

With w the frequency in cycles/pixel (Nyquist 0.5) and electrons = intensity dose pixel_size^2,
the expectation is always  gain F^-1[MTF(w) F electrons].  Its noise depends on the kind:

- integrating: each electron deposits a random charge, then the MTF blurs signal and noise alike.
  NPS(w) = gain^2 dose pixel_size^2 MTF(w)^2 / DQE(0).
- counting: events are counted after the blur, so that the noise is (nearly) white.
  NPS = gain^2 dose pixel_size^2 / DQE(0), hence DQE(w) = DQE(0) MTF(w)^2, for one number; with a
  table of DQE(w), NPS(w) = gain^2 dose pixel_size^2 MTF(w)^2 / DQE(w).

NPS is the mean of |rfft2(counts - expectation)|^2 / pixels. The MTF multiplies the discrete
transform and so wraps around the edges: pad the intensity where that matters.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tem_taichi import curves
from tem_taichi.curves import Curve, Scalar, check_positive, evaluate, is_scalar, numbers
from tem_taichi.device import as_tensor

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
        dqe: detective quantum efficiency in (0, 1]: DQE(0), or for a counting detector a table
            (frequencies [cycles/pixel], DQE(w)). None is DQE(0) = 1.
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
        elif self.kind == "integrating":
            raise ValueError("dqe is a table: an integrating detector takes one number, DQE(0)")
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
    same machine and version of NumPy.

    Args:
        intensity: as in `expected_counts`.
        pixel_size: edge of a pixel at the specimen [A], > 0.
        dose: exposure of an image [e-/A^2], > 0; one number, or (n,) for n images.
        detector: the camera.
        noise: False gives exactly `expected_counts`, with its gradients.
        seed: of the random numbers, 0 to 2^64 - 1.
        stream: number of the first image under this seed, same range.
        halves: give each electron to one of two images by the toss of a coin: their noise is
            independent, and the image is their sum.

    Returns:
        Counts, the shape of `intensity`, or (2, *shape) for halves, without gradient where there
        is noise. Blurred noise can be negative where electrons are few.

    Raises:
        ValueError: as `expected_counts`; or if seed or stream is out of range.
    """
    if not noise:
        counts = expected_counts(intensity, pixel_size=pixel_size, dose=dose, detector=detector)
        return torch.stack([counts / 2, counts / 2]) if halves else counts
    with torch.no_grad():
        electrons = _electrons(intensity, pixel_size, dose)
        # One image at a time: a batched transform may round differently from a single one.
        images = [_sample(image, detector, _generator(seed, stream + i), 2 if halves else 1)
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
    w = as_tensor(w)
    electrons = as_tensor(dose) * as_tensor(pixel_size) ** 2
    power = as_tensor(detector.gain) ** 2 * electrons / evaluate(detector.dqe, w)
    return power if _is_white(detector) else power * evaluate(detector.mtf, w) ** 2


def _electrons(intensity: Tensor, pixel_size: Scalar, dose: Scalar) -> Tensor:
    """Checked number of electrons that reach each pixel on average."""
    check_positive("dose", dose, "e-/A^2")
    check_positive("pixel_size", pixel_size, "A")
    intensity, dose, pixel_size = as_tensor(intensity), as_tensor(dose), as_tensor(pixel_size)
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
    return _filter(electrons, evaluate(detector.mtf, curves.radial_frequency(ny, nx)))


def _is_white(detector: Detector) -> bool:
    return detector.kind == "counting" and (detector.dqe is None or is_scalar(detector.dqe))


def _generator(seed: int, stream: int) -> np.random.Generator:
    if not (0 <= seed < 2**64 and 0 <= stream < 2**64):
        raise ValueError(f"seed={seed}, stream={stream}: must be from 0 to 2^64 - 1")
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


def _sample(electrons: Tensor, detector: Detector, generator: np.random.Generator,
            parts: int) -> Tensor:
    """Counts (parts, ny, nx) of one image from the mean electrons of its pixels."""
    mean = electrons
    if _is_white(detector):
        efficiency = 1.0 if detector.dqe is None else float(numbers(detector.dqe))
        # The blurred mean rings a little below 0 beside sharp edges.
        mean = _blur(electrons, detector).clamp(min=0) * efficiency
    drawn = generator.poisson(mean.double().cpu().numpy())
    first = generator.binomial(drawn, 0.5) if parts == 2 else drawn
    split = (first, drawn - first)[:parts]
    return as_tensor(detector.gain) * torch.stack([
        _record(part, mean / parts, detector, generator) for part in split])


def _record(drawn: np.ndarray, mean: Tensor, detector: Detector,
            generator: np.random.Generator) -> Tensor:
    """What whole numbers of electrons leave in an image (ny, nx), in units of the gain."""
    if _is_white(detector):
        return as_tensor(drawn) / (1.0 if detector.dqe is None else float(numbers(detector.dqe)))
    if detector.kind == "integrating":
        return _blur(as_tensor(_deposit(drawn, detector.dqe, generator)), detector)
    w = curves.radial_frequency(*mean.shape)
    coloured = evaluate(detector.mtf, w) / evaluate(detector.dqe, w).sqrt()
    return _blur(mean, detector) + _filter(as_tensor(drawn) - mean, coloured)


def _deposit(arrived: np.ndarray, dqe: Curve, generator: np.random.Generator) -> np.ndarray:
    """Charge that whole numbers of electrons leave, in units of the mean charge of one.

    Each electron leaves an inverse-Gaussian charge of mean 1 and variance 1/DQE - 1 (the choice
    of TEM-simulator, Rullgard et al. 2011). The sum over N electrons is inverse Gaussian again,
    of mean N and shape N^2 / (1/DQE - 1).
    """
    spread = 0.0 if dqe is None else 1 / float(numbers(dqe)) - 1
    if spread == 0:
        return arrived
    count = np.maximum(arrived, 1)  # no law of mean 0: empty pixels are set back below
    return np.where(arrived > 0, generator.wald(count, count**2 / spread), 0)
