"""What recipes read: images with their pixel size, and the table of a tilt series."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi import checks
from tem_taichi.files.io import read_images
from tem_taichi.files.tilt_tables import angles_beside as angles_beside
from tem_taichi.files.tilt_tables import tables_beside as tables_beside
from tem_taichi.files.tilt_tables import tilts_of
from tem_taichi.recipes.settings import Recipe
from tem_taichi.scene.typed import to_plain

_SAME = 0.01
"""Relative difference of pixel sizes that are taken for the same."""


class WithAngles(Protocol):
    """A recipe that may name a file of tilt angles."""

    @property
    def angles(self) -> str | None:
        """Its name; None = beside the stack."""


class WithAxis(WithAngles, Protocol):
    """One that may also name their axis."""

    @property
    def axis_angle(self) -> float | None:
        """From +y, counter-clockwise [deg]; None = as the file of angles says."""


def images_of(recipe: Recipe, need_pixel_size: bool = True,
              finite: bool = True,
              unread: dict[str, str] | None = None) -> Iterator[tuple[str, NDArray, float]]:
    """Name, images (n, ny, nx) and pixel size [A] of each input file, read one by one.

    Args:
        recipe: whose `input` is read.
        need_pixel_size: whether a file without one is refused.
        finite: whether values that are not are refused.
        unread: where given, a file that cannot be read is left out, and its name and the
            reason are put here.

    Raises:
        ValueError: if a file cannot be read, has no pixel size where one is needed, or one that
            contradicts the recipe's or that of the first file.
    """
    for name in recipe.input:
        checks.check(Path(name).is_file(), "input", name, "a file; there is none of this name")
    first: tuple[str, float] | None = None
    for name in recipe.input:
        try:
            images, own = read_images(Path(name), finite)
        except (ValueError, OSError) as error:
            if unread is None:
                raise ValueError(f"input: {error}") from error
            unread[name] = str(error)
            continue
        given = recipe.pixel_size
        if given is not None and own is not None and abs(given / own - 1) > _SAME:
            raise ValueError(f"pixel_size={given:g}: {name} says {own:.4g}: must agree within 1 %; "
                             "null = take the file's")
        pixel_size = given or own
        if pixel_size is None and need_pixel_size:
            raise ValueError(f"pixel_size=null: {name} has none: must be given [A]")
        first = first or (name, pixel_size or 1.0)
        if need_pixel_size and pixel_size and abs(pixel_size / first[1] - 1) > _SAME:
            raise ValueError(f"input: {name} has pixels of {pixel_size:.4g} A, {first[0]} of "
                             f"{first[1]:.4g} A: must be the same in all files")
        yield name, images, pixel_size or 1.0


def series_table(recipe: WithAngles, stack: str, count: int) -> pd.DataFrame:
    """Angles, and what else is known, of the images of a stack, in its order.

    See `read_tilts`; the columns of `twin.make_twin` are used where they are there.

    Args:
        recipe: whose `angles` are read; null = beside the stack, by name.
        stack: file of the images.
        count: of images.

    Raises:
        ValueError: if no file of angles is found or it has another number of images.
    """
    return tilts_of(Path(stack), recipe.angles, count)


def tilted(recipe: WithAxis, stack: str, count: int) -> pd.DataFrame:
    """`series_table` with the axis of each image: the recipe's, or else the table's.

    Args:
        recipe: whose `angles` are read, and whose `axis_angle` goes before theirs [deg].
        stack: file of the images.
        count: of images.

    Raises:
        ValueError: as `series_table`, or if nothing tells the axis.
    """
    table = series_table(recipe, stack, count)
    if recipe.axis_angle is not None:
        table["axis_angle"] = recipe.axis_angle
    if "axis_angle" not in table or not np.isfinite(table["axis_angle"]).all():
        raise ValueError(f"axis_angle=null: {_angles_file(recipe, stack)} has none: must be given "
                         "[deg]")
    return table


class WithAlignment(WithAxis, Protocol):
    """A recipe that says how the images of a series are aligned."""

    @property
    def shifts(self) -> tuple[str, str]:
        """Columns of the table with the images' shifts [A]; 0 where it has none."""

    @property
    def cut_from(self) -> tuple[float, float]:
        """Middle of the images in the frames that they were cut from, x, y [A]."""


def check_alignment(recipe: WithAlignment) -> None:
    """What a recipe says of the axis, the shifts and the frames.

    Args:
        recipe: that says it.

    Raises:
        ValueError: if one of them cannot be.
    """
    if recipe.axis_angle is not None:
        checks.within("axis_angle", recipe.axis_angle, -360, 360, "deg")
    checks.check(len(recipe.shifts) == 2, "shifts", recipe.shifts, "the names of two columns")
    checks.check(len(recipe.cut_from) == 2, "cut_from", recipe.cut_from, "two numbers [A]")
    for value in recipe.cut_from:
        checks.within("cut_from", value, -checks.LARGE, checks.LARGE, "A")


def aligned_table(recipe: WithAlignment, stack: str, count: int) -> pd.DataFrame:
    """`tilted` with shift_x and shift_y [A] where they are known.

    Args:
        recipe: that says which.
        stack: file of the images.
        count: of images.

    Raises:
        ValueError: as there, or if a column is not there or has gaps.
    """
    table = tilted(recipe, stack, count)
    for ours, theirs in zip(("shift_x", "shift_y"), recipe.shifts, strict=True):
        if theirs != ours and theirs not in table:
            raise ValueError(f"shifts={theirs}: must be a column of the table of angles, which has "
                             f"{', '.join(table)}")
        if theirs in table:
            if not np.isfinite(table[theirs]).all():
                raise ValueError(f"shifts={theirs}: must have a number [A] in every row")
            table[ours] = table[theirs]
    return table


def _angles_file(recipe: WithAngles, stack: str) -> Path | None:
    """The file of a tilt series' angles: the recipe's, or else one beside the stack."""
    return Path(recipe.angles) if recipe.angles else next(iter(tables_beside(Path(stack))), None)


def files_of(recipe: Recipe, words: Sequence[str] = ()) -> list[str]:
    """Every file that a recipe may read: those its settings name, and tables beside its input.

    Args:
        recipe: of `read_recipe`.
        words: that it was read from; one may name a recipe's own file.
    """
    named = [*_texts(to_plain(recipe)), *(word.partition("=")[2] for word in words
                                        if word.startswith("recipe="))]
    return [name for name in named if os.path.isfile(os.path.expanduser(name))] + [
        str(file) for name in recipe.input if os.path.isfile(name)
        for file in tables_beside(Path(name))]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
