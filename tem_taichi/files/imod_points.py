"""Points of an IMOD model as text: what model2point writes and point2model reads.

A line is x, y and z, before which may be the contour, and before that the object. x and y are in
pixels from the corner of the image, so that the middle of the first pixel is 0.5, and z is the
image, from 0.
"""

from pathlib import Path

import numpy as np
import pandas as pd

_COLUMNS = ["object", "contour", "x", "y", "z"]


def read_points(path: Path) -> pd.DataFrame:
    """Points of a fiducial model.

    Args:
        path: text of three to five columns.

    Returns:
        image, from 0, x, y [pixel; the middle of the first is 0], and contour, 1 where the text has
        none.

    Raises:
        ValueError: if the text is no such table, or z is no image.
        OSError: if there is no such file.
    """
    if not path.read_text(encoding="utf-8").strip():
        raise ValueError(f"{path}: is empty")
    try:
        rows = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path}: must be lines of numbers, [[object] contour] x y z: {error}"
                         ) from error
    if not 3 <= rows.shape[1] <= 5 or not np.isfinite(rows).all():
        raise ValueError(f"{path}: has {rows.shape[1]} columns in {len(rows)} lines: must have 3 "
                         "to 5 numbers a line, [[object] contour] x y z")
    table = pd.DataFrame(rows, columns=_COLUMNS[5 - rows.shape[1]:])
    image = table["z"].round().astype(int)  # model2point writes 3.00
    if (image - table["z"]).abs().max() > 0.01 or (image < 0).any():
        row = int(((image - table["z"]).abs().gt(0.01) | (image < 0)).to_numpy().argmax())
        raise ValueError(f"{path}: line {row + 1}, z={table['z'].iloc[row]:g}: must be an image, "
                         "a whole number from 0")
    contour = table["contour"].astype(int) if "contour" in table else 1
    return pd.DataFrame({"image": image, "x": table["x"] - 0.5, "y": table["y"] - 0.5,
                         "contour": contour})


def points_text(table: pd.DataFrame) -> str:
    """Lines for `point2model -scat` or, one contour a bead, `point2model`.

    Args:
        table: contour, from 1, x, y [pixel; the middle of the first is 0] and image, from 0.
    """
    return "".join(f"{1:6d} {int(row.contour):6d} {row.x + 0.5:11.3f} {row.y + 0.5:11.3f} "
                   f"{int(row.image):6d}\n" for row in table.itertuples())
