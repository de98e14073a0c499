"""How torch's threads wait for each other; imports nothing, since it must come before torch.

torch's wheels for Linux bring GNU's OpenMP, whose threads by default spin some milliseconds at
every barrier before they sleep. Beside other programs they then spin in place of the thread that
they wait for, and everything is 15 to 50 times slower. Spinning for a tenth of a millisecond
keeps the speed of an idle machine, which sleeping at once does not (experiments/README.md).
The runtime reads its settings when it is loaded, and never again.
"""

import os
import sys
import warnings

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables that decide it; whichever the user sets, ours is not."""

_SPINS = "10000"

_too_late = False


def set_waiting() -> None:
    """Let threads sleep soon, if torch is still to be loaded and the user has no other wish."""
    global _too_late
    if not any(name in os.environ for name in SETTINGS):
        _too_late = "torch" in sys.modules
        if not _too_late:
            os.environ["GOMP_SPINCOUNT"] = _SPINS


def warn_if_too_late(threads: int) -> None:
    """Warn once if torch was loaded first, so that its threads spin.

    Args:
        threads: that torch uses.
    """
    global _too_late
    if _too_late and threads > 1 and sys.platform == "linux":
        _too_late = False
        warnings.warn(
            "torch was imported before tem_taichi, so that its threads spin while they wait: "
            "beside other programs everything will be slow. Import tem_taichi first, or set "
            "GOMP_SPINCOUNT=10000 or OMP_NUM_THREADS=1 in the environment", stacklevel=3)


def waiting() -> dict[str, str]:
    """The settings in use, as the environment has them."""
    return {name: os.environ[name] for name in SETTINGS if name in os.environ}
