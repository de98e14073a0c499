"""What a recipe finds, and the one writer that makes files of it."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import starfile
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from tem_taichi.files.io import write_json
from tem_taichi.files.mrc import write_mrc

Report = Callable[[int, int], None]
"""Called by a recipe with what is done and how much there is."""


@dataclass(frozen=True, eq=False)
class Result:
    """What a recipe found. Files are named by their path in the output folder.

    Attributes:
        numbers: of results.json, in its order: numbers, text, lists and dictionaries of these, with
            the unit in the key's name where there is one.
        assumptions: what is taken for granted, one sentence each; None = the recipe states none.
        warnings: doubts, one sentence each; None = the recipe states none.
        summary: lines for people, printed before the numbers.
        tables: NAME.csv, or NAME.star of one table or of several by name.
        images: NAME.mrc of (n, ny, nx) or (ny, nx), with the pixel size [A]; double precision is
            written as single.
        volumes: NAME.mrc of (nz, ny, nx), with the voxel size [A] and, if it is not 0, where the
            middle of the first voxel is, x, y, z [A].
        scenes: NAME.yaml, as text, that `python -m tem_taichi.simulate` reads.
        texts: NAME.txt, as text.
        figures: NAME.png, drawn at the figure's own dpi; or a picture that is a file already, or
            the bytes of one, such as NAME.gif.
        files: others, as their bytes.
    """

    numbers: Mapping[str, Any]
    assumptions: Sequence[str] | None = None
    warnings: Sequence[str] | None = None
    summary: Sequence[str] = ()
    tables: Mapping[str, pd.DataFrame | dict[str, pd.DataFrame]] = field(default_factory=dict)
    images: Mapping[str, tuple[ArrayLike, float]] = field(default_factory=dict)
    volumes: Mapping[str, tuple[ArrayLike, float] | tuple[ArrayLike, float, Sequence[float]]] = (
        field(default_factory=dict))
    scenes: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Figure | Path | bytes] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What a person wants to see at once: numbers, and every doubt."""
        return [*self.summary,
                *(f"{key}: {value:.5g}" for key, value in self.numbers.items()
                  if isinstance(value, float | int) and not isinstance(value, bool)),
                *(f"assumption: {text}" for text in self.assumptions or ()),
                *(f"warning: {text}" for text in self.warnings or ())]


def write_result(folder: Path, result: Result) -> None:
    """Write all files of a result into an empty folder.

    Raises:
        ValueError: if a number is not finite, or a table's name ends otherwise than in .csv or
            .star.
    """
    def place(name: str) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        return folder / name

    said = {"assumptions": result.assumptions, "warnings": result.warnings}
    write_json(place("results.json"), {**result.numbers, **{
        key: list(lines) for key, lines in said.items() if lines is not None}})
    for name, table in result.tables.items():
        _write_table(place(name), table)
    for arrays, volume in ((result.images, False), (result.volumes, True)):
        for name, (given, pixel_size, *origin) in arrays.items():
            values = np.asarray(given)
            values = values.astype(np.float32) if values.dtype == np.float64 else values
            write_mrc(place(name), values, pixel_size, volume,
                      origin=origin[0] if origin else (0.0, 0.0, 0.0))
    for name, text in (*result.scenes.items(), *result.texts.items()):
        place(name).write_text(text, encoding="utf-8")
    for name, content in result.files.items():
        place(name).write_bytes(content)
    for name, figure in result.figures.items():
        if isinstance(figure, Path):
            shutil.copyfile(figure, place(name))
        elif isinstance(figure, bytes):
            place(name).write_bytes(figure)
        else:
            figure.savefig(place(name))


def _write_table(file: Path, table: pd.DataFrame | dict[str, pd.DataFrame]) -> None:
    if file.suffix == ".star":
        starfile.write(table, file)
    elif file.suffix == ".csv" and isinstance(table, pd.DataFrame):
        table.to_csv(file, index=False)
    else:
        raise ValueError(f"tables: {file.name}: must be one table in .csv, or a .star file")
