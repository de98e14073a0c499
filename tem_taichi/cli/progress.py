"""How far a long run is: a bar with the time left on a terminal, lines in a log elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from tem_taichi.machine import duration

_EVERY = 30.0
"""Seconds from one line of a log to the next."""

Report = Callable[[int, int | None], None]
"""Called with what is done and how much there is, if that is known."""

Stages = Callable[[str], AbstractContextManager]
"""Called with the name of a stage; what it returns is held during the stage, to time it."""


@contextmanager
def progress(what: str, total: int | None = None, every: float = _EVERY) -> Iterator[Report]:
    """Show on standard output how far something is.

    Args:
        what: is done, in words.
        total: how much there is, if that is known beforehand.
        every: seconds between lines where standard output is no terminal.

    Yields:
        To be called with what is done.
    """
    if Console().is_terminal:
        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(),
                   TimeRemainingColumn())
        with Progress(*columns) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done, of: bar.update(task, completed=done, total=of)
        return
    log = _Log(what, total)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(every):
            log.say()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield log.update
    finally:
        stop.set()
        thread.join()
    log.say()


class _Log:
    """Lines that tell how far a run is."""

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.done, self.begun = what, total, 0, time.monotonic()
        self.out = sys.stdout

    def update(self, done: int, total: int | None) -> None:
        self.done, self.total = done, total

    def say(self) -> None:
        """Print a line, and at once, since a log may be a file."""
        spent, left = time.monotonic() - self.begun, ""
        if self.total and 0 < self.done < self.total:
            left = f", about {duration(spent * (self.total - self.done) / self.done)} left"
        print(f"{self.what} {self.done}/{'?' if self.total is None else self.total} after "
              f"{duration(spent)}{left}", file=self.out, flush=True)
