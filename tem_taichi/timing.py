"""How long the stages of a computation take."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from tem_taichi.device import current

Stages = Callable[[str], AbstractContextManager]
"""Called with the name of a stage; what it returns is held during the stage."""


class Timer:
    """`Stages` that add up their seconds; on a GPU those of the device, which is not waited for."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._on_device: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what happens inside to a stage."""
        device = current().torch_device
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            try:
                yield
            finally:
                end.record(stream)
                self._on_device.append((name, begin, end))
            return
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Count what a stage took, measured elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Of each stage so far; waits for a GPU to finish them."""
        for name, begin, end in self._on_device:
            end.synchronize()
            self.add(name, begin.elapsed_time(end) / 1e3)
        self._on_device.clear()
        return self._seconds
