"""Finds of beads in a tilt series: where some poses put them, and how that changes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rotations_of(tilts: Array, axes: Array) -> tuple[Array, Array, Array]:
    """`rotations.tilt_rotation` of each image, and its slopes.

    Args:
        tilts: angles [deg], (n,).
        axes: from +y, counter-clockwise [deg], (n,).

    Returns:
        Three of (n, 3, 3); slopes by tilt and axis [1/deg].
    """
    tilt, axis = np.deg2rad(tilts)[:, None, None], np.deg2rad(axes)
    zero = np.zeros_like(axis)
    way = np.stack([-np.sin(axis), np.cos(axis), zero], 1)
    turn = np.stack([-np.cos(axis), -np.sin(axis), zero], 1)
    c, s, one = np.cos(tilt), np.sin(tilt), np.eye(3)
    square, cross = way[:, :, None] * way[:, None], _cross(way)
    mixed = turn[:, :, None] * way[:, None]
    radian = np.pi / 180
    return (c * one + (1 - c) * square + s * cross,
            radian * (-s * one + s * square + c * cross),
            radian * ((1 - c) * (mixed + mixed.transpose(0, 2, 1)) + s * _cross(turn)))


def _cross(ways: Array) -> Array:
    """Matrices of the cross products with ways, (n, 3, 3)."""
    return np.cross(ways[:, None], np.eye(3), axis=-1).transpose(0, 2, 1)


@dataclass(frozen=True, eq=False)
class Sightings:
    """Finds of beads."""

    places: Array
    """x and y from the images' middle [A], (m, 2)."""
    errors: Array
    """Of each [A], (m,)."""
    image: NDArray[np.int_]
    """From 0, (m,)."""
    bead: NDArray[np.int_]
    """From 0, (m,)."""
    cut: Array
    """See `bead_tracks.views_of`, and 0 [A], (3,)."""

    def seen(self, poses: Mapping[str, Array], points: Array) -> tuple[Array, dict[str, Array]]:
        """Where beads should be, and how that changes.

        Args:
            poses: of the images, (n,).
            points: of the beads [A], (b, 3).

        Returns:
            (m, 2) [A]; slopes by each of the image's numbers, (m, 2), and by the bead's place,
            "point", (m, 2, 3).
        """
        turns = rotations_of(poses["tilt_angle"], poses["axis_angle"])
        of, own = self.image, points[self.bead] + self.cut
        there, by_tilt, by_axis = (np.einsum("mij,mj->mi", turn[of, :2], own) for turn in turns)
        large = poses["magnification"][of, None]
        shifted = there + np.stack([poses["shift_x"], poses["shift_y"]], 1)[of]
        x, y = np.eye(2)
        return large * shifted - self.cut[:2], {
            "shift_x": large * x, "shift_y": large * y, "tilt_angle": large * by_tilt,
            "axis_angle": large * by_axis, "magnification": shifted,
            "point": large[..., None] * turns[0][of, :2]}
