"""Copies at random without overlap, and copies on spheres and in balls about others."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tem_taichi.rotations import random_rotations
from tem_taichi.specimen.membranes import fibonacci_sphere

Array = NDArray[np.float64]

_ROUNDS = 200
"""Rounds of random proposals before there counts as no more room."""


def adsorbed(
    count: int, own: float, propose: Callable[[int], Array], taken: list[tuple[Array, float]]
) -> Array:
    """Random sequential adsorption of spheres, many proposals at a time.

    Args:
        count: of spheres.
        own: least distance between two of them [A].
        propose: that many random points, (n, 3).
        taken: points, (m, 3), and how far from them spheres must stay [A].

    Returns:
        Centres, (n, 3); n < count where there is no more room.
    """
    accepted = np.empty((0, 3))
    for _ in range(_ROUNDS):
        missing = count - len(accepted)
        if missing == 0:
            break
        proposals = propose(2 * missing + 16)
        for centres, distance in [*taken, (accepted, own)]:
            if len(centres):
                apart, _ = cKDTree(centres).query(proposals)
                proposals = proposals[apart >= distance]
        proposals = _compatible(proposals, own)
        accepted = np.concatenate([accepted, proposals[:missing]])
    return accepted


def too_close(points: Array, own: float, taken: list[tuple[Array, float]]) -> int:
    """How many of some points are closer to another or to what is taken than they may be.

    Args:
        points: (n, 3) [A].
        own: as in `adsorbed`, as is the other.
        taken: see own.
    """
    close = np.zeros(len(points), dtype=bool)
    if len(points) > 1:
        close |= cKDTree(points).query(points, k=2)[0][:, 1] < own
    for centres, distance in taken:
        if len(centres) and len(points):
            close |= cKDTree(centres).query(points)[0] < distance
    return int(close.sum())


def on_sphere(
    count: int, radius: float, own: float, even: bool, turn: Array,
    taken: list[tuple[Array, float]], rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Copies that stand on a sphere about the origin, their z outward.

    Args:
        count: of copies.
        radius: of their centres [A].
        own: least distance between two of them [A], where they are at random.
        even: spread evenly, and turned as a whole at random.
        turn: of every copy before it stands upright, (3, 3).
        taken: as in `adsorbed`.
        rng: source of the random numbers.

    Returns:
        Centres (n, 3) [A] and rotations (n, 3, 3); n < count where there is no more room.
    """
    if even:
        points = radius * fibonacci_sphere(count) @ random_rotations(1, rng)[0].T
    else:
        points = adsorbed(count, own, lambda n: radius * _directions(n, rng), taken)
    # The third column points outward, the others any way.
    upright = random_rotations(len(points), rng)
    up = points / radius
    first = upright[:, :, 0] - (upright[:, :, 0] * up).sum(1, keepdims=True) * up
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return points, np.stack([first, np.cross(up, first), up], axis=-1) @ turn


def in_ball(
    count: int, radius: float, own: float, taken: list[tuple[Array, float]],
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Copies at random in a ball about the origin, turned at random.

    Args:
        count: of copies.
        radius: largest distance of their centres from the origin [A].
        own: as in `adsorbed`, as are the other two.
        taken: see own.
        rng: source of the random numbers.

    Returns:
        As `on_sphere`.
    """
    def propose(n: int) -> Array:
        return radius * np.cbrt(rng.uniform(size=(n, 1))) * _directions(n, rng)

    points = adsorbed(count, own, propose, taken)
    return points, random_rotations(len(points), rng)


def _directions(n: int, rng: np.random.Generator) -> Array:
    z, angle = rng.uniform(-1, 1, n), rng.uniform(0, 2 * math.pi, n)
    rho = np.sqrt(1 - z**2)
    return np.stack([rho * np.cos(angle), rho * np.sin(angle), z], axis=1)


def _compatible(points: Array, distance: float) -> Array:
    """Points of which no two are closer than a distance; of a close pair the first stays."""
    kept = np.zeros(len(points), dtype=bool)
    undecided = ~kept
    if len(points) == 0:
        return points
    first, second = cKDTree(points).query_pairs(distance, output_type="ndarray").reshape(-1, 2).T
    while undecided.any():
        open_pairs = undecided[first] & undecided[second]
        winners = undecided.copy()
        winners[second[open_pairs]] = False
        kept |= winners
        undecided &= ~winners
        undecided[second[winners[first]]] = False
    return points[kept]
