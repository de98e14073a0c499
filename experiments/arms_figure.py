"""One content as each arm shows it: an image and a slice of its tomogram."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from tem_taichi.export.gallery import colour

FIGURE = Path(__file__).parent / "figures" / "arms.png"


def draw(samples: Mapping[str, Any], names: Mapping[str, str], file: Path = FIGURE) -> None:
    """Images of the least tilt, and planes of tomograms with the particles in the first one.

    Args:
        samples: of the same content, by arm: image, volume, truth.
        names: of the arms.
        file: to write.
    """
    truth = next(iter(samples.values())).truth
    depth = len(truth.instances)
    near = [(np.abs(truth.places[:, 0] - z) <= 6).sum() for z in range(depth)]
    middle = int(np.clip(np.argmax(near), 2, depth - 3))
    figure = Figure(figsize=(2.6 * len(samples), 5.6), layout="constrained")
    grid = figure.subplots(2, len(samples), squeeze=False)
    for n, (arm, one) in enumerate(samples.items()):
        plane = gaussian_filter(one.volume, 1.0)[middle - 2:middle + 3].mean(axis=0)
        for axes, picture in zip(grid[:, n], (one.image, plane), strict=True):
            low, high = np.percentile(picture, (1, 99))
            axes.imshow(picture, cmap="gray", vmin=low, vmax=high, origin="lower")
            axes.set(xticks=[], yticks=[])
        grid[0, n].set_title(names[arm], fontsize=10)
        if n == 0:
            for place, kind in zip(truth.places, truth.kinds, strict=True):
                if abs(place[0] - middle) <= 6:
                    grid[1, n].plot(place[2], place[1], "o", mfc="none", ms=9,
                                    mec=colour(int(kind)))
    grid[0, 0].set_ylabel("0 degrees")
    grid[1, 0].set_ylabel("tomogram")
    figure.savefig(file, dpi=80)
