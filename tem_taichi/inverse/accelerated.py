"""The volume of least loss, by quasi-Newton steps in a metric of the loss's own curvature."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.inverse.measures import frequencies
from tem_taichi.streams import Key

Gradient = Callable[[Tensor], tuple[float, Tensor]]
"""Of a volume: a loss, and its gradient."""

_LOOKS = 3
"""At gradients, for the curvature of each shell."""
_SHELLS = 40
"""To a frequency of 1 a voxel."""
_FLAT = 1e-3
"""Of the largest curvature: what is less curved is taken for that."""
_PROBE = 0.1
"""Of the volume's unit: greatest change with which curvatures are looked for."""
_MEMORY = 5
"""Steps that tell more of the curvature than the metric does."""
_CUTS = 6
"""Of a step that does not lessen the loss."""
_ENOUGH, _ROUNDING = 1e-4, 1e-6
"""Least part of a step's promise that it must keep, but for what rounding does to the loss."""


class Steps(Protocol):
    """How curved a loss is."""

    def step(self, slope: Tensor) -> Tensor:
        """Where a gradient leads."""


@dataclass(frozen=True, eq=False)
class Metric:
    """How curved a loss is at each frequency."""

    curvature: Tensor
    """Of the coefficients of a real transform, of the axes in that order."""
    order: tuple[int, ...] = (0, 1, 2)
    """Of the axes as they lie in memory."""

    def step(self, slope: Tensor) -> Tensor:
        """Where a gradient leads: Newton's step, were all directions of a shell alike."""
        lines = slope.permute(self.order)
        waves = torch.fft.rfftn(lines).div_(self.curvature)
        return _back(torch.fft.irfftn(waves, s=lines.shape), self.order)

    def plus(self, curvature: Tensor | float) -> "Metric":
        """Of the sum with another loss, at each coefficient or at most."""
        return Metric(self.curvature + curvature, self.order)


@dataclass(frozen=True, eq=False)
class Diagonal:
    """How curved a loss is by each value, at most."""

    curvature: Tensor
    """Like the values, positive."""

    def step(self, slope: Tensor) -> Tensor:
        """Where a gradient leads."""
        return slope / self.curvature

    def plus(self, curvature: Tensor | float) -> "Diagonal":
        """Of the sum with another loss."""
        return Diagonal(self.curvature + curvature)


def metric_of(gradient: Gradient, start: Tensor) -> Metric:
    """The most curved way in each shell, by powers: gradients' changes along changes of before.

    Args:
        gradient: of the loss.
        start: volume.
    """
    with torch.no_grad():
        here = gradient(start)[1]

        def change(way: Tensor) -> Tensor:
            length = _PROBE / float(way.abs().max())
            return gradient(start + length * way)[1].sub_(here).div_(length)

        order = in_memory(start)
        shell = (frequencies(start.permute(order)).square().sum(0).sqrt() * _SHELLS + 0.5).long()

        def strengths(waves: Tensor) -> Tensor:
            sums = torch.bincount(shell.flatten(), waves.abs().square().flatten())
            return sums.sqrt()

        noise = as_tensor(Key(0, "trials").generator().standard_normal(tuple(start.shape)))
        way = torch.empty_like(start).copy_(noise)
        before = strengths(torch.fft.rfftn(way.permute(order))).clamp(min=1e-30)
        for _ in range(_LOOKS):
            lines = change(way).permute(order)
            waves = torch.fft.rfftn(lines)
            after = strengths(waves)
            found = after / before
            if not float(found.max()) > 0:
                return Metric(torch.ones_like(shell, dtype=start.dtype), order)
            # As strong in each shell as the others.
            even = (after.max() / after.clamp(min=1e-6 * float(after.max())))
            waves *= even[shell]
            way = _back(torch.fft.irfftn(waves, s=lines.shape), order)
            before = (after * even).clamp(min=1e-30)
        return Metric(found.clamp(min=_FLAT * float(found.max()))[shell].to(start), order)


def in_memory(volume: Tensor) -> tuple[int, ...]:
    """The axes of a volume, those first along which neighbours are farthest apart in memory."""
    return tuple(sorted(range(volume.ndim), key=volume.stride, reverse=True))


def _back(lines: Tensor, order: tuple[int, ...]) -> Tensor:
    """From the order in memory to that of the axes."""
    return lines.permute([order.index(axis) for axis in range(lines.ndim)])


class Accelerated:
    """Steps towards the volume of least loss: L-BFGS (Liu and Nocedal 1989) in a metric.

    The last steps tell what the metric leaves out: that slopes of a shell are not alike, and how
    curved a loss is that is no parabola. A step that does not lessen the loss is cut.
    """

    def __init__(self, gradient: Gradient, start: Tensor, metric: Steps,
                 positive: bool = False) -> None:
        """The volume is the start, or what of it may be; `loss` is the volume's.

        `losses` are those from the start, or from the last `add`, to after the last step.

        Args:
            gradient: of the loss, which is smooth.
            start: volume (nz, ny, nx).
            metric: of `metric_of`, `Diagonal`, or another.
            positive: whether no value may be below 0.
        """
        self.gradient, self.metric, self.positive = gradient, metric, positive
        self.volume = start.clamp(min=0) if positive else start.clone()
        self.loss = math.inf
        self.losses: list[float] = []
        self._scale = 1.0
        self._slope = torch.empty(0)
        self._pairs: list[tuple[Tensor, Tensor, float]] = []

    def step(self) -> float:
        """One step: one gradient, and more at the first and where a step is cut.

        Returns:
            The loss after it.
        """
        with torch.no_grad():
            if math.isinf(self.loss):
                self.loss, self._slope = self.gradient(self.volume)
                self.losses = [self.loss]
            for way in self._ways():
                if self._along(way):
                    break
                # What earlier steps told leads nowhere.
                self._pairs = []
        self.losses.append(self.loss)
        return self.loss

    def add(self, slope: Tensor) -> None:
        """To the loss the product of a volume with that: it is as curved as before.

        Args:
            slope: of what the loss has got more, the same for all volumes.
        """
        self.loss += _dot(slope, self.volume)
        self.losses = [self.loss]
        self._slope = self._slope + slope

    def _ways(self) -> Iterator[Tensor]:
        """Where to go by the last steps and the metric; then by the metric alone.

        Values that are 0 and would fall are left out (Bertsekas 1982).
        """
        free = (self.volume > 0) | (self._slope < 0) if self.positive else None
        slope = self._slope if free is None else self._slope * free
        for _ in range(2 if self._pairs else 1):
            way = self._newton(slope).neg_()
            yield way if free is None else way.mul_(free)

    def _newton(self, slope: Tensor) -> Tensor:
        """A slope over a curvature which is that of the last steps along them."""
        way, parts = slope.clone(), []
        for moved, change, bend in reversed(self._pairs):
            parts.append(_dot(moved, way) / bend)
            way.add_(change, alpha=-parts[-1])
        way = self.metric.step(way).mul_(self._scale)
        for (moved, change, bend), part in zip(self._pairs, reversed(parts), strict=True):
            way.add_(moved, alpha=part - _dot(change, way) / bend)
        return way

    def _along(self, way: Tensor) -> bool:
        """Go as far as the loss gets less; whether it does."""
        length = 1.0
        for _ in range(_CUTS):
            volume = torch.add(self.volume, way, alpha=length)
            if self.positive:
                volume.clamp_(min=0)
            moved = volume - self.volume
            promise = _dot(self._slope, moved)
            loss, slope = self.gradient(volume)
            enough = self.loss + _ENOUGH * promise + _ROUNDING * abs(self.loss)
            if promise < 0 and loss <= enough:
                self._learn(moved, slope - self._slope, promise)
                self.volume, self.loss, self._slope = volume, loss, slope
                return True
            # To where the parabola of both slopes is least.
            bend = _dot(slope, moved) - promise
            length *= min(max(-promise / bend, 0.1), 0.5) if bend > 0 else 0.5
        return False

    def _learn(self, moved: Tensor, change: Tensor, promise: float) -> None:
        """Of a step and what it changed the slope by."""
        bend = _dot(moved, change)
        if bend > _FLAT * abs(promise):
            self._pairs = [*self._pairs, (moved, change, bend)][-_MEMORY:]
            self._scale = bend / _dot(change, self.metric.step(change))

    def state(self) -> dict[str, Tensor]:
        """What changes, for `resume`."""
        pairs = {f"{name} {n}": value for n, pair in enumerate(self._pairs)
                 for name, value in zip(("moved", "change"), pair[:2], strict=True)}
        return {"volume": self.volume, "slope": self._slope, **pairs,
                "losses": torch.tensor(self.losses, dtype=torch.float64),
                "numbers": torch.tensor([self._scale, self.loss], dtype=torch.float64)}

    def resume(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state` of a run with the same loss and settings."""
        def taken(name: str) -> Tensor:
            return torch.empty_like(self.volume).copy_(state[name])

        self._scale, self.loss = state["numbers"].tolist()
        if math.isfinite(self.loss):
            self._slope = taken("slope")
        self.losses = state["losses"].tolist()
        pairs = [(taken(f"moved {n}"), taken(f"change {n}"))
                 for n in range(_MEMORY) if f"moved {n}" in state]
        self._pairs = [(moved, change, _dot(moved, change)) for moved, change in pairs]
        self.volume = taken("volume")


def _dot(one: Tensor, other: Tensor) -> float:
    """Sum of the products, in the order in which the first lies in memory."""
    order = in_memory(one)
    return float(torch.dot(one.permute(order).flatten(), other.permute(order).flatten()))
