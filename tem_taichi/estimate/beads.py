"""Gold beads in an image: where they are, how large, and how sure that is.

The threshold of the filter matched to their shadows follows from a number of false finds in noise.
Structure of the specimen is no noise: what is found must also be as dark as gold, and round.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, maximum_filter

from tem_taichi.estimate.bead_filter import (
    Array,
    MatchedFilters,
    binned,
    expected_maxima,
    surroundings,
    threshold,
)

SMALLEST, LARGEST = 40.0, 300.0
"""Diameters that are looked for where none is given [A]."""

GOLD_LENGTH = 180.0
"""Way through gold after which 1 / e of the electrons are left within the aperture [A], 300 kV."""

_MORE_THAN_PROTEIN = 0.12
"""Of the electrons, which no ball of protein in ice takes: of its 2 sigma V d, 0.5 at 150 A with V
2.5 V, an image shows what the transfer function has about k = 1 / (2 d), which falls as d grows:
0.09 to 0.22, in all 0.04 to 0.08 at 3 to 10 um under focus and 300 kV."""

_STEP = 1.15
"""Between diameters: the filter of a neighbour keeps 97 % of the signal over noise."""

_APART = 0.75
"""Of the mean diameter: two beads are at least so far apart in an image."""

_SAMPLING = 0.1
"""Error of a place by sampling and the shadow's form [pixel]."""

DOUBTFUL = 3.0
"""Finds of an image that noise makes among those that tracks may choose from."""

_ROUNDS = 4
_SECTORS = 8


@dataclass(frozen=True)
class Beads:
    """What is looked for."""

    diameter: float | None = None
    """Of the beads [A]; None = `SMALLEST` to `LARGEST`."""
    false_finds: float = 0.01
    """Maxima of the noise taken for beads, in an image."""
    contrast: float | None = None
    """Least share of the electrons that a bead's middle takes; None = a third of what gold of
    its diameter does, 1 - exp(-diameter / `GOLD_LENGTH`), at most 0.12."""

    span: tuple[float, float] = (SMALLEST, LARGEST)
    """Of diameters where none is given [A]."""

    def diameters(self, pixel_size: float) -> list[float]:
        """Of the filters [A], those of 3 pixels and more beyond `span` on either side."""
        low, high = (self.diameter,) * 2 if self.diameter is not None else self.span
        low = max(low, 3 * pixel_size) if self.diameter is None else low
        count = max(0, math.ceil(math.log(max(high / low, 1)) / math.log(_STEP) - 1e-6))
        return [low * _STEP**n for n in range(-1, count + 2)]

    def least_contrast(self, diameters: Array) -> Array:
        """Of beads of given diameters [A]."""
        if self.contrast is not None:
            return np.full_like(diameters, self.contrast)
        return np.minimum((1 - np.exp(-diameters / GOLD_LENGTH)) / 3, _MORE_THAN_PROTEIN)


def find_beads(image: NDArray, pixel_size: float, wanted: Beads, valid: NDArray | None = None,
               doubtful: float = 0.0) -> pd.DataFrame:
    """Beads of an image, the surest first.

    Args:
        image: (ny, nx), matter dark, of a positive mean.
        pixel_size: [A].
        wanted: what is looked for.
        valid: pixels that were recorded, (ny, nx); None = all.
        doubtful: as many false finds are let in, where that is more than is wanted.

    Returns:
        A row a bead: x, y [pixel; the middle of the first is 0], error of each [pixel], diameter
        [A], contrast, the share of electrons that its middle takes, snr, the filter's value over
        its deviation, and false_finds, maxima of the noise as high in an image.

    Raises:
        ValueError: if the image has no positive mean, or is too small for the beads.
    """
    size = max(1, int(wanted.diameters(pixel_size)[0] / pixel_size / 7))
    use = np.ones(image.shape) if valid is None else (np.asarray(valid) > 0).astype(float)
    data, use = binned(np.where(use > 0, image, 0).astype(float), size), binned(use, size)
    pixel = pixel_size * size
    diameters = [d for d in wanted.diameters(pixel) if 3 * d < min(data.shape) * pixel]
    if not diameters:
        raise ValueError(f"bead_diameter={wanted.diameters(pixel)[0]:g}: must be at most a third "
                         f"of the image's {min(image.shape)} pixels of {pixel_size:g} A")
    if not data.sum() > 0:
        raise ValueError("image: must have a positive mean")
    data = np.where(use > 0, data / np.where(use > 0, use, 1), 0)
    found, filled = _rows([]), use > 0.5
    for turn in range(_ROUNDS):
        # Beads found before are no noise, and cast no rings on what is left.
        maps = MatchedFilters(*_contrast(data, filled, 2 * diameters[-1] / pixel), pixel, diameters)
        noise = _without_outliers(maps).noise if turn == 0 else maps.noise
        more = _peaks(maps, noise, wanted.false_finds, found)
        if not len(more) or turn == _ROUNDS - 1:
            more = _peaks(maps, noise, max(wanted.false_finds, doubtful), found)
        found = pd.concat([found, more], ignore_index=True) if len(found) else more
        sure = more["false_finds"] <= wanted.false_finds
        if not sure.any():
            break
        filled = filled & ~discs(data.shape, more[["x", "y"]].to_numpy()[sure],
                                 0.65 * more["diameter"].to_numpy()[sure] / pixel)
    if len(found):
        found = _measured(data, use > 0.5, filled, found, pixel, diameters, wanted)
    found[["x", "y"]] = found[["x", "y"]] * size + (size - 1) / 2
    found["error"] *= size
    return found.sort_values("snr", ascending=False, ignore_index=True)


def beads_of_series(images: NDArray, pixel_size: float, wanted: Beads,
                    valid: NDArray | None = None,
                    report: Callable[[int, int], None] = lambda done, of: None,
                    first: Sequence[int] = ()) -> tuple[pd.DataFrame, list[int]]:
    """Beads of each image, and doubtful finds for tracks to choose from.

    Args:
        images: (n, ny, nx), matter dark.
        pixel_size: [A].
        wanted: what is looked for; without a diameter, a few images tell which there are.
        valid: pixels that were recorded, (n, ny, nx); None = all.
        report: called with what is done and how much there is.
        first: images, from 0, that tell the diameters; empty = three in the middle.

    Returns:
        `find_beads` of each, with image, from 0; and images without a positive mean, left out.
    """
    n = len(images)
    chosen = list(first) or list(range(max(0, n // 2 - 1), min(n, n // 2 + 2)))
    use = np.ones(images.shape, bool) if valid is None else valid
    dark = [number for number in range(n) if not (images[number] * use[number]).sum() > 0]
    if wanted.diameter is None:
        some = [find_beads(images[number], pixel_size, wanted, use[number])["diameter"]
                for number in chosen if number not in dark]
        known = np.concatenate([np.zeros(0), *some])
        if len(known):
            wanted = replace(wanted, span=(float(known.min()), float(known.max())))
    found = []
    for number in range(n):
        if number not in dark:
            found.append(find_beads(images[number], pixel_size, wanted, use[number],
                                    DOUBTFUL).assign(image=number))
        report(number + 1, n)
    return pd.concat([_rows([]).assign(image=0), *found], ignore_index=True) if found else (
        _rows([]).assign(image=0)), dark


def discs(shape: tuple[int, int], centres: Array, radii: Array) -> NDArray[np.bool_]:
    """Pixels whose middle is in any of some circles.

    Args:
        shape: of the image.
        centres: x, y [pixel], (n, 2).
        radii: [pixel], (n,).
    """
    inside = np.zeros(shape, bool)
    for (x, y), radius in zip(centres, radii, strict=True):
        rows = slice(max(0, math.ceil(y - radius)), max(0, math.floor(y + radius) + 1))
        columns = slice(max(0, math.ceil(x - radius)), max(0, math.floor(x + radius) + 1))
        window = inside[rows, columns]
        j, i = np.ogrid[:window.shape[0], :window.shape[1]]
        window |= (j + rows.start - y) ** 2 + (i + columns.start - x) ** 2 <= radius**2
    return inside


def _rows(rows: Sequence[tuple[float, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["x", "y", "error", "diameter", "contrast", "snr",
                                       "false_finds"], dtype=float)


def _contrast(data: Array, use: NDArray[np.bool_], width: float) -> tuple[Array, NDArray[np.bool_]]:
    """Darkness relative to the mean about it, 0 where pixels are not used."""
    about = np.maximum(surroundings(data, use, width), 1e-3 * data[use].mean())
    return np.where(use, 1 - data / about, 0.0), use


def _without_outliers(maps: MatchedFilters) -> MatchedFilters:
    """The image without what is as dark as no noise, for its power before any bead is known."""
    width = maps.diameters[0] / maps.pixel / 4
    smooth = gaussian_filter(maps.dark, width)
    high = smooth > 4 * 1.4826 * np.median(np.abs(smooth[maps.use]))
    left = maps.use & ~(maximum_filter(high.astype(np.uint8), 2 * math.ceil(2 * width) + 1) > 0)
    return replace(maps, dark=np.where(left, maps.dark, 0.0), use=left) if left.any() else maps


def _peaks(maps: MatchedFilters, noise: Array, false_finds: float, before: pd.DataFrame
           ) -> pd.DataFrame:
    """New beads, each the highest within its diameter of all filters."""
    heights, tops, slopes = [], [], []
    for diameter in maps.diameters:
        snr, _, slope = maps.filtered(diameter, noise)
        snr = snr / maps.level(snr)
        limit = threshold(maps.use.sum() * len(maps.diameters), slope, false_finds)
        heights.append(np.where(maps.use, snr, 0))
        slopes.append(slope)
        tops.append(np.where(snr > limit, heights[-1], 0))
    stack = np.stack(tops)
    best = stack.max(0)
    wide = maximum_filter(best, 3)
    j, i = np.nonzero((best > 0) & (best == wide))
    rows: list[tuple[float, ...]] = []
    taken = before[["x", "y", "diameter"]].to_numpy().tolist()
    for n in np.argsort(-best[j, i], kind="stable"):
        scale = int(stack[:, j[n], i[n]].argmax())
        diameter = maps.diameters[scale]
        near = [math.hypot(i[n] - x, j[n] - y) * maps.pixel < _APART * (diameter + other) / 2
                for x, y, other in taken]
        if any(near):
            continue
        x, y = _top(heights[scale], i[n], j[n])
        taken.append([x, y, diameter])
        height = best[j[n], i[n]]
        rows.append((x, y, 0.0, diameter, 0.0, height, expected_maxima(
            height, maps.use.sum() * len(maps.diameters), slopes[scale])))
    return _rows(rows)


def _top(field: Array, i: int, j: int) -> tuple[float, float]:
    """Place of a maximum, of the parabola through its neighbours."""
    place = []
    for at, n, line in ((i, field.shape[1], field[j]), (j, field.shape[0], field[:, i])):
        if not 0 < at < n - 1:
            place.append(float(at))
            continue
        low, mid, high = line[at - 1:at + 2]
        bend = low - 2 * mid + high
        place.append(at + float(np.clip((low - high) / (2 * bend), -0.5, 0.5) if bend < 0 else 0))
    return place[0], place[1]


def _measured(data: Array, use: NDArray[np.bool_], bare: NDArray[np.bool_], found: pd.DataFrame,
              pixel: float, diameters: Sequence[float], wanted: Beads) -> pd.DataFrame:
    """Finds measured in the noise of the bare pixels, but those that are no gold or not round."""
    background = np.maximum(surroundings(data, bare, 2 * diameters[-1] / pixel),
                            1e-3 * data[use].mean())
    dark = np.where(use, 1 - data / background, 0.0)
    without = MatchedFilters(np.where(bare, dark, 0.0), bare, pixel, diameters)
    maps = MatchedFilters(dark, use, pixel, diameters)
    filters = []
    for diameter in diameters:
        snr, contrast, slope = maps.filtered(diameter, without.noise)
        filters.append((snr / without.level(without.filtered(diameter)[0]), contrast, slope))
    deviation = float(dark[bare].std())
    rows = []
    for one in found.itertuples():
        i, j = round(one.x), round(one.y)
        near = (slice(max(0, j - 1), j + 2), slice(max(0, i - 1), i + 2))
        scale = int(np.argmax([snr[near].max() for snr, _, _ in filters]))
        snr, contrast, slope = filters[scale]
        offset = np.unravel_index(int(snr[near].argmax()), snr[near].shape)
        j, i = near[0].start + int(offset[0]), near[1].start + int(offset[1])
        x, y = _top(snr, i, j)
        diameter = _between(diameters, [one_snr[j, i] for one_snr, _, _ in filters], scale)
        if _round(dark, x, y, diameter / 2 / pixel, deviation):
            error = math.hypot(1 / (snr[j, i] * math.sqrt(slope)), _SAMPLING)
            rows.append((x, y, error, diameter, contrast[j, i],
                         snr[j, i], expected_maxima(snr[j, i], bare.sum() * len(diameters), slope)))
    kept = _rows(rows)
    return kept[kept["contrast"] >= wanted.least_contrast(kept["diameter"].to_numpy())]


def _between(diameters: Sequence[float], heights: Sequence[float], scale: int) -> float:
    """Diameter of the highest filter, of the parabola through its neighbours."""
    if not 0 < scale < len(diameters) - 1:
        return diameters[scale]
    low, mid, high = heights[scale - 1:scale + 2]
    bend = low - 2 * mid + high
    part = np.clip((low - high) / (2 * bend), -0.5, 0.5) if bend < 0 else 0.0
    return float(diameters[scale] * (diameters[scale + 1] / diameters[scale]) ** part)


def _round(dark: Array, x: float, y: float, radius: float, deviation: float) -> bool:
    """Whether a bead is dark in all directions, and no line goes through it."""
    turn = 2 * np.pi * (np.arange(4 * _SECTORS) + 0.5) / (4 * _SECTORS)

    def sectors(distances: Array) -> Array:
        at = [centre + np.outer(distances * radius, part(turn))
              for centre, part in ((y, np.sin), (x, np.cos))]
        values = map_coordinates(dark, at, order=1, mode="nearest")
        return np.asarray(values.reshape(len(distances), _SECTORS, 4).mean((0, 2)))

    inside, outside = sectors(np.linspace(0.35, 0.75, 4)), sectors(np.linspace(1.4, 1.9, 4))
    mean = inside.mean()
    # Noise of a sector's mean: of as many pixels as it covers, at least one.
    noise, beyond = (deviation / math.sqrt(max(1.0, math.pi * radius**2 * share / _SECTORS))
                     for share in (0.75**2 - 0.35**2, 1.9**2 - 1.4**2))
    across = np.minimum(outside[:_SECTORS // 2], outside[_SECTORS // 2:])
    return bool(inside.min() > 0.3 * mean - 3 * noise
                and across.max() < 0.5 * mean + 3 * beyond)
