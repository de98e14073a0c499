"""What images are to tell: an experiment with unknown numbers, and the counts it should explain."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tem_taichi.experiment import Experiment, negative_log_prob
from tem_taichi.inverse.minimise import Fit, Optimiser, Progress, Values, minimise_parts


@dataclass(frozen=True, eq=False)
class Problem:
    """Counts, and an experiment that has some free numbers.

    What must be positive is a function of something free, such as exp or softplus of it: then no
    step can leave what is allowed.
    """

    start: Values
    """Where to begin, by name; real tensors of any shape."""
    build: Callable[[Values], Experiment]
    """The experiment at some values; differentiable in them."""
    counts: Tensor
    """Recorded, one image for each of the experiment's exposures, (n, ny, nx)."""
    prior: Callable[[Values], Tensor] | None = None
    """Minus the log of the prior probability density of the values, a scalar; see `priors`."""
    held_out: tuple[int, ...] = ()
    """Numbers of exposures that are not fitted, but judge."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """In which each value is counted, see `scales.natural_scales`; 1 for those not named."""

    def __post_init__(self) -> None:
        for number in self.held_out:
            if not 0 <= number < len(self.counts):
                raise ValueError(f"held_out={number}: must be one of the {len(self.counts)} "
                                 "exposures, from 0")
        if not self.fitted:
            raise ValueError(f"held_out={self.held_out}: must leave an exposure to fit")

    @property
    def fitted(self) -> tuple[int, ...]:
        """Numbers of the exposures that are fitted."""
        return tuple(n for n in range(len(self.counts)) if n not in self.held_out)

    def terms(self, values: Values, which: Sequence[int]) -> Iterator[Tensor]:
        """Terms of the loss as some of the fitted exposures tell it, one after another.

        Each exposure's experiment is built anew, so that the graph of only one is in memory.
        """
        share = len(self.fitted) / len(which)
        for number in which:
            yield negative_log_prob(self.build(values), self.counts, [number]) * share
        if self.prior is not None:
            yield self.prior(values)

    def misfit(self, values: Values, which: Sequence[int]) -> Iterator[Tensor]:
        """Minus the log-probability of some exposures, whatever the prior; without gradients."""
        # Built of what asks for gradients, so that atoms are shared by slices as in the fit.
        with torch.enable_grad():
            made = self.build({name: value.detach().requires_grad_()
                               for name, value in values.items()})
        with torch.no_grad():
            for number in which:
                yield negative_log_prob(made, self.counts, [number])


def fit(problem: Problem, optimiser: Optimiser | None = None, *,
        progress: Progress | None = None, state_file: Path | None = None) -> Fit:
    """Values that explain the counts of a problem best.

    Args:
        problem: what is sought.
        optimiser: how; None is lbfgs over all exposures, for some tens of numbers. For a volume
            take adam, in batches of exposures: beside the values it holds their gradient, its two
            means, and the best values where some exposures are held out.
        progress: called after each step with its number, the loss before and the values after it.
        state_file: where to keep the state of a long fit, which goes on from there if it exists.

    Returns:
        The best values: by the exposures held out if there are any, else by the loss.

    Raises:
        ValueError: as `minimise`, or as the experiment.
    """
    return minimise_parts(
        problem.terms, problem.start, problem.fitted, problem.held_out, optimiser=optimiser,
        judge=problem.misfit, progress=progress, state_file=state_file, scales=problem.scales)
