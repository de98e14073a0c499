"""The input of AreTomo3: a stack <name>.mrc with <name>_TLT.txt beside it."""

from pathlib import Path

import pandas as pd

from tem_taichi.config import Scene
from tem_taichi.files.mrc_files import smallest_type, write_mrc
from tem_taichi.pipeline import TiltSeries


def write_aretomo(folder: Path, scene: Scene, series: TiltSeries) -> None:
    """Write the stack, its angles, order and doses, and the stacks of halves if there are any.

    Args:
        folder: an existing, empty folder.
        scene: what was simulated.
        series: its result; its `halves`, (2, n, ny, nx), are <name>_EVN.mrc and <name>_ODD.mrc.

    Raises:
        ValueError: as `write_mrc`.
    """
    stacks = {"": series.images}
    if series.halves is not None:
        stacks |= {"_EVN": series.halves[0], "_ODD": series.halves[1]}
    for end, stack in stacks.items():
        write_mrc(folder / f"{scene.name}{end}.mrc",
                  smallest_type(stack.numpy(), scene.detector.integer), scene.pixel_size)
    (folder / f"{scene.name}_TLT.txt").write_text(tilt_text(series.tilts.assign(
        tilt_angle=series.tilt_angles)))


def tilt_text(table: pd.DataFrame) -> str:
    """Lines of a _TLT.txt: tilt angle [deg], place in acquisition from 1, dose [e-/A^2].

    Args:
        table: tilt_angle, acquisition_index (from 0) and dose of each image of the stack.
    """
    # The widths of AreTomo3's own file (CTsPackage::mSaveTiltFile).
    return "".join(f"{row.tilt_angle + 0.0:8.2f}  {int(row.acquisition_index) + 1:4d}  "
                   f"{row.dose:8.2f}\n" for row in table.itertuples(index=False))
