"""Straight filaments: copies of a subunit that rise and turn along an axis."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]

_PROPOSALS = 16
"""Filaments proposed at once."""

_ROUNDS = 200
"""Rounds of proposals in vain before a specimen counts as full."""


def helix(n: int, rise: float, twist: float) -> tuple[Array, Array]:
    """Poses of n subunits along +z, symmetric about the origin.

    Args:
        n: number of subunits; of an odd number the middle one stays as it is.
        rise: from one to the next [A].
        twist: turn about +z from one to the next [deg]; positive = right-handed helix.

    Returns:
        Heights (n,) [A], and matrices (n, 3, 3) that turn the subunit.
    """
    steps = np.arange(n) - (n - 1) / 2
    heights = np.asarray(steps * rise, dtype=np.float64)
    turns = Rotation.from_rotvec(np.deg2rad(steps * twist)[:, None] * [0.0, 0.0, 1.0])
    return heights, turns.as_matrix()


def along_filaments(
    middles: Array, rotations: Array, heights: Array, turns: Array
) -> tuple[Array, Array]:
    """Poses of all subunits of some filaments, one filament after the other.

    Args:
        middles: of the filaments [A], shape (m, 3).
        rotations: take the filament's axis z to the specimen, shape (m, 3, 3).
        heights: of the subunits along the axis [A], shape (n,), see `helix`.
        turns: of the subunits, shape (n, 3, 3).

    Returns:
        Points on the axis (m n, 3) [A] and rotations (m n, 3, 3) of the subunits.
    """
    points = middles[:, None] + heights[:, None] * rotations[:, None, :, 2]
    turned = rotations[:, None] @ turns
    return points.reshape(-1, 3), turned.reshape(-1, 3, 3)


def random_filaments(
    count: int, half: Array, heights: Array, clearances: list[tuple[Array, float]], own: float,
    inclination: float, rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Filaments at random without overlap, nearly in the plane of the ice.

    Their direction in the plane and their turn about the axis are uniform, as is the angle to the
    plane up to the largest at which both ends stay inside.

    Args:
        count: number of filaments.
        half: bounds of |x| and |y| of the middles, and of |z| of all subunits [A], shape (3,).
        heights: of the subunits along the axis [A], shape (n,).
        clearances: points, shape (m, 3), and how far from them subunits must stay [A].
        own: how far from those of other filaments they must stay [A].
        inclination: largest angle to the plane [deg].
        rng: source of the random numbers.

    Returns:
        Middles (m, 3) [A] and rotations (m, 3, 3); m < count where there is no more room.
    """
    trees = [(cKDTree(points), distance) for points, distance in clearances if len(points)]
    middles, rotations = np.empty((0, 3)), np.empty((0, 3, 3))
    end = np.abs(heights).max()
    steepest = np.deg2rad(inclination)
    if end * np.sin(steepest) > half[2]:
        steepest = np.arcsin(half[2] / end)
    in_vain = 0
    while len(middles) < count and in_vain < _ROUNDS:
        azimuth, turn = rng.uniform(0, 360, (2, _PROPOSALS))
        slope = rng.uniform(-steepest, steepest, _PROPOSALS)
        reach = half[2] - end * np.abs(np.sin(slope))
        middle = rng.uniform(-1, 1, (_PROPOSALS, 3)) * np.stack(
            [np.full(_PROPOSALS, half[0]), np.full(_PROPOSALS, half[1]), reach], axis=1)
        matrix = Rotation.from_euler(
            "ZYZ", np.stack([azimuth, 90 - np.rad2deg(slope), turn], axis=1),
            degrees=True).as_matrix()
        points = middle[:, None] + heights[:, None] * matrix[:, None, :, 2]
        free = np.ones(_PROPOSALS, dtype=bool)
        for tree, distance in trees:
            free[free] = (tree.query(points[free])[0] >= distance).all(axis=1)
        if not free.any():
            in_vain += 1
            continue
        first = int(np.argmax(free))  # those after it may overlap with it
        middles = np.concatenate([middles, middle[first:first + 1]])
        rotations = np.concatenate([rotations, matrix[first:first + 1]])
        trees.append((cKDTree(points[first]), own))
        in_vain = 0
    return middles, rotations
