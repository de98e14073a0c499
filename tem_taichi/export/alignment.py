"""A tilt series' true alignment, as programs of tomography keep it.

They align a series so that the tilt axis lies along y of the tomogram. The tomogram's frame is
therefore the specimen's, turned by -axis_angle about z; z is along the beam in both. With M the
rotation from the tomogram to an image (`rotations.tilt_rotation` after the turn back),

    M = Rz(z_rotation) Ry(y_tilt) Rx(x_tilt),    image = (M tomogram)_xy + shift,

all rotations right-handed and active: RELION 5's projection matrix (Tomogram::
setProjectionMatrix), and IMOD's with x_tilt = 0. Without errors of the axis z_rotation is the
axis angle, y_tilt the tilt angle and x_tilt 0.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tem_taichi.files.particles import ANGLES, POSITION
from tem_taichi.rotations import euler_to_matrix, matrix_to_euler

Array = NDArray[np.float64]


def to_tomogram(axis_angle: float) -> Array:
    """Rotation (3, 3) that takes specimen coordinates to those of the aligned tomogram.

    Args:
        axis_angle: nominal, of the tilt axis from +y, counter-clockwise [deg].
    """
    return Rotation.from_euler("z", -axis_angle, degrees=True).as_matrix()


def true_alignment(tilts: pd.DataFrame, axis_angle: float) -> pd.DataFrame:
    """Angles and shifts of each image relative to the aligned tomogram.

    Args:
        tilts: as from `tilts.tilt_table`: tilt_angle, axis_angle [deg], shift_x, shift_y [A].
        axis_angle: nominal [deg], which decides the tomogram's frame.

    Returns:
        Columns x_tilt, y_tilt, z_rotation [deg], shift_x, shift_y [A], rows as in `tilts`.
    """
    axis, tilt = (tilts[name].to_numpy(np.float64) for name in ("axis_angle", "tilt_angle"))
    turned = Rotation.from_euler("ZYZ", np.stack([axis, tilt, axis_angle - axis], 1), degrees=True)
    z_rotation, y_tilt, x_tilt = turned.as_euler("ZYX", degrees=True).T
    return pd.DataFrame({"x_tilt": x_tilt, "y_tilt": y_tilt, "z_rotation": z_rotation,
                         "shift_x": tilts["shift_x"].to_numpy(np.float64),
                         "shift_y": tilts["shift_y"].to_numpy(np.float64)}, index=tilts.index)


def write_transforms(path: Path, aligned: pd.DataFrame, shape: tuple[int, int],
                     pixel_size: float, pivot: tuple[float, float]) -> None:
    """Write an .xf: the linear transforms that align the images, the tilt axis upright.

    aligned = A (raw - pivot) + d + pivot, in pixels, a line A11 A12 A21 A22 dx dy an image.

    Args:
        path: file to write.
        aligned: of `true_alignment`, n rows; x_tilt is left out.
        shape: of the images (ny, nx).
        pixel_size: [A].
        pivot: x, y of the image's middle for the program that reads it [pixel]; the axis
            of a tomogram that has no shift runs through pixel n // 2.
    """
    turn = np.deg2rad(aligned["z_rotation"].to_numpy())
    c, s = np.cos(turn), np.sin(turn)
    centre = np.array([n // 2 for n in reversed(shape)]) - pivot
    x, y = (aligned[["shift_x", "shift_y"]].to_numpy() / pixel_size + centre).T
    rows = np.stack([c, s, -s, c, -(c * x + s * y), s * x - c * y], axis=1) + 0.0  # no "-0.0"
    np.savetxt(path, rows, fmt=["%12.7f"] * 4 + ["%12.3f"] * 2)


def project(alignment: pd.DataFrame, points: Array) -> Array:
    """Where points of the aligned tomogram lie in each image.

    Args:
        alignment: of `true_alignment`, n rows.
        points: x, y, z from the tomogram's centre [A], shape (m, 3).

    Returns:
        x, y from the image's centre [A] and z along the beam [A], shape (n, m, 3). A point's
        defocus is the image's plus z.
    """
    angles = alignment[["z_rotation", "y_tilt", "x_tilt"]].to_numpy()
    turned = Rotation.from_euler("ZYX", angles, degrees=True).as_matrix()
    images = np.einsum("nij,mj->nmi", turned, points)
    images[..., :2] += alignment[["shift_x", "shift_y"]].to_numpy()[:, None, :]
    return images


def particles_in_tomogram(particles: pd.DataFrame, axis_angle: float) -> pd.DataFrame:
    """Truth of the particles in the aligned tomogram's frame.

    Args:
        particles: x, y, z [A] and rot, tilt, psi [deg] in the specimen, and any other columns.
        axis_angle: nominal [deg].

    Returns:
        The same table with positions and angles turned.
    """
    turn = to_tomogram(axis_angle)
    turned = particles.copy()
    if len(particles) == 0:
        return turned
    turned[list(POSITION)] = particles[list(POSITION)].to_numpy(np.float64) @ turn.T
    rotations = turn @ euler_to_matrix(*particles[list(ANGLES)].to_numpy(np.float64).T)
    turned[list(ANGLES)] = np.stack(matrix_to_euler(rotations), axis=-1)
    return turned
