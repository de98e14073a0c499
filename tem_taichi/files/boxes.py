"""Boxes of a volume that have names, for measures in them: in YAML or CSV.

YAML: `cytosol: {from: [x, y, z], to: [x, y, z]}`, a box a line. CSV: name, x0, y0, z0, x1, y1, z1.
In voxels, the first in the box and the first beyond it; or in A, with the volume's origin and voxel
size, where the YAML says `unit: A` or the CSV's columns end with _A.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

_ENDS = ("x0", "y0", "z0", "x1", "y1", "z1")


def read_boxes(path: Path, shape: Sequence[int], voxel_size: float = 1.0,
               origin: Sequence[float] = (0.0, 0.0, 0.0)) -> dict[str, tuple[slice, ...]]:
    """Slices (z, y, x) of each box, by its name.

    Args:
        path: .yaml or .yml, or else CSV.
        shape: of the volume (nz, ny, nx).
        voxel_size: [A], for boxes in A.
        origin: middle of the first voxel, x, y, z [A], for boxes in A.

    Raises:
        ValueError: if the file is no such table, or a box is empty or leaves the volume.
        OSError: if there is no such file.
    """
    path = Path(path)
    given, in_angstrom = _yaml(path) if path.suffix in (".yaml", ".yml") else _csv(path)
    boxes = {}
    for name, ends in given.items():
        if in_angstrom:  # voxels whose middle is inside
            ends = [math.ceil((end - origin[axis % 3]) / voxel_size - 1e-6)
                    for axis, end in enumerate(ends)]
        whole = [round(end) for end in ends]
        if any(abs(one - end) > 1e-6 for one, end in zip(whole, ends, strict=True)):
            raise ValueError(f"{path}: {name}: {list(ends)}: must be whole numbers of voxels, or "
                             "in A")
        low, high = whole[:3], whole[3:]
        for axis, first, last, n in zip("xyz", low, high, reversed(shape), strict=True):
            if not 0 <= first < last <= n:
                raise ValueError(f"{path}: {name}: {axis} from {first} to {last}: must hold a "
                                 f"voxel of the volume's {n}")
        boxes[name] = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))
    return boxes


def _yaml(path: Path) -> tuple[dict[str, list[float]], bool]:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be boxes by their names")
    unit = content.pop("unit", "voxel")
    if unit not in ("voxel", "A"):
        raise ValueError(f"{path}: unit={unit}: must be voxel or A")
    boxes = {}
    for name, box in content.items():
        ends = [*box["from"], *box["to"]] if isinstance(box, dict) and set(box) == {
            "from", "to"} and all(isinstance(end, list) for end in box.values()) else []
        if len(ends) != 6 or not all(isinstance(end, int | float) for end in ends):
            raise ValueError(f"{path}: {name}: must be {{from: [x, y, z], to: [x, y, z]}}")
        boxes[str(name)] = [float(end) for end in ends]
    return boxes, unit == "A"


def _csv(path: Path) -> tuple[dict[str, list[float]], bool]:
    table = pd.read_csv(path, skipinitialspace=True)
    in_angstrom = "x0_A" in table
    names = [f"{end}_A" for end in _ENDS] if in_angstrom else list(_ENDS)
    if not {"name", *names} <= set(table) or table["name"].duplicated().any():
        raise ValueError(f"{path}: must have the columns name, {', '.join(_ENDS)}, the last six "
                         "also with _A, and each name once")
    numbers = table[names].apply(pd.to_numeric, errors="coerce")
    if numbers.isna().any().any():
        row = int(numbers.isna().any(axis=1).to_numpy().argmax())
        raise ValueError(f"{path}: row {row + 1}, {table['name'].iloc[row]}: must have six numbers")
    return {str(name): list(map(float, row)) for name, row in zip(
        table["name"], numbers.to_numpy(), strict=True)}, in_angstrom
