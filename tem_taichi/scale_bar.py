"""Scale bars in pictures: a round number of nanometres."""

import math

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke


def scale_bar_length(width: float) -> float:
    """Longest of 1, 2 or 5 times a power of ten that is at most a third of `width`."""
    third = width / 3
    decade = 10.0 ** math.floor(math.log10(third))
    return max(step * decade for step in (1, 2, 5) if step * decade <= third)


def scale_bar(axes: Axes, width: float, height: float) -> None:
    """Draw a bar at the lower left of axes that run from 0 to the width and the height.

    Args:
        axes: of an image.
        width: of the image [nm].
        height: of the image [nm].
    """
    length = scale_bar_length(width)
    x, y = 0.06 * width, 0.07 * height
    axes.plot([x, x + length], [y, y], color="white", linewidth=3, solid_capstyle="butt",
              path_effects=[withStroke(linewidth=5, foreground="black")])
    axes.annotate(f"{length:g} nm", (x, y), xytext=(0, 5), textcoords="offset points",
                  color="white", fontsize=9,
                  path_effects=[withStroke(linewidth=2, foreground="black")])
    axes.set(xlim=(0, width), ylim=(0, height))
