"""The input of AreTomo3: a stack `<name>.mrc` with `<name>_TLT.txt`, and its result, `<name>.aln`.

Angles and axis have IMOD's signs; the tilt axis and shifts turn about the middle of the image,
(n - 1) / 2, as AreTomo3's own export to IMOD does (GCorrPatchShift.cu, mGCorrect).
"""

from pathlib import Path

import pandas as pd

from tem_taichi.export.alignment import true_alignment
from tem_taichi.files.mrc import write_mrc
from tem_taichi.series.record import TiltSeries


def write_aretomo(folder: Path, series: TiltSeries) -> None:
    """Write the stack, angles, order and doses, the true alignment, and halves if there are any.

    Args:
        folder: an existing, empty folder.
        series: whose dose is known; without an alignment there is no .aln. Its `halves`,
            (2, n, ny, nx), are `<name>_EVN.mrc` and `<name>_ODD.mrc`.

    Raises:
        ValueError: as `write_mrc`, or if what is needed is not known.
    """
    series.known("aretomo", "dose")
    for end, stack in series.stacks.items():
        write_mrc(folder / f"{series.name}{end}.mrc", stack.numpy(), series.pixel_size,
                  dtype=series.stored_type(stack))
    (folder / f"{series.name}_TLT.txt").write_text(tilt_text(series.nominal))
    if series.aligned:
        (folder / f"{series.name}.aln").write_text(alignment_text(series))


def alignment_text(series: TiltSeries) -> str:
    """Lines of an .aln: sections from 1, axis [deg], shift [pixel] and tilt [deg], all true.

    The widths are those of AreTomo3's own file (CSaveAlignFile).
    """
    axis_angle, height = series.known("aretomo", "axis_angle", "height")
    aligned = true_alignment(series.tilts, axis_angle)
    ny, nx = series.shape
    x, y = (aligned[f"shift_{axis}"] / series.pixel_size + n // 2 - (n - 1) / 2
            for axis, n in (("x", nx), ("y", ny)))
    rows = zip(aligned["z_rotation"], x, y, aligned["y_tilt"], strict=True)
    return ("# AreTomo Alignment / Priims bprmMn\n"
            f"# RawSize = {nx} {ny} {len(aligned)}\n# NumPatches = 0\n"
            "# AlphaOffset =     0.00\n# BetaOffset =     0.00\n"
            f"# Thickness = {height}\n"
            "# SEC     ROT         GMAG       TX          TY      SMEAN     SFIT    SCALE     BASE"
            "     TILT\n" + "".join(
                f"{n:5d}  {axis:9.4f}  {1:9.5f}  {across:9.3f}  {along:9.3f}  {1:7.2f}  {1:7.2f}  "
                f"{1:7.2f}  {0:7.2f}  {tilt + 0.0:8.2f}\n"
                for n, (axis, across, along, tilt) in enumerate(rows, 1)))


def tilt_text(table: pd.DataFrame) -> str:
    """Lines of a `_TLT.txt`: tilt angle [deg], place in acquisition from 1, dose [e-/A^2].

    Args:
        table: tilt_angle, acquisition_index (from 0) and dose of each image of the stack.
    """
    # The widths of AreTomo3's own file (CTsPackage::mSaveTiltFile).
    return "".join(f"{row.tilt_angle + 0.0:8.2f}  {int(row.acquisition_index) + 1:4d}  "
                   f"{row.dose:8.2f}\n" for row in table.itertuples(index=False))
