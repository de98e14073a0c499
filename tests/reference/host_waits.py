"""Where a computation would have the processor wait for a GPU, found on a CPU.

Whatever gives Python a number of a tensor, or needs one to know the size of a result, waits until
the device has computed it.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tem_taichi

PACKAGE = Path(tem_taichi.__file__).parent
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select",
           "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
           "aten::repeat_interleave.Tensor", "aten::bincount"}


def here() -> str:
    """The line of the package that asks, and those that called it."""
    frames = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(PACKAGE)]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[:-7:-1])


class _Count(TorchDispatchMode):
    def __init__(self, found: Counter) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.name()
        masks = name.startswith("aten::index") and any(
            t is not None and t.dtype == torch.bool for t in args[1] if isinstance(args[1], list))
        if name in WAITING or masks:
            self.found[f"{name.removeprefix('aten::')}: {here()}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_waits() -> Iterator[Counter]:
    """Count them inside, by what asks and where."""
    found: Counter = Counter()

    def counted(name):  # type: ignore[no-untyped-def]
        method = getattr(torch.Tensor, name)

        def call(tensor, *args, **kwargs):  # type: ignore[no-untyped-def]
            found[f"{name}: {here()}"] += 1
            return method(tensor, *args, **kwargs)
        return call

    with ExitStack() as stack:
        for name in ("cpu", "tolist", "numpy", "__array__"):
            stack.enter_context(patch.object(torch.Tensor, name, counted(name)))
        stack.enter_context(_Count(found))
        yield found
