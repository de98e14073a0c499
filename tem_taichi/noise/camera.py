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
        return self._kept(expected_counts(intensity, pixel_size=self.pixel_size, dose=dose,
                                          detector=self.detector))

    def sample(self, intensity: Tensor, dose: Value, key: Key) -> Tensor:
        """Recorded counts, see `detector.detect`."""
        return self._kept(detect(
            intensity, pixel_size=self.pixel_size, dose=dose, detector=self.detector,
            seed=key.seed, stream=key.number, halves=self.halves))

    def log_prob(self, counts: Tensor, intensity: Tensor, dose: Value) -> Tensor:
        """Log of the probability density of counts, see `likelihood.log_prob`."""
        electrons = expected_counts(intensity, pixel_size=self.pixel_size, dose=dose)
        return log_density(counts, self.expected(intensity, dose), self._kept(electrons),
                           self.detector)

    def _kept(self, field: Tensor) -> Tensor:
        """The middle of a field."""
        if self.shape is None:
            return field
        if any(n > full for n, full in zip(self.shape, field.shape[-2:], strict=True)):
            raise ValueError(f"shape={self.shape}: must be at most the field's, "
                             f"{tuple(field.shape[-2:])}")
        for axis, n in zip((-2, -1), self.shape, strict=True):
            field = field.narrow(axis, field.shape[axis] // 2 - n // 2, n)
        return field
