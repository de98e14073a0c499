"""White Gaussian noise of one strength, as many reconstruction programs assume it."""

import math
from dataclasses import dataclass

from torch import Tensor

from tem_taichi.arguments import check_positive_number, to_field
from tem_taichi.device import as_tensor
from tem_taichi.noise.detector import expected_counts
from tem_taichi.physics import Value
from tem_taichi.streams import Key


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Electrons of each pixel plus noise that knows nothing of them; a `Likelihood`."""

    pixel_size: Value
    """At the specimen [A]."""
    sigma: Value
    """Standard deviation of the noise [electrons per pixel]."""

    def __post_init__(self) -> None:
        check_positive_number("sigma", self.sigma, "electrons per pixel")

    def expected(self, intensity: Tensor, dose: Value) -> Tensor:
        """Electrons: intensity dose pixel_size^2."""
        return expected_counts(intensity, pixel_size=self.pixel_size, dose=dose)

    def sample(self, intensity: Tensor, dose: Value, key: Key) -> Tensor:
        """Electrons and noise."""
        mean = self.expected(intensity, dose)
        noise = as_tensor(key.generator().standard_normal(tuple(mean.shape)))
        return mean + as_tensor(self.sigma) * noise

    def log_prob(self, counts: Tensor, intensity: Tensor, dose: Value) -> Tensor:
        """-sum [(counts - mean)^2 / (2 sigma^2) + log(2 pi sigma^2) / 2]."""
        mean, sigma = self.expected(intensity, dose), as_tensor(self.sigma)
        counts = to_field("counts", counts)
        if counts.shape != mean.shape:
            raise ValueError(f"counts has shape {tuple(counts.shape)}: must be the intensity's, "
                             f"{tuple(mean.shape)}")
        return -(((counts - mean) / sigma).square() / 2
                 + (2 * math.pi * sigma**2).log() / 2).sum()
