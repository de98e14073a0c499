"""Noise by a picture: images that look as another does, without knowing why it looks so.

Neural style transfer as FakET has it (Harar et al. 2023): a clean image is scaled, white noise is
added, and the sum is moved to where statistics of the style's features are met, while a content of
little noise is kept. It has no density, so that it can only be drawn from.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tem_taichi import checks
from tem_taichi.arguments import check_number, check_positive_number
from tem_taichi.device import as_tensor
from tem_taichi.noise.camera import kept
from tem_taichi.noise.pyramid import Pyramid
from tem_taichi.physics import Value
from tem_taichi.streams import Key

_MARGIN = 64
"""Pixels about a tile that are made and left out."""
_TINY = 1e-12
_HALF = 1.99
"""A published step is this much smaller than its rate: the mean of the image before and after."""


class Features(Protocol):
    """What tells of an image: `pyramid.Pyramid`, `vgg.VGG`."""

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the statistics; the last is that of all others."""

    def __call__(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Content and statistics of an image (ny, nx) in units of the style's deviation."""


def distance(statistics: Sequence[Tensor], style: Sequence[Tensor], weights: Sequence[float]
             ) -> Tensor:
    """How far statistics are from a style's: weighted squares of their relative differences.

    Args:
        statistics: of an image.
        style: of another; of a larger one there may be more at the end, of wider scales.
        weights: of each; the last is that of all others.
    """
    total = as_tensor(0.0)
    pairs = list(zip(statistics, style, strict=False))
    for n, (one, other) in enumerate(pairs):
        weight = weights[min(n, len(weights) - 1)]
        total = total + weight * (one - other).square().sum() / (other.square().sum() + _TINY)
    return total / len(pairs)


def transfer(start: Tensor, content: Tensor, style: Sequence[Tensor], features: Features,
             steps: int = 1, rate: float = 0.15, keep: float = 1.0,
             report: Callable[[float], None] | None = None) -> Tensor:
    """An image that shows what the content does and looks as the style: steps of Adam.

    Args:
        start: where the steps begin (ny, nx), in units of the style's deviation, about 0.
        content: what it is to show, like the start.
        style: statistics of the style.
        features: that gave them.
        steps: of Adam; of 1 the mean of before and after is taken, as published, which is the start
            less rate / 1.99 times the sign of the loss's slope.
        rate: of Adam, in units of the style's deviation.
        keep: weight of the content.
        report: called with the loss before each step.
    """
    with torch.no_grad():
        wanted = features(content)[0]
        scale = wanted.square().mean() + _TINY
    image = start.clone().requires_grad_()
    adam = torch.optim.Adam([image], lr=rate / _HALF if steps == 1 else rate)
    for _ in range(steps):
        adam.zero_grad()
        with torch.enable_grad():  # images are made where nothing else needs a gradient
            shown, statistics = features(image)
            loss = (keep * (shown - wanted).square().mean() / scale
                    + distance(statistics, style, features.weights))
            loss.backward()
        if report:
            report(float(loss.detach()))
        adam.step()
    return image.detach()


@dataclass(frozen=True, eq=False)
class Style:
    """Images that look like another; a noise law without a density."""

    image: Tensor
    """That other, (ny, nx), of pixels as wide; its brightness and scale do not matter."""
    mean: Value
    """Of images [counts]."""
    deviation: Value
    """Of images, with their noise [counts]; the unit in which the features see them."""
    noise: Value
    """Deviation of the white part, less than `deviation` [counts]."""
    features: Features = field(default_factory=Pyramid)
    scaled: bool = False
    """Whether what noise leaves of the deviation is the contrast, as published; otherwise contrast
    is the intensity's own, relative to its mean."""
    steps: int = 1
    rate: float = 0.15
    """Of a step, in deviations."""
    keep: float = 1.0
    """Weight of the content."""
    content_noise: float = 0.25
    """Part of the noise that the content has [1]."""
    tile: int = 1024
    """Pixels a side that are made at a time."""
    shape: tuple[int, int] | None = None
    """(ny, nx) of the pixels that are kept, those in the middle; None = all."""

    def __post_init__(self) -> None:
        check_number("mean", self.mean, "counts")
        check_positive_number("deviation", self.deviation, "counts")
        check_number("noise", self.noise, "counts", 0.0)
        checks.check(float(self.noise) < float(self.deviation), "noise", float(self.noise),
                     f"below deviation={float(self.deviation):g} [counts]")
        checks.whole("steps", self.steps, 0, 100_000)
        checks.positive("rate", self.rate, "deviations")
        checks.not_negative("keep", self.keep, "1")
        checks.check(0 <= self.content_noise <= 1, "content_noise", self.content_noise,
                     "from 0 to 1")
        checks.whole("tile", self.tile, 4 * _MARGIN, 65_536)

    def expected(self, intensity: Tensor, dose: Value = 1.0) -> Tensor:
        """The intensity, of the mean [counts].

        Args:
            intensity: (ny, nx), of any brightness.
            dose: has no part in it: images are as bright as the style.
        """
        intensity = kept(intensity, self.shape)
        centred = intensity - intensity.mean()
        if self.scaled:
            own = centred.square().mean().sqrt()
            left = (as_tensor(self.deviation)**2 - as_tensor(self.noise)**2).sqrt()
            return self.mean + left * centred / own.clamp(min=_TINY)
        return self.mean + self.mean * centred / intensity.mean()

    def sample(self, intensity: Tensor, dose: Value, key: Key) -> Tensor:
        """An image in the style, of the mean and, where it is `scaled`, the deviation [counts]."""
        with torch.no_grad():
            signal = (self.expected(intensity, dose) - self.mean) / self.deviation
            drawn = as_tensor(key.generator().standard_normal(tuple(signal.shape)))
            noise = drawn * (self.noise / self.deviation)
        image = self._styled(signal + noise, signal + self.content_noise * noise)
        image = image - image.mean()
        if self.scaled:
            image = image / image.square().mean().sqrt().clamp(min=_TINY)
        return self.mean + self.deviation * image

    def _styled(self, start: Tensor, content: Tensor) -> Tensor:
        """Tile by tile, each with what is about it."""
        if not self.steps:
            return start
        style = self._statistics()
        made = torch.empty_like(start)
        for (y, wide_y), (x, wide_x) in itertools.product(
                *(_tiles(n, self.tile) for n in start.shape)):
            tile = transfer(start[wide_y, wide_x], content[wide_y, wide_x], style, self.features,
                            self.steps, self.rate, self.keep)
            made[y, x] = tile[_within(y, wide_y), _within(x, wide_x)]
        return made

    def _statistics(self) -> list[Tensor]:
        """Of the style, the mean of its tiles."""
        with torch.no_grad():
            style = self.image - self.image.mean()
            style = style / style.square().mean().sqrt().clamp(min=_TINY)
            ways = itertools.product(*(_tiles(n, self.tile) for n in style.shape))
            found = [self.features(style[y, x])[1] for (_, y), (_, x) in ways]
            # Narrow tiles may lack the widest scales.
            return [torch.stack(parts).mean(0) for parts in zip(*found, strict=False)]


def _tiles(n: int, size: int) -> list[tuple[slice, slice]]:
    """Of an axis, as even as can be: pixels of each tile, and those with its margin."""
    count = 1 if n <= size else -(-n // (size - 2 * _MARGIN))
    ends = [round(n * i / count) for i in range(count + 1)]
    return [(slice(a, b), slice(max(a - _MARGIN, 0), min(b + _MARGIN, n)))
            for a, b in itertools.pairwise(ends)]


def _within(inner: slice, outer: slice) -> slice:
    return slice(inner.start - outer.start, inner.stop - outer.start)
