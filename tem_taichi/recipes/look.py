"""Pictures of a volume: slices, greatest values, a shaded rendering and one that turns.

The volume is an MRC file, such as the tomogram of recipe=reconstruct; `beside` shows another of the
same voxels in the same way. In the first rendering x is to the right, y up, z towards the viewer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import is_color_like
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tem_taichi import checks
from tem_taichi.device import as_tensor
from tem_taichi.estimate.rendering import Transfer, View, extinction_for, levels_of
from tem_taichi.estimate.turntable import Style, fitting, gif, picture, png, turns
from tem_taichi.estimate.volume_figure import beside_figure, greatest, planes_figure, slices
from tem_taichi.files.mrc import read_volume
from tem_taichi.inverse.measures import correlation
from tem_taichi.recipes.result import Report, Result
from tem_taichi.recipes.settings import Recipe

_DETAIL = 4
"""Voxels."""
_WIDTH = np.sqrt(np.log(2) / 2) / np.pi
"""Deviation of the Gaussian that leaves half of the contrast of a detail, over its size."""


@dataclass(frozen=True)
class LookRecipe(Recipe):
    """A volume, and how it is seen."""

    beside: str | None = None
    """MRC file of another volume of the same voxels, to be shown in the same way"""
    matter: str = "positive"
    """positive, as recipe=reconstruct writes it, or negative, dark as in images"""
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """where the slices cross, x, y, z from the middle voxel [A]"""
    slab: float | None = None
    """of the volume over which a slice is averaged [A]; null = 5 voxels, 0 = one"""
    resolution: float | None = None
    """of greatest values and renderings: details of this size have half of their contrast left
    [A]; null = 4 voxels, 0 = all have all"""
    background: float = 0.0
    """of greatest values and renderings: what is larger than this is taken away, so that uneven
    ice hides nothing [A]; 0 = nothing is"""
    levels: tuple[float, float] | None = None
    """of renderings: values at which matter begins to be seen, and from which on it is densest, in
    the volume's unit, after resolution and background, matter positive; null = from the data"""
    opacity: float = 0.9
    """of renderings: part of the light that matter takes from behind it on its average, from the
    front; less shows more of the inside"""
    colours: tuple[str, str] = ("peru", "lemonchiffon")
    """of renderings: of matter at the first and at the second level, as matplotlib names them"""
    backdrop: str = "black"
    """of renderings: colour behind the volume"""
    turn: float = 0.0
    """of the first rendering, about y, which is up [deg]; 90 brings what was in front right"""
    elevation: float = 0.0
    """of the eye above the horizon [deg]"""
    frames: int = 36
    """of the rendering that turns; 0 = none is made"""
    size: int = 400
    """of its longer side [pixel]; the first rendering has twice as many"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check(len(self.input) == 1, "input", self.input, "one volume; beside takes another")
        checks.one_of("matter", self.matter, ("positive", "negative"))
        checks.check(len(self.at) == 3, "at", self.at, "three numbers [A]")
        for value in self.at:
            checks.within("at", value, -checks.LARGE, checks.LARGE, "A")
        for key in ("slab", "resolution", "background"):
            checks.not_negative(key, getattr(self, key), "A")
        checks.check(self.levels is None or (len(self.levels) == 2 and -np.inf < self.levels[0]
                                             < self.levels[1] < np.inf), "levels", self.levels,
                     "two numbers, the second above the first, or null")
        checks.within("opacity", self.opacity, 0.01, 0.999, "1")
        checks.check(len(self.colours) == 2, "colours", self.colours, "two colours")
        for key, colour in (*(("colours", one) for one in self.colours),
                            ("backdrop", self.backdrop)):
            checks.check(is_color_like(colour), key, colour, "a colour that matplotlib knows")
        checks.within("turn", self.turn, -360, 360, "deg")
        checks.within("elevation", self.elevation, -90, 90, "deg")
        checks.check(self.frames == 0 or 2 <= self.frames <= 720, "frames", self.frames,
                     "0, or a whole number from 2 to 720")
        checks.whole("size", self.size, 64, 4096)


@dataclass(frozen=True, eq=False)
class _Shown:
    """A volume as it is looked at, matter positive."""

    name: str
    volume: NDArray
    """(nz, ny, nx)."""
    smooth: NDArray
    """Without what is too fine, and what is too large."""
    transfer: Transfer


def run(recipe: LookRecipe, report: Report) -> Result:
    """Figures of the volume, and of the one beside it."""
    name, = recipe.input
    volume, voxel = _read("input", name, recipe.pixel_size)
    volumes = [(name, volume)]
    if recipe.beside is not None:
        volumes.append((recipe.beside, _read("beside", recipe.beside, recipe.pixel_size, (
            volume.shape, voxel))[0]))
    steps = recipe.frames + 2 * len(volumes)
    report(0, steps)
    shown = []
    for title, values in volumes:
        shown.append(_shown(recipe, title, values, voxel))
        report(len(shown), steps)
    stills = []
    for one in shown:
        stills.append(_picture(recipe, one, voxel, View(recipe.turn, recipe.elevation),
                               2 * recipe.size))
        report(len(shown) + len(stills), steps)
    first = shown[0]
    planes = slices(first.volume, voxel, recipe.at, recipe.slab)
    figures: dict[str, Figure | Path | bytes] = {
        "slices.png": planes_figure(planes, voxel),
        "greatest.png": planes_figure(greatest(first.smooth), voxel, "greatest value along a ray"),
        "rendering.png": png(stills[0])}
    if len(shown) > 1:
        figures["beside.png"] = beside_figure(
            _titles(*(one.name for one in shown)),
            [slices(one.volume, voxel, recipe.at, recipe.slab) for one in shown],
            [greatest(one.smooth)["x, y"] for one in shown], stills, voxel)
    if recipe.frames:
        figures["turntable.gif"] = gif(_turning(recipe, first, voxel, report,
                                                steps - recipe.frames))
    return Result(_numbers(shown, voxel), [
        "Matter is " + ("above" if recipe.matter == "positive" else "below")
        + " what surrounds it.",
        "Levels, opacity, light and colours are chosen so that matter is seen: they measure "
        "nothing."], [], figures=figures)


def _read(key: str, name: str, pixel_size: float | None,
          like: tuple[tuple[int, ...], float] | None = None) -> tuple[NDArray, float]:
    """A volume and its voxel [A], of a shape and a voxel where they are given."""
    checks.check(Path(name).is_file(), key, name, "a file; there is none of this name")
    try:
        volume, own = read_volume(Path(name))
    except (ValueError, OSError) as error:
        if pixel_size is None or "voxel" not in str(error):
            raise ValueError(f"{key}: {str(error).replace('voxel_size', 'pixel_size')}") from error
        volume, own = read_volume(Path(name), pixel_size)
    if pixel_size is not None and abs(pixel_size / own - 1) > 0.01:
        raise ValueError(f"pixel_size={pixel_size:g}: {name} says {own:.4g}: must agree within "
                         "1 %; null = take the file's")
    if not volume.max() > volume.min():
        raise ValueError(f"{key}: {name}: every value is {volume.flat[0]:g}, must be a volume with "
                         "something to see")
    if like is not None and (volume.shape != like[0] or abs(own / like[1] - 1) > 0.01):
        raise ValueError(f"{key}: {name} has {_size(volume.shape)} voxels of {own:.4g} A: must "
                         f"have {_size(like[0])} of {like[1]:.4g} A")
    return volume, pixel_size or own


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in reversed(shape))


def _shown(recipe: LookRecipe, name: str, volume: NDArray, voxel: float) -> _Shown:
    volume = volume if recipe.matter == "positive" else -volume
    detail = _DETAIL * voxel if recipe.resolution is None else recipe.resolution
    smooth = gaussian_filter(volume, _WIDTH * detail / voxel, mode="nearest", truncate=3)
    if recipe.background:
        smooth -= gaussian_filter(volume, _WIDTH * recipe.background / voxel, mode="nearest",
                                  truncate=3)
    values = as_tensor(smooth)
    levels = recipe.levels or levels_of(values)
    return _Shown(name, volume, smooth, Transfer(
        levels, extinction_for(values, voxel, levels, recipe.opacity)))


def _picture(recipe: LookRecipe, shown: _Shown, voxel: float, view: View, size: int) -> Image.Image:
    style = Style(recipe.colours, recipe.backdrop, size)
    with torch.no_grad():
        return picture(*_small(recipe, shown, voxel, size), shown.transfer, view, style)


def _small(recipe: LookRecipe, shown: _Shown, voxel: float, size: int) -> tuple[Tensor, float]:
    return fitting(as_tensor(shown.smooth), voxel, size, recipe.elevation)


def _turning(recipe: LookRecipe, shown: _Shown, voxel: float, report: Report, done: int
             ) -> list[Image.Image]:
    volume, pixel = _small(recipe, shown, voxel, recipe.size)
    style = Style(recipe.colours, recipe.backdrop, recipe.size)
    pictures = []
    with torch.no_grad():
        for view in turns(View(recipe.turn, recipe.elevation), recipe.frames):
            pictures.append(picture(volume, pixel, shown.transfer, view, style))
            report(done + len(pictures), done + recipe.frames)
    return pictures


def _titles(one: str, other: str) -> tuple[str, str]:
    """Names of files as short as they differ."""
    parts, others = Path(one).absolute().parts, Path(other).absolute().parts
    same = next((n for n in range(1, min(len(parts), len(others)))
                 if parts[-n] != others[-n]), 1)
    return "/".join(parts[-same:]), "/".join(others[-same:])


def _numbers(shown: list[_Shown], voxel: float) -> dict[str, Any]:
    """Of results.json."""
    numbers: dict[str, Any] = {
        "voxel_size_A": voxel, "shape": list(shown[0].volume.shape),
        "levels": list(shown[0].transfer.levels),
        "extinction_per_A": shown[0].transfer.extinction}
    if len(shown) > 1:
        numbers["beside"] = {"levels": list(shown[1].transfer.levels),
                             "extinction_per_A": shown[1].transfer.extinction,
                             "correlation": float(correlation(*(as_tensor(one.volume)
                                                                for one in shown)))}
    return numbers


RECIPE = (LookRecipe, run)
