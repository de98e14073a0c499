"""Finished parts of a long run, kept beside its output until all of it is there.

Each part is JSON and a picture in the hidden folder .NAME.unfinished. Nothing in it is ever run
or unpickled: what cannot be read as the part's JSON counts as not there.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tem_taichi
from tem_taichi.files.workplace import output_folder


def unfinished_folder(output: str | Path) -> Path:
    """The hidden folder beside an output folder."""
    final = output_folder(output)
    return final.with_name(f".{final.name}.unfinished")


def part_key(image: NDArray, settings: Sequence[object]) -> str:
    """Name of a part, the same for the same pixels, settings and version of this program."""
    about = json.dumps([tem_taichi.__version__, image.shape, str(image.dtype), *settings])
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def picture_of(folder: Path, key: str) -> Path:
    """The picture of a part, which is drawn before `save_part`."""
    return folder / f"{key}.png"


def load_part(folder: Path, key: str, names: Sequence[str]) -> dict[str, Any] | None:
    """A part's values; None if it is not there or not whole.

    Args:
        folder: from `unfinished_folder`.
        key: from `part_key`.
        names: keys that the values must have.
    """
    try:
        values = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(values, dict) and set(values) == set(names)
    return values if whole and picture_of(folder, key).is_file() else None


def save_part(folder: Path, key: str, values: dict[str, Any]) -> None:
    """Keep a part; its JSON appears last and at once, so that a part is whole or not there."""
    partial = folder / f"{key}.json.partial"
    partial.write_text(json.dumps(values), encoding="utf-8")
    partial.replace(folder / f"{key}.json")


def remove_parts(folder: Path) -> None:
    """Delete what `save_part` wrote, and the folder if nothing else is in it."""
    if folder.is_dir() and not folder.is_symlink():
        for end in ("json", "png", "json.partial"):
            for file in folder.glob(f"{'[0-9a-f]' * 32}.{end}"):
                file.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
