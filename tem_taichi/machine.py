"""What this machine, or the container that the program runs in, has to offer."""

import math
from pathlib import Path

import psutil

_CGROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory_limit() -> float:
    """Memory that this process may come to use [bytes]: the machine's, or its container's."""
    return min([float(psutil.virtual_memory().total), *_cgroup_limits()])


def _cgroup_limits() -> list[float]:
    """Limits of the process's control groups and all above them, of version 1 or 2 [bytes]."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = _CGROUPS / controllers
            file = "memory.limit_in_bytes" if controllers else "memory.max"
            # A container may show its own group as the root of all.
            here = root / path.lstrip("/")
            limits += [_number(folder / file) for folder in (here, *here.parents)
                       if folder == root or root in folder.parents]
    return limits


def _number(file: Path) -> float:
    """Content of a limit's file; infinite where there is none."""
    try:
        text = file.read_text().strip()
    except OSError:
        return math.inf
    return float(text) if text.isdigit() else math.inf


def check_memory(key: str, needed: float, remedy: str) -> None:
    """Refuse what cannot fit, before it is made.

    Args:
        key: what asks for it, as KEY=VALUE.
        needed: memory [bytes].
        remedy: what to change.

    Raises:
        ValueError: if there is not so much.
    """
    there = memory_limit()
    if needed > there:
        raise ValueError(f"{key}: needs about {size(needed)} of memory, this machine or container "
                         f"has {size(there)}: {remedy}")


def size(amount: float) -> str:
    """An amount of memory in GB, for people."""
    return f"{amount / 1e9:,.1f} GB" if amount < 1e12 else f"{amount / 1e9:,.0f} GB"


def duration(seconds: float) -> str:
    """A time for people."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.3g} {unit}" if seconds < 1e9 else "more than 30 years"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
