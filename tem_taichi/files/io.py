"""Images of any kind of file, and JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tem_taichi.files.mrc import read_image_stack
from tem_taichi.files.tiff import read_tiff


def read_images(path: Path, finite: bool = True) -> tuple[NDArray[np.float32], float | None]:
    """Read images from an MRC file (also by the name of .st, .ali or .mrcs) or a TIFF file.

    Args:
        path: MRC of mode 0, 1, 2, 6 or 12, also compressed by gzip; TIFF if it ends in .tif or
            .tiff.
        finite: whether to refuse values that are not finite.

    Returns:
        Values, shape (n, ny, nx), row 0 at the bottom, and pixel size [A] or None if unknown.

    Raises:
        ValueError: if there is no such file, it is broken or holds values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix.lower() in (".tif", ".tiff"):
        return read_tiff(path, finite)
    return read_image_stack(path, finite)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a dictionary as JSON, keys in their order; arrays as lists, paths as text.

    Raises:
        ValueError: if a number is not finite or a value has no JSON form.
    """
    def plain(value: object) -> object:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"{type(value).__name__} has no JSON form")

    try:
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False, default=plain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    Path(path).write_text(text + "\n", encoding="utf-8")


def write_whole(path: Path, text: str) -> None:
    """Write text into a file that appears whole or not at all, in the place of any before it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
