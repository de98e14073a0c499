"""Noise learned from images: a normalising flow of one number, conditioned on the clean pixel.

The residual u of a pixel, in units of about its deviation, is made a standard normal number z by
layers one after another: first z = (u - shift) / scale, then radial ones (Rezende & Mohamed 2015),

    z <- z + beta d / (alpha + |d|),  d = z - centre,  alpha > 0, beta > -alpha,

each rising everywhere, with the slope 1 + alpha beta / (alpha + |d|)^2 and an inverse in closed
form. So log p(u) = log N(z) + sum of the logs of the slopes, all at the layers' inputs, is the log
of a density: it integrates to 1 (that of a published release, with slopes at the outputs, does
not). Some layers' numbers depend on the clean value, by a small net that is asked at some values
and interpolated between them. The law's mean is the clean value itself: what the layers make of it
is taken off, to a hundredth of the unit between these values, so that a flow learned beside a
specimen cannot take the specimen's part.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tem_taichi.arguments import check_number, check_positive_number
from tem_taichi.checks import check, whole
from tem_taichi.device import as_tensor, number
from tem_taichi.noise.detector import expected_counts
from tem_taichi.physics import Value
from tem_taichi.streams import Key

KNOTS = 65
"""Clean values at which the net is asked."""
_NODES, _FAR = 161, 7.0
"""Normal numbers by which the layers' mean is summed, and the largest; trapezoids are exact to
rounding of what is smooth, and to a thousandth beside the kinks at the layers' centres."""
_SHARPEST = 1e-3
"""Least of alpha, of beta + alpha and of the scale: no slope is 0."""


class Layers(NamedTuple):
    """The numbers that are learned, before they are made positive; real tensors."""

    fixed: Tensor
    """alpha, beta + alpha and centre of the layers that do not know the clean value, (n, 3)."""
    inner: Tensor
    """Weight and offset of the net's tanh, of the first layer and of each that knows the clean
    value, (1 + m, hidden, 2)."""
    outer: Tensor
    """Weights of these in each of the three numbers of a layer, and offset, (1 + m, 3,
    hidden + 1); of the first shift, scale and nothing."""


def layers(fixed: int = 4, conditioned: int = 4, hidden: int = 16, seed: int = 0) -> Layers:
    """Layers that leave numbers as they are, but for small random ones by which they learn.

    Args:
        fixed: layers that do not know the clean value.
        conditioned: layers that do.
        hidden: features of each net.
        seed: of the random numbers.

    Raises:
        ValueError: if a number is out of range.
    """
    for name, value, least in (("fixed", fixed, 0), ("conditioned", conditioned, 0),
                               ("hidden", hidden, 1)):
        whole(name, value, least, 1000)
    draw = Key(seed, "trials").generator()
    free = torch.tensor(draw.standard_normal((fixed, 3)))
    inner = torch.tensor(draw.standard_normal((1 + conditioned, hidden, 2)))
    outer = 0.1 / math.sqrt(hidden) * torch.tensor(
        draw.standard_normal((1 + conditioned, 3, hidden + 1)))
    # Of softplus: 1. Centres are spread, so that layers do not all do the same.
    one = math.log(math.e - 1)
    free = torch.cat([one + 0.01 * free[:, :2], 1.5 * free[:, 2:]], dim=1)
    outer[0, 1, -1] = one
    outer[1:, :2, -1] = one
    outer[1:, 2, -1] = 1.5 * torch.tensor(draw.standard_normal(conditioned))
    return Layers(*map(as_tensor, (free, inner, outer)))


@dataclass(frozen=True, eq=False)
class Flow:
    """Electrons of each pixel and noise of a learned density; a `Likelihood`.

    Counts that are not finite tell nothing.
    """

    pixel_size: Value
    """At the specimen [A]."""
    layers: Layers
    unit: float
    """About the noise's deviation [electrons per pixel]."""
    low: float
    """Clean value below which the layers stay as they are [electrons per pixel]."""
    high: float
    """Clean value above which they do."""
    centred: bool = True
    """Whether the mean of the layers' law is taken off."""

    def __post_init__(self) -> None:
        check_positive_number("unit", self.unit, "electrons per pixel")
        check_number("low", self.low, "electrons per pixel")
        check(self.low < self.high, "high", self.high, f"above low={self.low:g}")
        n, rest = self.layers.inner.shape[:2]
        if self.layers.fixed.shape[1:] != (3,) or self.layers.outer.shape != (n, 3, rest + 1):
            raise ValueError("layers: must be (n, 3), (1 + m, hidden, 2) and (1 + m, 3, hidden + "
                             f"1), not {[tuple(part.shape) for part in self.layers]}")

    def expected(self, intensity: Tensor, dose: Value) -> Tensor:
        """Electrons: intensity dose pixel_size^2, the law's mean where it is `centred`."""
        return expected_counts(intensity, pixel_size=self.pixel_size, dose=dose)

    def sample(self, intensity: Tensor, dose: Value, key: Key) -> Tensor:
        """Electrons and noise."""
        mean = self.expected(intensity, dose)
        drawn = as_tensor(key.generator().standard_normal(tuple(mean.shape)))
        with torch.no_grad():
            return mean + self.unit * self.residual(drawn, mean)

    def log_prob(self, counts: Tensor, intensity: Tensor, dose: Value) -> Tensor:
        """Log of the probability density of counts, a scalar."""
        return self.log_density(counts, self.expected(intensity, dose)).sum()

    def log_density(self, counts: Tensor, clean: Tensor) -> Tensor:
        """Of each pixel [1 / electrons]; 0 where counts are not finite.

        Args:
            counts: of any shape.
            clean: mean counts, the same shape.
        """
        counts = as_tensor(counts)
        if counts.shape != clean.shape:
            raise ValueError(f"counts has shape {tuple(counts.shape)}: must be the intensity's, "
                             f"{tuple(clean.shape)}")
        there = counts.isfinite()
        left = torch.where(there, counts, clean.detach()) - clean
        z, slope = self.normal(left / self.unit, clean)
        found = -z.square() / 2 - math.log(math.sqrt(2 * math.pi) * self.unit) + slope
        return torch.where(there, found, 0.0)

    def distribution(self, counts: Tensor, clean: Tensor) -> Tensor:
        """Probability of less than these counts, the same shape."""
        z, _ = self.normal((as_tensor(counts) - clean) / self.unit, clean)
        return torch.special.ndtr(z)

    def normal(self, residual: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """What the layers make of residuals in units, and the log of their slope.

        Args:
            residual: of any shape.
            clean: mean counts, the same shape.
        """
        known, means = self._at(clean)
        return through(residual + means, self.layers.fixed, known)

    def residual(self, normal: Tensor, clean: Tensor) -> Tensor:
        """The inverse of `normal`, in units."""
        known, means = self._at(clean)
        return back(normal, self.layers.fixed, known) - means

    def _table(self) -> Tensor:
        """Numbers of each conditioned layer, and their law's mean, (KNOTS, (1 + m) 3 + 1)."""
        places = as_tensor(torch.linspace(-2.0, 2.0, KNOTS))
        inner, outer = self.layers.inner, self.layers.outer
        felt = torch.tanh(inner[:, :, :1] * places + inner[:, :, 1:])
        known = outer[:, :, :-1] @ felt + outer[:, :, -1:]
        means = torch.zeros_like(places)
        if self.centred:
            nodes = as_tensor(torch.linspace(-_FAR, _FAR, _NODES, dtype=torch.float64))[:, None]
            weights = torch.exp(-nodes.square() / 2)
            made = back(nodes.expand(_NODES, KNOTS), self.layers.fixed, known)
            means = (weights / weights.sum() * made).sum(0)
        return torch.cat([known.reshape(-1, KNOTS), means[None]]).T

    def _at(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of conditioned layers (1 + m, 3, ...) and the mean (...) at clean values."""
        place = ((clean - self.low) / (self.high - self.low)).clamp(0, 1) * (KNOTS - 1)
        first = place.detach().floor().clamp(max=KNOTS - 2)
        part, rows = (place - first)[..., None], first.long()
        look, table = torch.nn.functional.embedding, self._table()
        found = (1 - part) * look(rows, table) + part * look(rows + 1, table)
        found = found.movedim(-1, 0)
        return found[:-1].reshape(-1, 3, *clean.shape), found[-1]


def _positive(free: Tensor) -> Tensor:
    return torch.nn.functional.softplus(free) + _SHARPEST


def _all(fixed: Tensor, known: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """alpha, beta and centre of the radial layers in their order: known ones and others in turn."""
    rows = [row for n in range(max(len(known) - 1, len(fixed)))
            for row in (*known[1:][n:n + 1], *fixed[n:n + 1])]
    return [(_positive(a), _positive(b) - _positive(a), centre) for a, b, centre in rows]


def through(residual: Tensor, fixed: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Normal numbers of residuals, and the log of the slope.

    Args:
        residual: of any shape.
        fixed: see `Layers`.
        known: numbers of the other layers for each residual, (1 + m, 3, ...).
    """
    scale = _positive(known[0, 1])
    z = (residual - known[0, 0]) / scale
    slope = -scale.log()
    for alpha, beta, centre in _all(fixed, known):
        away = z - centre
        width = alpha + away.abs()
        slope = slope + torch.log1p(alpha * beta / width.square())
        z = z + beta * away / width
    return z, slope


def back(normal: Tensor, fixed: Tensor, known: Tensor) -> Tensor:
    """Residuals of normal numbers; arguments of `through`."""
    z = normal
    for alpha, beta, centre in reversed(_all(fixed, known)):
        away = z - centre
        size = away.abs()
        # size = d (alpha + beta + d) / (alpha + d), by the root that does not cancel.
        half = (size - alpha - beta) / 2
        root = (half.square() + size * alpha).sqrt()
        d = torch.where(half > 0, half + root, size * alpha / (root - half).clamp(min=1e-30))
        z = centre + torch.copysign(d, away)
    return known[0, 0] + _positive(known[0, 1]) * z


def about(pixel_size: Value, made: Layers, noisy: Tensor, clean: Tensor, centred: bool = True
          ) -> Flow:
    """A flow whose unit and range are those of some images.

    Args:
        pixel_size: [A].
        made: of `layers`.
        noisy: counts; what is not finite is left out.
        clean: what they are about, of the same shape.
        centred: see `Flow`.

    Raises:
        ValueError: if there is no noise.
    """
    there = noisy.isfinite()
    left = (noisy - clean)[there]
    unit, low = number(left.std()), number(clean[there].min())
    high = max(number(clean[there].max()), low + 1e-3 * unit)  # of clean values all the same
    return Flow(pixel_size, made, unit, low, high, centred)


def learned(flow: Flow, made: Layers) -> Flow:
    """A flow with other layers."""
    return replace(flow, layers=made)
