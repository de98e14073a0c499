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
