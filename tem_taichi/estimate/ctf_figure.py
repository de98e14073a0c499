"""What a CTF fit leaves behind: a picture to judge it by, and RELION's tables."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tem_taichi.estimate.ctf_fit import CtfFit

_SMOOTH = 1.2  # deviation of the blur that makes rings visible in noise [elements]
_TICKS = (20, 10, 7, 5, 4, 3.5, 3, 2.5, 2)  # [A]


def write_ctf_figure(path: str | Path, spectrum: ArrayLike | Tensor | None, fit: CtfFit) -> None:
    """Write a PNG: measured and fitted rings half by half, and averages along equal phase.

    Row 0 of the spectrum is at the bottom, as everywhere; the line in it points along the larger
    defocus.

    Args:
        path: file to write.
        spectrum: (ny, nx) to show in the left half, divided by nothing but its radial mean; None
            shows what the fit flattened.
        fit: its result.

    Raises:
        ValueError: if the spectrum has another shape than (ny, nx).
    """
    measured = fit.flattened if spectrum is None else _flattened(spectrum, fit)
    figure = Figure(figsize=(11, 4.6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.45))
    _halves(left, measured, fit)
    draw_curves(right, fit)
    phase = f"  phase shift {fit.phase_shift:.1f}°" if fit.errors[3] > 0 else ""
    figure.suptitle(
        f"U {fit.defocus_u:.0f}  V {fit.defocus_v:.0f} ± {max(fit.errors[:2]):.0f} Å  "
        f"angle {fit.astigmatism_angle:.1f} ± {fit.errors[2]:.1f}°{phase}  "
        f"rings to {fit.resolution:.1f} Å" + ("" if fit.reliable else "\nnot reliable: "
                                             + "; ".join(fit.doubts)),
        color="black" if fit.reliable else "firebrick", fontsize=10, wrap=True)
    # No version of matplotlib in the file: the same fit gives the same bytes.
    figure.savefig(path, format="png", metadata={"Software": None})


def ctf_star(names: Sequence[str], fits: Sequence[CtfFit], *, pixel_size: float, voltage: float,
             spherical_aberration: float, amplitude_contrast: float) -> dict[str, pd.DataFrame]:
    """The tables of RELION's micrographs_ctf.star, optics and micrographs.

    Args:
        names: rlnMicrographName of each fit.
        fits: in the same order. Resolutions of fits without rings are written as 999 A.
        pixel_size: of the micrographs [A].
        voltage: [kV].
        spherical_aberration: Cs [mm].
        amplitude_contrast: Q.

    Raises:
        ValueError: if there is not one name for each fit, or a name is empty or holds blanks.
    """
    if len(names) != len(fits) or not fits:
        raise ValueError(f"names: {len(names)} of them for {len(fits)} fits; must be one each")
    for name in names:
        if not name or any(character.isspace() or character in "#\"'" for character in name):
            raise ValueError(f"names: {name!r} must not be empty nor hold blanks, quotes or #")
    optics = pd.DataFrame({
        "rlnOpticsGroupName": ["opticsGroup1"], "rlnOpticsGroup": [1],
        "rlnMicrographPixelSize": [float(pixel_size)], "rlnVoltage": [float(voltage)],
        "rlnSphericalAberration": [float(spherical_aberration)],
        "rlnAmplitudeContrast": [float(amplitude_contrast)]})
    micrographs = pd.DataFrame({
        "rlnMicrographName": list(names), "rlnOpticsGroup": 1,
        "rlnDefocusU": [fit.defocus_u for fit in fits],
        "rlnDefocusV": [fit.defocus_v for fit in fits],
        "rlnCtfAstigmatism": [fit.astigmatism for fit in fits],
        "rlnDefocusAngle": [fit.astigmatism_angle for fit in fits],
        "rlnPhaseShift": [fit.phase_shift for fit in fits],
        "rlnCtfMaxResolution": [min(fit.resolution, 999.0) for fit in fits],
        "rlnCtfFigureOfMerit": [fit.figure_of_merit for fit in fits]})
    return {"optics": optics, "micrographs": micrographs}


def _flattened(spectrum: ArrayLike | Tensor, fit: CtfFit) -> NDArray[np.float64]:
    """The centre of a spectrum, of the fit's shape, over its mean at each radius."""
    values = np.asarray(torch.as_tensor(spectrum).detach().cpu(), dtype=np.float64)
    shape = fit.model.shape
    if values.ndim != 2 or any(a < b for a, b in zip(values.shape, shape, strict=True)):
        raise ValueError(f"spectrum: shape {values.shape} must be (ny, nx), at least {shape}")
    starts = [a // 2 - b // 2 for a, b in zip(values.shape, shape, strict=True)]
    values = values[starts[0]:starts[0] + shape[0], starts[1]:starts[1] + shape[1]]
    y, x = np.ogrid[:shape[0], :shape[1]]
    radius = np.hypot(y - shape[0] // 2, x - shape[1] // 2).astype(int).ravel()
    mean = np.bincount(radius, values.ravel()) / np.maximum(np.bincount(radius), 1)
    smooth = gaussian_filter(mean, 6, mode="nearest")
    return values / np.maximum(smooth[radius].reshape(shape), 1e-30)


def _halves(axes: Axes, measured: NDArray, fit: CtfFit) -> None:
    nx = fit.model.shape[1]
    shown = gaussian_filter(np.asarray(measured, dtype=np.float64), _SMOOTH) - 1
    model = fit.model - 1
    inside = _radius(fit) > fit.curves.frequency[0]
    scale = [max(float(np.percentile(np.abs(half[inside]), 97)), 1e-6) for half in (shown, model)]
    both = np.where(np.arange(nx) < nx // 2, shown / scale[0], model / scale[1])
    nyquist = 1 / (2 * fit.pixel_size)
    axes.imshow(both, cmap="gray", vmin=-1, vmax=1, origin="lower", interpolation="nearest",
                extent=(-nyquist, nyquist, -nyquist, nyquist))
    angle = np.radians(fit.astigmatism_angle)
    along = nyquist * 0.9 * np.array([np.cos(angle), np.sin(angle)])
    axes.plot(*(np.array([-1, 1]) * part for part in along), color="tab:orange", lw=0.8)
    axes.set_title("measured | model; the line is U", fontsize=9)
    axes.set_xlabel("$k_x$ [1/Å]")
    axes.set_ylabel("$k_y$ [1/Å]")


def _radius(fit: CtfFit) -> NDArray[np.float64]:
    ky, kx = ((np.arange(n) - n // 2) / (n * fit.pixel_size) for n in fit.model.shape)
    return np.hypot(ky[:, None], kx)


def draw_curves(axes: Axes, fit: CtfFit) -> None:
    """Draw averages along lines of equal phase, measured and fitted.

    Args:
        axes: to draw in.
        fit: whose curves.
    """
    curves = fit.curves
    k = curves.frequency
    axes.plot(k, curves.data, color="0.35", lw=0.9, label="measured, along equal phase")
    axes.plot(k, curves.model, color="tab:blue", lw=1.1, label="fitted")
    axes.plot(k, curves.background, color="tab:orange", lw=0.9, ls="--", label="background")
    axes.set_xlabel("resolution [Å]")
    axes.set_ylabel("power / smooth mean")
    ticks = [d for d in _TICKS if k[0] < 1 / d < k[-1]]
    axes.set_xticks([1 / d for d in ticks], [f"{d:g}" for d in ticks])
    low, high = np.percentile(np.concatenate([curves.data, curves.model]), (0.5, 99.5))
    axes.set_ylim(low - 0.35 * (high - low), high + 0.15 * (high - low))
    right = axes.twinx()
    right.plot(k, curves.correlation, color="tab:green", lw=0.8, alpha=0.8)
    right.axhline(0.5, color="tab:green", lw=0.5, ls=":")
    right.set_ylim(-1.0, 4.0)
    right.set_yticks([0, 0.5, 1])
    right.set_ylabel("correlation", color="tab:green", loc="bottom")
    if np.isfinite(fit.resolution):
        axes.axvline(1 / fit.resolution, color="0.6", lw=0.8)
    axes.legend(fontsize=8, loc="upper right", frameon=False)
    axes.set_xlim(k[0], k[-1])
