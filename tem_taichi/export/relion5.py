"""A folder from which RELION 5's tomography can start: aligned tilt series and particles.

RELION runs in this folder: names of files are relative to it. The alignment is the true one, in
the frame of `alignment`, so that its projection matrix (Tomogram::setProjectionMatrix) is exact:

    S(image centre) S(rlnTomoXShiftAngst, YShiftAngst) Rz(rlnTomoZRot) Ry(rlnTomoYTilt)
    Rx(rlnTomoXTilt) S(-tomogram centre).

rlnTomoHand is 1 of simulated series: z runs along the beam, and defocus grows with it
(Tomogram::getCtf).
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from tem_taichi.export.alignment import true_alignment
from tem_taichi.export.tables import write_series_particles
from tem_taichi.export.visibility import listed_in_tomogram
from tem_taichi.files.mrc import write_mrc
from tem_taichi.files.particles import star_table
from tem_taichi.files.tilts import image_names
from tem_taichi.series.record import TiltSeries

_HALVES = {"": "", "_EVN": "Even", "_ODD": "Odd"}
"""Ends of the labels of the stacks' files."""

_VERSION = "# version 50001\n\n"


def tomogram_size(series: TiltSeries) -> tuple[int, int, int]:
    """x, y, z of a tomogram that holds the field and the ice [pixel], all even.

    x and y change places where the tilt axis lies nearer to the image's x. Even, because
    RELION's centre is size // 2 for some purposes and size / 2 for others.
    """
    axis_angle, height = series.known("the tomogram", "axis_angle", "height")
    ny, nx = series.shape
    if abs(math.sin(math.radians(axis_angle))) > math.sqrt(0.5):
        nx, ny = ny, nx
    return nx + nx % 2, ny + ny % 2, height


def write_relion(folder: Path, series: TiltSeries) -> None:
    """Write tomograms.star, tilt_series/, one MRC a tilt, particles.star and optimisation_set.star.

    Args:
        folder: an existing, empty folder.
        series: whose doses, axis and microscope are known; columns of an alignment or defoci that
            are not are left out, and so are the last two files without particles. Where it has
            `halves`, (2, n, ny, nx), they are written too.

    Raises:
        ValueError: as `write_mrc` and `write_particles`, or if what is needed is not known.
    """
    name = series.name
    tomogram, tilts = _tomogram(series), _tilt_series(series)
    for place in ("tilts", "tilt_series"):
        (folder / place).mkdir()
    for end, stack in reversed(series.stacks.items()):
        label = f"rlnMicrographName{_HALVES[end]}"
        files = [f"tilts/{file.removesuffix('.mrc')}{end}.mrc"
                 for file in image_names(name, series.nominal)]
        tilts.insert(0, label, files)
        dtype = series.stored_type(stack)
        for file, image in zip(files, stack, strict=True):
            write_mrc(folder / file, image.numpy(), series.pixel_size, dtype=dtype)
    # RELION keeps the order of acquisition.
    tilts = tilts.iloc[np.argsort(series.tilts["acquisition_index"].to_numpy())]
    (folder / "tilt_series" / f"{name}.star").write_text(_VERSION + star_table(name, tilts))
    (folder / "tomograms.star").write_text(_VERSION + star_table("global", tomogram))
    if series.particles is None:
        return
    write_series_particles(folder / "particles.star", series,
                           listed_in_tomogram(series, tomogram_size(series)[::-1]), stacks_2d=True)
    (folder / "optimisation_set.star").write_text(
        _VERSION + "data_\n\n_rlnTomoParticlesFile particles.star\n"
        "_rlnTomoTomogramsFile tomograms.star\n")


def _tilt_series(series: TiltSeries) -> pd.DataFrame:
    tilts = series.tilts
    axis_angle, prior_dose = series.known("relion5", "axis_angle", "prior_dose")
    table = pd.DataFrame({
        "rlnTomoTiltMovieFrameCount": 1,
        "rlnTomoNominalStageTiltAngle": series.tilt_angles,
        "rlnTomoNominalTiltAxisAngle": axis_angle,
        "rlnMicrographPreExposure": prior_dose})
    if "defocus_u" in tilts:
        defocus = (tilts["defocus_u"] + tilts["defocus_v"]) / 2
        table = table.assign(
            rlnTomoNominalDefocus=-defocus.mean() / 1e4,  # [um], as SerialEM's: under is negative
            rlnDefocusU=tilts["defocus_u"],
            rlnDefocusV=tilts["defocus_v"],
            rlnCtfAstigmatism=(tilts["defocus_u"] - tilts["defocus_v"]).abs(),
            rlnDefocusAngle=tilts["astigmatism_angle"],
            rlnPhaseShift=tilts["phase_shift"])
    # As RELION's own import: of the thicker slab less is seen.
    table["rlnCtfScalefactor"] = np.cos(np.deg2rad(tilts["tilt_angle"]))
    if series.aligned:
        aligned = true_alignment(tilts, axis_angle)
        table = table.assign(
            rlnTomoXTilt=aligned["x_tilt"], rlnTomoYTilt=aligned["y_tilt"],
            rlnTomoZRot=aligned["z_rotation"],
            rlnTomoXShiftAngst=aligned["shift_x"], rlnTomoYShiftAngst=aligned["shift_y"])
    return table


def _tomogram(series: TiltSeries) -> pd.DataFrame:
    voltage, aberration, contrast = map(float, series.known(
        "relion5", "voltage", "spherical_aberration", "amplitude_contrast"))
    x, y, z = tomogram_size(series)
    return pd.DataFrame({
        "rlnTomoName": [series.name],
        "rlnTomoTiltSeriesStarFile": f"tilt_series/{series.name}.star",
        "rlnVoltage": voltage,
        "rlnSphericalAberration": aberration,
        "rlnAmplitudeContrast": contrast,
        "rlnMicrographOriginalPixelSize": float(series.pixel_size),
        # The sign of the change of defocus along z of the projected tomogram.
        "rlnTomoHand": float(series.hand),
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnTomoTiltSeriesPixelSize": float(series.pixel_size),
        "rlnTomoTomogramBinning": 1.0,
        "rlnTomoSizeX": x, "rlnTomoSizeY": y, "rlnTomoSizeZ": z,
    })
