"""Slices through a tomogram."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


def tomogram_figure(volume: NDArray, voxel: float) -> Figure:
    """The middle slices across z, y and x, matter dark as in the images.

    Args:
        volume: (nz, ny, nx), matter positive.
        voxel: [A].
    """
    nz, ny, nx = volume.shape
    figure = Figure(figsize=(9, 9 * (ny + nz) / (nx + nz) + 0.4), dpi=120)
    axes = figure.subplots(2, 2, width_ratios=(nx, nz), height_ratios=(ny, nz), squeeze=False)
    slices = {"x, y": (axes[0, 0], volume[nz // 2]), "z, y": (axes[0, 1], volume[:, :, nx // 2].T),
              "x, z": (axes[1, 0], volume[:, ny // 2])}
    for title, (place, plane) in slices.items():
        low, high = np.percentile(plane, (0.5, 99.5))
        size = [n * voxel / 10 for n in reversed(plane.shape)]
        place.imshow(plane, cmap="gray_r", origin="lower", vmin=low, vmax=high,
                     extent=(-size[0] / 2, size[0] / 2, -size[1] / 2, size[1] / 2))
        place.set_xlabel(f"{title[0]} [nm]")
        place.set_ylabel(f"{title[-1]} [nm]")
    axes[1, 1].axis("off")
    figure.tight_layout()
    return figure
