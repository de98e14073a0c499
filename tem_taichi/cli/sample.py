"""One sample of a data set: made, or kept where it is whole and of the same settings."""

import io
import json
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from tem_taichi.cli.recipes import do_recipe
from tem_taichi.cli.run import run
from tem_taichi.export.gallery import draw_sample
from tem_taichi.files.checksums import (
    files_below,
    read_checksums,
    remove_listed,
    write_checksums,
    wrong,
)
from tem_taichi.files.manifest import METADATA
from tem_taichi.recipes.load import read_recipe
from tem_taichi.scene.dataset import SAMPLES, Dataset, name_of, scene_of
from tem_taichi.scene.settings import Scene
from tem_taichi.scene.typed import to_plain
from tem_taichi.series.finished import is_finished

TOMOGRAMS, PICTURES, CHECKSUMS = "tomograms", "gallery", "checksums"
"""Folders of a data set's, beside that of the samples."""


@dataclass(frozen=True)
class Made:
    """What became of a sample."""

    number: int
    kept: bool = False
    """whether it was there already"""
    seconds: float = 0.0
    """that making it took"""
    warnings: tuple[str, ...] = ()
    error: str | None = None
    """what is wrong, in a line, if it could not be made"""


@dataclass(frozen=True)
class Maker:
    """Makes samples by their numbers, in any process."""

    dataset: Dataset

    def __call__(self, number: int) -> Made:
        """Make a sample, or say in a line why it can't be.

        One thread computes: the bytes depend on how many do, and workers share the cores.
        """
        begun, threads = time.monotonic(), torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", UserWarning)
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    kept = make(self.dataset, number)
        except (ValueError, OSError, OverflowError, MemoryError) as error:
            return Made(number, error=" ".join(str(error).split()) or type(error).__name__)
        finally:
            torch.set_num_threads(threads)
        found = [str(one.message) for one in said if issubclass(one.category, UserWarning)]
        return Made(number, kept, time.monotonic() - begun, tuple(dict.fromkeys(found)))


def list_of(dataset: Dataset, number: int) -> Path:
    """The list of a sample's files and what they hold, written once it is whole."""
    return dataset.folder / CHECKSUMS / f"{name_of(dataset, number)}.sha256"


def make(dataset: Dataset, number: int) -> bool:
    """Make a sample: its series, tomogram and picture; whether it was there already.

    What is left of a sample of which a file is gone or changed is removed, and all made anew; of
    one that was interrupted what is finished stays.

    Raises:
        ValueError: if it can't be made.
    """
    root, listed = dataset.folder, list_of(dataset, number)
    scene = scene_of(dataset, number)
    words = _tomogram_words(dataset, scene)
    there = bool(read_checksums(listed))
    if there and not wrong(listed, root) and is_finished(scene) and (
            words is None or _is_tomogram(words)):
        return True
    if there or listed.exists():
        remove_listed(listed, root)
    if not is_finished(scene):
        run(scene)
    if words is not None and not _is_tomogram(words):
        do_recipe(words)
    places = [root / SAMPLES / scene.name, root / TOMOGRAMS / scene.name]
    picture = root / PICTURES / f"{scene.name}.jpg"
    picture.parent.mkdir(exist_ok=True)
    draw_sample(picture, scene.name, places[0],
                None if words is None else places[1] / "tomogram.mrc")
    listed.parent.mkdir(exist_ok=True)
    write_checksums(listed, [*(file for place in places for file in files_below(place)), picture],
                    root)
    return False


def _tomogram_words(dataset: Dataset, scene: Scene) -> list[str] | None:
    """What recipe=reconstruct is told: the scene's, unless the data set says otherwise."""
    if dataset.tomogram is None:
        return None
    folder = dataset.folder / SAMPLES / scene.name
    known = {"thickness": scene.specimen.ice.thickness,
             "angles": json.dumps(str(folder / f"{scene.name}_tilts.csv")),  # the true alignment
             "voltage": scene.microscope.voltage,
             "spherical_aberration": scene.microscope.spherical_aberration}
    return ["recipe=reconstruct", *(f"{key}={value}" for key, value in known.items()),
            *dataset.tomogram, f"input={json.dumps(str(folder / f'{scene.name}.mrc'))}",
            f"output={json.dumps(str(dataset.folder / TOMOGRAMS / scene.name))}"]


def check_tomogram(dataset: Dataset) -> None:
    """ValueError unless recipe=reconstruct takes what the data set tells it."""
    words = _tomogram_words(dataset, scene_of(dataset, 0))
    if words is not None:
        try:
            read_recipe(words)
        except ValueError as error:
            raise ValueError(f"tomogram: {error}") from error


def _is_tomogram(words: list[str]) -> bool:
    """Whether a tomogram of these settings is there, wherever the data set was when it was made."""
    _, recipe = read_recipe(words)
    now = json.loads(json.dumps(to_plain(recipe)))
    with suppress(OSError, ValueError, KeyError):
        before = json.loads((Path(recipe.output) / METADATA).read_text("utf-8"))["settings"]
        return all(before.get(key) == value for key, value in now.items()
                   if key not in ("input", "output", "angles"))
    return False
