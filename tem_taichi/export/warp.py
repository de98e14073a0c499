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
from tem_taichi.export.warp_metadata import metadata_text
from tem_taichi.files.mrc import mrc_mode, smallest_type, write_mrc
from tem_taichi.files.particles import star_table
from tem_taichi.files.tilts import image_names, write_mdoc, write_rawtlt
from tem_taichi.scene.settings import Scene
from tem_taichi.series.record import TiltSeries

_FRAMES = "warp_frameseries"


def write_warp(folder: Path, scene: Scene, series: TiltSeries) -> None:
    """Write tomostar/, mdocs/ and one average a tilt, and the true alignment.

    The latter twice: alignments/<name>/ for ts_import_alignments, and as Warp keeps it in
    warp_tiltseries/<name>.xml.

    Args:
        folder: an existing, empty folder.
        scene: what was simulated.
        series: its result.

    Raises:
        ValueError: as `write_mrc`.
    """
    averages, tomostar, mdocs, alignments, processing = places = [folder / part for part in (
        f"{_FRAMES}/average", "tomostar", "mdocs", f"alignments/{scene.name}", "warp_tiltseries")]
    for place in places:
        place.mkdir(parents=True)
    nominal = series.tilts.assign(tilt_angle=series.tilt_angles,
                                  axis_angle=float(scene.tilts.axis_angle))
    files = image_names(scene.name, nominal)
    images = smallest_type(series.images.numpy(), scene.detector.integer)
    for file, image in zip(files, images, strict=True):
        write_mrc(averages / file, image, scene.pixel_size)
    table = pd.DataFrame({
        "wrpMovieName": [f"../{_FRAMES}/{file}" for file in files],
        "wrpAngleTilt": -nominal["tilt_angle"] + 0.0,  # no "-0.0"
        "wrpAxisAngle": nominal["axis_angle"],
        "wrpDose": nominal["prior_dose"],
        "wrpAverageIntensity": np.median(images.astype(np.float64), axis=(1, 2)),
        "wrpMaskedFraction": 0.0,
    })
    text = star_table("", table)
    (tomostar / f"{scene.name}.tomostar").write_text(text, encoding="utf-8")
    write_mdoc(mdocs / f"{scene.name}.mdoc", nominal, image_file=f"{scene.name}.mrc",
               pixel_size=scene.pixel_size, voltage=scene.microscope.voltage,
               shape=(scene.shape[0], scene.shape[1]), mode=mrc_mode(images.dtype),
               frames=([f"../{_FRAMES}/average/{file}" for file in files], 1))
    aligned = true_alignment(series.tilts, scene.tilts.axis_angle)
    aligned["y_tilt"] = -aligned["y_tilt"]
    ny, nx = scene.shape
    write_transforms(alignments / f"{scene.name}.xf", aligned, (ny, nx), scene.pixel_size,
                     (nx / 2, ny / 2))
    write_rawtlt(alignments / f"{scene.name}.tlt", aligned["y_tilt"])
    (processing / f"{scene.name}.xml").write_text(
        metadata_text(scene, series, aligned, list(table["wrpMovieName"])), encoding="utf-8")
