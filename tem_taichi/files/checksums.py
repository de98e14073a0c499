"""SHA-256 of every byte of some files, as `sha256sum --check` reads it."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tem_taichi.files.io import write_whole

_READ = 1 << 20


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and those in it, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def write_checksums(path: Path, files: Iterable[Path], root: Path) -> None:
    """Write a line for each file; the list appears whole or not at all.

    Args:
        path: of the list.
        files: below `root`.
        root: to which names are relative.
    """
    write_whole(path, "".join(
        f"{_digest(file)}  {file.relative_to(root).as_posix()}\n" for file in files))


def read_checksums(path: Path) -> dict[str, str]:
    """The digest of each name; nothing where the list is not there or not whole."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = [line.split("  ", 1) for line in lines]
    if any(len(pair) != 2 or len(pair[0]) != 64 for pair in pairs):
        return {}
    return {name: digest for digest, name in pairs}


def wrong(path: Path, root: Path) -> list[str]:
    """Names of a list whose file is not there or holds something else.

    Args:
        path: of the list.
        root: to which names are relative.
    """
    return [name for name, digest in read_checksums(path).items()
            if not (root / name).is_file() or _digest(root / name) != digest]


def remove_listed(path: Path, root: Path) -> None:
    """Remove the files of a list, folders that get empty by it, and the list itself last."""
    for name in read_checksums(path):
        (root / name).unlink(missing_ok=True)
        for folder in (root / name).parents:
            if folder == root:
                break
            with suppress(OSError):
                folder.rmdir()
    path.unlink(missing_ok=True)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(_READ):
            digest.update(piece)
    return digest.hexdigest()
