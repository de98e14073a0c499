"""Rounds of fits with a prior, each of which gives back the contrast that the one before took.

A prior that grows as differences do, such as total variation, takes contrast from all that it lets
through. The next round's volume x is that of least misfit(x) + prior(x) - <prior's slope at v, x>
where v is the last round's: what v has costs nothing any more (Bregman iterations, Osher et al.
2005, doi 10.1137/040605412). By a strong prior the surest shapes come first and with their whole
contrast, then ever fainter ones, and noise last. So the number of rounds stands in for the strength
of the prior, and images held out tell it along a single path.
"""

import torch
from torch import Tensor

from tem_taichi.inverse.accelerated import Accelerated, Diagonal, Gradient, Metric

_SMALL, _LAST = 0.03, 4
"""Of all that a round lessens its loss by: what it does in so many steps where it ends. Of images
with much noise a few steps are enough, and with little three times as many."""
_STEPS = 100
"""Of a round, at most, each by one gradient; the next round goes on where it ends."""


class Rounds:
    """A volume by ever more rounds."""

    def __init__(self, misfit: Gradient, prior: Gradient, start: Tensor, metric: Metric | Diagonal,
                 positive: bool = False, small: float = _SMALL, steps: int = _STEPS) -> None:
        """None yet; what of it may be is the volume, and `steps` are counted from now.

        Args:
            misfit: of images.
            prior: of which contrast is given back.
            start: volume, of which the prior has taken nothing.
            metric: of both together.
            positive: whether no value may be below 0.
            small: where a round ends, of all that it lessens its loss by: what the last steps do.
            steps: of a round, at most.
        """
        self._misfit, self._prior, self._small, self._steps = misfit, prior, small, steps
        self._given, self.steps = torch.zeros_like(start), 0
        self._run = Accelerated(self._gradient, start, metric, positive)

    @property
    def volume(self) -> Tensor:
        """Where the steps so far have led."""
        return self._run.volume

    def step(self) -> float:
        """One round, or what an interrupted one has left to do.

        Returns:
            Its loss at the end.
        """
        while not self._ends():
            self._run.step()
            self.steps += 1
        loss, given = self._run.loss, self._prior(self.volume)[1]
        self._run.add(self._given - given)
        self._given = given
        return loss

    def _ends(self) -> bool:
        losses = self._run.losses
        if len(losses) <= _LAST:
            return False
        last, whole = losses[-1 - _LAST] - losses[-1], losses[0] - losses[-1]
        return len(losses) > self._steps or last <= self._small * whole

    def _gradient(self, volume: Tensor) -> tuple[float, Tensor]:
        total, slope = self._misfit(volume)
        cost, way = self._prior(volume)
        given = (volume * self._given).sum(dtype=torch.float64)
        return total + cost - float(given), slope.add_(way).sub_(self._given)

    def state(self) -> dict[str, Tensor]:
        """What changes, for `resume`."""
        return {**self._run.state(), "given": self._given}

    def resume(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state` of a run with the same losses and settings."""
        self._given = torch.empty_like(self._given).copy_(state["given"])
        self._run.resume(state)
