"""How thick a specimen is from place to place, and where its crowd is, by the images of its tilts.

Only thickness over mean free path shows: a part that is denser, such as a cell, is as one that is
thicker. Above and below the mid-plane there is a map each: faces of the ice.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from tem_taichi.estimate.background import BackgroundSpectra
from tem_taichi.estimate.crowd_fit import CrowdFit
from tem_taichi.estimate.plane_fit import PlaneMap, fit_plane, plane_rays

Array = NDArray[np.float64]

_BLOCK = 8
"""Least side of the parts whose means are compared [pixel]."""
_PARTS = 80
"""Of the longer side of an image, at most."""
_KNOT = 5
"""Blocks from one knot to the next."""
_EXPLAINED = 0.25
"""Of what parts of images differ by beyond noise: less is no reason for a map."""
_LEAST, _MOST = 0.05, 5.0
_NOISE_ERROR = 0.03
"""Of the noise of a single image, relative: what tells density must be more."""


@dataclass(frozen=True, eq=False)
class Relief:
    """A specimen that is no slab.

    Attributes:
        knots: factors on the slab's thickness, rows along y, columns along x; None = 1.
        heights: of the mid-plane at these, above the slab's [A].
        spacing: between them [A].
        beam: brightness of each image over that of the curve, (n,).
        shade: expected counts without content, (n, ny, nx).
        explained: see `plane_fit.PlaneMap`.
    """

    knots: Array | None
    heights: Array | None
    spacing: float
    beam: Array
    shade: Array = field(repr=False)
    explained: float


def fit_relief(images: Array, tilts: pd.DataFrame, pixel_size: float, slope: tuple[float, ...],
               thickness: float, ratio: float, intensity: Array) -> Relief:
    """The thickness of a specimen from place to place.

    Args:
        images: (n, ny, nx), without gold.
        tilts: tilt_angle, axis_angle [deg], shift_x, shift_y [A] of each image.
        pixel_size: [A].
        slope: of the slab's mid-plane.
        thickness: of the slab along z [A].
        ratio: that over the mean free path.
        intensity: counts without a specimen by dose alone, (n,).
    """
    n, *shape = images.shape
    block = max(_BLOCK, max(shape) // _PARTS)
    rows, columns = (side // block for side in shape)
    parts = images[:, :rows * block, :columns * block].reshape(n, rows, block, columns, block
                                                              ).mean(axis=(2, 4))
    slab = np.broadcast_to(images.mean(axis=(1, 2))[:, None, None], images.shape)
    if min(rows, columns) < 3 or parts.min() <= 0:
        return Relief(None, None, 1.0, np.ones(n), slab, 0.0)
    places = _centres(rows, columns, block, shape, pixel_size)
    rays = plane_rays(tilts, slope, thickness, places, layers=2)
    values = np.log(intensity)[:, None] - np.log(parts.reshape(n, -1))
    # What noise makes neighbours differ by, and the little that is anyhow not known.
    steps = np.diff(np.log(parts), axis=2) ** 2 / 2
    error = np.sqrt(steps.mean(axis=(1, 2)) + 1e-6)[:, None] * np.ones(values.shape)
    found = fit_plane(values, rays, ratio * rays.across, error, _KNOT * block * pixel_size, True)
    beam = np.exp(-found.offsets)
    if found.explained < _EXPLAINED:
        return Relief(None, None, found.spacing, beam, slab, found.explained)
    light = intensity[:, None] * np.exp(-found.model) * beam[:, None]
    shade = np.stack([_over_pixels(one.reshape(rows, columns), block, shape) for one in light])
    lower, upper = np.clip(found.knots, _LEAST, _MOST)
    # From the mid-plane either face is half the slab's thickness away, times its factor.
    return Relief((lower + upper) / 2, thickness * (upper - lower) / 4, found.spacing, beam, shade,
                  found.explained)


def fit_density(spectra: BackgroundSpectra, crowd: CrowdFit, floor: Array,
                corners: NDArray[np.int_], size: int, shape: tuple[int, ...], tilts: pd.DataFrame,
                pixel_size: float, slope: tuple[float, ...], thickness: float) -> PlaneMap | None:
    """How the crowd differs from place to place: its power over what it is on average.

    Args:
        spectra: of the same tiles in all images.
        crowd: fitted to these.
        floor: what there is without it, of its model's shape.
        corners: row and column of each tile's first pixel, (tiles, 2).
        size: side of a tile [pixel].
        shape: of the images.
        tilts: see `fit_relief`, as are the following.
        pixel_size: see tilts.
        slope: see tilts.
        thickness: see tilts.

    Returns:
        Factors on the number of balls across the specimen; None where tilts do not agree on one.
    """
    share = crowd.model - floor
    if not crowd.volume_fraction or not (share > 0).any():
        return None
    middle = np.array([shape[1] // 2, shape[0] // 2])
    places = (corners[:, ::-1] + (size - 1) / 2 - middle) * pixel_size
    used = spectra.w >= 2.5 * spectra.w[spectra.w > 0].min()
    values, error = [], []
    for n, tiles in enumerate(spectra.tiles):
        # Least squares of (tile - noise) = factor share, errors as the model's.
        weight = np.where(used, spectra.weight[n] / len(tiles) / crowd.model[n] ** 2, 0.0)
        known = (weight * share[n] ** 2).sum()
        values.append(((tiles - floor[n]) * share[n] * weight).sum(axis=1) / max(known, 1e-300))
        # Noise that is not quite what it is taken for is as a crowd in all tiles alike.
        wrong = _NOISE_ERROR * (weight * floor[n] * share[n]).sum() / max(known, 1e-300)
        error.append(np.full(len(tiles), np.hypot(max(known, 1e-300) ** -0.5, wrong)))
    rays = plane_rays(tilts, slope, thickness, places)
    found = fit_plane(np.array(values), rays, np.ones(len(values)), np.array(error),
                      size / 2 * pixel_size, False)
    if found.explained < _EXPLAINED:
        return None
    return replace(found, knots=np.clip(found.knots[0], 0.0, _MOST))


def _centres(rows: int, columns: int, block: int, shape: list[int], pixel_size: float) -> Array:
    """Of blocks, x and y from the image's middle [A], (rows columns, 2)."""
    y, x = (np.arange(count) * block + (block - 1) / 2 - side // 2
            for count, side in zip((rows, columns), shape, strict=True))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2) * pixel_size


def _over_pixels(parts: Array, block: int, shape: list[int]) -> Array:
    """Means of blocks, linear in between."""
    at = [(np.arange(side) - (block - 1) / 2) / block for side in shape]
    return np.asarray(map_coordinates(parts, np.meshgrid(*at, indexing="ij"), order=1,
                                      mode="nearest"))
