"""Which particles are in the field, of the tomogram and of each image."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi.export.alignment import particles_in_tomogram
from tem_taichi.export.stack import particle_views
from tem_taichi.files.particles import POSITION
from tem_taichi.series.record import TiltSeries, in_box, in_field


def seen(series: TiltSeries) -> NDArray[np.bool_]:
    """Whether each particle's centre lies in each image, (m, n) in the order of the stack."""
    views = particle_views(series)
    ny, nx = series.shape
    inside = ((views["column"] >= -0.5) & (views["column"] < nx - 0.5)
              & (views["row"] >= -0.5) & (views["row"] < ny - 0.5))
    return inside.to_numpy().reshape(len(series.tilts), len(views) // len(series.tilts)).T


def flagged(series: TiltSeries) -> pd.DataFrame:
    """The particles with the columns in_field and seen, as [1,1,0] in the order of the stack."""
    particles, = series.known("particles", "particles")
    visible = seen(series).astype(int)
    return particles.assign(
        in_field=in_field(series).astype(int),
        seen=["[" + ",".join(map(str, row)) + "]" for row in visible])


def listed_in_tomogram(series: TiltSeries, shape: tuple[int, int, int]) -> pd.DataFrame:
    """Particles in the aligned tomogram's frame, without those centred outside of it.

    Args:
        series: of which the particles are known.
        shape: of the tomogram (nz, ny, nx).
    """
    particles, axis_angle = series.known("particles", "particles", "axis_angle")
    turned = particles_in_tomogram(particles, axis_angle)
    points = turned[list(POSITION)].to_numpy(np.float64)
    return turned[in_box(points, shape, series.pixel_size)].reset_index(drop=True)
