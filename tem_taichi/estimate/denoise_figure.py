"""Picture of an estimate: before, after, and how sure it is."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from tem_taichi.scale_bar import scale_bar


def denoise_figure(before: NDArray, after: NDArray, error: NDArray | None, title: str,
                   pixel_size: float, other: tuple[str, NDArray] | None = None) -> Figure:
    """Draw a picture before and after, its error, and all of that of its middle.

    Args:
        before: average of the exposures, (ny, nx) [e-/A^2].
        after: the estimate.
        error: its standard deviation; None = not drawn.
        title: of the estimate.
        pixel_size: [A].
        other: name and picture of another estimate to be seen beside it.
    """
    shown = [("recorded", before), (title, after)]
    shown[1:1] = [other] if other else []
    columns = len(shown) + (error is not None)
    ny, nx = after.shape
    figure = Figure(figsize=(3.3 * columns, 3.0 + 3.3 * min(ny / nx, 2)), dpi=110,
                    layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    side = max(min(ny, nx) // 3, 16)
    middle = (slice((ny - side) // 2, (ny + side) // 2), slice((nx - side) // 2, (nx + side) // 2))
    for column, (name, image) in enumerate(shown):
        low, high = np.percentile(image[::max(1, ny // 512), ::max(1, nx // 512)], (0.3, 99.7))
        for row, part in enumerate((image, image[middle])):
            _show(axes[row, column], part, pixel_size, "gray", (low, high))
        axes[0, column].set_title(f"{name}\n{low:.3g} to {high:.3g} e-/Å$^2$", fontsize=8)
    if error is not None:
        for row, part in enumerate((error, error[middle])):
            picture = _show(axes[row, -1], part, pixel_size, "viridis",
                            (0.0, float(np.percentile(error, 99.7)) or 1.0))
        axes[0, -1].set_title("standard error [e-/Å$^2$]", fontsize=8)
        figure.colorbar(picture, ax=axes[1, -1], fraction=0.05)
    for one in axes.flat:
        one.set_axis_off()
    for one, sides in ((axes[0, 0], (nx, ny)), (axes[1, 0], reversed(after[middle].shape))):
        scale_bar(one, *(n * pixel_size / 10 for n in sides))
    return figure


def _show(axes: Axes, part: NDArray, pixel_size: float, colours: str, limits: tuple[float, float]
          ) -> AxesImage:
    """In nm from the lower left corner."""
    ny, nx = part.shape
    return axes.imshow(part, cmap=colours, vmin=limits[0], vmax=limits[1], origin="lower",
                       extent=(0, nx * pixel_size / 10, 0, ny * pixel_size / 10))
