"""The alignment of a tilt series as IMOD keeps it: .tlt, .xf, .defocus and positions of beads.

IMOD's images are seen with row 0 at the bottom, and its transforms turn about the middle of the
image, (n - 1) / 2, where the centre here is pixel n // 2. The tilt angle's sign is that of the
specimen's right-handed turn about the axis. IMOD takes for granted that z points against the beam
(ctfphaseflip: "the defocus is higher with negative deltaZ"); here it points along it. So
reconstructions have the right hand as they are, while ctfplotter and ctfphaseflip need -invert,
and .defocus holds the inverted angles that ctfplotter writes with it.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi.export.alignment import (
    particles_in_tomogram,
    project,
    true_alignment,
    write_transforms,
)
from tem_taichi.files.mrc import smallest_type, write_mrc
from tem_taichi.files.tilts import write_rawtlt
from tem_taichi.scene.settings import Scene
from tem_taichi.series.record import TiltSeries, tomogram_height

Array = NDArray[np.float64]

_HAS_ASTIGMATISM = 1
_HAS_PHASE_SHIFT = 4


def write_imod(folder: Path, scene: Scene, series: TiltSeries) -> None:
    """Write <name>.mrc, .rawtlt (nominal angles), .tlt (true ones), .xf, .defocus and _fid.txt.

    The last one only if there are kinds of particles with `fiducial`; <name>.edf, newst.com and
    tilt.com reconstruct the tomogram (`newst.com`, then `tilt.com`, by etomo or by submfg).

    Args:
        folder: an existing, empty folder.
        scene: what was simulated.
        series: its result.

    Raises:
        ValueError: as `write_mrc`.
    """
    start = folder / scene.name
    aligned = true_alignment(series.tilts, scene.tilts.axis_angle)
    write_mrc(Path(f"{start}.mrc"), smallest_type(series.images.numpy(), scene.detector.integer),
              scene.pixel_size)
    write_rawtlt(Path(f"{start}.rawtlt"), series.tilt_angles)
    write_rawtlt(Path(f"{start}.tlt"), aligned["y_tilt"])
    ny, nx = scene.shape
    write_transforms(Path(f"{start}.xf"), aligned, (ny, nx), scene.pixel_size,
                     ((nx - 1) / 2, (ny - 1) / 2))
    write_rawtlt(Path(f"{start}.xtilt"), np.zeros(len(aligned)))
    for file, text in (("newst.com", newst_text(scene)), ("tilt.com", tilt_text(scene)),
                       (f"{scene.name}.edf", etomo_text(scene))):
        (folder / file).write_text(text, encoding="utf-8")
    Path(f"{start}.defocus").write_text(defocus_text(series.tilts, aligned["y_tilt"].to_numpy()))
    gold = [name for name, kind in scene.specimen.particles.items() if kind.fiducial is not None]
    beads = series.particles[series.particles["kind"].isin(gold)]
    if len(beads):
        in_tomogram = particles_in_tomogram(beads, scene.tilts.axis_angle)
        images = project(aligned, in_tomogram[["x", "y", "z"]].to_numpy(np.float64))
        np.savetxt(f"{start}_fid.txt", bead_points(images, (ny, nx), scene.pixel_size),
                   fmt=["%6d", "%6d", "%11.3f", "%11.3f", "%6d"])


def newst_text(scene: Scene) -> str:
    """The command file of newstack, which makes the aligned stack."""
    name = scene.name
    return (f"$setenv IMOD_OUTPUT_FORMAT MRC\n$newstack -StandardInput\nAntialiasFilter\t-1\n"
            f"InputFile\t{name}.mrc\nOutputFile\t{name}_ali.mrc\nTransformFile\t{name}.xf\n"
            "TaperAtFill\t1,0\nAdjustOrigin\nOffsetsInXandY\t0.0,0.0\nImagesAreBinned\t1.0\n"
            "BinByFactor\t1\n$if (-e ./savework) ./savework\n")


def tilt_text(scene: Scene) -> str:
    """The command file of tilt: a tomogram as high as the ice from the aligned stack."""
    name, (ny, nx) = scene.name, scene.shape
    return (f"$setenv IMOD_OUTPUT_FORMAT MRC\n$tilt -StandardInput\n"
            f"InputProjections {name}_ali.mrc\nOutputFile {name}_full_rec.mrc\nIMAGEBINNED 1\n"
            f"TILTFILE {name}.tlt\nXTILTFILE {name}.xtilt\nTHICKNESS {tomogram_height(scene)}\n"
            "RADIAL 0.35 0.035\nFalloffIsTrueSigma 1\nXAXISTILT 0.0\nSCALE 0.0 0.1\n"
            f"PERPENDICULAR\nMODE 2\nFULLIMAGE {nx} {ny}\nSUBSETSTART 0 0\nAdjustOrigin\n"
            "ActionIfGPUFails 1,2\nOFFSET 0.0\nSHIFT 0.0 0.0\n$if (-e ./savework) ./savework\n")


def etomo_text(scene: Scene) -> str:
    """Lines of etomo's data file: what series it is, and how it lies."""
    lines = {"AxisType": "Single Axis", "ViewType": "Single View", "DatasetName": scene.name,
             "RawImageStackExt": "mrc", "PixelSize": f"{scene.pixel_size / 10:.6g}",  # [nm]
             "ImageRotationA": f"{scene.tilts.axis_angle:.4f}", "AxisA.TiltAngle.Type": "File",
             "AxisA.ExcludeProjections": "", "Binning": "1"}
    return "".join(f"Setup.{key}={value}\n" for key, value in lines.items())


def defocus_text(tilts: pd.DataFrame, y_tilt: Array) -> str:
    """Lines of a .defocus file, version 3: view twice, angle twice, defocus [nm], astigmatism.

    The larger defocus comes first, with its direction; a phase shift [deg] follows where there
    is one. Angles are inverted, as the module's text says.

    Args:
        tilts: defocus_u, defocus_v [A], astigmatism_angle, phase_shift [deg], n rows.
        y_tilt: [deg], shape (n,).
    """
    u, v, direction = (tilts[name].to_numpy(np.float64)
                       for name in ("defocus_u", "defocus_v", "astigmatism_angle"))
    direction = (np.where(u >= v, direction, direction + 90) + 90) % 180 - 90
    view = np.arange(1, len(tilts) + 1)
    angle = -y_tilt + 0.0
    columns = [view, view, angle, angle, np.maximum(u, v) / 10, np.minimum(u, v) / 10, direction]
    forms = ["%d", "%d", "%.2f", "%.2f", "%.1f", "%.1f", "%.2f"]
    flag = _HAS_ASTIGMATISM
    if (tilts["phase_shift"] != 0).any():
        columns.append(tilts["phase_shift"].to_numpy(np.float64))
        forms.append("%.2f")
        flag += _HAS_PHASE_SHIFT
    rows = ["\t".join(form % value for form, value in zip(forms, row, strict=True))
            for row in zip(*columns, strict=True)]
    return "\n".join([f"{flag} 0 0. 0. 0 3", *rows]) + "\n"


def bead_points(images: Array, shape: tuple[int, int], pixel_size: float) -> Array:
    """Points of a fiducial model for point2model: one contour a bead, one point a view.

    Args:
        images: x, y from the image's centre [A] of each bead, shape (n, m, 2 or 3).
        shape: (ny, nx).
        pixel_size: [A].

    Returns:
        Object, contour (from 1), x, y [pixel; the middle of pixel 0 is 0.5] and view (from 0) of
        the points inside their image, ordered by bead; shape (points, 5).
    """
    n, m, _ = images.shape
    ny, nx = shape
    places = images[..., :2] / pixel_size + np.array([nx // 2, ny // 2]) + 0.5
    view, bead = np.meshgrid(np.arange(n), np.arange(m), indexing="ij")
    rows = np.stack([np.ones_like(bead), bead + 1, places[..., 0], places[..., 1], view], axis=-1)
    inside = np.all((places > 0) & (places < [nx, ny]), axis=-1)
    return rows.transpose(1, 0, 2)[inside.T]
