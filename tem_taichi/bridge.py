"""The only place where kernels meet torch.autograd.

A stage is a Python function of tensors that writes its last argument: it launches Taichi
kernels, or is decorated with `ti.ad.grad_replaced` and brings its adjoint,
which adds to the `.grad` of those inputs that have one. `differentiable`
runs a stage on a Taichi tape and hands the vector-Jacobian product to torch.
"""

from collections.abc import Callable
from typing import Any

import taichi as ti
import torch
from taichi.lang import impl


class VjpTape(ti.ad.Tape):
    """A tape whose seed is the gradient of any output, not of a one-element loss."""

    def __init__(self) -> None:
        super().__init__()
        self.runtime = impl.get_runtime()

    def __enter__(self) -> "VjpTape":
        self.entered = True
        self.runtime.target_tape = self
        return self

    def __exit__(self, *exception: object) -> None:
        self.runtime.target_tape = None

    def grad(self) -> None:
        """Replay the recorded calls backwards through their adjoints."""
        for function, arguments in reversed(self.calls):
            function.grad(*arguments)


class _Stage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stage: Callable, out: torch.Tensor, *inputs: Any) -> torch.Tensor:
        # Fresh views: gradients that torch keeps on its own tensors must not be added to.
        leaves = [i.detach() if isinstance(i, torch.Tensor) else i for i in inputs]
        out = out.detach()
        with VjpTape() as tape:
            stage(*leaves, out)
        ctx.tape, ctx.leaves, ctx.out = tape, leaves, out
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *output_grads: torch.Tensor) -> tuple:
        wanted = [leaf for leaf, needed in zip(ctx.leaves, ctx.needs_input_grad[2:], strict=True)
                  if needed]
        for slot in wanted:
            slot.grad = torch.zeros_like(slot)
        ctx.out.grad = output_grads[0].contiguous()
        ctx.tape.grad()
        gradients = [leaf.grad if needed else None for leaf, needed
                     in zip(ctx.leaves, ctx.needs_input_grad[2:], strict=True)]
        for slot in [*wanted, ctx.out]:
            slot.grad = None
        return None, output_grads[0], *gradients


def launch(kernel: Callable, *arguments: Any) -> None:
    """Run a kernel on torch tensors; on a GPU Taichi's and torch's streams wait for each other."""
    on_gpu = any(isinstance(a, torch.Tensor) and a.is_cuda for a in arguments)
    if on_gpu:
        torch.cuda.synchronize()
    kernel(*arguments)
    if on_gpu:
        ti.sync()


def differentiable(stage: Callable, out: torch.Tensor, *inputs: Any) -> torch.Tensor:
    """Run stage(*inputs, out) and return out as a differentiable function of the inputs.

    Args:
        stage: writes `out`, once, or adds to it.
        out: tensor of the result's shape, fresh or returned by a stage that added to it.
        *inputs: tensors, contiguous where a kernel reads them, and plain arguments.

    Returns:
        out, with a gradient to every real or complex input tensor.
    """
    if torch.is_grad_enabled() and any(
            isinstance(i, torch.Tensor) and i.requires_grad for i in inputs):
        return _Stage.apply(stage, out, *inputs)
    stage(*(i.detach() if isinstance(i, torch.Tensor) else i for i in inputs), out)
    return out
