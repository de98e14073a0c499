"""Labels of membranes, proteins in them, filaments, gold and clusters, over their tomogram.

    python -m tem_taichi.dataset experiments/labels_set.yaml
    python -m experiments.labels labels_set

Of each kind: how many are in the list, in the instance mask and among copick's picks, and what the
tomogram and the potential are within its mask, against a shell around all masks.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter

from experiments.consistency import picks_of
from experiments.labelled import Sample, samples
from experiments.runs import RESULTS
from tem_taichi.files.mrc import read_volume

FIGURE = Path(__file__).parent / "figures" / "labels.png"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    sample = samples(parser.parse_args().folder, "train")[0]
    classes = read_volume(sample.model / "class_mask.mrc")[0].astype(int)
    potential = read_volume(sample.model / "grandmodel.mrc")[0]
    lines = ["| kind | listed | instances in the mask | copick's picks | voxels | tomogram within, "
             "in deviations | potential within, V |", "| --- " * 7 + "|",
             *rows(sample, classes, potential)]
    (RESULTS / "labels.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    draw(sample, classes)


def rows(sample: Sample, classes: NDArray, potential: NDArray) -> list[str]:
    """A line of each kind, then one of what is near no mask."""
    picks = picks_of(sample)
    free = ~binary_dilation(classes > 0, iterations=3)
    volume = sample.volume - sample.volume[free].mean()
    volume = volume / volume[free].std()
    lines = []
    for number, kind in enumerate(sample.kinds, 1):
        inside = classes == number
        instances = np.unique(sample.truth.instances[inside])
        lines.append(f"| {kind} | {(sample.truth.kinds == number).sum()} | {len(instances)} | "
                     f"{len(picks.get(kind, ()))} | {inside.sum()} | "
                     f"{volume[inside].mean():+.2f} | {potential[inside].mean():+.2f} |")
    return [*lines, f"| none within 3 voxels | | | | {free.sum()} | {volume[free].mean():+.2f} | "
            f"{potential[free].mean():+.3f} |"]


def telling(classes: NDArray, most: int) -> list[int]:
    """Planes that show most of every kind: each where those shown least yet have most voxels."""
    areas = np.stack([(classes == n).sum(axis=(1, 2)) for n in range(1, classes.max() + 1)])
    shares = areas / areas.max(axis=1, keepdims=True)
    planes: list[int] = []
    for _ in range(most):
        shown = shares[:, planes].max(axis=1, initial=0.0)
        gains = np.maximum(shares - shown[:, None], 0).sum(axis=0)
        if gains.max() > 0:
            planes.append(int(gains.argmax()))
    return sorted(planes)


def draw(sample: Sample, classes: NDArray) -> None:
    """Slices of the tomogram, plain and with the outlines of the kinds."""
    planes = telling(classes, 4)
    colours = colormaps["rainbow"](np.linspace(0, 1, len(sample.kinds) + 1))
    figure = Figure(figsize=(3.2 * len(planes), 7), layout="constrained")
    panels = figure.subplots(2, len(planes))
    smooth = gaussian_filter(sample.volume, 1.0)
    for z, (plain, labelled) in zip(planes, panels.T, strict=True):
        low, high = np.percentile(smooth[z], (1, 99))
        for axes in (plain, labelled):
            axes.imshow(smooth[z], cmap="gray", vmin=low, vmax=high, origin="lower")
            axes.set(xticks=[], yticks=[])
        plain.set_title(f"plane {z}")
        for number in range(1, len(sample.kinds) + 1):
            if (classes[z] == number).any():
                labelled.contour(classes[z] == number, [0.5], colors=[colours[number]],
                                 linewidths=1.5)
    for number, kind in enumerate(sample.kinds, 1):
        panels[1, 0].plot([], [], color=colours[number], label=kind)
    figure.legend(*panels[1, 0].get_legend_handles_labels(), loc="outside lower center",
                  ncols=len(sample.kinds), frameon=False)
    figure.savefig(FIGURE, dpi=80)


if __name__ == "__main__":
    main()
