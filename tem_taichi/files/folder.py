"""The output folder: filled beside its place, moved there whole, or not at all."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tem_taichi.files.manifest import check_replaceable, remove_listed, write_manifest
from tem_taichi.files.workplace import HIDDEN, OUTPUT, REPLACED, alone, output_folder, workplace

_SHOWN = 100
_BELOW = 512
"""Letters that the path of a file in an output may have beside the output's."""


@contextmanager
def said_of_output(name: str) -> Iterator[None]:
    """Errors about a command's output folder, as one line that names the key and is not long."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"output: {error}") from error
    except OSError as error:
        raise ValueError(f"output: {error.strerror or error}: {name[:_SHOWN]}") from error


def check_new_folder(name: str | Path, command: str, overwrite: bool = False,
                     inputs: Iterable[str | Path] = ()) -> None:
    """Say before a long computation whether its output folder can be made; changes nothing.

    Args:
        name: of the folder to be; may exist if it is empty.
        command: what will write it, such as "simulate".
        overwrite: whether an earlier output of the same command may be replaced.
        inputs: files that the run reads, which are never replaced.

    Raises:
        ValueError: if something is there that may not be replaced, or the folder can't be made.
    """
    final = output_folder(name)
    with alone(final.parent):
        _check(final, command, overwrite, inputs)


def _check(final: Path, command: str, overwrite: bool, inputs: Iterable[str | Path]) -> None:
    if final == Path.cwd() or final in Path.cwd().parents:
        raise ValueError(f"{final}: is the current folder or above it; choose another folder")
    if os.path.lexists(final):
        _check_taken(final, command, overwrite, inputs)
    above = next(folder for folder in final.parents if os.path.lexists(folder))
    if not above.is_dir():
        raise ValueError(f"{final}: {above} is a file, not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{final}: no permission to write in {above}")
    _check_length(final, above)


def _check_taken(final: Path, command: str, overwrite: bool, inputs: Iterable[str | Path]) -> None:
    if not final.is_dir():
        raise ValueError(f"{final}: is a file; choose another folder")
    if os.path.ismount(final):
        raise ValueError(f"{final}: is where a file system is mounted, which can't be replaced; "
                         "choose a folder in it")
    if not os.access(final, os.W_OK | os.X_OK):
        raise ValueError(f"{final}: no permission to write in it")
    if not any(final.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{final}: exists already; choose another folder or use overwrite=true")
    for file in inputs:
        if final in Path(os.path.realpath(os.path.expanduser(file))).parents:
            raise ValueError(f"{final}: holds {file}, which this run reads and overwrite=true "
                             "would delete; choose another folder")
    check_replaceable(final, command, final)


def _check_length(final: Path, above: Path) -> None:
    """What the file system would refuse only at the end."""
    longest, whole = 255, 4096
    if hasattr(os, "pathconf"):
        longest, whole = os.pathconf(above, "PC_NAME_MAX"), os.pathconf(above, "PC_PATH_MAX")
    parts = [len(os.fsencode(part)) for part in final.relative_to(above).parts]
    if max([*parts[:-1], len(os.fsencode(final.name)) + HIDDEN]) > longest:
        raise ValueError(f"{str(final)[:_SHOWN]}...: has a name that is too long for the file "
                         f"system: must have at most {longest - HIDDEN} letters")
    if len(os.fsencode(final)) + _BELOW > whole:
        raise ValueError(f"{str(final)[:_SHOWN]}...: is too long for the file system: must have "
                         f"at most {whole - _BELOW} letters")


@contextmanager
def new_folder(name: str | Path, command: str, overwrite: bool = False,
               inputs: Iterable[str | Path] = ()) -> Iterator[Path]:
    """Fill a temporary folder; it becomes `name` if the block ends well, else it vanishes.

    The temporary folder stands beside the final one, so the move is one rename. An older output
    is first renamed aside, put back if anything fails, and deleted last: of it, too, only what
    the run that wrote it listed. A list of the files is added to metadata.json.

    Args:
        name: of the folder to be; missing parents are made, and removed again on failure.
        command: what writes it, such as "simulate".
        overwrite: whether an earlier output of the same command may be replaced.
        inputs: files that the run reads, which are never replaced.

    Yields:
        The temporary folder, to be filled.

    Raises:
        ValueError: as `check_new_folder`, before the block and again after it.
    """
    final, inputs = output_folder(name), list(inputs)
    check_new_folder(final, command, overwrite, inputs)
    with workplace(final) as place:
        yield place / OUTPUT
        write_manifest(place / OUTPUT, command)
        _settle(place / OUTPUT)
        with alone(final.parent):
            _check(final, command, overwrite, inputs)
            _move(place / OUTPUT, final, place / REPLACED, command)


def _settle(folder: Path) -> None:
    """Wait until the disk has a folder, so that a power failure later leaves no hollow files."""
    for place, _, files in os.walk(folder):
        for name in ("", *files):
            with suppress(OSError):  # of a system that can't, as Windows can't with folders
                descriptor = os.open(os.path.join(place, name), os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def _move(output: Path, final: Path, aside: Path, command: str) -> None:
    """Rename output to final; what stood there is deleted only once that is done."""
    if not final.exists():
        output.rename(final)
        return
    try:
        final.rename(aside)
        if any(aside.iterdir()):  # somebody may have put something there in the meantime
            check_replaceable(aside, command, final)
        output.rename(final)
    finally:
        if not final.exists():
            aside.rename(final)
        elif not output.exists():
            remove_listed(aside)
