"""Picture of a styled series: clean, styled and real images, and their spectra."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tem_taichi.device import as_tensor
from tem_taichi.estimate.styled import spectrum
from tem_taichi.noise.looks import Looks


def styled_figure(clean: NDArray, made: NDArray, looks: Looks, tilt_angles: NDArray) -> Figure:
    """The image nearest to no tilt and the most tilted one.

    Args:
        clean: (n, ny, nx).
        made: of it, like it.
        looks: of the style.
        tilt_angles: of the images [deg].
    """
    chosen = list(dict.fromkeys((int(np.abs(tilt_angles).argmin()),
                                 int(np.abs(tilt_angles).argmax()))))
    figure = Figure(figsize=(12, 3.2 * len(chosen)), dpi=110, layout="constrained")
    for row, n in zip(figure.subplots(len(chosen), 4, squeeze=False), chosen, strict=True):
        style = looks.images[looks.nearest(tilt_angles[n])].cpu().numpy()
        for axes, (name, image) in zip(row, (("clean", clean[n]), ("styled", made[n]),
                                             ("style", style)), strict=False):
            low, high = np.percentile(image, [0.5, 99.5])
            axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
            axes.set(title=f"{name}, {tilt_angles[n]:.0f}°" if name != "style" else
                     f"style, {looks.tilt_angles[looks.nearest(tilt_angles[n])]:.0f}°",
                     xticks=[], yticks=[])
            if name != "clean":
                k, power = (part.cpu().numpy() for part in spectrum(as_tensor(image)))
                row[3].loglog(k, power, label=name)
        row[3].set(xlabel="k [cycles/pixel]", ylabel="power [counts²]")
        row[3].legend(fontsize=8)
    return figure
