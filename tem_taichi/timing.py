"""How long the stages of a computation take."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from tem_taichi.device import current

Stages = Callable[[str], AbstractContextManager]
"""Called with the name of a stage; what it returns is held during the stage."""


class Timer:
    """`Stages` that add up their seconds; a GPU has finished at the end of each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what happens inside to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if current().torch_device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
