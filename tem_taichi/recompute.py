"""Gradients through many like steps in the memory of one."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch.autograd.function import once_differentiable

T = TypeVar("T")


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors in nested dataclasses and tuples, in a fixed order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    if is_dataclass(value):
        return [tensor for f in fields(value) for tensor in tensors_in(getattr(value, f.name))]
    return []


def with_tensors(value: T, tensors: Iterator[torch.Tensor]) -> T:
    """The same with other tensors, in the order of `tensors_in`."""
    if isinstance(value, torch.Tensor):
        return next(tensors)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(with_tensors(item, tensors) for item in value)  # type: ignore[return-value]
    if is_dataclass(value) and tensors_in(value):
        return replace(value, **{f.name: with_tensors(getattr(value, f.name), tensors)  # type: ignore[type-var]
                                 for f in fields(value)})
    return value


class _Steps(torch.autograd.Function):
    # Not torch's checkpoint of each step: the small objects of its graph, made between large
    # tensors, keep the C allocator from joining what is free, and ten times the slices took
    # 1.4 times the memory.
    @staticmethod
    def forward(ctx: Any, step: Callable, n: int, state: torch.Tensor,
                *parameters: torch.Tensor) -> torch.Tensor:
        kept = state.new_empty((n, *state.shape))
        for i in range(n):
            kept[i].copy_(state)
            state = step(state, i, *parameters)
        ctx.step = step
        ctx.save_for_backward(kept, *parameters)
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple:
        kept, *saved = ctx.saved_tensors
        grad, needed = grads[0], ctx.needs_input_grad[3:]
        parameters = [p.detach().requires_grad_(need)
                      for p, need in zip(saved, needed, strict=True)]
        wanted = [p for p in parameters if p.requires_grad]
        sums = [torch.zeros_like(p) for p in wanted]
        for i in reversed(range(len(kept))):
            with torch.enable_grad():
                state = kept[i].detach().requires_grad_()
                after = ctx.step(state, i, *parameters)
            if i == len(kept) - 1:
                _check_leaves(after, [state, *wanted])
            grad, *parts = torch.autograd.grad(after, [state, *wanted], grad, allow_unused=True)
            del after
            for total, part in zip(sums, parts, strict=True):
                if part is not None:
                    total += part
        found = iter(sums)
        return None, None, grad, *(next(found) if need else None for need in needed)


def _check_leaves(result: torch.Tensor, known: list[torch.Tensor]) -> None:
    """ValueError if a result depends on another tensor that requires a gradient."""
    nodes, seen = [result.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and not any(leaf is one for one in known):
            raise ValueError(
                f"a tensor of shape {tuple(leaf.shape)} requires a gradient but would lose it, as "
                "many slices are computed again on the way back: must be in a field of a "
                "dataclass that the specimen or instrument is made of, or in a tuple there")
        nodes += [following for following, _ in node.next_functions]


def recomputed(
    step: Callable[..., torch.Tensor], n: int, state: torch.Tensor, *parameters: torch.Tensor
) -> torch.Tensor:
    """`step(... step(step(state, 0, *parameters), 1, *parameters) ..., n - 1, *parameters)`.

    On the way back each step is computed again: only the n states are kept.

    Args:
        step: of a state, its number and the parameters to the next state of the same shape and
            type, without other tensors that need gradients.
        n: number of steps.
        state: the first.
        *parameters: tensors of which the steps are functions.

    Returns:
        The last state, once differentiable in the first one and the parameters.
    """
    if not any(tensor.requires_grad for tensor in (state, *parameters)):
        # Nothing to compute again for; what the steps may know beside the parameters keeps its own.
        for i in range(n):
            state = step(state, i, *parameters)
        return state
    return _Steps.apply(step, n, state, *parameters)
