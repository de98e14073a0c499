"""Picture of a series' beads: images with circles, and how far finds are from their places."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from tem_taichi.estimate.bead_series import Gold


def bead_figure(images: NDArray, tilts: pd.DataFrame, gold: Gold, pixel_size: float) -> Figure:
    """Three tilts, their beads in circles, and residuals over the tilt.

    Args:
        images: (n, ny, nx).
        tilts: tilt_angle of each [deg].
        gold: what was found.
        pixel_size: [A].
    """
    angles = tilts["tilt_angle"].to_numpy(float)
    ny, nx = images.shape[1:]
    wide = min(3.0, max(0.7, nx / ny))
    figure = Figure(figsize=(11, 2.4 + 6.2 / wide), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(3.4 / wide * 1.1, 1.8))
    order = np.argsort(angles)
    shown = (order[0], int(np.abs(angles).argmin()), order[-1])
    for column, number in enumerate(shown):
        axes = figure.add_subplot(grid[0, column])
        _image(axes, images[number], gold, int(number), pixel_size)
        axes.set_title(f"{angles[number]:.1f} deg")
    _residuals(figure.add_subplot(grid[1, :]), gold, angles)
    return figure


def _image(axes: Axes, image: NDArray, gold: Gold, number: int, pixel_size: float) -> None:
    use = gold.valid[number]
    values = image[use] if use.any() else image
    low, high = np.percentile(values, (0.5, 99.5))
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
    for one in gold.places[gold.places["image"] == number].itertuples():
        colour = "tab:green" if one.bead and one.found else "tab:orange" if one.bead else "tab:red"
        axes.add_patch(Circle((one.x, one.y), one.diameter / pixel_size, fill=False, color=colour,
                              linewidth=1))
    axes.set(xticks=[], yticks=[], xlim=(-0.5, image.shape[1] - 0.5),
             ylim=(-0.5, image.shape[0] - 0.5))


def _residuals(axes: Axes, gold: Gold, angles: NDArray[np.float64]) -> None:
    finds = gold.tracks.finds[gold.tracks.finds["bead"] > 0]
    at = angles[finds["image"].to_numpy(int)]
    for name, off, shift in (("x", finds["off_x"], -0.3), ("y", finds["off_y"], 0.3)):
        axes.plot(at + shift, off, ".", markersize=3, alpha=0.6, label=f"{name}, beads")
    order = np.argsort(angles)
    for part, name in enumerate("xy"):
        axes.plot(angles[order], gold.moved[order, part], color=f"C{part}", linewidth=0.8,
                  label=f"{name}, image off the alignment")
    axes.axhline(0, color="0.5", linewidth=0.6)
    axes.set(xlabel="tilt [deg]", ylabel="off [A]", yscale="symlog")
    axes.legend(fontsize=7, ncols=4)
    axes.set_title("circles: green on a bead found, orange where its place puts it, red of no bead",
                   fontsize=9)
