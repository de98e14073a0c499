"""Files of a series that several formats hold: SerialEM's mdoc and RELION's particles.star."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tem_taichi.files.mrc import mrc_mode
from tem_taichi.files.particles import write_particles
from tem_taichi.files.tilts import write_mdoc
from tem_taichi.series.record import TiltSeries


def write_series_mdoc(path: Path, series: TiltSeries, image_file: str,
                      frames: tuple[Sequence[str], int] | None = None) -> None:
    """Write the mdoc of a series with its nominal angles.

    Args:
        path: file to write.
        series: of which everything that `files.tilts.write_mdoc` writes is known.
        image_file: name of the stack.
        frames: as in `files.tilts.write_mdoc`.

    Raises:
        ValueError: as `files.tilts.write_mdoc`.
    """
    voltage, = series.known(path.name, "voltage")
    write_mdoc(path, series.nominal, image_file=image_file, pixel_size=series.pixel_size,
               voltage=voltage, shape=series.shape,
               mode=mrc_mode(series.stored_type(series.images)), frames=frames)


def write_series_particles(path: Path, series: TiltSeries, particles: pd.DataFrame,
                           stacks_2d: bool = False) -> None:
    """Write particles of a series as RELION 5's particles.star.

    Args:
        path: file to write.
        series: of which voltage, aberration and amplitude contrast are known.
        particles: as in `files.particles.write_particles`.
        stacks_2d: as there.

    Raises:
        ValueError: as `files.particles.write_particles`.
    """
    voltage, aberration, contrast = series.known(
        path.name, "voltage", "spherical_aberration", "amplitude_contrast")
    write_particles(path, particles, tomogram=series.name, pixel_size=series.pixel_size,
                    voltage=voltage, spherical_aberration=aberration, amplitude_contrast=contrast,
                    stacks_2d=stacks_2d)
