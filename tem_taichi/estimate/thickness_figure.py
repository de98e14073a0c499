"""Picture of a fit of thickness: means over tilt with their curve and deviations."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tem_taichi.estimate.thickness_fit import ThicknessFit


def thickness_figure(fit: ThicknessFit) -> Figure:
    """Draw means, curve and deviations, and t / L of the parts of the field where they are known.

    Args:
        fit: from `fit_thickness`.
    """
    known = fit.parts is not None
    figure = Figure(figsize=(10 if known else 7, 6), dpi=200, layout="constrained")
    grid = figure.add_gridspec(2, 3 if known else 2, height_ratios=(2, 1))
    upper = figure.add_subplot(grid[0, :2])
    lower = figure.add_subplot(grid[1, :2], sharex=upper)
    upper.tick_params(labelbottom=False)
    at = np.linspace(fit.tilt_angles.min(), fit.tilt_angles.max(), 200)
    upper.plot(at, fit.expected(at), color="0.4")
    away = 100 * (fit.means / fit.expected(fit.tilt_angles) - 1)
    for axes, rows in ((upper, fit.means), (lower, away)):
        axes.plot(fit.tilt_angles[fit.used], rows[fit.used], "o", markersize=4, label="used")
        if not fit.used.all():
            axes.plot(fit.tilt_angles[~fit.used], rows[~fit.used], "x", label="not used")
    low, high = fit.interval()
    upper.set_title(f"t / L = {fit.ratio:.3f} (95 %: {low:.3f} to {high:.3f}), normal at "
                    f"{fit.normal_angle:.2f} ± {fit.normal_error:.2f}°", fontsize=11)
    upper.set_ylabel("mean [counts]")
    upper.legend()
    lower.axhline(0, color="0.4")
    lower.set_ylim(-6 * 100 * fit.scatter - 0.1, 6 * 100 * fit.scatter + 0.1)
    lower.set_ylabel("deviation [%]")
    lower.set_xlabel("tilt [deg]")
    if fit.parts is not None:
        _draw_parts(figure.add_subplot(grid[0, 2]), fit.parts)
    for letter, axes in zip("abc", figure.axes, strict=False):
        axes.set_title(letter, loc="left", fontweight="bold")
    return figure


def _draw_parts(axes: Axes, parts: np.ndarray) -> None:
    """Map of t / L, rows upwards as in the image, with its numbers."""
    axes.imshow(parts, origin="lower", cmap="viridis", aspect="auto")
    dark = parts < np.nanmean(parts)
    for (row, column), ratio in np.ndenumerate(parts):
        axes.text(column, row, f"{ratio:.2f}", ha="center", va="center",
                  color="white" if dark[row, column] else "black")
    axes.set(xticks=[], yticks=[], xlabel="columns of the image", ylabel="rows",
             title="t / L of parts")
