"""Which particles are in the field, of the tomogram and of each image."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi.export.alignment import particles_in_tomogram
from tem_taichi.export.stack import particle_views
from tem_taichi.files.particles import POSITION
from tem_taichi.scene.settings import Scene
from tem_taichi.series.record import TiltSeries, tomogram_height


def in_box(points: NDArray[np.float64], shape: tuple[int, int, int],
           voxel: float) -> NDArray[np.bool_]:
    """Whether points lie in a voxel of a volume whose centre is voxel n // 2.

    Args:
        points: x, y, z from the centre [A], shape (m, 3).
        shape: (nz, ny, nx).
        voxel: edge [A].
    """
    size = np.array(shape[::-1])
    voxels = np.floor(points / voxel + 0.5) + size // 2
    return np.all((voxels >= 0) & (voxels < size), axis=1)


def in_field(scene: Scene, series: TiltSeries) -> NDArray[np.bool_]:
    """Whether each particle's centre lies in the field of the untilted image and the ice, (m,)."""
    ny, nx = scene.shape
    return in_box(series.particles[list(POSITION)].to_numpy(np.float64),
                  (tomogram_height(scene), ny, nx), scene.pixel_size)


def seen(scene: Scene, series: TiltSeries) -> NDArray[np.bool_]:
    """Whether each particle's centre lies in each image, (m, n) in the order of the stack."""
    views = particle_views(scene, series)
    ny, nx = scene.shape
    inside = ((views["column"] >= -0.5) & (views["column"] < nx - 0.5)
              & (views["row"] >= -0.5) & (views["row"] < ny - 0.5))
    return inside.to_numpy().reshape(len(series.tilts), len(series.particles)).T


def flagged(scene: Scene, series: TiltSeries) -> pd.DataFrame:
    """The particles with the columns in_field and seen, as [1,1,0] in the order of the stack."""
    visible = seen(scene, series).astype(int)
    return series.particles.assign(
        in_field=in_field(scene, series).astype(int),
        seen=["[" + ",".join(map(str, row)) + "]" for row in visible])


def listed_in_tomogram(scene: Scene, series: TiltSeries,
                       shape: tuple[int, int, int]) -> pd.DataFrame:
    """Particles in the aligned tomogram's frame, without those centred outside of it.

    Args:
        scene: what was simulated.
        series: its result.
        shape: of the tomogram (nz, ny, nx).
    """
    turned = particles_in_tomogram(series.particles, scene.tilts.axis_angle)
    points = turned[list(POSITION)].to_numpy(np.float64)
    return turned[in_box(points, shape, scene.pixel_size)].reset_index(drop=True)
