"""Pictures of an estimated detector: curves with their bands, and the regions they come from."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tem_taichi.estimate.crops import Background, RingSpectrum
from tem_taichi.estimate.noise_fit import Band


def detector_figure(curves: Mapping[str, Band], measured: RingSpectrum | None = None) -> Figure:
    """Draw curves over frequency with their 95 % bands.

    Args:
        curves: by name, NPS, MTF or DQE; one at least.
        measured: spectrum of the crops, drawn as points with the NPS.
    """
    figure = Figure(figsize=(4.2 * len(curves), 3.2), dpi=110, layout="constrained")
    for axes, (name, band) in zip(figure.subplots(1, len(curves), squeeze=False)[0],
                                  curves.items(), strict=True):
        axes.fill_between(band.w, band.lower, band.upper, alpha=0.3, label="95 %")
        axes.plot(band.w, band.values)
        if name == "NPS" and measured is not None:
            axes.plot(measured.w, measured.power, ".", markersize=3, color="0.4", zorder=1,
                      label="rings")
        axes.set(xlabel="w [cycles/pixel]", xlim=(0, 0.5), title=name)
        axes.set_ylim(0, 1.15 * float(np.max(band.values[band.w <= 0.5])))
        axes.set_ylabel("counts$^2$" if name == "NPS" else "")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def picked_figure(images: Sequence[NDArray], picked: Sequence[Background],
                  most: int = 6) -> Figure:
    """Draw the first images with the regions that were taken for background.

    Args:
        images: (ny, nx) each.
        picked: what was picked in each.
        most: so many images are drawn.
    """
    shown = list(zip(images, picked, strict=True))[:most]
    figure = Figure(figsize=(3.2 * len(shown), 3.2), dpi=110, layout="constrained")
    for axes, (image, background) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown,
                                         strict=True):
        step = max(1, max(image.shape) // 512)
        low, high = np.percentile(image[::step, ::step], (1, 99))
        axes.imshow(image[::step, ::step], cmap="gray", vmin=low, vmax=high, origin="lower",
                    extent=(0, image.shape[1], 0, image.shape[0]))
        ny, nx = background.crops.shape[-2:]
        for y, x in background.corners:
            axes.add_patch(_rectangle(x, y, nx, ny))
        axes.set_axis_off()
    return figure


def _rectangle(x: float, y: float, width: int, height: int):  # type: ignore[no-untyped-def]
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, fill=False, edgecolor="tab:orange")
