"""One loop for every inverse problem: move named tensors until a scalar loss is least."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tem_taichi.inverse.scales import unscaled

Values: TypeAlias = dict[str, Tensor]
Loss: TypeAlias = Callable[[Values], Tensor]
Progress: TypeAlias = Callable[[int, float, Values], None]

_METHODS = ("lbfgs", "adam")
_PATIENCE = {"lbfgs": 5, "adam": 100}
"""Steps over which the best loss must fall by more than the tolerance."""
_SAVE_EVERY = 5.0
"""Seconds between two writings of the state file; it is always written at the end."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Where a fit ended.

    Attributes:
        values: the best values met, without gradient.
        loss: the loss there.
        history: the loss at the start of each step.
        converged: whether the loss had stopped falling; False if the steps ran out.
        steps: steps done, those of an earlier, interrupted run included.
    """

    values: Values
    loss: float
    history: tuple[float, ...]
    converged: bool
    steps: int


def fit(loss: Loss, start: Values, *, method: str = "lbfgs", steps: int = 200,
        rate: float | None = None, betas: tuple[float, float] = (0.9, 0.999),
        tolerance: float = 1e-9, progress: Progress | None = None,
        state_file: Path | None = None, scales: Mapping[str, float] | None = None) -> Fit:
    """Minimise a loss over named tensors.

    The loss should vary by about 1 when each value, divided by its scale, does: give scales to
    lengths and angles (`inverse.scales.natural_scales`), take logarithms of positive numbers.

    Args:
        loss: from the values to a scalar, differentiable; it may be random (with "adam").
        start: where to begin, real tensors of any shape; they are copied.
        method: "lbfgs", for smooth losses without noise (strong Wolfe line search), or "adam".
        steps: most steps in all, >= 1.
        rate: length of a step; None is 1 for "lbfgs", 0.01 for "adam".
        betas: decay of Adam's two running means.
        tolerance: stop when the best loss has fallen by less than this fraction of itself over 5
            steps of "lbfgs" or 100 of "adam".
        progress: called after each step with the number of steps, the loss before it and the
            values after it.
        state_file: where to keep the state every few seconds and at the end, also of a run that
            is interrupted. If it exists, the fit goes on from there: with the same arguments it
            ends as if it had never stopped, unless the loss is random. It holds values in their
            scales.
        scales: unit in which each value is counted, by name; 1 for those not named.

    Raises:
        ValueError: if an argument is not allowed, the loss or its gradient is not finite, or the
            state file belongs to another fit.
    """
    _check(start, method, steps)
    if scales is not None:
        return _fit_in_scales(loss, start, scales, progress, method=method, steps=steps, rate=rate,
                              betas=betas, tolerance=tolerance, state_file=state_file)
    values = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    optimizer = _optimizer(list(values.values()), method, rate, betas)
    # The line search ends where the next step begins: that loss is not computed again.
    evaluate = _Evaluation(loss, values, keep=method == "lbfgs")
    history: list[float] = []
    best, least = _copies(values), float("inf")
    if state_file is not None and Path(state_file).exists():
        best, least, history = _read_state(Path(state_file), method, values, optimizer)
    saved = time.monotonic()
    converged = _stalled(history, least, method, tolerance)
    try:
        while len(history) < steps and not converged:
            evaluate.step = len(history) + 1
            before = _copies(values)
            current = float(optimizer.step(evaluate))  # type: ignore[arg-type]
            if current < least:
                best, least = before, current
            history.append(current)
            if progress is not None:
                progress(len(history), current, _copies(values))
            converged = _stalled(history, least, method, tolerance)
            if state_file is not None and time.monotonic() - saved > _SAVE_EVERY:
                _write_state(Path(state_file), method, values, optimizer, best, history)
                saved = time.monotonic()
    finally:
        if state_file is not None:
            _write_state(Path(state_file), method, values, optimizer, best, history)
    last = float(evaluate().detach())  # the point after the last step has not been judged yet
    if last < least:
        best, least = _copies(values), last
    return Fit(best, least, tuple(history), converged, len(history))


def _fit_in_scales(loss: Loss, start: Values, scales: Mapping[str, float],
                   progress: Progress | None, **options: Any) -> Fit:
    """`fit` of the values divided by their scales."""
    for name, scale in scales.items():
        if name not in start or not 0 < scale < float("inf"):
            raise ValueError(f"scales.{name}={scale}: must be a positive number for one of "
                             f"{', '.join(start)}")

    def report(step: int, loss_then: float, numbers: Values) -> None:
        if progress is not None:
            progress(step, loss_then, unscaled(numbers, scales))

    found = fit(lambda numbers: loss(unscaled(numbers, scales)),
                {name: value / scales.get(name, 1.0) for name, value in start.items()},
                progress=report, **options)
    return replace(found, values=unscaled(found.values, scales))


def covariance(loss: Loss, values: Values) -> Tensor:
    """Covariance of fitted values: the inverse of the loss's matrix of second derivatives.

    For a negative log-likelihood at its minimum this is the Cramer-Rao estimate.

    Args:
        loss: negative log of a probability density, twice differentiable.
        values: where it is least.

    Returns:
        Matrix (n, n) over all numbers of the values, tensor after tensor in the order of the
        mapping, each flattened.

    Raises:
        ValueError: if a direction exists along which the loss does not curve upwards.
    """
    shapes = {name: value.shape for name, value in values.items()}

    def of_vector(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        return loss({name: part.reshape(shape)
                     for (name, shape), part in zip(shapes.items(), parts, strict=True)})

    point = torch.cat([value.detach().flatten() for value in values.values()])
    hessian = torch.autograd.functional.hessian(of_vector, point)
    scale = hessian.diagonal().abs().sqrt()
    names = [name for name, shape in shapes.items() for _ in range(shape.numel())]
    if not hessian.isfinite().all():
        raise ValueError("covariance: the second derivatives of the loss are not finite")
    if (scale == 0).any():
        flat = {name: None for name, own in zip(names, scale.tolist(), strict=True) if own == 0}
        raise ValueError(f"covariance: the loss does not depend on {', '.join(flat)}")
    # Free of units, so that the smallest eigenvalue means the same for every problem.
    curvatures, directions = torch.linalg.eigh(hessian / (scale[:, None] * scale))
    if curvatures[0] <= 20 * len(point) * torch.finfo(point.dtype).eps:
        share = directions[:, 0].abs()
        flat = {name: None for name, own in zip(names, share.tolist(), strict=True)
                if own > 0.3 * float(share.max())}
        raise ValueError(f"covariance: the loss does not determine {', '.join(flat)} (curvature "
                         f"{float(curvatures[0]):.1e} of the largest along their combination)")
    return (directions / curvatures) @ directions.T / (scale[:, None] * scale)


class _Evaluation:
    """Closure of an optimiser: loss and gradients at the present values."""

    def __init__(self, loss: Loss, values: Values, keep: bool) -> None:
        self.loss, self.values, self.keep = loss, values, keep
        self.step = 0
        self._point: list[Tensor] = []
        self._result: tuple[Tensor, list[Tensor]] | None = None

    def __call__(self) -> Tensor:
        tensors = list(self.values.values())
        if self._result is None or not all(map(torch.equal, self._point, tensors)):
            with torch.enable_grad():
                loss = self.loss(self.values)
                self._check("loss", loss)
                found = torch.autograd.grad(loss, tensors, allow_unused=True)
            for name, gradient in zip(self.values, found, strict=True):
                if gradient is None:
                    raise ValueError(f"start.{name}: the loss does not depend on it")
                self._check(f"gradient of {name}", gradient)
            if self.keep:
                self._point = [tensor.detach().clone() for tensor in tensors]
            self._result = (loss.detach(), [gradient.detach() for gradient in found])
        loss, gradients = self._result
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient.clone()
        if not self.keep:
            self._result = None
        return loss

    def _check(self, what: str, value: Tensor) -> None:
        if not value.isfinite().all():
            number = float(value.detach()[~value.isfinite()].flatten()[0])
            raise ValueError(f"{what}={number:g} at step {self.step}: must be finite; try a "
                             "smaller rate or another start")


def _check(start: Values, method: str, steps: int) -> None:
    if method not in _METHODS:
        raise ValueError(f"method={method!r}: must be one of {', '.join(_METHODS)}")
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    if not start:
        raise ValueError("start: must name at least one tensor")
    for name, value in start.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise ValueError(f"start.{name}: must be finite real numbers")


def _optimizer(tensors: list[Tensor], method: str, rate: float | None,
               betas: tuple[float, float]) -> torch.optim.Optimizer:
    if rate is not None and not rate > 0:
        raise ValueError(f"rate={rate:g}: must be positive")
    if method == "adam":
        return torch.optim.Adam(tensors, lr=rate or 0.01, betas=betas)
    return torch.optim.LBFGS(tensors, lr=rate or 1.0, max_iter=1, max_eval=25,
                             history_size=20, tolerance_grad=0, tolerance_change=0,
                             line_search_fn="strong_wolfe")


def _copies(values: Values) -> Values:
    return {name: value.detach().clone() for name, value in values.items()}


def _stalled(history: list[float], least: float, method: str, tolerance: float) -> bool:
    patience = _PATIENCE[method]
    if len(history) <= patience:
        return False
    return min(history[:-patience]) - least <= tolerance * abs(least)


def _write_state(path: Path, method: str, values: Values, optimizer: torch.optim.Optimizer,
                 best: Values, history: list[float]) -> None:
    state = {"method": method, "values": _copies(values), "optimizer": optimizer.state_dict(),
             "best": best, "history": history}
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    torch.save(state, partial)
    os.replace(partial, path)


def _read_state(path: Path, method: str, values: Values, optimizer: torch.optim.Optimizer,
                ) -> tuple[Values, float, list[float]]:
    """Best values, least loss and history; values and optimiser are set to the state's."""
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
    with torch.no_grad():
        for name, value in values.items():
            value.copy_(state["values"][name])
    optimizer.load_state_dict(state["optimizer"])
    history = state["history"]
    return state["best"], min(history, default=float("inf")), history
