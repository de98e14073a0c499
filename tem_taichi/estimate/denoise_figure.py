"""Picture of an estimate: before, after, and how sure it is."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


def denoise_figure(before: NDArray, after: NDArray, error: NDArray | None, title: str,
                   other: tuple[str, NDArray] | None = None) -> Figure:
    """Draw a picture before and after, its error, and all of that of its middle.

    Args:
        before: average of the exposures, (ny, nx) [e-/A^2].
        after: the estimate.
        error: its standard deviation; None = not drawn.
        title: of the estimate.
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
            axes[row, column].imshow(part, cmap="gray", vmin=low, vmax=high, origin="lower")
        axes[0, column].set_title(f"{name}\n{low:.3g} to {high:.3g} e-/Å$^2$", fontsize=8)
    if error is not None:
        for row, part in enumerate((error, error[middle])):
            picture = axes[row, -1].imshow(part, cmap="viridis", vmin=0,
                                           vmax=float(np.percentile(error, 99.7)) or 1.0,
                                           origin="lower")
        axes[0, -1].set_title("standard error [e-/Å$^2$]", fontsize=8)
        figure.colorbar(picture, ax=axes[1, -1], fraction=0.05)
    for one in axes.flat:
        one.set_axis_off()
    return figure
