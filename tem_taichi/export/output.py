"""The files of a simulated tilt series."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tem_taichi.export.formats import write_formats
from tem_taichi.export.preview import write_preview
from tem_taichi.export.tables import write_series_mdoc, write_series_particles
from tem_taichi.export.visibility import flagged
from tem_taichi.files.mrc import write_mrc
from tem_taichi.files.tilts import image_names, write_rawtlt, write_tilt_table
from tem_taichi.series.record import TiltSeries


def write_output(folder: Path, series: TiltSeries, formats: Sequence[str] = (),
                 final: Path | None = None) -> None:
    """Write what a simulation gives into an empty folder, and the formats of other programs.

    Args:
        folder: of `folder.new_folder`.
        series: of a simulation.
        formats: as in `write_formats`.
        final: where the folder will be, if it is not to stay where it is.
    """
    name, pixel_size = series.name, series.pixel_size
    clean = series.known("the output", "noise_free")[0].numpy()
    for end, stack in series.stacks.items():
        write_mrc(folder / f"{name}{end}.mrc", stack.numpy(), pixel_size,
                  dtype=series.stored_type(stack))
    write_mrc(folder / f"{name}_noise_free.mrc", clean, pixel_size, dtype=np.dtype(np.float32))
    write_rawtlt(folder / f"{name}.rawtlt", series.tilt_angles)
    # relion5 writes every image into a file of its own.
    write_series_mdoc(folder / f"{name}.mrc.mdoc", series, f"{name}.mrc", (
        [f"relion5/tilts/{file}" for file in image_names(name, series.nominal)], 1)
        if "relion5" in formats else None)
    write_tilt_table(folder / f"{name}_tilts.csv", series.tilts)
    write_series_particles(folder / f"{name}_particles.star", series, flagged(series))
    write_formats(folder, series, formats, final)
    write_preview(folder / "preview.png", series.images.numpy(), clean, series.tilt_angles,
                  pixel_size)
