"""The picture of a tilt series' CTF: what each image says of its defocus, and all of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tem_taichi.estimate.ctf_figure import draw_curves
from tem_taichi.estimate.ctf_series import SeriesFit

_SHOWN = 10.0  # of the log-likelihood


def write_series_figure(path: str | Path, fit: SeriesFit, angles: Sequence[float]) -> None:
    """Write a PNG: evidence over defocus and tilt, that of all images, and their average's rings.

    Args:
        path: file to write.
        fit: of the series.
        angles: tilts [deg], in its order.
    """
    figure = Figure(figsize=(12, 4.8), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    _evidence(left, fit, np.asarray(angles))
    draw_curves(right, fit.whole)
    right.set_title("all images, stretched to their mean defocus", fontsize=9)
    figure.suptitle(
        f"defocus {fit.mean:.0f} ± {fit.mean_error:.0f} Å   astigmatism {fit.astigmatism:.0f} ± "
        f"{fit.astigmatism_error:.0f} Å at {fit.astigmatism_angle:.0f} ± {fit.angle_error:.0f}°"
        + ("" if fit.reliable else "\nnot reliable: " + "; ".join(fit.doubts)),
        color="black" if fit.reliable else "firebrick", fontsize=10, wrap=True)
    # No version of matplotlib in the file: the same fit gives the same bytes.
    figure.savefig(path, format="png", metadata={"Software": None})


def _evidence(axes: Axes, fit: SeriesFit, angles: np.ndarray) -> None:
    """Log-likelihood of each image, below its own most, and of all, over the defocus."""
    order = np.argsort(angles, kind="stable")
    angles, grid = angles[order], fit.grid / 1e4
    rows = fit.evidence[order]
    shown = axes.pcolormesh(_edges(grid), _edges(angles), rows - rows.max(axis=1, keepdims=True),
                            cmap="gray", vmin=-_SHOWN, vmax=0)
    axes.errorbar(fit.defocus[order] / 1e4, angles, xerr=fit.errors[order] / 1e4, fmt=".",
                  color="tab:orange", ms=3, lw=0.8)
    axes.set_xlabel("defocus [µm]")
    axes.set_ylabel("tilt [°]")
    axes.set_title("each image by itself; orange: the fit; blue: all images", fontsize=9)
    axes.figure.colorbar(shown, ax=axes, shrink=0.7, extend="min",
                         label="log-likelihood below the image's most")
    top = axes.twinx()
    total = fit.evidence.sum(axis=0)
    top.plot(grid, total, color="tab:blue", lw=1.2)
    top.set_ylim(total.min() - 0.05 * np.ptp(total), total.min() + 3 * max(np.ptp(total), 1e-9))
    top.set_yticks([])
    axes.set_xlim(float(_edges(grid)[0]), float(_edges(grid)[-1]))


def _edges(middles: np.ndarray) -> np.ndarray:
    """Half-way between them, and as far beyond the first and the last."""
    between = (middles[1:] + middles[:-1]) / 2
    return np.concatenate([[2 * middles[0] - between[0]], between, [2 * middles[-1] - between[-1]]])
