"""Pixels of a tilt series that show no specimen: gold, and what an alignment padded."""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import label, maximum_filter, minimum_filter

from tem_taichi.estimate.bead_filter import surroundings
from tem_taichi.estimate.bead_tracks import Tracks, Views
from tem_taichi.estimate.beads import discs

Array = NDArray[np.float64]

_BY_CHANCE = 1e-3
"""Solid blocks of equal values that an image has by chance, at most."""


def covered(tracks: Tracks, views: Views, pixel_size: float, shape: tuple[int, int],
            false_finds: float) -> pd.DataFrame:
    """Where gold is in all images, also where it was not found.

    Args:
        tracks: of `bead_tracks.follow`.
        views: of the images.
        pixel_size: [A].
        shape: of the images (ny, nx).
        false_finds: an image's finds above this are gold only on a track.

    Returns:
        A row a bead of an image: image, bead, 0 = of no track, x, y [pixel], diameter [A], and
        whether it was found there. Beads beyond the rim by less than their diameter are there too.
    """
    finds = tracks.finds[(tracks.finds["bead"] > 0)
                         | (tracks.finds["false_finds"] <= false_finds)].assign(found=True)
    diameters = tracks.beads.set_index("bead")["diameter"]
    columns = ["image", "bead", "x", "y", "diameter", "found"]
    finds = finds.assign(diameter=np.where(
        finds["bead"] > 0, finds["bead"].map(diameters), finds["diameter"]))[columns]
    middle = np.array([shape[1] // 2, shape[0] // 2])
    places = views.project(tracks.beads[["x", "y", "z"]].to_numpy(float)) / pixel_size + middle
    rows = []
    seen = set(zip(finds["image"], finds["bead"], strict=True))
    for number, image in enumerate(places):
        for bead, (x, y) in zip(tracks.beads["bead"], image, strict=True):
            reach = diameters[bead] / pixel_size
            inside = -reach < x < shape[1] + reach and -reach < y < shape[0] + reach
            if inside and (number, bead) not in seen:
                rows.append((number, int(bead), x, y, diameters[bead], False))
    hidden = pd.DataFrame(rows, columns=columns)
    both = pd.concat([finds, hidden], ignore_index=True) if rows else finds
    return both.astype({"image": int, "bead": int, "found": bool}).sort_values(
        ["image", "bead"], ignore_index=True)


def bead_mask(places: pd.DataFrame, shape: tuple[int, int, int], pixel_size: float,
              margin: float) -> NDArray[np.bool_]:
    """Pixels without gold.

    Args:
        places: image, x, y [pixel], diameter [A].
        shape: of the images (n, ny, nx).
        pixel_size: [A].
        margin: about each bead, for its fringes [A].
    """
    mask = np.ones(shape, bool)
    for number, rows in places.groupby("image"):
        mask[int(number)] &= ~discs(shape[1:], rows[["x", "y"]].to_numpy(float), (
            rows["diameter"].to_numpy(float) / 2 + margin) / pixel_size)
    return mask


def recorded(images: NDArray) -> NDArray[np.bool_]:
    """Pixels that are no padding: not in an area of one value at an image's rim.

    A solid square of one value is padding where chance, by how often the image's middle has that
    value, makes less than one in a thousand images; rows and columns of one value at the rim are.
    Padding of other kinds, such as rows that are repeated or mirrored, looks like an image.

    Args:
        images: (n, ny, nx).
    """
    return np.stack([_recorded(image) for image in images])


def _recorded(image: NDArray) -> NDArray[np.bool_]:
    ny, nx = image.shape
    core = image[ny // 4:ny - ny // 4, nx // 4:nx - nx // 4]
    padded = np.zeros(image.shape, bool)
    for value, run in _runs(image).items():
        often = max(float((core == value).mean()), 1 / core.size)
        if often > 0.999:
            continue
        side = max(3.0, math.sqrt(math.log(_BY_CHANCE / image.size) / math.log(often)))
        if run >= side:
            padded |= _at_rim(image == value, 2 * math.ceil((side - 1) / 2) + 1)
    return ~(padded | _strips(image))


def _runs(image: NDArray) -> dict[float, int]:
    """The longest rows of equal pixels at the rim, by their value, of three and more."""
    longest: dict[float, int] = {}
    for side in (image[0], image[-1], image[:, 0], image[:, -1]):
        ends = np.flatnonzero(np.append(side[1:] != side[:-1], True))
        for end, count in zip(ends, np.diff(ends, prepend=-1), strict=True):
            if count >= 3:
                longest[float(side[end])] = max(longest.get(float(side[end]), 0), int(count))
    return longest


def _at_rim(same: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Solid squares of an odd number of pixels, joined, that reach the rim."""
    if side > min(same.shape):
        return np.zeros_like(same)
    eroded = minimum_filter(same.astype(np.uint8), side, mode="constant")
    solid = maximum_filter(eroded, side, mode="constant") > 0
    number, _ = label(solid)
    at = np.unique(np.concatenate([number[0], number[-1], number[:, 0], number[:, -1]]))
    return np.isin(number, at[at > 0])


def _strips(image: NDArray) -> NDArray[np.bool_]:
    """Rows and columns of one value at the rim."""
    inside = np.zeros(image.shape, bool)
    for rows, marked in ((image, inside), (image.T, inside.T)):
        flat = (rows == rows[:, :1]).all(1)
        if not flat.all():
            marked[:int(np.argmin(flat))] = True
            marked[len(flat) - int(np.argmin(flat[::-1])):] = True
    return inside


def filled(images: NDArray, mask: NDArray[np.bool_], width: float) -> NDArray[np.float32]:
    """Images whose pixels that are left out have the mean of what is about them.

    Args:
        images: (n, ny, nx).
        mask: pixels that are used.
        width: standard deviation of that Gaussian mean [pixel].
    """
    made = np.array(images, np.float32)
    for image, use in zip(made, mask, strict=True):
        if use.any() and not use.all():
            image[~use] = surroundings(image.astype(float), use, width)[~use]
    return made
