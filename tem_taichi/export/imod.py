"""The alignment of a tilt series as IMOD keeps it: .tlt, .xf, .defocus and positions of beads.

IMOD's images are seen with row 0 at the bottom, and its transforms turn about the middle of the
image, (n - 1) / 2, where the centre here is pixel n // 2. The tilt angle's sign is that of the
specimen's right-handed turn about the axis. IMOD takes for granted that z points against the beam
(ctfphaseflip: "the defocus is higher with negative deltaZ"); here it points along it. So
reconstructions have the right hand as they are, while ctfplotter and ctfphaseflip need -invert,
and .defocus holds the inverted angles that ctfplotter writes with it; but for series whose `hand`
is -1.
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
from tem_taichi.files.mrc import write_mrc
from tem_taichi.files.tilts import write_rawtlt
from tem_taichi.series.record import TiltSeries

Array = NDArray[np.float64]

_HAS_ASTIGMATISM = 1
_HAS_PHASE_SHIFT = 4


def write_imod(folder: Path, series: TiltSeries) -> None:
    """Write `<name>.mrc`, .rawtlt (nominal angles), .tlt (true ones), .xf, .defocus and _fid.txt.

    The last one only if there are kinds of particles made by `fiducial`; `<name>.edf`, newst.com
    and tilt.com reconstruct the tomogram (`newst.com`, then `tilt.com`, by etomo or by submfg).

    Args:
        folder: an existing, empty folder.
        series: whose axis is known; without an alignment only the stack, .rawtlt and .edf are
            written, without defoci no .defocus.

    Raises:
        ValueError: as `write_mrc`, or if what is needed is not known.
    """
    start = folder / series.name
    axis_angle, = series.known("imod", "axis_angle")
    write_mrc(Path(f"{start}.mrc"), series.images.numpy(), series.pixel_size,
              dtype=series.stored_type(series.images))
    write_rawtlt(Path(f"{start}.rawtlt"), series.tilt_angles)
    Path(f"{start}.edf").write_text(etomo_text(series.name, series.pixel_size, axis_angle),
                                    encoding="utf-8")
    if series.aligned:
        _write_alignment(folder, series, axis_angle)


def _write_alignment(folder: Path, series: TiltSeries, axis_angle: float) -> None:
    """What follows from the alignment: the way to the tomogram, defoci and beads."""
    start, (ny, nx) = folder / series.name, series.shape
    height, = series.known("imod", "height")
    aligned = true_alignment(series.tilts, axis_angle)
    write_rawtlt(Path(f"{start}.tlt"), aligned["y_tilt"])
    write_transforms(Path(f"{start}.xf"), aligned, (ny, nx), series.pixel_size,
                     ((nx - 1) / 2, (ny - 1) / 2))
    write_rawtlt(Path(f"{start}.xtilt"), np.zeros(len(aligned)))
    (folder / "newst.com").write_text(newst_text(series.name), encoding="utf-8")
    (folder / "tilt.com").write_text(tilt_text(series.name, (height, ny, nx)), encoding="utf-8")
    if "defocus_u" in series.tilts:
        Path(f"{start}.defocus").write_text(
            defocus_text(series.tilts, -series.hand * aligned["y_tilt"].to_numpy()))
    gold = [name for name, source in series.kinds.items() if source == "fiducial"]
    if series.particles is None or not series.particles["kind"].isin(gold).any():
        return
    beads = particles_in_tomogram(series.particles[series.particles["kind"].isin(gold)],
                                  axis_angle)
    images = project(aligned, beads[["x", "y", "z"]].to_numpy(np.float64))
    np.savetxt(f"{start}_fid.txt", bead_points(images, (ny, nx), series.pixel_size),
               fmt=["%6d", "%6d", "%11.3f", "%11.3f", "%6d"])


def newst_text(name: str) -> str:
    """The command file of newstack, which makes the aligned stack."""
    return (f"$setenv IMOD_OUTPUT_FORMAT MRC\n$newstack -StandardInput\nAntialiasFilter\t-1\n"
            f"InputFile\t{name}.mrc\nOutputFile\t{name}_ali.mrc\nTransformFile\t{name}.xf\n"
            "TaperAtFill\t1,0\nAdjustOrigin\nOffsetsInXandY\t0.0,0.0\nImagesAreBinned\t1.0\n"
            "BinByFactor\t1\n$if (-e ./savework) ./savework\n")


def tilt_text(name: str, shape: tuple[int, int, int]) -> str:
    """The command file of tilt: a tomogram (nz, ny, nx) from the aligned stack."""
    nz, ny, nx = shape
    return (f"$setenv IMOD_OUTPUT_FORMAT MRC\n$tilt -StandardInput\n"
            f"InputProjections {name}_ali.mrc\nOutputFile {name}_full_rec.mrc\nIMAGEBINNED 1\n"
            f"TILTFILE {name}.tlt\nXTILTFILE {name}.xtilt\nTHICKNESS {nz}\n"
            "RADIAL 0.35 0.035\nFalloffIsTrueSigma 1\nXAXISTILT 0.0\nSCALE 0.0 0.1\n"
            f"PERPENDICULAR\nMODE 2\nFULLIMAGE {nx} {ny}\nSUBSETSTART 0 0\nAdjustOrigin\n"
            "ActionIfGPUFails 1,2\nOFFSET 0.0\nSHIFT 0.0 0.0\n$if (-e ./savework) ./savework\n")


def etomo_text(name: str, pixel_size: float, axis_angle: float) -> str:
    """Lines of etomo's data file: what series it is, and how it lies."""
    lines = {"AxisType": "Single Axis", "ViewType": "Single View", "DatasetName": name,
             "RawImageStackExt": "mrc", "PixelSize": f"{pixel_size / 10:.6g}",  # [nm]
             "ImageRotationA": f"{axis_angle:.4f}", "AxisA.TiltAngle.Type": "File",
             "AxisA.ExcludeProjections": "", "Binning": "1"}
    return "".join(f"Setup.{key}={value}\n" for key, value in lines.items())


def defocus_text(tilts: pd.DataFrame, angles: Array) -> str:
    """Lines of a .defocus file, version 3: view twice, angle twice, defocus [nm], astigmatism.

    The larger defocus comes first, with its direction; a phase shift [deg] follows where there
    is one.

    Args:
        tilts: defocus_u, defocus_v [A], astigmatism_angle, phase_shift [deg], n rows.
        angles: of tilt as ctfplotter takes them, see the module's text [deg], shape (n,).
    """
    u, v, direction = (tilts[name].to_numpy(np.float64)
                       for name in ("defocus_u", "defocus_v", "astigmatism_angle"))
    direction = (np.where(u >= v, direction, direction + 90) + 90) % 180 - 90
    view = np.arange(1, len(tilts) + 1)
    angle = angles + 0.0  # no "-0.00"
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
