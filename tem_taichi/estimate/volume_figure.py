"""Slices and projections of a volume, matter dark as in images."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from tem_taichi import checks

PLANES = {"x, y": 0, "z, y": 2, "x, z": 1}
"""Axes to the right and up, and the axis of (nz, ny, nx) that is looked along."""
_SLAB = 5
"""Voxels."""
_WIDTH, _HEIGHT, _DPI = 9.0, 7.5, 120
"""Of a figure, at most [inch, inch, 1/inch]: less than a screen."""
_BESIDE = (14.0, 11.0)
"""Of a figure of two volumes [inch]."""
_NARROWEST = 0.12
"""Of a panel, of the widest, so that it has room for its labels."""


def slices(volume: NDArray, voxel: float, at: Sequence[float] = (0.0, 0.0, 0.0),
           slab: float | None = None) -> dict[str, NDArray]:
    """Means over slabs across z, x and y.

    Args:
        volume: (nz, ny, nx).
        voxel: [A].
        at: where the slabs cross, x, y, z from the middle voxel n // 2 [A].
        slab: thickness [A], at least a voxel; None = 5 voxels.

    Returns:
        Pictures by the names of their axes, rows upwards.

    Raises:
        ValueError: if they cross outside of the volume.
    """
    count = _SLAB if slab is None else max(1, round(slab / voxel))
    found = {}
    for name, axis in PLANES.items():
        n = volume.shape[axis]
        middle = n // 2 + round(at[2 - axis] / voxel)
        checks.check(0 <= middle < n, "at", list(at), "in the volume, which has "
                     f"{' x '.join(f'{side * voxel:g}' for side in reversed(volume.shape))} A")
        begin = max(0, middle - count // 2)
        part = np.take(volume, range(begin, min(n, middle - count // 2 + count)), axis)
        found[name] = _upright(part.mean(axis), axis)
    return found


def greatest(volume: NDArray) -> dict[str, NDArray]:
    """Maximum-intensity projections along z, x and y, as `slices`."""
    return {name: _upright(volume.max(axis), axis) for name, axis in PLANES.items()}


def _upright(plane: NDArray, axis: int) -> NDArray:
    return plane.T if axis == 2 else plane


def planes_figure(planes: dict[str, NDArray], voxel: float, title: str = "") -> Figure:
    """Draw what `slices` or `greatest` give side by side, in their places, in nm.

    Args:
        planes: by the names of their axes.
        voxel: [A].
        title: above.
    """
    (ny, nx), nz = planes["x, y"].shape, planes["x, z"].shape[0]
    widths, heights = (_room(nx, nz), _room(ny, nz))
    scale = min(_WIDTH / sum(widths), _HEIGHT / sum(heights))
    figure = Figure(figsize=(scale * sum(widths) + 1.6, scale * sum(heights) + 1.2), dpi=_DPI,
                    layout="constrained")
    axes = figure.subplots(2, 2, width_ratios=widths, height_ratios=heights, squeeze=False)
    places = {"x, y": axes[0, 0], "z, y": axes[0, 1], "x, z": axes[1, 0]}
    for name, plane in planes.items():
        panel(places[name], plane, voxel)
        across, up = name.split(", ")
        places[name].set(xlabel=f"{across} [nm]", ylabel=f"{up} [nm]")
    axes[1, 1].axis("off")
    figure.suptitle(title, fontsize=10)
    return figure


def _room(*sides: int) -> tuple[float, ...]:
    return tuple(max(side, _NARROWEST * max(sides)) for side in sides)


def panel(axes: Axes, plane: NDArray, pixel: float, colours: str = "gray_r") -> None:
    """Show a picture in nm from its middle pixel, from its 0.5th to its 99.5th percentile.

    Args:
        axes: where.
        plane: (ny, nx), row 0 below.
        pixel: [A].
        colours: a map of matplotlib's.
    """
    low, high = np.percentile(plane, (0.5, 99.5))
    if not high > low:  # even, or but for a few voxels
        low, high = float(plane.min()) - 1e-30, float(plane.max()) + 1e-30
    sides = [((-(n // 2) - 0.5) * pixel / 10, (n - n // 2 - 0.5) * pixel / 10)
             for n in reversed(plane.shape)]
    axes.imshow(plane, cmap=colours, origin="lower", vmin=low, vmax=high,
                extent=(*sides[0], *sides[1]))
    axes.tick_params(labelsize=8)


def beside_figure(names: Sequence[str], sliced: Sequence[dict[str, NDArray]],
                  projected: Sequence[NDArray], rendered: Sequence[Image.Image], voxel: float
                  ) -> Figure:
    """Two volumes in the same places: slices across z and y, greatest values along z, rendering.

    Each picture has its own range of grey, since units may differ.

    Args:
        names: of the volumes.
        sliced: of each, as `slices` gives it.
        projected: of each, greatest values along z.
        rendered: of each.
        voxel: [A].
    """
    ny, nx = sliced[0]["x, y"].shape
    nz = len(sliced[0]["x, z"])
    # Side by side where volumes are wide, else one above the other.
    wide = nx > 1.5 * ny
    rows, columns = (4, len(names)) if wide else (len(names), 4)
    high = (ny + nz + 2 * ny) / nx if wide else len(names) * max(ny, nz) / nx
    width = min(_BESIDE[0] / columns, _BESIDE[1] / high)
    figure = Figure(figsize=(columns * width, high * width + 0.3 * rows), dpi=80,
                    layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for number, (name, planes, most, picture) in enumerate(zip(names, sliced, projected, rendered,
                                                               strict=True)):
        own = axes[:, number] if wide else axes[number]
        for place, (title, plane) in zip(own, (("x, y", planes["x, y"]), ("x, z", planes["x, z"]),
                                               ("greatest along z", most)), strict=False):
            panel(place, plane, voxel)
            place.set_title(f"{name}: {title} [nm]", fontsize=9)
        own[3].imshow(picture)
        own[3].set_title(f"{name}: rendering", fontsize=9)
        own[3].axis("off")
    return figure
