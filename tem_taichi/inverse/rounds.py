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

STEPS = 8
"""Of a round, each by one gradient; the next round goes on where it ends."""


class Rounds:
    """A volume by ever more rounds."""

    def __init__(self, misfit: Gradient, prior: Gradient, start: Tensor, metric: Metric | Diagonal,
                 positive: bool = False, steps: int = STEPS) -> None:
        """None yet; what of it may be is the volume.

        Args:
            misfit: of images.
            prior: of which contrast is given back.
            start: volume, of which the prior has taken nothing.
            metric: of both together.
            positive: whether no value may be below 0.
            steps: of a round.
        """
        self._misfit, self._prior, self._steps = misfit, prior, steps
        self._given, self._done = torch.zeros_like(start), 0
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
        while self._done < self._steps:
            self._run.step()
            self._done += 1
        loss, given = self._run.loss, self._prior(self.volume)[1]
        self._run.add(self._given - given)
        self._given, self._done = given, 0
        return loss

    def _gradient(self, volume: Tensor) -> tuple[float, Tensor]:
        total, slope = self._misfit(volume)
        cost, way = self._prior(volume)
        given = (volume * self._given).sum(dtype=torch.float64)
        return total + cost - float(given), slope.add_(way).sub_(self._given)

    def state(self) -> dict[str, Tensor]:
        """What changes, for `resume`."""
        return {**self._run.state(), "given": self._given, "done": torch.tensor(self._done)}

    def resume(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state` of a run with the same losses and settings."""
        self._given = torch.empty_like(self._given).copy_(state["given"])
        self._done = int(state["done"])
        self._run.resume(state)
