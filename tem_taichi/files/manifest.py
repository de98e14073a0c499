"""The list, in metadata.json, of the files that a run wrote: what a later run may replace."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tem_taichi.files.io import write_json

METADATA = "metadata.json"
"""File that says which command wrote a folder, and its files."""

PROGRAM = "tem_taichi"

_READ = 1 << 20
"""Bytes of a file that its fingerprint reads: all of a small one."""
_NAMED = 3
_REMEDY = "move or remove it yourself, or choose another folder"


def write_manifest(folder: Path, command: str) -> None:
    """Add to a folder's metadata.json what wrote it, and a fingerprint of each of its files.

    Args:
        folder: of an output, complete.
        command: such as "simulate"; only the same one replaces the folder later.
    """
    metadata = _metadata(folder) or {"program": PROGRAM}
    listed = {name: _fingerprint(path) if path.is_file() else ""
              for name, path in sorted(_entries(folder)) if name != METADATA}
    write_json(folder / METADATA, metadata | {"command": command, "files": listed})


def check_replaceable(folder: Path, command: str, shown: Path) -> None:
    """Refuse to replace anything but files that the same command wrote and nobody touched.

    Args:
        folder: to be replaced.
        command: that wants to replace it.
        shown: its name for messages.

    Raises:
        ValueError: with one line that says what is there and what to do.
    """
    metadata = _metadata(folder)
    if metadata is None or metadata.get("program") != PROGRAM:
        raise ValueError(f"{shown}: is no output of {PROGRAM} (its {METADATA} does not say so); "
                         "overwrite=true replaces only that")
    listed = metadata.get("files")
    if not isinstance(listed, dict):
        raise ValueError(f"{shown}: was written by an older version, which kept no list of its "
                         f"files, so that overwrite=true can't tell them from yours; {_REMEDY}")
    if metadata.get("command") != command:
        raise ValueError(f"{shown}: was written by {metadata.get('command')}, not by {command}; "
                         f"{_REMEDY}")
    entries = dict(_entries(folder))
    _refuse(shown, "its own run did not write", [
        name for name in entries if name not in listed and name != METADATA])
    _refuse(shown, "was changed since a run wrote it", [
        name for name, path in entries.items() if name != METADATA
        and listed[name] != (_fingerprint(path) if _is_file(path) else "")])


def is_whole(folder: Path) -> bool:
    """Whether every file that a folder's list names is still there and as it was written."""
    listed = (_metadata(folder) or {}).get("files")
    return isinstance(listed, dict) and all(
        mark == (_fingerprint(path) if _is_file(path) else "") and path.exists()
        for path, mark in ((folder / name, mark) for name, mark in listed.items()))


def remove_listed(folder: Path) -> None:
    """Remove the files that a folder's list names, and the folder if nothing else is in it."""
    listed = (_metadata(folder) or {}).get("files")
    listed = listed if isinstance(listed, dict) else {}
    for place, _, files in os.walk(folder, topdown=False):
        # The list itself goes last, so that whoever is cut short can go on.
        for name in sorted(files, key=lambda name: name == METADATA):
            path = Path(place, name)
            if path.relative_to(folder).as_posix() in (*listed, METADATA):
                with suppress(OSError):
                    path.unlink()
        with suppress(OSError):
            os.rmdir(place)


def _metadata(folder: Path) -> dict[str, Any] | None:
    file = folder / METADATA
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if _is_file(file) else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """Everything below a folder but folders that hold something; links are not followed."""
    for place, folders, files in os.walk(folder):
        kept = [name for name in folders if os.path.islink(os.path.join(place, name))
                or not os.listdir(os.path.join(place, name))]
        for name in (*kept, *files):
            path = Path(place, name)
            yield path.relative_to(folder).as_posix(), path


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _fingerprint(file: Path) -> str:
    """Of the size and the first mebibyte, which is where people and programs change a file."""
    digest = blake2b(str(file.stat().st_size).encode(), digest_size=8)
    with file.open("rb") as stream:
        digest.update(stream.read(_READ))
    return digest.hexdigest()


def _refuse(shown: Path, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise ValueError(f"{shown}: holds {', '.join(sorted(names)[:_NAMED])}{more}, which {what}; "
                         f"overwrite=true would delete that: {_REMEDY}")
