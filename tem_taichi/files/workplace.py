"""The hidden folder beside an output in which a run works, and those that killed runs left.

.NAME.partial-MARK/ holds `output`, which becomes NAME; `replaced`, what NAME was until then; and
`lock`, which is locked for as long as the run lives, however it ends.
"""

import os
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from filelock import FileLock, Timeout

from tem_taichi.files.manifest import remove_listed

OUTPUT, REPLACED, _LOCK = "output", "replaced", "lock"

HIDDEN = len("..partial-12345678")
"""Letters that the hidden folder's name has beside the output's."""

_NAME = re.compile(r"\.(.+)\.(partial|old)-[0-9a-f]{8}", re.DOTALL)
_YOUNG = 60.0
"""Age up to which a folder without a lock may be one whose run is about to lock it [s]."""


_PATIENCE, _PAUSE = 20.0, 0.01
"""How long to wait for another run that swaps its output, which may have been stopped, and between
two looks [s]."""


def output_folder(name: str | Path) -> Path:
    """The folder that a name means: absolute, ~ and links resolved.

    Raises:
        ValueError: if there is no such user, or a link leads in a circle.
    """
    try:
        final = Path(name).expanduser().resolve()
    except RuntimeError as error:
        raise ValueError(f"{name}: {error}") from error
    for place in (final, *final.parents):
        if os.path.islink(place):
            raise ValueError(f"{name}: {place} is a link that leads in a circle")
    return final


@contextmanager
def workplace(final: Path) -> Iterator[Path]:
    """A new hidden folder beside `final` with an empty `output` in it; gone afterwards.

    What is in `replaced` is never deleted here.
    """
    place = final.with_name(f".{final.name}.partial-{secrets.token_hex(4)}")
    missing = [folder for folder in final.parents if not folder.exists()]
    lock = FileLock(place / _LOCK)
    try:
        place.mkdir(parents=True)
        with suppress(OSError, NotImplementedError):  # of a file system that knows no locks
            lock.acquire(timeout=0)
        (place / OUTPUT).mkdir()
        yield place
    finally:
        _remove(place, lock)
        for folder in missing:
            # Where this run failed; another may have put its output there in the meantime.
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While no other run checks, swaps or clears an output in a folder; waits for it, not for ever.

    Systems that know no locks of folders go on without.
    """
    try:
        fcntl = import_module("fcntl")
        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        for _ in range(int(_PATIENCE / _PAUSE)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_PAUSE)
                continue
            except OSError:
                pass
            break
        yield
    finally:
        os.close(descriptor)


def clear_leftovers(name: str | Path) -> None:
    """Remove what killed runs left beside an output, and put back what they were replacing.

    Warns of what it does, and of what it can't tell from the work of a run that lives.

    Raises:
        ValueError: as `output_folder`.
    """
    parent = output_folder(name).parent
    for place in sorted(parent.iterdir()) if parent.is_dir() else ():
        match = _NAME.fullmatch(place.name)
        if match and place.is_dir() and not place.is_symlink():
            with alone(parent):
                _clear(place, place.with_name(match[1]))


def _clear(place: Path, final: Path) -> None:
    lock = FileLock(place / _LOCK)
    try:
        if not (place / _LOCK).is_file():
            if time.time() - place.stat().st_mtime > _YOUNG:
                with suppress(OSError):
                    place.rmdir()  # killed before it locked: there is nothing in it
                    return
                warnings.warn(f"{place}: seems to be left by an earlier run; remove it if no "
                              "run is at work there and you need nothing in it", stacklevel=2)
            return
        lock.acquire(timeout=0)
    except (Timeout, OSError, NotImplementedError):
        return  # a run that lives, or one of which nothing can be known
    restored = ""
    if (place / REPLACED).exists() and not final.exists():
        (place / REPLACED).rename(final)
        restored = f"; {final.name}, which it was replacing, is back in its place"
    remove_listed(place / REPLACED)
    _remove(place, lock)
    warnings.warn(f"{place}: left by a run that was killed, is removed{restored}", stacklevel=2)


def _remove(place: Path, lock: FileLock) -> None:
    shutil.rmtree(place / OUTPUT, ignore_errors=True)
    if not (place / REPLACED).exists():
        with suppress(OSError):
            (place / _LOCK).unlink()
    lock.release()
    with suppress(OSError):
        (place / _LOCK).unlink()  # once more for systems that don't delete what is open
    with suppress(OSError):
        place.rmdir()
