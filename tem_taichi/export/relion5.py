"""A folder from which RELION 5's tomography can start: aligned tilt series and particles.

RELION runs in this folder: names of files are relative to it. The alignment is the true one, in
the frame of `alignment`, so that its projection matrix (Tomogram::setProjectionMatrix) is exact:

    S(image centre) S(rlnTomoXShiftAngst, YShiftAngst) Rz(rlnTomoZRot) Ry(rlnTomoYTilt)
    Rx(rlnTomoXTilt) S(-tomogram centre).

rlnTomoHand is 1: z runs along the beam, and defocus grows with it (Tomogram::getCtf).
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from tem_taichi.export.alignment import true_alignment
from tem_taichi.export.visibility import listed_in_tomogram
from tem_taichi.files.mrc import smallest_type, write_mrc
from tem_taichi.files.particles import star_table, write_particles
from tem_taichi.files.tilts import image_names
from tem_taichi.scene.settings import Scene
from tem_taichi.series.record import TiltSeries, tomogram_height

HAND = 1
"""rlnTomoHand: the sign of the change of defocus along z of the projected tomogram."""

_VERSION = "# version 50001\n\n"


def tomogram_size(scene: Scene) -> tuple[int, int, int]:
    """x, y, z of a tomogram that holds the field and the ice [pixel], all even.

    x and y change places where the tilt axis lies nearer to the image's x. Even, because
    RELION's centre is size // 2 for some purposes and size / 2 for others.
    """
    ny, nx = scene.shape
    if abs(math.sin(math.radians(scene.tilts.axis_angle))) > math.sqrt(0.5):
        nx, ny = ny, nx
    return nx + nx % 2, ny + ny % 2, tomogram_height(scene)


def write_relion(folder: Path, scene: Scene, series: TiltSeries) -> None:
    """Write tomograms.star, tilt_series/, one MRC a tilt, particles.star and optimisation_set.star.

    Args:
        folder: an existing, empty folder.
        scene: what was simulated.
        series: its result; where it has `halves`, (2, n, ny, nx), they are written too.

    Raises:
        ValueError: as `write_mrc` and `write_particles`.
    """
    name, microscope = scene.name, scene.microscope
    (folder / "tilts").mkdir()
    (folder / "tilt_series").mkdir()
    files = image_names(name, series.tilts.assign(tilt_angle=series.tilt_angles))
    kinds = {"rlnMicrographName": series.images}
    if series.halves is not None:
        kinds |= {"rlnMicrographNameEven": series.halves[0],
                  "rlnMicrographNameOdd": series.halves[1]}
    columns: dict[str, list[str]] = {}
    for (label, stack), end in zip(kinds.items(), ("", "_EVN", "_ODD"), strict=False):
        columns[label] = [f"tilts/{file.removesuffix('.mrc')}{end}.mrc" for file in files]
        images = smallest_type(stack.numpy(), scene.detector.integer)
        for file, image in zip(columns[label], images, strict=True):
            write_mrc(folder / file, image, scene.pixel_size)
    tilts = _tilt_series(scene, series, columns)
    # RELION keeps the order of acquisition.
    tilts = tilts.iloc[np.argsort(series.tilts["acquisition_index"].to_numpy())]
    (folder / "tilt_series" / f"{name}.star").write_text(_VERSION + star_table(name, tilts))
    (folder / "tomograms.star").write_text(
        _VERSION + star_table("global", _tomogram(scene, series)))
    write_particles(folder / "particles.star",
                    listed_in_tomogram(scene, series, tomogram_size(scene)[::-1]),
                    tomogram=name, pixel_size=scene.pixel_size, voltage=microscope.voltage,
                    spherical_aberration=microscope.spherical_aberration,
                    amplitude_contrast=series.amplitude_contrast, stacks_2d=True)
    (folder / "optimisation_set.star").write_text(
        _VERSION + "data_\n\n_rlnTomoParticlesFile particles.star\n"
        "_rlnTomoTomogramsFile tomograms.star\n")


def _tilt_series(scene: Scene, series: TiltSeries, files: dict[str, list[str]]) -> pd.DataFrame:
    tilts = series.tilts
    aligned = true_alignment(tilts, scene.tilts.axis_angle)
    defocus = (tilts["defocus_u"] + tilts["defocus_v"]) / 2
    return pd.DataFrame({
        **files,
        "rlnTomoTiltMovieFrameCount": 1,
        "rlnTomoNominalStageTiltAngle": series.tilt_angles,
        "rlnTomoNominalTiltAxisAngle": float(scene.tilts.axis_angle),
        "rlnMicrographPreExposure": tilts["prior_dose"],
        "rlnTomoNominalDefocus": -defocus.mean() / 1e4,  # [um], as SerialEM's: under is negative
        "rlnDefocusU": tilts["defocus_u"],
        "rlnDefocusV": tilts["defocus_v"],
        "rlnCtfAstigmatism": (tilts["defocus_u"] - tilts["defocus_v"]).abs(),
        "rlnDefocusAngle": tilts["astigmatism_angle"],
        "rlnPhaseShift": tilts["phase_shift"],
        # As RELION's own import: of the thicker slab less is seen.
        "rlnCtfScalefactor": np.cos(np.deg2rad(tilts["tilt_angle"])),
        "rlnTomoXTilt": aligned["x_tilt"],
        "rlnTomoYTilt": aligned["y_tilt"],
        "rlnTomoZRot": aligned["z_rotation"],
        "rlnTomoXShiftAngst": aligned["shift_x"],
        "rlnTomoYShiftAngst": aligned["shift_y"],
    })


def _tomogram(scene: Scene, series: TiltSeries) -> pd.DataFrame:
    x, y, z = tomogram_size(scene)
    return pd.DataFrame({
        "rlnTomoName": [scene.name],
        "rlnTomoTiltSeriesStarFile": f"tilt_series/{scene.name}.star",
        "rlnVoltage": float(scene.microscope.voltage),
        "rlnSphericalAberration": float(scene.microscope.spherical_aberration),
        "rlnAmplitudeContrast": float(series.amplitude_contrast),
        "rlnMicrographOriginalPixelSize": float(scene.pixel_size),
        "rlnTomoHand": float(HAND),
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnTomoTiltSeriesPixelSize": float(scene.pixel_size),
        "rlnTomoTomogramBinning": 1.0,
        "rlnTomoSizeX": x, "rlnTomoSizeY": y, "rlnTomoSizeZ": z,
    })
