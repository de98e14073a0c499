"""Damped Fisher scoring: Levenberg's steps of score over information up a log-likelihood."""

from collections.abc import Callable
from typing import TypeVar

_DAMPING = 0.03  # of the first step, relative to the information
_TRIALS = 6  # of a step, each shorter and steeper than the one before

At = TypeVar("At")
Parts = TypeVar("Parts")


def climb(at: At, value: Callable[[At], float], parts: Callable[[At], Parts],
          moved: Callable[[At, Parts, float], At], converged: float,
          steps: int) -> tuple[At, float]:
    """The parameters to which such steps lead.

    Args:
        at: parameters to start from.
        value: log-likelihood of parameters.
        parts: score and information there, in whatever form `moved` takes them.
        moved: parameters after a step, from those, their parts and the damping: by how many times
            itself the diagonal of the information is larger.
        converged: gain with which it is done.
        steps: most steps.

    Returns:
        Parameters and their value, never below that of the start.
    """
    best, damping = value(at), _DAMPING
    for _ in range(steps):
        here = parts(at)
        for _ in range(_TRIALS):
            trial = moved(at, here, damping)
            gained = value(trial) - best
            if gained > 0:
                break
            damping *= 10
        else:
            break
        at, best, damping = trial, best + gained, damping / 10
        if gained < converged:
            break
    return at, best
