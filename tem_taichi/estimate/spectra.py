"""Averaged periodograms of images, robust against ice crystals, edges and hot pixels.

A spectrum is centred: frequency 0 at [ny // 2, nx // 2], rows towards +y, columns towards +x.
"""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.grid import check_pixel_size

_LENGTH = 1000.0  # [A] of a tile: shorter ones blur the rings of a defocus of 4 um
_TILES = 128, 1024  # pixels of a tile, least and most
_GROUPS = 8  # of tiles, whose averages are compared
_HOT = 8.0  # deviations beyond which a pixel is clipped
_OUTLIER = 4.0  # deviations beyond which a tile or a group's power is an outlier


def tile_size(shape: tuple[int, int], pixel_size: float) -> int:
    """Pixels of a square tile of about 1000 A, at most half of the shorter side if it can."""
    wanted = min(max(_LENGTH / pixel_size, _TILES[0]), _TILES[1])
    wanted = min(wanted, max(min(shape) / 2, _TILES[0]), min(shape))
    # Small prime factors transform fast; even, so that the spectrum has a Nyquist row.
    return max((n for n in range(2, int(wanted) + 1, 2) if _smooth(n)), default=2)


def average_periodogram(image: ArrayLike | Tensor, tile: int) -> Tensor:
    """Noise power spectrum of an image by Welch's method, without outliers.

    Tiles of `tile`^2 pixels overlap by at least half and are weighted with a Hann window, whose
    sidelobes fall fast enough to keep the strong low frequencies out of the rings. Tiles with an
    unusual mean or variance (carbon, an edge, ice contamination) are left out. The others are
    averaged in 8 interleaved groups, and what exceeds the median group by 4 deviations (spots of
    a crystal) is clipped.

    Args:
        image: (ny, nx), finite.
        tile: side of a tile in pixels, even, at most min(ny, nx).

    Returns:
        Real tensor (tile, tile), centred; its mean over all frequencies is the pixels' variance.

    Raises:
        ValueError: if the image is not two-dimensional, finite and of some contrast, or the tile
            does not fit.
    """
    tiles, _ = _typical(*_tiles(check_image(image), tile))
    return _averaged(tiles)


def stack_periodogram(images: ArrayLike | Tensor, pixel_size: float) -> Tensor:
    """`average_periodogram` of the tiles of many images of one specimen and lens.

    Args:
        images: (n, ny, nx); those without contrast or with values that are not finite are left
            out.
        pixel_size: [A].

    Raises:
        ValueError: if no image is left or they are too small.
    """
    stack = images if isinstance(images, Tensor) else np.asarray(images)
    shape = tuple(stack.shape)
    if len(shape) != 3:
        raise ValueError(f"images: shape {shape} must be (n, ny, nx)")
    side = min(tile_size((shape[1], shape[2]), pixel_size), min(shape[1:]) // 2 * 2)
    # Boxes are their own tiles: what half of one would lose no neighbour adds.
    side = min(shape[1:]) // 2 * 2 if min(shape[1:]) * pixel_size < 2 * _LENGTH else side
    tiles, corners, reason = [], [], ""
    for image in stack:
        try:
            found = _tiles(check_image(image), side)
        except ValueError as error:
            reason = reason or str(error)
            continue
        tiles += found[0]
        corners.append(found[1])
    if not tiles:
        raise ValueError(f"none of {shape[0]} images can be used, the first since {reason}")
    return _averaged(_typical(tiles, torch.cat(corners))[0])


def strip_periodograms(image: ArrayLike | Tensor, tile: int, direction: tuple[float, float],
                       width: float) -> list[tuple[float, int, Tensor]]:
    """`average_periodogram` of strips across a direction, as an image of a tilted plane needs.

    Args:
        image: (ny, nx), finite.
        tile: side of a tile in pixels, even, at most min(ny, nx).
        direction: unit vector (x, y).
        width: of the strips [pixel].

    Returns:
        Of each strip the mean place of its tiles' centres along the direction, from the image's
        centre (ny // 2, nx // 2) [pixel], their number, and their spectrum (tile, tile).

    Raises:
        ValueError: as `average_periodogram`.
    """
    pixels = check_image(image)
    tiles, corners = _typical(*_tiles(pixels, tile))
    middle = corners.double() + tile // 2 - torch.tensor([n // 2 for n in pixels.shape])
    place = direction[0] * middle[:, 1] + direction[1] * middle[:, 0]
    strip = (place / width).round().long()
    found = []
    for number in strip.unique():
        own = torch.nonzero(strip == number).flatten()
        found.append((float(place[own].mean()), len(own),
                      _averaged([tiles[i] for i in own.tolist()])))
    return found


def _averaged(tiles: list[Tensor]) -> Tensor:
    """Mean of the tiles' periodograms, centred."""
    tile = len(tiles[0])
    window = torch.hann_window(tile, dtype=tiles[0].dtype, device=tiles[0].device)
    window = window / window.square().sum().sqrt()
    window = window[:, None] * window
    groups = min(_GROUPS, len(tiles))
    sums = tiles[0].new_zeros(groups, tile, tile // 2 + 1)
    for number, one in enumerate(tiles):
        wave = torch.view_as_real(torch.fft.rfft2((one - one.mean()) * window))
        sums[number % groups] += wave.square_().sum(dim=-1)
    for group in range(groups):
        sums[group] /= len(tiles[group::groups])
    return _full(_clipped_mean(sums, len(tiles) / groups), tile)


def crop_spectrum(spectrum: Tensor, pixel_size: float, resolution: float) -> tuple[Tensor, float]:
    """Keep the frequencies up to 1 / resolution.

    Args:
        spectrum: (ny, nx), centred.
        pixel_size: that the spectrum reaches to [A]: its Nyquist frequency is 1 / (2 pixel_size).
        resolution: to keep [A].

    Returns:
        The central part, each side even or as it was, and the pixel size that it reaches to.
    """
    ny, nx = spectrum.shape
    fraction = 2 * pixel_size / resolution
    if fraction >= 1 or ny != nx:
        return spectrum, pixel_size
    side = min(2 * math.ceil(fraction * nx / 2), nx)
    start = nx // 2 - side // 2
    return spectrum[start:start + side, start:start + side], pixel_size * nx / side


def check_image(image: ArrayLike | Tensor, name: str = "image") -> Tensor:
    """Check that an image has two dimensions, finite values and some contrast.

    Raises:
        ValueError: if it does not.
    """
    values = as_tensor(image if isinstance(image, Tensor) else np.asarray(image))
    if values.ndim != 2 or min(values.shape) < 32:
        raise ValueError(f"{name}: shape {tuple(values.shape)} must be (ny, nx), at least 32 x 32")
    if not bool(torch.isfinite(values).all()):
        count = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{name}: {count} values are not finite")
    if not float(values.std()) > 1e-6 * float(values.abs().max()):
        raise ValueError(f"{name}: every value is {float(values.mean()):g}; it must have contrast")
    return values


def centred_frequencies(shape: tuple[int, int], pixel_size: float) -> tuple[Tensor, Tensor]:
    """Frequency kx, ky [1/A] of each element of a centred spectrum, each (ny, nx)."""
    check_pixel_size(pixel_size)
    ky, kx = (as_tensor((np.arange(n) - n // 2) / (n * pixel_size)) for n in shape)
    return kx.expand(shape), ky[:, None].expand(shape)


def _smooth(n: int) -> bool:
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n == 1


def _clip_hot(pixels: Tensor) -> Tensor:
    """Dead and hot pixels at 8 deviations from the mean."""
    for _ in range(2):
        spread, mean = torch.std_mean(pixels)
        low, high = mean - _HOT * spread, mean + _HOT * spread
        if pixels.min() >= low and pixels.max() <= high:
            break
        pixels = pixels.clamp(low, high)
    return pixels


def _tiles(pixels: Tensor, tile: int) -> tuple[list[Tensor], Tensor]:
    """Tiles (tile, tile) that cover the image, neighbours at most half a tile apart.

    Returns:
        The tiles, without hot pixels, and row and column of their corners, (n, 2).
    """
    if not (8 <= tile <= min(pixels.shape) and tile % 2 == 0):
        raise ValueError(f"tile={tile}: must be even, from 8 to {min(pixels.shape)} pixels")
    pixels = _clip_hot(pixels)
    starts = [torch.linspace(0, side - tile, max(math.ceil(2 * (side - tile) / tile), 0) + 1)
              .round().long() for side in pixels.shape]
    corners = torch.cartesian_prod(*starts)
    return [pixels[y:y + tile, x:x + tile] for y, x in corners.tolist()], corners


def _typical(tiles: list[Tensor], corners: Tensor) -> tuple[list[Tensor], Tensor]:
    """Those whose mean and variance are within 4 robust deviations of the median."""
    if len(tiles) < 4:
        return tiles, corners
    few = torch.stack([tile[::3, ::3] for tile in tiles])  # tells as much, in a ninth of the time
    variance, mean = torch.var_mean(few, dim=(-2, -1))
    # A spread below 5 % is no reason to drop a tile, even if most tiles agree better.
    least = 0.05 * float(variance.median()) ** 0.5, 0.05
    keep = torch.ones(len(tiles), dtype=torch.bool, device=few.device)
    for values, floor in zip((mean, variance.clamp(min=1e-30).log()), least, strict=True):
        away = (values - values.median()).abs()
        keep &= away <= _OUTLIER * (1.4826 * away.median()).clamp(min=floor)
    return ([tile for tile, good in zip(tiles, keep.tolist(), strict=True) if good],
            corners[keep.cpu()])


def _clipped_mean(groups: Tensor, tiles: float) -> Tensor:
    """Mean over groups, each clipped at 4 deviations of an average of so many periodograms."""
    if len(groups) < 4:
        return groups.mean(dim=0)
    # Half-overlapping Hann tiles are worth about half their number in two dimensions.
    limit = 1 + _OUTLIER / math.sqrt(max(tiles / 2, 1))
    return torch.minimum(groups, limit * groups.median(dim=0).values).mean(dim=0)


def _full(half: Tensor, n: int) -> Tensor:
    """Centred spectrum (n, n) from half of it in the order of rfft2."""
    mirrored = half[:, 1:n // 2].flip(dims=(0, 1)).roll(1, dims=0)
    return torch.fft.fftshift(torch.cat([half, mirrored], dim=1))
