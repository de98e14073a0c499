"""Finished parts of a long run, kept beside its output until all of it is there.

Each part is JSON in the hidden folder .NAME.unfinished, which one run at a time holds, beside a
picture (`picture_of`) or the arrays that it tells of (`records`). Nothing in it is ever run or
unpickled: what cannot be read as the part's JSON counts as not there.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

import tem_taichi
from tem_taichi.files.folder import said_of_output
from tem_taichi.files.workplace import alone, output_folder

_LOCK = "lock"
_ENDS = ("json", "json.partial", "png", "records")

def unfinished_folder(output: str | Path) -> Path:
    """The hidden folder beside an output folder."""
    final = output_folder(output)
    return final.with_name(f".{final.name}.unfinished")


@contextmanager
def unfinished(output: str | Path) -> Iterator[Path]:
    """Hold the hidden folder beside an output; it stays afterwards if there is something in it.

    Args:
        output: the output folder.

    Yields:
        The hidden folder.

    Raises:
        ValueError: if another run holds it.
    """
    with said_of_output(str(output)):
        folder = unfinished_folder(output)
        missing = [above for above in folder.parents if not above.exists()]
        lock = FileLock(folder / _LOCK)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.parent):
            _hold(folder, lock)
    try:
        yield folder
    finally:
        with alone(folder.parent):
            if not any(folder.glob("*.json")):
                remove_parts(folder)  # arrays and pictures of which nothing was finished
            lock.release()
            with suppress(OSError):
                (folder / _LOCK).unlink()
            for empty in (folder, *missing):
                with suppress(OSError):
                    empty.rmdir()


def _hold(folder: Path, lock: FileLock) -> None:
    """Make and lock the hidden folder."""
    folder.mkdir(exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{folder}: another run is at work there; wait for its end, or choose "
                         "another output folder") from None
    except (OSError, NotImplementedError):
        pass  # of a file system that knows no locks


def key_of(about: object) -> str:
    """A name for what has a JSON form, the same for the same; of 32 letters from 0 to f."""
    return hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()


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
    """A part's values; None if its JSON is not there or not whole.

    Args:
        folder: from `unfinished_folder`.
        key: from `part_key`.
        names: keys that the values must have.
    """
    try:
        values = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and set(values) == set(names) else None


def save_part(folder: Path, key: str, values: dict[str, Any]) -> None:
    """Keep a part; its JSON appears last and at once, so that a part is whole or not there."""
    partial = folder / f"{key}.json.partial"
    partial.write_text(json.dumps(values), encoding="utf-8")
    partial.replace(folder / f"{key}.json")


def remove_parts(folder: Path) -> None:
    """Delete what belongs to parts, whatever run they are of."""
    if folder.is_dir() and not folder.is_symlink():
        for end in _ENDS:
            for file in folder.glob(f"{'[0-9a-f]' * 32}.{end}"):
                file.unlink(missing_ok=True)
