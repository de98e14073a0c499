"""What all commands share: exit statuses, signals that ask to stop, and readers that go away."""

import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

_SIGNALS = ("SIGTERM", "SIGHUP")
"""What schedulers and closing terminals send before they kill."""


def expand_home(word: str) -> str:
    """KEY=~/NAME as bash gives it, for shells and lists where ~ is left as it is."""
    home = os.path.expanduser("~").replace("\\", "/")
    return re.sub(r"(?<=[=\[,])~(?=/)", lambda _: home, word)


class Stopped(KeyboardInterrupt):
    """A signal asked the command to stop; cleaned up after as Ctrl-C is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def guarded(work: Callable[[], None], interrupted: str) -> int:
    """Do a command's work.

    Args:
        work: raises ValueError with one line for wrong input.
        interrupted: what to say where it is stopped by a KeyboardInterrupt without a text.

    Returns:
        The exit status: 0; 2 for wrong input, said in one line; 130 after Ctrl-C; 128 + number
        after SIGTERM and SIGHUP, as shells count them. Where nobody reads what is printed any
        more, the work goes on without a word.
    """
    with _signals_raise(), _streams_may_close(), _warnings_in_one_line():
        try:
            work()
        except (ValueError, OSError, OverflowError, MemoryError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            print(f"error: {text}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stop:
            print(f"interrupted: {str(stop) or interrupted}", file=sys.stderr)
            return 128 + _signal(stop)
        return 0


def _signal(stop: BaseException | None) -> int:
    """Number of the signal that began a chain of interruptions."""
    while stop is not None:
        if isinstance(stop, Stopped):
            return stop.number
        stop = stop.__cause__
    return signal.SIGINT


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Signals that would kill the program raise `Stopped`; those that somebody handles do not."""
    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not cut the cleaning short
        raise Stopped(number)

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    taken = [number for number in numbers
             if _in_main_thread() and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


class _Lasting:
    """A stream that falls silent for good when its reader goes away, as in `... | head`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except BrokenPipeError:
            self._fall_silent()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._fall_silent()

    def _fall_silent(self) -> None:
        """What is still buffered, and all that follows, goes nowhere; at Python's end too."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def _streams_may_close() -> Iterator[None]:
    """Results go into files: what cannot be printed is no reason to lose them."""
    if not _in_main_thread() or sys.stdout is None or sys.stderr is None:
        yield
        return
    # Taichi takes a standard output that is not the process's own for a notebook's, and says so.
    os.environ.setdefault("TI_ENABLE_PYBUF", "0")
    out, err = _Lasting(sys.stdout), _Lasting(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            out.flush()
            err.flush()


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    def show(message: Warning | str, *_: object) -> None:
        print("warning: " + " ".join(str(message).split()), file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield
