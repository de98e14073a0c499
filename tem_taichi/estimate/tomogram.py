"""A tomogram of a tilt series by the linear methods, and when to stop them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.inverse.tomography import Sirt, contrast, weighted_back_projection
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.rays import Rays, project

Step = Callable[[int, int], None]
"""Called with the iterations done and how many there will be at most."""

_PATIENCE = 3
"""Iterations without a better one before the search for the best ends."""
_STRENGTHS = (0.03, 0.1, 0.3)
"""Of the total variation that are tried, in standard deviations of the first iteration's volume."""


@dataclass(frozen=True, eq=False)
class Series:
    """Images as line integrals, and how they see the grid of a tomogram."""

    images: Tensor
    """`tomography.contrast`, (n, ny, nx)."""
    rays: Rays
    weights: Tensor
    """Of the pixels, 0 = left out, (n, ny, nx)."""

    def some(self, which: Sequence[int]) -> "Series":
        """Some of the images."""
        rows = list(which)
        return Series(self.images[rows], self.rays.some(rows), self.weights[rows])


@dataclass(frozen=True)
class Grid:
    """Of a tomogram, in the specimen's frame: its middle is that of the untilted image."""

    thickness: float
    """Along z [A]."""
    bin: int = 1
    """Pixels a voxel."""
    cut_from: tuple[float, float] = (0.0, 0.0)
    """Middle of the images less that of the frames that they were cut from, x and y [A]."""


def series_of(images: NDArray, tilts: pd.DataFrame, pixel_size: float, grid: Grid,
              mask: NDArray | None = None) -> Series:
    """A tilt series as the methods take it.

    Args:
        images: (n, ny, nx); matter is dark.
        tilts: tilt_angle and axis_angle [deg] of each; shift_x and shift_y [A], or 0.
        pixel_size: [A].
        grid: of the tomogram.
        mask: of pixels, 0 = left out: (n, ny, nx), or (ny, nx) of all images.

    Raises:
        ValueError: if the binned images or the tomogram have no pixel, or the mask another shape.
    """
    n, ny, nx = images.shape
    size = grid.bin
    if min(ny, nx) < 2 * size:
        raise ValueError(f"bin={size}: must leave 2 pixels of images of {ny} x {nx}")
    kept = np.ones(images.shape, np.float32) if mask is None else np.broadcast_to(
        _mask_of(mask, images.shape), images.shape)
    weights = _binned(kept, size)
    sums = _binned(np.where(kept > 0, images, 0), size)
    # Of a pixel that is left out in part, the rest; one left out as a whole has the mean.
    means = np.where(weights > 0, sums / np.where(weights > 0, weights, 1), np.nan)
    filled = np.where(np.isnan(means), np.nanmean(means, axis=(1, 2), keepdims=True), means)
    voxel, shape = pixel_size * size, (filled.shape[1], filled.shape[2])
    # Where the middle of the binned images lies in those before [pixel].
    moved = [(size * (after // 2) + (size - 1) / 2 - before // 2) * pixel_size
             for before, after in ((nx, shape[1]), (ny, shape[0]))]
    rotations = torch.stack([tilt_rotation(float(tilt), float(axis)) for tilt, axis in zip(
        tilts["tilt_angle"], tilts["axis_angle"], strict=True)])
    shifts = np.stack([tilts[name].to_numpy(float) if name in tilts else np.zeros(n)
                       for name in ("shift_x", "shift_y")], axis=1)
    cut = as_tensor([*grid.cut_from, 0.0])
    # The axis runs through the frame's middle, the grid's is that of the images cut from it.
    by_cut = (rotations @ cut)[:, :2] - cut[:2]
    depth = max(1, math.ceil(grid.thickness / voxel))
    rays = Rays(rotations, as_tensor(shifts - np.array(moved)) + by_cut, (depth, *shape), voxel,
                shape, voxel)
    return Series(contrast(as_tensor(filled.astype(np.float32))), rays,
                  as_tensor(weights.astype(np.float32)))


def _mask_of(mask: NDArray, shape: tuple[int, ...]) -> NDArray:
    squeezed = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
    if squeezed.shape not in (shape, shape[1:]):
        raise ValueError(f"mask: has shape {mask.shape}, must be that of the images, {shape}, or "
                         f"of one, {shape[1:]}")
    return (squeezed > 0).astype(np.float32)


def _binned(images: NDArray, size: int) -> NDArray[np.float64]:
    n, ny, nx = images.shape
    blocks = images[:, :ny // size * size, :nx // size * size].reshape(
        n, ny // size, size, nx // size, size)
    return blocks.mean((2, 4), dtype=np.float64)


def left_of(series: Series, volume: Tensor) -> float:
    """Mean square of what a volume leaves of the images over that of the images."""
    with torch.no_grad():
        seen = series.weights > 0
        left = (series.images - project(volume, series.rays)).square()[seen].mean()
        return float(left / series.images.square()[seen].mean())


@dataclass(frozen=True, eq=False)
class Tomogram:
    """What a method found."""

    volume: Tensor
    """Contrast per length [1/A], matter positive, (nz, ny, nx)."""
    iterations: int = 0
    """Of an iterative method."""
    tv: float = 0.0
    """Strength of the total variation."""
    held_out: tuple[float, ...] = ()
    """`left_of` the images held out after each iteration at that strength, from 0."""


def back_projected(series: Series, resolution: float) -> Tomogram:
    """By `weighted_back_projection`."""
    return Tomogram(weighted_back_projection(series.images, series.rays, resolution))


def iterated(series: Series, iterations: int, tv: float | None, positive: bool, every: int,
             step: Step) -> Tomogram:
    """By SIRT, stopped where images held out are explained best.

    Args:
        series: images and how they see the grid.
        iterations: at most; as many where nothing is held out.
        tv: strength of the total variation; None = that of `_STRENGTHS` which explains the images
            held out best.
        positive: whether to keep the volume from falling below 0.
        every: one image of so many is held out to find when to stop; all are used then. 0 = none.
        step: called after each iteration.

    Raises:
        ValueError: if tv is None and nothing is held out.
    """
    if tv is None and not every:
        raise ValueError("tv=null: needs held_out, by which the strength is chosen")
    number, found = iterations, tv or 0.0
    curve: tuple[float, ...] = ()
    if every:
        found, curve = _best(series, iterations, tv, positive, every, step)
        number = max(1, int(np.argmin(curve)))
    run = _sirt(series, found, positive)
    for n in range(number):
        run.step()
        step(n + 1, number)
    return Tomogram(run.volume, number, found, curve)


def _best(series: Series, iterations: int, tv: float | None, positive: bool, every: int,
          step: Step) -> tuple[float, tuple[float, ...]]:
    """Strength, and the curve of what was held out."""
    order = np.argsort(_angles(series.rays))
    held = [int(n) for n in order[every // 2::every]]
    fitted = series.some([n for n in range(len(order)) if n not in held])
    judged = series.some(held)
    strengths: Sequence[float] = [tv] if tv is not None else []
    if tv is None:
        first = _sirt(fitted, 0.0, positive)
        first.step()
        strengths = [part * float(first.volume.std()) for part in _STRENGTHS]
    tried = []
    for strength in strengths:
        run, curve = _sirt(fitted, strength, positive), [1.0]
        while len(curve) <= iterations and len(curve) - 1 - np.argmin(curve) < _PATIENCE:
            run.step()
            curve.append(left_of(judged, run.volume))
            step(len(curve) - 1, iterations)
        tried.append((min(curve), strength, tuple(curve)))
    return min(tried)[1:]


def _sirt(series: Series, tv: float, positive: bool) -> Sirt:
    return Sirt(series.images, series.rays, weights=series.weights, tv=tv, positive=positive)


def _angles(rays: Rays) -> NDArray[np.float64]:
    """By which images are in the order of their tilts."""
    beams = rays.rotations[:, 2].double().cpu().numpy()
    across = beams[np.argmax(np.abs(beams[:, 2] - 1)), :2]
    return beams[:, :2] @ across


def halves_of(series: Series, doses: NDArray[np.float64]) -> tuple[Series, Series]:
    """Every other image in the order of the dose before it: two halves of like damage.

    Args:
        series: of all images.
        doses: before each image, or any other number that grows as they were taken.
    """
    order = np.argsort(doses, kind="stable")
    return series.some(sorted(order[::2].tolist())), series.some(sorted(order[1::2].tolist()))
