"""Orientations of particles: RELION's rot, tilt and psi, and rotation matrices.

RELION's matrix (Euler_angles2matrix, intrinsic ZYZ in its passive form) takes a point of the
reference particle to its place in the specimen: specimen = matrix @ reference, columns (x, y, z).
It is the inverse of the active rotation Rz(rot) Ry(tilt) Rz(psi).
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from tem_taichi.arguments import check_number, to_field
from tem_taichi.device import as_tensor

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
    angles = np.stack(np.broadcast_arrays(rot, tilt, psi), axis=-1).astype(np.float64)
    if not angles.size:  # which SciPy 1.12 does not turn
        return np.empty((*angles.shape, 3))
    return np.asarray(Rotation.from_euler("ZYZ", angles, degrees=True).inv().as_matrix())


def matrix_to_euler(matrix: ArrayLike) -> tuple[Array, Array, Array]:
    """Angles of rotation matrices, the inverse of `euler_to_matrix`.

    Where tilt is 0 or 180 deg, rot and psi are not unique; the pair returned still gives the
    matrix back.

    Args:
        matrix: rotations from the reference to the specimen frame, shape (n, 3, 3).

    Returns:
        rot in [-180, 180], tilt in [0, 180] and psi in [-180, 180], in degrees, each of shape (n,).

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
    # psi from what is left once rot is undone: exact even where tilt is near 0 and rot is noise,
    # where SciPy's angles give another matrix, 1e-7 off, and a warning.
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


def tilt_rotation(
    tilt_angle: float | torch.Tensor, axis_angle: float | torch.Tensor = 0.0
) -> torch.Tensor:
    """Rotation that takes specimen coordinates to those of the tilted image frame.

    Args:
        tilt_angle: [deg], right-handed about the axis.
        axis_angle: of the tilt axis from +y, counter-clockwise [deg].

    Returns:
        Matrix (3, 3), differentiable in both angles.
    """
    for name, angle in (("tilt_angle", tilt_angle), ("axis_angle", axis_angle)):
        check_number(name, angle, "deg")
    tilt, axis = (torch.deg2rad(as_tensor(angle)) for angle in (tilt_angle, axis_angle))
    ux, uy = -torch.sin(axis), torch.cos(axis)
    c, s = torch.cos(tilt), torch.sin(tilt)
    rows = [c + ux * ux * (1 - c), ux * uy * (1 - c), uy * s,
            ux * uy * (1 - c), c + uy * uy * (1 - c), -ux * s,
            -uy * s, ux * s, c]
    return torch.stack(rows).reshape(3, 3)


def rotation_from_vector(vector: torch.Tensor) -> torch.Tensor:
    """Rotation about a vector by its length, right-handed: exp of its cross-product matrix.

    A pose is refined as rotation_from_vector(v) @ rotation with v = 0 to start from, which has
    a gradient in every direction, unlike angles at their poles.

    Args:
        vector: [rad], shape (..., 3).

    Returns:
        Matrices (..., 3, 3), differentiable.
    """
    vector = to_field("vector", vector)
    if vector.shape[-1:] != (3,):
        raise ValueError(f"vector of shape {tuple(vector.shape)}: must be (..., 3)")
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.linalg.matrix_exp(torch.stack(rows, dim=-1).reshape(*x.shape, 3, 3))
