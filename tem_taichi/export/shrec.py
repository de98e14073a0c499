"""A folder as of SHREC 2021's data (Gubins et al. 2021): volumes, masks and particle_locations.txt.

Volumes are in the specimen's frame. The grandmodel is the potential relative to the ice [V]. A
line of particle_locations.txt is the particle's kind, x, y, z [voxel from the first one, whole
numbers] and the intrinsic z-x-z angles Z1, X, Z2 [deg]: specimen = Rz(Z1) Rx(X) Rz(Z2) particle, as
PyTom's simulator turned its templates (voltools' szxz). The number of a line is the
particle's number in the occupancy mask, where higher ones are those of particles that are centred
outside the volume, which are not listed.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from tem_taichi.export.volumes import Volumes, write_references
from tem_taichi.files.mrc import smallest_type, write_mrc
from tem_taichi.files.particles import ANGLES, POSITION
from tem_taichi.rotations import euler_to_matrix
from tem_taichi.series.record import TiltSeries


def write_shrec(folder: Path, series: TiltSeries, volumes: Volumes) -> None:
    """Write model_0/ with grandmodel, masks, projections, reconstruction and locations.

    And references/ with the map and mask of each kind of particle.

    Args:
        folder: an existing, empty folder.
        series: of a simulation.
        volumes: of the same.

    Raises:
        ValueError: as `write_mrc`.
    """
    model = folder / "model_0"
    model.mkdir()
    voxel = series.pixel_size
    write_mrc(model / "grandmodel.mrc", volumes.potential, voxel, volume=True)
    for name, mask in (("class_mask", volumes.classes), ("occupancy_mask", volumes.occupancy)):
        write_mrc(model / f"{name}.mrc", mask, voxel, volume=True,
                  dtype=smallest_type(mask, integer=True))
    write_mrc(model / "reconstruction.mrc", volumes.reconstruction, voxel, volume=True)
    write_mrc(model / "projections.mrc", series.images.numpy(), voxel,
              dtype=series.stored_type(series.images))
    (model / "particle_locations.txt").write_text(
        locations_text(volumes.particles[volumes.listed], volumes.shape, voxel))
    (model / "class_conversion_table.txt").write_text("".join(
        f"{kind.name} {number}\n" for number, kind in enumerate(volumes.specimen.kinds, 1)))
    write_references(folder / "references", volumes.specimen, voxel)


def locations_text(particles: pd.DataFrame, shape: tuple[int, int, int], voxel: float) -> str:
    """Lines of particle_locations.txt.

    Args:
        particles: kind, x, y, z [A from the centre], rot, tilt, psi [deg].
        shape: of the volumes, (nz, ny, nx).
        voxel: [A].
    """
    if len(particles) == 0:
        return ""
    centre = np.array([n // 2 for n in reversed(shape)])
    places = np.rint(particles[list(POSITION)].to_numpy(np.float64) / voxel).astype(int) + centre
    matrices = euler_to_matrix(*particles[list(ANGLES)].to_numpy(np.float64).T)
    angles = zxz_angles(matrices)
    return "".join(
        f"{kind} {x} {y} {z} {z1:.4f} {x1:.4f} {z2:.4f}\n"
        for kind, (x, y, z), (z1, x1, z2) in zip(particles["kind"], places, angles, strict=True))


def zxz_angles(matrices: np.ndarray) -> np.ndarray:
    """Intrinsic z-x-z angles [deg], shape (n, 3), of rotations (n, 3, 3); see the module's text.

    Where X is 0 or 180 deg, Z1 and Z2 are not unique; Z2 is 0 then.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gimbal lock")
        return Rotation.from_matrix(matrices).as_euler("ZXZ", degrees=True)
