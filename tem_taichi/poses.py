"""Orientations of particles: RELION's rot, tilt and psi, and rotation matrices.

RELION's matrix (Euler_angles2matrix, intrinsic ZYZ in its passive form) takes a point of the
reference particle to its place in the specimen: specimen = matrix @ reference, columns (x, y, z).
It is the inverse of the active rotation Rz(rot) Ry(tilt) Rz(psi).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def euler_to_matrix(rot: ArrayLike, tilt: ArrayLike, psi: ArrayLike) -> Array:
    """Rotation matrices that take reference coordinates to the specimen frame.

    Args:
        rot: first angle, about z [deg], shape (n,); as rlnAngleRot.
        tilt: second angle, about the new y [deg], shape (n,); as rlnAngleTilt.
        psi: third angle, about the new z [deg], shape (n,); as rlnAnglePsi.

    Returns:
        Matrices acting on columns (x, y, z), shape (n, 3, 3).
    """
    angles = (np.deg2rad(np.asarray(angle, dtype=np.float64)) for angle in (rot, tilt, psi))
    a, b, c = np.broadcast_arrays(*angles)
    cos_a, cos_b, cos_c = np.cos(a), np.cos(b), np.cos(c)
    sin_a, sin_b, sin_c = np.sin(a), np.sin(b), np.sin(c)
    rows = (
        (cos_c * cos_b * cos_a - sin_c * sin_a, cos_c * cos_b * sin_a + sin_c * cos_a,
         -cos_c * sin_b),
        (-sin_c * cos_b * cos_a - cos_c * sin_a, -sin_c * cos_b * sin_a + cos_c * cos_a,
         sin_c * sin_b),
        (sin_b * cos_a, sin_b * sin_a, cos_b),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_euler(matrix: ArrayLike) -> tuple[Array, Array, Array]:
    """Angles of rotation matrices, the inverse of `euler_to_matrix`.

    Where tilt is 0 or 180 deg, rot and psi are not unique; the pair returned still gives the
    matrix back.

    Args:
        matrix: rotations from the reference to the specimen frame, shape (n, 3, 3).

    Returns:
        rot in [-180, 180], tilt in [0, 180] and psi in [-180, 180] [deg], each of shape (n,).

    Raises:
        ValueError: if a matrix is not a rotation.
    """
    m = np.asarray(matrix, dtype=np.float64)
    if m.ndim < 2 or m.shape[-2:] != (3, 3):
        raise ValueError(f"matrix: shape {m.shape} must be (n, 3, 3)")
    unitary = np.allclose(m @ np.swapaxes(m, -1, -2), np.eye(3), rtol=0, atol=1e-5)
    if not (unitary and np.all(np.linalg.det(m) > 0)):
        raise ValueError("matrix: must be rotations (orthogonal, determinant +1)")
    rot = np.arctan2(m[..., 2, 1], m[..., 2, 0])
    tilt = np.arctan2(np.hypot(m[..., 2, 0], m[..., 2, 1]), m[..., 2, 2])
    # psi from what is left once rot is undone: exact even where tilt is near 0 and rot is noise.
    sin, cos = np.sin(rot), np.cos(rot)
    psi = np.arctan2(m[..., 0, 1] * cos - m[..., 0, 0] * sin,
                     m[..., 1, 1] * cos - m[..., 1, 0] * sin)
    return np.rad2deg(rot), np.rad2deg(tilt), np.rad2deg(psi)


def random_rotations(n: int, rng: np.random.Generator) -> Array:
    """Rotations drawn uniformly from SO(3).

    The invariant measure is sin(tilt) d(rot) d(tilt) d(psi), so cos(tilt) is uniform.

    Args:
        n: number of rotations, 0 or more.
        rng: source of the random numbers.

    Returns:
        Matrices as from `euler_to_matrix`, shape (n, 3, 3).
    """
    rot, psi = rng.uniform(-180, 180, (2, n))
    return euler_to_matrix(rot, np.rad2deg(np.arccos(rng.uniform(-1, 1, n))), psi)
