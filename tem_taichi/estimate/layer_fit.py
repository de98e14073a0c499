"""How dense a specimen is from place to place, and where its crowd is, by the images of its tilts.

Only thickness over mean free path shows: a part that is thinner is as one that takes less from the
beam. So the specimen is a slab, of layers that take more or less of it from place to place.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from tem_taichi.estimate.background import BackgroundSpectra
from tem_taichi.estimate.plane_fit import PlaneMap, fit_plane, plane_rays
from tem_taichi.specimen.ice_shape import at_knots

Array = NDArray[np.float64]

_BLOCK = 8
"""Least side of the parts whose means are compared [pixel]."""
_PARTS = 80
"""Of the longer side of an image, at most."""
_KNOT = 5
"""Blocks from one knot to the next."""
_EXPLAINED = 0.25
"""Of what parts of images differ by beyond noise: less is no reason for a map."""
_LAYERS = 8
"""At most."""
_MOST = 5.0
"""Of what there is in one place over the mean."""
_WITHIN = 4
"""Places along each side of a tile of which its density is the mean."""
_NOISE_ERROR = 0.03
"""Of the noise of a single image, relative: what tells density must be more."""


@dataclass(frozen=True, eq=False)
class Layers:
    """A specimen that is not the same everywhere.

    Attributes:
        absorption: what ice takes from the beam over what it does on average, (layers, my, mx),
            as of `IceSettings`; None = 1.
        spacing: between knots of this [A].
        beam: brightness of each image over that of the curve, (n,).
        shade: expected counts without content, (n, ny, nx).
        explained: see `plane_fit.PlaneMap`.
    """

    absorption: Array | None
    spacing: float
    beam: Array
    shade: Array = field(repr=False)
    explained: float


def fit_layers(images: Array, tilts: pd.DataFrame, pixel_size: float, slope: tuple[float, ...],
               thickness: float, ratio: float, intensity: Array,
               crowd: tuple[PlaneMap, float] | None = None) -> Layers:
    """What a specimen takes from the beam from place to place.

    Layers are about as thick as knots are apart.

    Args:
        images: (n, ny, nx), without gold.
        tilts: tilt_angle, axis_angle [deg], shift_x, shift_y [A] of each image.
        pixel_size: [A].
        slope: of the slab's mid-plane.
        thickness: of the slab along z [A].
        ratio: that over the mean free path, of all that it holds.
        intensity: counts without a specimen by dose alone, (n,).
        crowd: of `fit_density`, and the part of the ratio that it makes; None = that is
            everywhere that of the ice.
    """
    n, *shape = images.shape
    block = max(_BLOCK, max(shape) // _PARTS)
    rows, columns = (side // block for side in shape)
    parts = images[:, :rows * block, :columns * block].reshape(n, rows, block, columns, block
                                                              ).mean(axis=(2, 4))
    slab = np.broadcast_to(images.mean(axis=(1, 2))[:, None, None], images.shape)
    if min(rows, columns) < 3 or parts.min() <= 0:
        return Layers(None, 1.0, np.ones(n), slab, 0.0)
    spacing = _KNOT * block * pixel_size
    rays = plane_rays(tilts, slope, _centres(rows, columns, block, shape, pixel_size))
    values = np.log(intensity)[:, None] - np.log(parts.reshape(n, -1))
    taken = 0.0 if crowd is None else (
        ratio * crowd[1] * rays.across[:, None] * over(crowd[0], rays.through(thickness)))
    ice = ratio * (1 - (0.0 if crowd is None else crowd[1]))
    # What noise makes neighbours differ by, and the little that is anyhow not known.
    steps = np.diff(np.log(parts), axis=2) ** 2 / 2
    error = np.sqrt(steps.mean(axis=(1, 2)) + 1e-6)[:, None] * np.ones(values.shape)
    count = int(np.clip(round(thickness / spacing), 2, _LAYERS))
    found = fit_plane(values - taken, rays.through(thickness, count), ice * rays.across, error,
                      spacing, True, count)
    beam = np.exp(-found.offsets)
    if found.explained < _EXPLAINED:
        return Layers(None, spacing, beam, slab, found.explained)
    light = intensity[:, None] * np.exp(-found.model - taken) * beam[:, None]
    shade = np.stack([_over_pixels(one.reshape(rows, columns), block, shape) for one in light])
    return Layers(np.clip(found.knots, 0.0, _MOST), spacing, beam, shade, found.explained)


def fit_density(spectra: BackgroundSpectra, share: Array, floor: Array,
                corners: NDArray[np.int_], size: int, shape: tuple[int, ...], tilts: pd.DataFrame,
                pixel_size: float, slope: tuple[float, ...], thickness: float) -> PlaneMap | None:
    """How the crowd differs from place to place: its power over what it is on average.

    Args:
        spectra: of the same tiles in all images.
        share: of the crowd in them if it were everywhere alike, noise power over mean, (n, m).
        floor: what there is without it, of that shape.
        corners: row and column of each tile's first pixel, (tiles, 2).
        size: side of a tile [pixel].
        shape: of the images.
        tilts: see `fit_layers`, as are the following.
        pixel_size: see tilts.
        slope: see tilts.
        thickness: see tilts.

    Returns:
        Factors on the number of balls across the specimen; None where tilts do not agree on one.
    """
    if not (share > 0).any():
        return None
    model = floor + share
    middle = np.array([shape[1] // 2, shape[0] // 2])
    # A tile is the mean over its area, not its centre.
    within = (np.stack(np.meshgrid(*[np.arange(_WITHIN) + 0.5] * 2), axis=-1).reshape(-1, 2)
              * size / _WITHIN - 0.5)
    places = ((corners[:, None, ::-1] + within - middle) * pixel_size).reshape(-1, 2)
    used = spectra.w >= 2.5 * spectra.w[spectra.w > 0].min()
    values, error = [], []
    for n, power in enumerate(spectra.tiles):
        # Least squares of (tile - noise) = factor share, errors as the model's.
        weight = np.where(used, spectra.weight[n] / len(power) / model[n] ** 2, 0.0)
        known = (weight * share[n] ** 2).sum()
        values.append(((power - floor[n]) * share[n] * weight).sum(axis=1) / max(known, 1e-300))
        # Noise that is not quite what it is taken for is as a crowd in all tiles alike.
        wrong = _NOISE_ERROR * (weight * floor[n] * share[n]).sum() / max(known, 1e-300)
        error.append(np.full(len(power), np.hypot(max(known, 1e-300) ** -0.5, wrong)))
    count, tiles = len(values), len(corners)
    seen = plane_rays(tilts, slope, places).through(thickness).reshape(
        count, -1, tiles, len(within), 2).swapaxes(2, 3).reshape(count, -1, tiles, 2)
    found = fit_plane(np.array(values), seen, np.ones(count), np.array(error),
                      size / 2 * pixel_size, False)
    if found.explained < _EXPLAINED or not (found.knots > 0).any():
        return None
    found = replace(found, knots=np.clip(found.knots, 0.0, _MOST))
    model = over(found, seen)
    return replace(found, knots=found.knots / model.mean(), model=model / model.mean())


def over(plane: PlaneMap, places: Array) -> Array:
    """Means of a map over places [A], (n, depths, parts, 2), as (n, parts)."""
    x, y = torch.from_numpy(np.moveaxis(places, -1, 0))
    return np.asarray(at_knots(torch.from_numpy(plane.knots[0]), plane.spacing, x, y).mean(dim=1))


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
