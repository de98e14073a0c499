"""A .tomostar of Warp, with the images where Warp looks for the averages of frame series.

Tilt angles are inverted and the axis is as in IMOD's files, as Warp's ts_import makes them from an
mdoc. Warp turns by its passive Euler(0, angle, -axis), so that the inverted angle is the
right-handed tilt of the specimen; and as z runs along the beam, the handedness of the defocus is
not flipped (ts_defocus_hand --set_noflip).

`ts_import_alignments` copies angles as they are, so that those in alignments/ are inverted too,
which those in imod/ are not; and Warp turns about n / 2. The XML says the same, and the true CTF.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from tem_taichi.export.alignment import true_alignment, write_transforms
from tem_taichi.export.tables import write_series_mdoc
from tem_taichi.export.warp_metadata import metadata_text
from tem_taichi.files.mrc import as_type, write_mrc
from tem_taichi.files.particles import star_table
from tem_taichi.files.tilts import TILT_COLUMNS, image_names, write_rawtlt
from tem_taichi.series.record import TiltSeries

_FRAMES = "warp_frameseries"


def write_warp(folder: Path, series: TiltSeries) -> None:
    """Write tomostar/, mdocs/ and one average a tilt, and the true alignment.

    The latter twice: `alignments/<name>/` for ts_import_alignments, and as Warp keeps it in
    `warp_tiltseries/<name>.xml`.

    Args:
        folder: an existing, empty folder.
        series: whose axis and doses are known; without an alignment neither form of it is written,
            and mdocs/ only if everything in it is known.

    Raises:
        ValueError: as `write_mrc`, or if what is needed is not known.
    """
    name, files = series.name, image_names(series.name, series.nominal)
    movies = [f"../{_FRAMES}/{file}" for file in files]
    axis_angle, prior_dose = series.known("warp", "axis_angle", "prior_dose")
    averages, tomostar, mdocs = (folder / f"{_FRAMES}/average", folder / "tomostar",
                                 folder / "mdocs")
    for place in (averages, tomostar):
        place.mkdir(parents=True)
    images, dtype = series.images.numpy(), series.stored_type(series.images)
    for file, image in zip(files, images, strict=True):
        write_mrc(averages / file, image, series.pixel_size, dtype=dtype)
    (tomostar / f"{name}.tomostar").write_text(star_table("", pd.DataFrame({
        "wrpMovieName": movies,
        "wrpAngleTilt": -series.tilt_angles + 0.0,  # no "-0.0"
        "wrpAxisAngle": axis_angle,
        "wrpDose": prior_dose,
        "wrpAverageIntensity": [np.median(as_type(image, dtype).astype(np.float64))
                                for image in images],
        "wrpMaskedFraction": 0.0,
    })), encoding="utf-8")
    if series.voltage is not None and set(TILT_COLUMNS) <= set(series.tilts):
        mdocs.mkdir()
        write_series_mdoc(mdocs / f"{name}.mdoc", series, f"{name}.mrc", (
            [f"../{_FRAMES}/average/{file}" for file in files], 1))
    if series.aligned:
        _write_alignment(folder, series, axis_angle, movies)


def _write_alignment(folder: Path, series: TiltSeries, axis_angle: float,
                     movies: list[str]) -> None:
    place, processing = folder / "alignments" / series.name, folder / "warp_tiltseries"
    for new in (place, processing):
        new.mkdir(parents=True)
    aligned = true_alignment(series.tilts, axis_angle)
    aligned["y_tilt"] = -aligned["y_tilt"]
    ny, nx = series.shape
    write_transforms(place / f"{series.name}.xf", aligned, (ny, nx), series.pixel_size,
                     (nx / 2, ny / 2))
    write_rawtlt(place / f"{series.name}.tlt", aligned["y_tilt"])
    (processing / f"{series.name}.xml").write_text(
        metadata_text(series, aligned, movies), encoding="utf-8")
