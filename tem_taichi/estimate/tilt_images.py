"""Images of a tilt series as tomography takes them, which are held out, and halves that agree."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.inverse.measures import Shells, resolution
from tem_taichi.inverse.shells import masked_shell_correlation, measured_region
from tem_taichi.inverse.tomography import contrast
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.rays import Rays

_BAND = 2**21
"""Voxels that tell how to reconstruct all."""
_ROWS = 32
"""Of a band, at least."""


@dataclass(frozen=True, eq=False)
class Series:
    """Images as line integrals, and how they see the grid of a tomogram."""

    images: Tensor
    """`tomography.contrast`, (n, ny, nx)."""
    rays: Rays
    weights: Tensor
    """Of the pixels, 0 = left out, (n, ny, nx)."""
    margin: tuple[int, int] = (0, 0)
    """Voxels of the grid beside the field, on either side along y and x."""

    def some(self, which: Sequence[int]) -> "Series":
        """Some of the images."""
        rows = list(which)
        return replace(self, images=self.images[rows], rays=self.rays.some(rows),
                       weights=self.weights[rows])

    def coarser(self) -> "Series":
        """The same of twice the pixels and voxels; an odd last row or column is left out."""
        rays = self.rays
        shape = (rays.shape[0] // 2, rays.shape[1] // 2)

        def sums(images: Tensor) -> Tensor:
            images = images[:, :2 * shape[0], :2 * shape[1]]
            return images.reshape(len(images), shape[0], 2, shape[1], 2).sum((2, 4))

        weights = sums(self.weights)
        images = sums(self.images * self.weights) / torch.where(weights > 0, weights, 1.0)
        # Where the middle of the new images lies in those before.
        moved = [(2 * (after // 2) + 0.5 - before // 2) * rays.pixel
                 for before, after in zip(rays.shape[::-1], shape[::-1], strict=True)]
        nz, ny, nx = (-(-n // 2) for n in rays.grid)
        return Series(images, Rays(
            rays.rotations, rays.shifts - as_tensor(moved), (nz, ny, nx), 2 * rays.voxel, shape,
            2 * rays.pixel), weights / 4, (-(-self.margin[0] // 2), -(-self.margin[1] // 2)))

    def field(self, volume: Tensor) -> Tensor:
        """A volume without the margin."""
        y, x = self.margin
        _, ny, nx = volume.shape
        return volume[:, y:ny - y, x:nx - x]


@dataclass(frozen=True)
class Grid:
    """Of a tomogram, in the specimen's frame: its middle is that of the untilted image."""

    thickness: float
    """Along z [A]."""
    bin: int = 1
    """Pixels a voxel."""
    cut_from: tuple[float, float] = (0.0, 0.0)
    """Middle of the images less that of the frames that they were cut from, x and y [A]."""
    margin: float = 0.0
    """Beside the field, across the tilt axis on either side [A]: there iterative methods put what
    tilted images show of the specimen beyond it. It is not in the tomogram."""


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
        ValueError: if the binned images have no pixel, or the mask another shape or leaves none.
    """
    n, ny, nx = images.shape
    size = grid.bin
    if min(ny, nx) < 2 * size:
        raise ValueError(f"bin={size}: must leave 2 pixels of images of {ny} x {nx}")
    kept = np.ones(images.shape, np.float32) if mask is None else np.broadcast_to(
        _mask_of(mask, images.shape), images.shape)
    weights = binned(kept, size)
    bare = np.flatnonzero(weights.max((1, 2)) == 0)
    if len(bare):
        raise ValueError(f"mask: leaves no pixel of image {bare[0] + 1}")
    sums = binned(np.where(kept > 0, images, 0), size)
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
    axis = np.deg2rad(tilts["axis_angle"].mean())
    y, x = (math.ceil(grid.margin / voxel * abs(part) - 0.05) for part in (
        np.sin(axis), np.cos(axis)))
    rays = Rays(rotations, as_tensor(shifts - np.array(moved)) + by_cut,
                (depth, shape[0] + 2 * y, shape[1] + 2 * x), voxel, shape, voxel)
    return Series(contrast(as_tensor(filled.astype(np.float32))), rays,
                  as_tensor(weights.astype(np.float32)), (y, x))


def _mask_of(mask: NDArray, shape: tuple[int, ...]) -> NDArray:
    squeezed = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
    if squeezed.shape not in (shape, shape[1:]):
        raise ValueError(f"mask: has shape {mask.shape}, must be that of the images, {shape}, or "
                         f"of one, {shape[1:]}")
    return (squeezed > 0).astype(np.float32)


def binned(images: NDArray, size: int) -> NDArray[np.float64]:
    """Means of size x size pixels of images (n, ny, nx); an odd last row or column is left out.

    Args:
        images: (n, ny, nx).
        size: pixels along a side.
    """
    n, ny, nx = images.shape
    blocks = images[:, :ny // size * size, :nx // size * size].reshape(
        n, ny // size, size, nx // size, size)
    return blocks.mean((2, 4), dtype=np.float64)


def held_out(series: Series, every: int) -> tuple[list[int], list[int]]:
    """Numbers of the images that are fitted, and of those held out: one of so many in order.

    Args:
        series: images.
        every: how many.

    Raises:
        ValueError: if there are none on either side.
    """
    order = in_order(series)
    held = sorted(order[every // 2::every])
    rest = [n for n in range(len(order)) if n not in held]
    if not held or not rest:
        raise ValueError(f"held_out={every}: must leave some of the {len(order)} images on either "
                         "side")
    return rest, held


def band(series: Series) -> Series:
    """Rows along the tilt axis that stand for a large series: a smaller problem of the same kind.

    Rays of other rows hardly cross theirs, which are those whose images vary as much as all do.

    Args:
        series: of any size; one of few voxels is given back, and so is one of which an image has no
            pixel in those rows.
    """
    rays = series.rays
    seen = rays.rotations[:, :2].square().sum((0, 1))
    way = 0 if seen[1] >= seen[0] else 1  # of (y, x), along the axis
    along = 1 - way                       # of (x, y)
    size, voxels = rays.shape[way], math.prod(rays.grid) // rays.grid[1 + way]
    rows = max(_ROWS, _BAND // voxels)
    # By how many rows rays leave their own, where the axis leans and images are moved along it.
    lean = rays.rotations[:, along].abs() @ as_tensor([
        0.0 if n == along else rays.grid[2 - n] / 2 for n in range(3)])
    beyond = math.ceil(float((lean + rays.shifts[:, along].abs() / rays.pixel).max()) - 0.01)
    if rows >= size or rows + 2 * beyond >= rays.grid[1 + way]:
        return series
    power = (series.images.square() * series.weights).sum(2 - way).double()
    weight = series.weights.sum(2 - way).double()
    sums = [torch.nn.functional.pad(one.sum(0).cumsum(0), (1, 0)) for one in (power, weight)]
    power, weight = (one[rows:] - one[:-rows] for one in sums)
    first = int((power / weight.clamp(min=1e-30) - sums[0][-1] / sums[1][-1]).abs().argmin())
    images, weights = (one.narrow(1 + way, first, rows) for one in (series.images, series.weights))
    if float(weights.amax((1, 2)).min()) == 0:
        return series
    middle = torch.zeros(3, dtype=rays.shifts.dtype, device=rays.shifts.device)
    middle[along] = (first + rows // 2 - size // 2) * rays.pixel
    shifts = rays.shifts + (rays.rotations.to(middle) @ middle)[:, :2] - middle[:2]
    grid, shape, margin = list(rays.grid), list(rays.shape), list(series.margin)
    grid[1 + way], shape[way], margin[way] = rows + 2 * beyond, rows, beyond
    return Series(images, Rays(rays.rotations, shifts, (grid[0], grid[1], grid[2]), rays.voxel,
                               (shape[0], shape[1]), rays.pixel), weights, (margin[0], margin[1]))


def in_order(series: Series) -> list[int]:
    """Numbers of the images in the order of their tilts."""
    return [int(n) for n in np.argsort(_angles(series.rays))]


def _angles(rays: Rays) -> NDArray[np.float64]:
    """By which images are in the order of their tilts."""
    beams = rays.rotations[:, 2].double().cpu().numpy()
    across = beams[np.argmax(np.abs(beams[:, 2] - 1)), :2]
    return beams[:, :2] @ across


def halves_of(order: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Every other image in the order in which they were taken: two halves of like damage.

    Args:
        order: numbers that grow as the images were taken, (n,).
    """
    places = np.argsort(order, kind="stable")
    return sorted(places[::2].tolist()), sorted(places[1::2].tolist())


def agreement(one: Tensor, other: Tensor, voxel: float, tilts: pd.DataFrame
              ) -> tuple[pd.DataFrame, float]:
    """Fourier shell correlation of two halves, outside of the missing wedge.

    Args:
        one: tomogram of half of the images, (nz, ny, nx).
        other: of the other half.
        voxel: [A].
        tilts: tilt_angle and axis_angle of all images [deg].

    Returns:
        A row a shell: frequency [1/A], fsc within a box with soft edges, control of the same with
        random phases, and fsc_corrected by it; and where that falls below 0.143 [A].
    """
    mask = torch.ones_like(one)
    for axis, n in enumerate(one.shape):
        from_edge = torch.minimum(torch.arange(n), torch.arange(n - 1, -1, -1)) + 0.5
        rise = torch.sin(torch.pi / 2 * (from_edge / max(n / 8, 1)).clamp(max=1)).square()
        mask *= rise.to(one).reshape([-1 if along == axis else 1 for along in range(3)])
    region = measured_region(one.shape, float(tilts["tilt_angle"].min()),
                             float(tilts["tilt_angle"].max()), float(tilts["axis_angle"].mean()))
    found = masked_shell_correlation(one, other, mask, voxel, region=region)
    table = pd.DataFrame({"frequency_per_A": found.frequency.cpu().numpy(),
                          "fsc": found.correlation.cpu().numpy(),
                          "control": found.control.cpu().numpy(),
                          "fsc_corrected": found.corrected.cpu().numpy()})
    return table, resolution(Shells(found.frequency, found.corrected, found.counts))
