"""Power spectra of the background of a series of images."""

from dataclasses import dataclass, field

import numpy as np
import torch

from tem_taichi.estimate.crops import pick_background, plain, ring_spectrum


@dataclass(frozen=True, eq=False)
class BackgroundSpectra:
    """Spectra of the background of each image.

    Attributes:
        w: frequency of each ring [cycles/pixel], up to 0.5, (m,).
        ratio: noise power over mean [counts], (n, m); NaN where an image has no background.
        weight: number of independent ordinates behind each, (n, m).
        means: of the background [counts], (n,).
        tiles: the same as ratio for each tile of an image, (tiles, m) each: parts of a specimen
            differ by more than `weight`, which counts Fourier coefficients, knows of.
    """

    w: np.ndarray
    ratio: np.ndarray
    weight: np.ndarray
    means: np.ndarray
    tiles: tuple[np.ndarray, ...] = field(repr=False)


def background_spectra(images: np.ndarray | torch.Tensor, size: int = 64,
                       count: int = 40) -> BackgroundSpectra:
    """Spectra of the flat parts of each image, see `crops.pick_background`.

    Few tiles would crowd in the corners farthest from any structure, others at each tilt.

    Args:
        images: (n, ny, nx) [counts].
        size: side of a tile [pixel], a multiple of 8.
        count: most tiles of an image; images with fewer than three give NaN.

    Raises:
        ValueError: for another shape, values that are not finite, or no background anywhere.
    """
    stack = plain("images", images)
    if stack.ndim != 3 or len(stack) == 0:
        raise ValueError(f"images: have shape {stack.shape}; must be (n, ny, nx)")
    found = [_rings(image, size, count) for image in stack]
    some = next((rings for rings in found if rings is not None), None)
    if some is None:
        raise ValueError(f"images: none has three separate flat tiles of {size} pixels")
    w = some[0]
    nothing = (w, w * np.nan, w * 0, np.nan, np.empty((0, len(w))))
    _, ratio, weight, means, tiles = zip(*(rings or nothing for rings in found), strict=True)
    means = np.where(np.isfinite(means), means, stack.mean(axis=(1, 2)))
    return BackgroundSpectra(w, np.array(ratio), np.array(weight), means, tiles)


def _rings(image: np.ndarray, size: int, count: int
           ) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, np.ndarray] | None:
    """Frequencies up to Nyquist, power over mean, weights, mean and tiles; None without."""
    for wanted in range(count, 2, -1):
        try:
            chosen = pick_background(image, size=size, count=wanted).crops
        except ValueError as error:
            if "separate flat" in str(error):
                continue
            raise
        rings = ring_spectrum(chosen)
        inside = rings.w <= 0.5
        tiles = np.stack([ring_spectrum(tile[None]).power[inside] for tile in chosen])
        return (rings.w[inside], rings.power[inside] / rings.mean, rings.weight[inside],
                rings.mean, tiles / rings.mean)
    return None


def tile_spectra(images: np.ndarray, shade: np.ndarray, size: int = 64
                 ) -> tuple[BackgroundSpectra, np.ndarray]:
    """Spectra of all that an image shows beside its shade, tile by tile.

    Tiles whose variance is far from the others' have no part in the mean.

    Args:
        images: (n, ny, nx) [counts].
        shade: what is expected without content, of that shape [counts].
        size: side of a tile [pixel]; they lie side by side, in the middle.

    Returns:
        Spectra, each tile's over its own mean, and row and column of the tiles' first pixels.

    Raises:
        ValueError: if the images are smaller than a tile.
    """
    ny, nx = images.shape[1:]
    if min(ny, nx) < size:
        raise ValueError(f"images: {ny} x {nx} pixels: must be at least a tile, {size}")
    starts = [np.arange(side % size // 2, side - size + 1, size) for side in (ny, nx)]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2)
    rows = []
    for image, expected in zip(images, shade, strict=True):
        cut = [(slice(y, y + size), slice(x, x + size)) for y, x in corners]
        means = np.array([expected[one].mean() for one in cut])
        tiles = np.stack([image[one] - expected[one] for one in cut]) + means[:, None, None]
        found = [ring_spectrum(tile[None]) for tile in tiles]
        inside = found[0].w <= 0.5
        each = np.stack([one.power[inside] for one in found]) / means[:, None]
        spread = np.log(np.median(each, axis=1))
        away = np.abs(spread - np.median(spread))
        good = away <= 6 * np.median(away) + 1e-9
        rings = ring_spectrum(tiles[good], shared=False)
        rows.append((found[0].w[inside], each[good].mean(axis=0), rings.weight[inside],
                     means[good].mean(), each))
    w, ratio, weight, levels, tiles = zip(*rows, strict=True)
    return BackgroundSpectra(w[0], np.array(ratio), np.array(weight), np.array(levels),
                             tiles), corners
