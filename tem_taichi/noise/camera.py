"""A camera as a noise law: a detector of so many pixels, and what is kept of them."""

from dataclasses import dataclass

from torch import Tensor

from tem_taichi.noise.detector import IDEAL, Detector, detect, expected_counts
from tem_taichi.noise.likelihood import log_density
from tem_taichi.physics import Value
from tem_taichi.streams import Key


@dataclass(frozen=True, eq=False)
class Camera:
    """A detector behind an instrument; a `Likelihood` of `experiment`."""

    pixel_size: Value
    """At the specimen [A]."""
    detector: Detector = IDEAL
    shape: tuple[int, int] | None = None
    """(ny, nx) of the pixels that are kept, those in the middle; None = all."""
    halves: bool = False
    """Whether samples are two images of half the electrons each, (2, ny, nx)."""

    def expected(self, intensity: Tensor, dose: Value) -> Tensor:
        """Mean counts, see `detector.expected_counts`."""
        return kept(expected_counts(intensity, pixel_size=self.pixel_size, dose=dose,
                                    detector=self.detector), self.shape)

    def sample(self, intensity: Tensor, dose: Value, key: Key) -> Tensor:
        """Recorded counts, see `detector.detect`."""
        return kept(detect(
            intensity, pixel_size=self.pixel_size, dose=dose, detector=self.detector,
            seed=key.seed, stream=key.number, halves=self.halves), self.shape)

    def log_prob(self, counts: Tensor, intensity: Tensor, dose: Value) -> Tensor:
        """Log of the probability density of counts, see `likelihood.log_prob`."""
        electrons = expected_counts(intensity, pixel_size=self.pixel_size, dose=dose)
        return log_density(counts, self.expected(intensity, dose), kept(electrons, self.shape),
                           self.detector)


def kept(field: Tensor, shape: tuple[int, int] | None) -> Tensor:
    """The middle of a field.

    Args:
        field: (..., ny, nx).
        shape: of the middle; None = all.

    Raises:
        ValueError: if the field is smaller.
    """
    if shape is None:
        return field
    if any(n > full for n, full in zip(shape, field.shape[-2:], strict=True)):
        raise ValueError(f"shape={shape}: must be at most the field's, {tuple(field.shape[-2:])}")
    for axis, n in zip((-2, -1), shape, strict=True):
        field = field.narrow(axis, field.shape[axis] // 2 - n // 2, n)
    return field
