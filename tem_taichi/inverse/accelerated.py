"""The volume of least loss, by accelerated gradients in a metric of the loss's own curvature."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.inverse.measures import frequencies
from tem_taichi.streams import Key

Gradient = Callable[[Tensor], tuple[float, Tensor]]
"""Of a volume: a loss, and its gradient."""

_LOOKS, _CHECKS = 3, 2
"""At gradients, for the curvature of each shell, and then for the length of the first steps."""
_SHELLS = 40
"""To a frequency of 1 a voxel."""
_SPARE = 1.1
"""By so much steps are shorter than the most curved way met so far would allow."""
_FLAT = 1e-3
"""Of the largest curvature: what is less curved is taken for that."""
_PROBE = 0.1
"""Of the volume's unit: greatest change with which curvatures are looked for."""


@dataclass(frozen=True, eq=False)
class Metric:
    """How curved a loss is at each frequency."""

    curvature: Tensor
    """Of the coefficients of a real transform."""
    largest: float = 1.0
    """Curvature along any way, relative to that."""

    def step(self, slope: Tensor) -> Tensor:
        """Where a gradient leads: Newton's step, were all directions of a shell alike."""
        return torch.fft.irfftn(torch.fft.rfftn(slope) / self.curvature, s=slope.shape)

    def plus(self, curvature: Tensor | float) -> "Metric":
        """Of the sum with another loss, at each coefficient or at most."""
        return Metric(self.curvature * self.largest + curvature, 1.0)

    def times(self, factor: float) -> "Metric":
        """Of a multiple of the loss."""
        return Metric(self.curvature * factor, self.largest)

    def even(self) -> "Metric":
        """All frequencies taken for as curved as the most curved one."""
        return Metric(torch.full_like(self.curvature, float(self.curvature.max())), self.largest)


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

        shell = (frequencies(start).square().sum(0).sqrt() * _SHELLS + 0.5).long()

        def strengths(waves: Tensor) -> Tensor:
            sums = torch.bincount(shell.flatten(), waves.abs().square().flatten())
            return sums.sqrt()

        noise = as_tensor(Key(0, "trials").generator().standard_normal(tuple(start.shape)))
        way = torch.empty_like(start).copy_(noise)
        before = strengths(torch.fft.rfftn(way)).clamp(min=1e-30)
        for _ in range(_LOOKS):
            waves = torch.fft.rfftn(change(way))
            after = strengths(waves)
            found = after / before
            if not float(found.max()) > 0:
                return Metric(torch.ones_like(shell, dtype=start.dtype))
            # As strong in each shell as the others.
            even = (after.max() / after.clamp(min=1e-6 * float(after.max())))
            waves *= even[shell]
            way, before = torch.fft.irfftn(waves, s=start.shape), (after * even).clamp(min=1e-30)
        metric = Metric(found.clamp(min=_FLAT * float(found.max()))[shell].to(start))
        largest = 0.0
        for _ in range(_CHECKS):
            changed = change(way)
            moved = metric.step(changed)
            largest, way = max(largest, _ratio(changed, moved, way)), moved
        return Metric(metric.curvature, _SPARE * largest)


def _ratio(change: Tensor, moved: Tensor, way: Tensor) -> float:
    """The least that the largest curvature can be, of a change of gradients along a way."""
    along = float((change * way).sum(dtype=torch.float64))
    return float((change * moved).sum(dtype=torch.float64)) / along if along > 0 else 0.0


class Accelerated:
    """Steps towards the volume of least loss (Nesterov 1983).

    They get shorter where the loss turns out to be more curved; momentum begins anew where it
    leads back (O'Donoghue and Candes 2015).
    """

    def __init__(self, gradient: Gradient, start: Tensor, metric: Metric,
                 positive: bool = False) -> None:
        """The volume is the start.

        `change` is by how much a step changed it, relative; `momentum` is 1 where it begins, and
        grows by half in a step.

        Args:
            gradient: of the loss, which is smooth.
            start: volume (nz, ny, nx).
            metric: of `metric_of`.
            positive: whether no value may be below 0; the metric must be even then.
        """
        self.gradient, self.metric, self.positive = gradient, metric, positive
        self.volume = self._ahead = start.clone()
        self.change = 1.0
        self._largest, self.momentum = metric.largest, 1.0
        self._before: tuple[Tensor, Tensor, Tensor] | None = None

    def step(self) -> float:
        """One step.

        Returns:
            The loss ahead of it, where momentum leads.
        """
        with torch.no_grad():
            loss, slope = self.gradient(self._ahead)
            step = self.metric.step(slope)
            if self._before is not None:
                way, before, last = self._before
                found = _ratio(slope - before, step - last, self._ahead - way)
                if found > self._largest:
                    self._largest, self.momentum = _SPARE * found, 1.0
            self._before = (self._ahead, slope, step)
            moved = self._ahead - step / self._largest
            if self.positive:
                moved.clamp_(min=0)
            way = moved - self.volume
            self.change = float(way.norm() / moved.norm().clamp(min=1e-30))
            if float((slope * way).sum(dtype=torch.float64)) > 0:
                self.momentum = 1.0
            following = (1 + math.sqrt(1 + 4 * self.momentum**2)) / 2
            self._ahead = moved + (self.momentum - 1) / following * way
            self.momentum, self.volume = following, moved
        return loss

    def state(self) -> dict[str, Tensor]:
        """What changes, for `resume`."""
        names = ("point", "slope", "step")
        return {"volume": self.volume, "ahead": self._ahead,
                "numbers": torch.tensor([self._largest, self.momentum], dtype=torch.float64),
                **dict(zip(names, self._before or (), strict=False))}

    def resume(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state` of a run with the same loss and settings."""
        def taken(name: str) -> Tensor:
            return torch.empty_like(self.volume).copy_(state[name])

        self._largest, self.momentum = state["numbers"].tolist()
        if "point" in state:
            self._before = (taken("point"), taken("slope"), taken("step"))
        self.volume, self._ahead = taken("volume"), taken("ahead")
