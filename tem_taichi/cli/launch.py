"""The scenes of a sweep, run side by side by one of Hydra's launchers."""

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import TextIOBase
from pathlib import Path
from typing import TextIO

from tem_taichi.cli.run import left_to_run, run
from tem_taichi.scene.launcher import Launcher, launch
from tem_taichi.scene.settings import Scene

FOLDER = ".launcher"
"""Beside the folders of a sweep, for what a launcher itself writes."""


def launch_sweep(launcher: Launcher, scenes: Sequence[Scene], read: Sequence[str]) -> None:
    """Run all scenes whose output is not there yet; `read` as in `prepare`.

    Raises:
        ValueError: if one of them cannot run, before any does; or, once all others are done, if
            some failed.
    """
    left = left_to_run(scenes, read)
    if not left:
        return
    job = _Job(tuple(left), tuple(map(os.path.abspath, read)), os.getcwd())
    folder = Path(left[0].output).expanduser().absolute().parent / FOLDER
    try:
        failed = [said for said in launch(launcher, job, len(left), folder) if said]
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("finished runs and images are kept, the same command goes on with "
                                "the others") from error
    if failed:
        raise ValueError(f"{failed[0]} ({len(failed)} of {len(scenes)} runs failed, the others are "
                         "finished and kept)")


@dataclass(frozen=True)
class _Job:
    """A scene's run in another process."""

    scenes: tuple[Scene, ...]
    read: tuple[str, ...]
    folder: str

    def __call__(self, number: int) -> str | None:
        """Run a scene; what is wrong, in a line, if it fails."""
        os.chdir(self.folder)
        scene = self.scenes[number]
        try:
            with redirect_stdout(_Shared(sys.stdout)):
                run(scene, self.read)
        except (ValueError, OSError, OverflowError, MemoryError) as error:
            return f"{scene.output}: {' '.join(str(error).split()) or type(error).__name__}"
        return None


class _Shared(TextIOBase):
    """A stream that several processes write to, which is no place for a moving bar."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(text)
        self._stream.flush()
        return len(text)
