"""A job whose process is killed, for launchers; of a module that imports next to nothing."""

import os
import signal
from pathlib import Path


def dies_once(marks: str, number: int) -> int:
    """The number; the first time that it is 2 the process is killed."""
    mark = Path(marks) / str(number)
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number
