"""A GPU that is none: tensors that say they are elsewhere, and are computed by the CPU.

Whatever would fail on a GPU because tensors are on two devices fails here too, and what waits for a
GPU is counted. torch's device "meta" stands for "cuda", which a torch without CUDA does not know.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from host_waits import WAITING, here
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from tem_taichi import bridge, device

PLACE = torch.device("meta")
COPIES = {"aten::_to_copy", "aten::copy_", "aten::_copy_from"}


class There(torch.Tensor):
    """A tensor on the pretended device."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, tensor: torch.Tensor) -> "There":
        made = torch.Tensor._make_wrapper_subclass(
            cls, tensor.size(), strides=tensor.stride(), storage_offset=tensor.storage_offset(),
            dtype=tensor.dtype, device=PLACE, requires_grad=tensor.requires_grad)
        made.here = tensor
        return made

    def __repr__(self) -> str:
        return f"There({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return _run(func, args, kwargs or {}, Counter())


def _unwrapped(value: Any) -> Any:
    return tree_map(lambda v: v.here if isinstance(v, There) else v, value)


def _run(func: Any, args: Any, kwargs: Any, found: Counter) -> Any:
    name = func.name()
    tensors = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, There)]
    others = [t for t in tensors if not isinstance(t, There) and t.ndim]
    if any(t.device == PLACE and not isinstance(t, There) for t in tensors):
        # Of a list, by torch.tensor or as an index: torch copies it, and waits, out of our sight.
        raise RuntimeError(f"{name}: numbers that torch itself took to the device, {here()}")
    base = name.rpartition(".")[0] if "." in name else name
    if base in COPIES:
        if len(there) and (others or kwargs.get("device", PLACE) != PLACE):
            found[f"{base}: {here()}"] += 1
    elif there and others and not base.startswith("aten::index"):
        raise RuntimeError(f"{name}: tensors on two devices, {here()}")
    elif there and others:
        found[f"{base} by what is on the CPU: {here()}"] += 1
    masks = base.startswith("aten::index") and isinstance(args[1], (list, tuple)) and any(
        t is not None and t.dtype == torch.bool for t in args[1])
    if there and (name in WAITING or masks):
        found[f"{base}: {here()}"] += 1
    asked = kwargs.get("device")
    inside = dict(kwargs)
    if asked is not None and torch.device(asked) == PLACE:
        inside["device"] = torch.device("cpu")
    out = func(*_unwrapped(args), **_unwrapped(inside))
    goes_there = torch.device(asked) == PLACE if asked is not None else bool(there)
    if base == "aten::copy_":
        return args[0]
    if not goes_there:
        return out
    wrapped = tree_map(lambda v: There(v) if isinstance(v, torch.Tensor)
                       and not isinstance(v, There) else v, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


class _Mode(TorchDispatchMode):
    def __init__(self, found: Counter) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return _run(func, args, kwargs or {}, self.found)


def _launch(kernel: Any, *arguments: Any) -> None:
    if len({isinstance(a, There) for a in arguments if isinstance(a, torch.Tensor)}) > 1:
        raise RuntimeError(f"tensors on two devices, {here()}")
    kernel(*_unwrapped(arguments))


@contextmanager
def pretended_gpu() -> Iterator[Counter]:
    """Compute on it, in single precision; gives what waited for it, by what and where."""
    found: Counter = Counter()
    device.init("cpu", "float32")
    with ExitStack() as stack:
        stack.enter_context(patch.object(device, "_current", device.Device(
            "gpu", PLACE, torch.float32)))
        stack.enter_context(patch.object(device, "init", lambda *_: device._current))
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor))
        plain = torch.Tensor.tolist
        stack.enter_context(patch.object(torch.Tensor, "tolist", lambda t: plain(t.cpu())))
        launch = bridge.launch
        for name, module in list(sys.modules.items()):
            if name.startswith("tem_taichi") and getattr(module, "launch", None) is launch:
                stack.enter_context(patch.object(module, "launch", _launch))
        stack.enter_context(_Mode(found))
        yield found
