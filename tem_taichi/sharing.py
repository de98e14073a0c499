"""As many of torch's threads as there are cores that other programs leave free.

Two threads that wait for each other in every product are slowed sixfold where another program
runs on one of their cores, one thread not at all. So a simulation looks before each image what
the others took meanwhile, and goes on with fewer threads or with more. A number of threads set by
the user stays: OMP_NUM_THREADS or MKL_NUM_THREADS in the environment, or torch.set_num_threads
with fewer than torch would take by itself.
"""

import os
import time
from types import TracebackType

import psutil
import torch

_SHORTEST = 0.2
"""Time over which use is measured at the least [s]; clocks of processes tick in hundredths."""


def _now() -> tuple[float, float, float]:
    """The time, what all processes have used of all cores, and what this one has [s]."""
    used = psutil.cpu_times()
    idle = used.idle + getattr(used, "iowait", 0.0)
    guest = getattr(used, "guest", 0.0) + getattr(used, "guest_nice", 0.0)  # in user already
    return time.monotonic(), sum(used) - idle - guest, time.process_time()


_start = _now()


def free_cores(since: tuple[float, float, float], until: tuple[float, float, float]) -> int:
    """Cores that other processes left free between two moments, at least 1."""
    wall, used, own = (end - begin for begin, end in zip(since, until, strict=True))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, round((cores or 1) - max(used - own, 0.0) / wall))


class Sharing:
    """Holds torch to the free cores while it is entered; called, it looks again.

    `counts` are the numbers of threads that were used.
    """

    def __init__(self) -> None:
        self.counts: list[int] = []
        self._most = torch.get_num_threads()
        self._fixed = any(name in os.environ for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
        self._since = _start

    def __enter__(self) -> "Sharing":
        self()
        return self

    def __call__(self) -> None:
        """Take as many threads as there are free cores, of those that torch had at first."""
        now = _now()
        if not self._fixed and self._most > 1 and now[0] - self._since[0] >= _SHORTEST:
            threads = min(self._most, free_cores(self._since, now))
            if threads != torch.get_num_threads():
                torch.set_num_threads(threads)
            self._since = now
        if torch.get_num_threads() not in self.counts:
            self.counts.append(torch.get_num_threads())

    def may_take(self, threads: int) -> bool:
        """Whether this run might have come to a number of threads by itself."""
        return threads == self._most if self._fixed else 1 <= threads <= self._most

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        if torch.get_num_threads() != self._most:
            torch.set_num_threads(self._most)
