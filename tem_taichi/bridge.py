"""The only place where kernels meet torch.autograd.

A stage is a Taichi kernel, or a function decorated with `ti.ad.grad_replaced` that launches
kernels and brings its adjoint. It takes tensors and plain arguments and writes its last argument.
Called under a Taichi tape it is recorded there; `differentiable` makes it a torch function.
"""

import os
import threading
from collections.abc import Callable
from typing import Any

import taichi as ti
import torch
from torch.autograd.function import once_differentiable

_TAICHI = threading.RLock()
"""Taichi compiles and launches for the whole process: one thread at a time."""


def _plain(value: Any) -> Any:
    """A fresh view: gradients that torch keeps on its own tensors must not be added to."""
    return value.detach() if isinstance(value, torch.Tensor) else value


class _Stage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stage: Any, out: torch.Tensor, *inputs: Any) -> torch.Tensor:
        out = out.detach()
        with _TAICHI:
            stage(*map(_plain, inputs), out)
        # Saved by torch, so that checkpoints may drop them and make them again.
        ctx.stage = stage
        ctx.save_for_backward(*(i for i in inputs if isinstance(i, torch.Tensor)))
        ctx.others = [None if isinstance(i, torch.Tensor) else i for i in inputs]
        return out.view_as(out)

    @staticmethod
    @once_differentiable  # an adjoint is no stage: its own gradient would be silently zero
    def backward(ctx: Any, *output_grads: torch.Tensor) -> tuple:
        tensors = iter(ctx.saved_tensors)
        needed = ctx.needs_input_grad[2:]
        inputs = [_plain(next(tensors)) if other is None else other for other in ctx.others]
        for value, wanted in zip(inputs, needed, strict=True):
            if wanted:
                value.grad = torch.zeros_like(value)
        # What the stage wrote is not kept: its adjoint knows only its gradient.
        out = torch.empty_like(output_grads[0])
        out.grad = output_grads[0].contiguous()
        with _TAICHI:
            ctx.stage.grad(*inputs, out)
        return None, output_grads[0], *(value.grad if wanted else None
                                        for value, wanted in zip(inputs, needed, strict=True))


def launch(kernel: Callable, *arguments: Any) -> None:
    """Run a kernel on torch tensors, in the order of torch's current stream and without copies.

    Taichi launches on the null stream of the first CUDA device and waits for nothing (see
    tests/reference/fake_cuda.c). That is torch's default stream. With another one in use, events
    order the two on the device; the processor waits only if TEM_TAICHI_SYNCHRONIZE is 1 in the
    environment, or if torch's default stream is not the null stream.

    Args:
        kernel: of Taichi.
        *arguments: tensors, contiguous and all on the device in use, and plain numbers.

    Raises:
        ValueError: if tensors are on different devices: Taichi would copy them to and fro.
    """
    devices = {a.device for a in arguments if isinstance(a, torch.Tensor)}
    if len(devices) > 1:
        raise ValueError(f"tensors on {', '.join(sorted(map(str, devices)))}: must be on one "
                         "device")
    device = devices.pop() if devices else None
    if device is None or device.type != "cuda":
        kernel(*arguments)
        return
    null, stream = torch.cuda.default_stream(device), torch.cuda.current_stream(device)
    if os.environ.get("TEM_TAICHI_SYNCHRONIZE") == "1" or null.cuda_stream != 0:
        torch.cuda.synchronize(device)
        kernel(*arguments)
        ti.sync()
    elif stream == null:
        kernel(*arguments)
    else:
        null.wait_stream(stream)
        kernel(*arguments)
        stream.wait_stream(null)


def differentiable(stage: Callable, out: torch.Tensor, *inputs: Any) -> torch.Tensor:
    """Run `stage(*inputs, out)` and return out as a differentiable function of the inputs.

    Args:
        stage: writes `out`, once, or adds to it. Its adjoint reads `out.grad` and adds to the
            `.grad` of those inputs that have one; it does not need the values of `out`.
        out: tensor of the result's shape, fresh or returned by a stage that added to it.
        *inputs: tensors, contiguous where a kernel reads them, and plain arguments, not None.

    Returns:
        out, with a gradient to every real or complex input tensor.
    """
    if torch.is_grad_enabled() and any(
            isinstance(i, torch.Tensor) and i.requires_grad for i in (out, *inputs)):
        return _Stage.apply(stage, out, *inputs)
    with _TAICHI:
        stage(*map(_plain, inputs), out)
    return out
