"""Finished parts of a long run, kept beside its output until all of it is there.

Each part is JSON and a picture in the hidden folder .NAME.unfinished. Nothing in it is ever run
or unpickled: what cannot be read as the part's JSON counts as not there.
"""

import hashlib
import json
import shutil
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


def load_part(folder: Path, key: str, names: Sequence[str], picture: Path) -> dict[str, Any] | None:
    """A part's values, with its picture copied; None if it is not there or not whole.

    Args:
        folder: from `unfinished_folder`.
        key: from `part_key`.
        names: keys that the values must have.
        picture: where its picture goes.
    """
    try:
        values = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        if not isinstance(values, dict) or set(values) != set(names):
            return None
        shutil.copyfile(folder / f"{key}.png", picture)
    except (OSError, ValueError):
        return None
    return values


def save_part(folder: Path, key: str, values: dict[str, Any], picture: Path) -> None:
    """Keep a part; its JSON appears last and at once, so that a part is whole or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(picture, folder / f"{key}.png")
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
