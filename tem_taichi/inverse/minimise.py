"""One loop for every inverse problem: move named tensors until a scalar loss is least."""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tem_taichi.inverse.scales import unscaled
from tem_taichi.streams import Key

Values: TypeAlias = dict[str, Tensor]
Loss: TypeAlias = Callable[[Values], Tensor]
Terms: TypeAlias = Callable[[Values, Sequence[int]], Iterable[Tensor]]
Progress: TypeAlias = Callable[[int, float, Values], None]

_METHODS = ("lbfgs", "adam", "rmsprop")
_PATIENCE = {"lbfgs": 5, "adam": 100, "rmsprop": 100}
"""Steps over which the best loss must fall by more than the tolerance."""
_SAVE_EVERY, _SAVING = 5.0, 0.05
"""Seconds between two writings of the state file, and the part of the time that they may take; it
is always written at the end."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Where a fit ended.

    Attributes:
        values: the best values met, without gradient: by the loss of what was held out, or else by
            the loss; the last ones where a step sees only a batch and nothing is held out.
        loss: the loss there; where batches or held-out parts decide, that of the last step, of a
            batch as an estimate for all parts.
        history: the loss at the start of each step.
        converged: whether the loss had stopped falling; False if the steps ran out.
        steps: steps done, those of an earlier, interrupted run included.
        held_out: the loss of what was held out, each time it was computed: before the first step
            and after each pass through all parts.
    """

    values: Values
    loss: float
    history: tuple[float, ...]
    converged: bool
    steps: int
    held_out: tuple[float, ...] = ()


@dataclass(frozen=True)
class Optimiser:
    """How to minimise; every number has a default that depends on the method alone."""

    name: str = "lbfgs"
    """lbfgs, for smooth losses without noise (strong Wolfe line search), adam or rmsprop."""
    steps: int = 200
    """At most, in all."""
    rate: float | None = None
    """Length of a step in the values' scales; None = 1 for lbfgs, else 0.01."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's two running means; RMSProp has only the second, of squares."""
    schedule: Callable[[int], float] | None = None
    """Of the step's number, from 1, to what the rate is multiplied with; None = 1."""
    tolerance: float = 1e-9
    """Stop when the best loss has fallen by less than this fraction of itself over `patience`."""
    patience: int | None = None
    """Steps, or passes through all parts where some are held out; None = 5 for lbfgs, else 100
    (10 with parts held out)."""
    batch: int | None = None
    """Parts that a step sees, not for lbfgs; None = all."""
    seed: int = 0
    """Of the order of the batches."""
    history_size: int = 20
    """Pairs of steps and gradients that lbfgs keeps, each twice the size of the values."""

    def __post_init__(self) -> None:
        if self.name not in _METHODS:
            raise ValueError(f"name={self.name!r}: must be one of {', '.join(_METHODS)}")
        for name in ("steps", "patience", "batch", "history_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"rate={self.rate:g}: must be positive")
        if self.batch is not None and self.name == "lbfgs":
            raise ValueError(f"batch={self.batch}: must be None for {self.name}, whose "
                             "line search wants one loss")


def minimise(loss: Loss, start: Values, optimiser: Optimiser | None = None, *,
             progress: Progress | None = None, state_file: Path | None = None,
             scales: Mapping[str, float] | None = None) -> Fit:
    """Minimise a loss over named tensors.

    The loss should vary by about 1 when each value, divided by its scale, does: give scales to
    lengths and angles (`inverse.scales.natural_scales`), take logarithms of positive numbers.

    Args:
        loss: from the values to a scalar, differentiable; it may be random (not with "lbfgs").
        start: where to begin, real tensors of any shape; they are copied.
        optimiser: how; None is `Optimiser()`.
        progress: called after each step with the number of steps, the loss before it and the
            values after it, which go on changing: copy what is to be kept.
        state_file: where to keep the state every few seconds and at the end, also of a run that
            is interrupted. If it exists, the fit goes on from there: with the same arguments it
            ends as if it had never stopped, unless the loss is random. It holds values in their
            scales.
        scales: unit in which each value is counted, by name; 1 for those not named.

    Raises:
        ValueError: if an argument is not allowed, the loss or its gradient is not finite, or the
            state file belongs to another fit.
    """
    return minimise_parts(lambda values, which: [loss(values)], start, [0], optimiser=optimiser,
                          progress=progress, state_file=state_file, scales=scales)


def minimise_parts(terms: Terms, start: Values, parts: Sequence[int], held_out: Sequence[int] = (),
                   *, optimiser: Optimiser | None = None, judge: Terms | None = None,
                   progress: Progress | None = None, state_file: Path | None = None,
                   scales: Mapping[str, float] | None = None) -> Fit:
    """Minimise a loss that is a sum over parts, whose graphs need not be in memory together.

    Args:
        terms: from the values and the numbers of some parts to scalars whose sum is the loss, as
            an estimate of that of all parts; each is differentiated before the next is asked for.
        start: as in `minimise`.
        parts: numbers of the parts that are fitted.
        held_out: numbers of parts that only judge: the best values are those that explain them
            best, and the fit ends when they are explained no better.
        optimiser: how; None is `Optimiser()`.
        judge: `terms` of what is held out; None = the same.
        progress: as in `minimise`.
        state_file: as in `minimise`.
        scales: as in `minimise`.

    Raises:
        ValueError: as `minimise`.
    """
    optimiser = optimiser or Optimiser()
    _check(start)
    scales = dict(scales or {})
    for name, scale in scales.items():
        if name not in start or not 0 < scale < math.inf:
            raise ValueError(f"scales.{name}={scale}: must be a positive number for one of "
                             f"{', '.join(start)}")
    numbers = {name: (value.detach() / scales.get(name, 1.0)).requires_grad_()
               for name, value in start.items()}
    run = _Run(optimiser, numbers, len(parts), {
        "batch": optimiser.batch, "seed": optimiser.seed if optimiser.batch else 0,
        "parts": list(parts), "held_out": list(held_out), "scales": scales})
    if state_file is not None and Path(state_file).exists():
        run.read(Path(state_file))

    evaluate = _Evaluation(lambda values: terms(values, run.batch_of(parts)), numbers, scales, run)

    def look() -> None:
        if held_out:
            with torch.no_grad():
                found = (judge or terms)(unscaled(numbers, scales), held_out)
                run.judged(sum(float(term) for term in found))

    saved = time.monotonic()
    pause = _SAVE_EVERY
    try:
        if run.to_judge():
            look()
        while len(run.history) < optimiser.steps and not run.stalled():
            run.step(evaluate)
            if progress is not None:
                progress(len(run.history), run.history[-1],
                         {name: value.detach() for name, value in unscaled(numbers,
                                                                           scales).items()})
            if run.pass_done():
                look()
            if state_file is not None and time.monotonic() - saved > pause:
                begun = time.monotonic()
                run.write(Path(state_file))
                saved = time.monotonic()
                pause = max(_SAVE_EVERY, (saved - begun) / _SAVING)
    finally:
        if state_file is not None:
            run.write(Path(state_file))
    converged = run.stalled()
    if not (held_out or optimiser.batch):
        evaluate()  # the point after the last step has not been judged yet
    values = {name: value.detach() for name, value in unscaled(run.best, scales).items()}
    return Fit(values, run.least, tuple(run.history), converged, len(run.history),
               tuple(run.held))


class _Run:
    """What changes while a fit runs, and is kept in its state file."""

    def __init__(self, optimiser: Optimiser, numbers: Values, parts: int,
                 problem: dict[str, Any]) -> None:
        self.optimiser, self.numbers, self.parts = optimiser, numbers, parts
        self.problem = problem  # what a state must have in common with the fit that goes on
        self.history: list[float] = []
        self.held: list[float] = []
        self.least, self.judgement = math.inf, math.inf
        tensors = list(numbers.values())
        rate = optimiser.rate or (1.0 if optimiser.name == "lbfgs" else 0.01)
        self.optimizer: torch.optim.Optimizer
        if optimiser.name == "adam":
            self.optimizer = torch.optim.Adam(tensors, lr=rate, betas=optimiser.betas)
        elif optimiser.name == "rmsprop":
            self.optimizer = torch.optim.RMSprop(tensors, lr=rate, alpha=optimiser.betas[1])
        else:
            self.optimizer = torch.optim.LBFGS(
                tensors, lr=rate, max_iter=1, max_eval=25, history_size=optimiser.history_size,
                tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe")
        self.rate = rate
        # Without anything to judge batches by there is no best point beside the last.
        self.best = _copies(numbers) if not optimiser.batch else numbers

    def batch_of(self, parts: Sequence[int]) -> Sequence[int]:
        """The parts that the present step sees: all in turn, in an order of their own each pass."""
        size = self.optimiser.batch
        if size is None or size >= len(parts):
            return parts
        turn, place = divmod(len(self.history), self.per_pass)
        order = Key(self.optimiser.seed, "batches", turn).generator().permutation(len(parts))
        return [parts[int(n)] for n in order[place * size:(place + 1) * size]]

    @property
    def per_pass(self) -> int:
        """Steps that see all parts once."""
        return -(-self.parts // min(self.optimiser.batch or self.parts, self.parts))

    def pass_done(self) -> bool:
        """Whether the last step ended a pass through all parts."""
        return len(self.history) % self.per_pass == 0

    def to_judge(self) -> bool:
        """Whether what is held out has not been looked at since the last pass ended.

        At the start, or where a fit was interrupted just then.
        """
        return self.pass_done() and len(self.held) <= len(self.history) // self.per_pass

    def step(self, evaluate: "_Evaluation") -> None:
        """One step of the optimiser."""
        number = len(self.history) + 1
        factor = self.optimiser.schedule(number) if self.optimiser.schedule else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        self.history.append(float(self.optimizer.step(evaluate)))  # type: ignore[arg-type]

    def met(self, loss: float) -> None:
        """A point with its loss: the best so far is kept, unless what is held out judges."""
        if self.optimiser.batch or self.held:
            self.least = loss
        elif loss < self.least:
            self.least = loss
            self._keep()

    def judged(self, loss: float) -> None:
        """The loss of what is held out at the present point."""
        if not math.isfinite(loss):
            raise ValueError(f"loss of what is held out={loss:g} at step {len(self.history)}: "
                             "must be finite; try a smaller rate or another start")
        self.held.append(loss)
        if loss < self.judgement:
            self.judgement = loss
            self._keep()

    def _keep(self) -> None:
        if self.best is self.numbers:
            self.best = _copies(self.numbers)
        for name, value in self.numbers.items():
            self.best[name].copy_(value.detach())

    def stalled(self) -> bool:
        """Whether the loss, or that of what is held out, has stopped falling."""
        if self.held:
            patience = self.optimiser.patience or (5 if self.optimiser.name == "lbfgs" else 10)
            seen, least = self.held, min(self.held)
        elif self.optimiser.batch:
            return False
        else:
            patience = self.optimiser.patience or _PATIENCE[self.optimiser.name]
            seen, least = self.history, self.least
        if len(seen) <= patience:
            return False
        return min(seen[:-patience]) - least <= self.optimiser.tolerance * abs(least)

    def write(self, path: Path) -> None:
        """Keep the state under its name, whole."""
        state = {"method": self.optimiser.name, "values": _copies(self.numbers),
                 "optimizer": self.optimizer.state_dict(), "best": dict(self.best),
                 "history": self.history, "held": self.held, "least": self.least,
                 "problem": self.problem}
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        torch.save(state, partial)
        os.replace(partial, path)

    def read(self, path: Path) -> None:
        """Go on from a state."""
        method, values = self.optimiser.name, self.numbers
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            shapes = {name: value.shape for name, value in state["values"].items()}
            same = (state["method"], shapes) == (method, {n: v.shape for n, v in values.items()})
        # torch.load raises whatever the damage leads to.
        except Exception as error:
            raise ValueError(f"state_file={str(path)!r}: is no state of a fit") from error
        if not same:
            raise ValueError(f"state_file={str(path)!r}: belongs to another fit, of {list(shapes)} "
                             f"by {state['method']}")
        for name, mine in self.problem.items():
            its = state.get("problem", self.problem)[name]  # states of earlier versions lack it
            if its != mine:
                raise ValueError(f"state_file={str(path)!r}: belongs to another fit, with "
                                 f"{name}={its}; it is {mine} here")
        with torch.no_grad():
            for name, value in values.items():
                value.copy_(state["values"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.held, self.least = state["history"], state["held"], state["least"]
        self.judgement = min(self.held, default=math.inf)
        if self.best is not self.numbers or self.held:
            self.best = _copies(self.numbers)
            for name, value in state["best"].items():
                self.best[name].copy_(value.detach())


class _Evaluation:
    """Closure of an optimiser: loss and gradients at the present values."""

    def __init__(self, terms: Callable[[Values], Iterable[Tensor]], numbers: Values,
                 scales: Mapping[str, float], run: _Run) -> None:
        self.terms, self.numbers, self.scales, self.run = terms, numbers, scales, run
        self.keep = run.optimiser.name == "lbfgs"
        # A batch need not know every value; steps that hold a whole pass do.
        self.unused, self.steps_left = set(numbers), 2 * run.per_pass - 1
        self._point: list[Tensor] = []
        self._result: tuple[Tensor, list[Tensor]] | None = None

    def __call__(self) -> Tensor:
        tensors = list(self.numbers.values())
        # The line search ends where the next step begins: that loss is not computed again.
        if self._result is not None and all(map(torch.equal, self._point, tensors)):
            loss, gradients = self._result
        else:
            loss, gradients = self._computed()
            self.run.met(float(loss))
            if self.keep:
                self._point = [tensor.detach().clone() for tensor in tensors]
                self._result = (loss, gradients)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient.clone() if self.keep else gradient
        return loss

    def _computed(self) -> tuple[Tensor, list[Tensor]]:
        """Loss, and its gradients by the numbers, one term after another."""
        values = {name: value.detach().requires_grad_()
                  for name, value in unscaled(self.numbers, self.scales).items()}
        tensors = list(values.values())
        loss = torch.zeros((), dtype=torch.float64)
        sums: list[Tensor | None] = [None] * len(tensors)
        with torch.enable_grad():
            for term in self.terms(values):
                self._check("loss", term)
                loss += float(term.detach())
                if not term.requires_grad:
                    continue
                found = torch.autograd.grad(term, tensors, allow_unused=True)
                del term  # and its graph, before the next is made
                for n, part in enumerate(found):
                    if part is not None:
                        # The first may be shared with the graph, or be an expanded view.
                        sums[n] = part.clone() if sums[n] is None else sums[n].add_(part)  # type: ignore[union-attr]
        self.steps_left -= 1
        self.unused -= {name for name, one in zip(values, sums, strict=True) if one is not None}
        gradients = []
        for (name, value), gradient in zip(values.items(), sums, strict=True):
            if name in self.unused and self.steps_left <= 0:
                raise ValueError(f"start.{name}: the loss does not depend on it")
            if gradient is None:
                gradient = torch.zeros_like(value)
            if name in self.scales:
                gradient *= self.scales[name]
            self._check(f"gradient of {name}", gradient)
            gradients.append(gradient)
        return loss, gradients

    def _check(self, what: str, value: Tensor) -> None:
        if not value.isfinite().all():
            number = float(value.detach()[~value.isfinite()].flatten()[0])
            raise ValueError(f"{what}={number:g} at step {len(self.run.history) + 1}: must be "
                             "finite; try a smaller rate or another start")


def _check(start: Values) -> None:
    if not start:
        raise ValueError("start: must name at least one tensor")
    for name, value in start.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise ValueError(f"start.{name}: must be finite real numbers")


def _copies(values: Values) -> Values:
    return {name: value.detach().clone() for name, value in values.items()}

