"""The output folder: filled beside its place, moved there whole, or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

METADATA = "metadata.json"
"""File whose "program" says that a folder is ours and may be overwritten."""

PROGRAM = "tem_taichi"


def check_new_folder(final: Path, overwrite: bool = False) -> None:
    """Say before a long computation whether its output folder can be made; changes nothing.

    Args:
        final: the folder to be; may exist if it is empty.
        overwrite: whether an earlier output of this program may be replaced.

    Raises:
        ValueError: if something is there that may not be replaced, or the folder can't be made.
    """
    final = Path(final).resolve()
    if final == Path.cwd() or final in Path.cwd().parents:
        raise ValueError(f"{final}: is the current folder or above it; choose another folder")
    if final.exists():
        _check_replaceable(final, overwrite)
    parent = next(folder for folder in final.parents if folder.exists())
    if not parent.is_dir():
        raise ValueError(f"{final}: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{final}: no permission to write in {parent}")


def _check_replaceable(final: Path, overwrite: bool) -> None:
    if not final.is_dir():
        raise ValueError(f"{final}: is a file; choose another folder")
    if not any(final.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{final}: exists already; choose another folder or use overwrite=true")
    if not _is_ours(final):
        raise ValueError(f"{final}: is no output of {PROGRAM} (its {METADATA} does not say so); "
                         "overwrite=true replaces only that")


def _is_ours(folder: Path) -> bool:
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and metadata.get("program") == PROGRAM


@contextmanager
def new_folder(final: Path, overwrite: bool = False) -> Iterator[Path]:
    """Fill a temporary folder; it becomes `final` if the block ends well, else it vanishes.

    The temporary folder stands beside `final`, so the move is one rename. An older output is
    first renamed aside, put back if anything fails, and deleted last.

    Args:
        final: the folder to be; missing parents are made, and removed again on failure.
        overwrite: whether an earlier output of this program may be replaced.

    Yields:
        The temporary folder, to be filled.

    Raises:
        ValueError: as `check_new_folder`, before the block and again after it.
    """
    final = Path(final).resolve()
    check_new_folder(final, overwrite)
    mark = secrets.token_hex(4)
    partial = final.with_name(f".{final.name}.partial-{mark}")
    missing = [folder for folder in final.parents if not folder.exists()]
    try:
        partial.mkdir(parents=True)
        yield partial
        check_new_folder(final, overwrite)
        _move(partial, final, aside=final.with_name(f".{final.name}.old-{mark}"))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in missing:
            # Another run may have put its output there in the meantime.
            with suppress(OSError):
                folder.rmdir()
        raise


def _move(partial: Path, final: Path, aside: Path) -> None:
    """Rename partial to final; what stood there is deleted only once that is done."""
    if not final.exists():
        partial.rename(final)
        return
    try:
        final.rename(aside)
        partial.rename(final)
    finally:
        if not final.exists():
            aside.rename(final)
        elif not partial.exists():
            shutil.rmtree(aside, ignore_errors=True)
