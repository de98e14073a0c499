"""Where and in which precision everything runs: the only call of ti.init."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import taichi as ti
import torch
from taichi.lang import impl, misc

from tem_taichi.waiting import warn_if_too_late

_ARCHES = ("auto", "cpu", "gpu")
_DTYPES = {"float32": (torch.float32, ti.f32), "float64": (torch.float64, ti.f64)}


@dataclass(frozen=True)
class Device:
    """The device in use: where tensors live and their real dtype."""

    arch: str
    torch_device: torch.device
    dtype: torch.dtype

    @property
    def complex_dtype(self) -> torch.dtype:
        """Complex dtype of the same precision."""
        return torch.complex64 if self.dtype == torch.float32 else torch.complex128


_current: Device | None = None
_process = os.getpid()
"""That in which Taichi was started."""
_starting = threading.Lock()


def init(arch: str = "auto", dtype: str = "float32") -> Device:
    """Start Taichi; optional, since the first computation does it with the defaults.

    Args:
        arch: "cpu", "gpu" (CUDA) or "auto", which takes the GPU where torch sees one.
        dtype: "float32" or "float64", the precision of every array.

    Returns:
        The device now in use.

    Raises:
        ValueError: if arch or dtype is not one of these, or no GPU is found for arch="gpu".
        RuntimeError: in a process forked after the start.
    """
    global _current, _process
    if arch not in _ARCHES:
        raise ValueError(f"arch={arch!r}: must be one of {', '.join(_ARCHES)}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype!r}: must be one of {', '.join(_DTYPES)}")
    cuda = torch.cuda.is_available()
    if arch == "gpu" and not cuda:
        raise ValueError("arch='gpu': torch finds no CUDA device; use 'cpu' or 'auto'")
    torch_dtype, ti_dtype = _DTYPES[dtype]
    on_gpu = cuda and arch != "cpu"
    # Taichi knows only the first CUDA device; CUDA_VISIBLE_DEVICES says which that is.
    place = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    wanted = Device("gpu" if on_gpu else "cpu", place, torch_dtype)
    if not on_gpu:
        warn_if_too_late(torch.get_num_threads())
    _check_process()
    with _starting:
        if wanted != _current:
            _start(on_gpu, ti_dtype)
            _current, _process = wanted, os.getpid()
    return wanted


def _start(on_gpu: bool, ti_dtype: object) -> None:
    # ti.init greets by print(), on standard output, which belongs to the program that uses us; to
    # redirect that would silence the program's other threads too.
    misc.print = lambda *_, **__: None
    try:
        # Warnings are of its cache of kernels, which runs side by side lock for a moment.
        # On a GPU fast_math makes sin and cos of float32 the hardware's, which are off by 5e-7
        # within half a turn and by more beyond.
        ti.init(arch=ti.cuda if on_gpu else ti.cpu, default_fp=ti_dtype, offline_cache=True,
                fast_math=not on_gpu, log_level=ti.ERROR)
    finally:
        del misc.print
    # Taichi starts its runtime with the first kernel, and only the thread that called ti.init may
    # do that; later kernels may come from others, such as torch's backward.
    impl.get_runtime().materialize()


def _check_process() -> None:
    if _current is not None and os.getpid() != _process:
        raise RuntimeError(
            "tem_taichi had begun to compute before this process was forked, and its threads are "
            "not in it: start processes by spawn, as multiprocessing.get_context(\"spawn\") or "
            "DataLoader(..., multiprocessing_context=\"spawn\")")


def current() -> Device:
    """The device in use, started with the defaults if nothing started it yet.

    Raises:
        RuntimeError: in a process forked after the start, where a kernel would wait for ever.
    """
    _check_process()
    return _current or init()


_many_threads: bool | None = None
"""What `kernels_for_a_gpu` says; not of one thread, since torch's backward has its own."""


def many_threads() -> bool:
    """Whether stages take the kernels that are made for thousands of threads: on a GPU."""
    return current().arch == "gpu" if _many_threads is None else _many_threads


@contextmanager
def kernels_for_a_gpu(taken: bool = True) -> Iterator[None]:
    """Take the kernels made for a GPU, or for a CPU, wherever they run: to test and compare them.

    Args:
        taken: whether those for a GPU.
    """
    global _many_threads
    before, _many_threads = _many_threads, taken
    try:
        yield
    finally:
        _many_threads = before


def as_tensor(value: object) -> torch.Tensor:
    """Value as a real tensor of the device's dtype; a tensor keeps its gradient."""
    device = current()
    if device.arch == "cpu" or isinstance(value, torch.Tensor):
        return torch.as_tensor(value, dtype=device.dtype, device=device.torch_device)
    # torch waits for a GPU to have done all before, if it copies from ordinary memory.
    if isinstance(value, (int, float)):
        return torch.full((), value, dtype=device.dtype, device=device.torch_device)
    there = torch.as_tensor(value, dtype=device.dtype, device="cpu").pin_memory()
    return there.to(device.torch_device, non_blocking=True)


def number(value: float | torch.Tensor) -> float:
    """Value as a plain number, for checks."""
    return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)


def present(value: float | torch.Tensor) -> bool:
    """Whether a number is given: not zero, or a tensor, whose gradient may be asked for."""
    return isinstance(value, torch.Tensor) or value != 0
