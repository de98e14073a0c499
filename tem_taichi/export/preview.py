"""A picture of a tilt series, to see at a glance whether it is what was meant."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from tem_taichi.scale_bar import scale_bar

_MOST_TILTS = 5
_MOST_PIXELS = 256  # along the longer side of a panel, so that noise stays a small file
_PANEL_INCHES = 2.4
_NANOMETRE = 10.0  # [A]
_HALF = math.pi * math.sqrt(2 / math.log(2))
"""Wavelength over the width of the Gaussian that halves its amplitude."""


def write_preview(path: Path, images: ArrayLike, noise_free: ArrayLike, tilt_angles: ArrayLike,
                  pixel_size: float) -> None:
    """Write a PNG of up to five tilts, the noisy images above the noise-free ones.

    Row 0 of an array is at the bottom; few electrons (protein) are dark. Noisy images are
    low-passed, by as much as their label says, until their noise is no stronger than the specimen.
    Every panel runs from its own 1st to 99th percentile; large images are averaged over blocks of
    pixels.

    Args:
        path: file to write.
        images: detector counts, shape (n, ny, nx).
        noise_free: their expectation, same shape.
        tilt_angles: of the images [deg], shape (n,).
        pixel_size: [A].

    Raises:
        ValueError: if the shapes do not agree.
    """
    noisy, clean = np.asarray(images), np.asarray(noise_free)
    angles = np.asarray(tilt_angles, dtype=np.float64)
    if noisy.ndim != 3 or noisy.size == 0:
        raise ValueError(f"images: shape {noisy.shape} must be (n, ny, nx), none empty")
    if clean.shape != noisy.shape:
        raise ValueError(f"noise_free: shape {clean.shape} must be that of images {noisy.shape}")
    if angles.shape != noisy.shape[:1]:
        raise ValueError(f"tilt_angles: shape {angles.shape} must be {noisy.shape[:1]}")
    chosen = spread(len(angles), _MOST_TILTS)
    ny, nx = noisy.shape[1:]
    # A panel at least a quarter as high as wide, and the other way round, keeps its title.
    width, height = (_PANEL_INCHES * max(side / max(ny, nx), 0.25) for side in (nx, ny))
    figure = Figure(figsize=(width * len(chosen) + 0.5, 2 * height + 0.6), dpi=100,
                    layout="constrained")
    panels = figure.subplots(2, len(chosen), squeeze=False)
    sigma = filter_width([noisy[n] for n in chosen], [clean[n] for n in chosen])
    name = f"noisy, low-passed at {sigma * pixel_size * _HALF:.2g} Å" if sigma else "noisy"
    for column, tilt in zip(panels.T, chosen, strict=True):
        smooth = gaussian_filter(noisy[tilt].astype(np.float64), sigma, mode="nearest")
        for axes, image in zip(column, (smooth, clean[tilt].astype(np.float32)), strict=True):
            _show(axes, image, pixel_size)
        column[0].set_title(f"{angles[tilt].round(1) + 0.0:.1f}°")
    for axes, label in zip(panels[:, 0], (name, "noise-free"), strict=True):
        axes.set_ylabel(label)
    scale_bar(panels[0, 0], nx * pixel_size / _NANOMETRE, ny * pixel_size / _NANOMETRE)
    # No version of matplotlib in the file: the same images give the same bytes.
    figure.savefig(path, format="png", metadata={"Software": None})


def filter_width(noisy: Sequence[NDArray], clean: Sequence[NDArray]) -> float:
    """Standard deviation of the Gaussian after which noise is as strong as the specimen [pixel].

    White noise of deviation s has s / (2 sqrt(pi) width) left after it. 0 where there is less
    noise, or nothing to see; at most a fortieth of the image, and 0 below half a pixel.

    Args:
        noisy: counts of images, each (ny, nx).
        clean: their expectations.
    """
    def moments(images: Iterable[NDArray]) -> NDArray[np.float64]:
        return np.array([(image.mean(dtype=np.float64), image.var(dtype=np.float64))
                         for image in images]).T

    means, variances = moments(one - other for one, other in zip(noisy, clean, strict=True))
    noise = math.sqrt(variances.mean() + means.var())
    levels, variances = moments(clean)
    contrast = math.sqrt(variances.mean())
    if contrast <= 1e-9 * abs(float(levels.mean())):
        return 0.0
    width = min(noise / contrast / (2 * math.sqrt(math.pi)), min(clean[0].shape) / 40)
    return width if width >= 0.5 else 0.0


def spread(n: int, most: int) -> list[int]:
    """At most `most` indices of n, evenly spread, first and last among them."""
    if n <= most:
        return list(range(n))
    return np.linspace(0, n - 1, most).round().astype(int).tolist()


def block_mean(image: ArrayLike, most: int) -> NDArray[np.float64]:
    """Average square blocks so that neither side is longer than `most` pixels.

    A rest of rows or columns that fills no block is left out.

    Args:
        image: shape (ny, nx).
        most: largest number of pixels along a side.

    Returns:
        Shape (ny // b, nx // b) for the smallest b that does it; the image itself for b = 1.
    """
    image = np.asarray(image, dtype=np.float64)
    b = math.ceil(max(image.shape) / most)
    ny, nx = (max(side // b, 1) for side in image.shape)
    kept = image[:ny * b, :nx * b]
    return kept.reshape(ny, kept.shape[0] // ny, nx, kept.shape[1] // nx).mean(axis=(1, 3))


def _show(axes: Axes, image: NDArray, pixel_size: float) -> None:
    ny, nx = image.shape
    reduced = block_mean(image, _MOST_PIXELS)
    low, high = np.percentile(reduced, (1, 99))
    if not high > low:  # a flat image: mid-grey
        low, high = low - 1, low + 1
    scale = pixel_size / _NANOMETRE
    axes.imshow(reduced, cmap="gray", vmin=low, vmax=high, origin="lower",
                extent=(0, nx * scale, 0, ny * scale))
    axes.set(xticks=[], yticks=[])
