"""Leaves of an octree over slices of its field."""

import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from tem_taichi.estimate.volume_figure import PLANES, panel
from tem_taichi.specimen.octree import Octree, Tree


def edges(tree: Tree, axis: int) -> list[list[tuple[float, float]]]:
    """Outlines of the leaves that the middle plane across an axis cuts, [nm] from the middle.

    Args:
        tree: of the leaves.
        axis: of (z, y, x).

    Returns:
        Corners of each outline, along the two other axes, the later one first.
    """
    middle = tree.shape[axis] // 2
    ends = tree.begins + (tree.steps * (tree.samples - 1))[:, None]
    cut = (tree.begins[:, axis] <= middle) & (middle < ends[:, axis])
    up, right = (other for other in range(3) if other != axis)
    found = []
    for begin, end in zip(tree.begins[cut], ends[cut], strict=True):
        (x0, x1), (y0, y1) = (((begin[n] - tree.shape[n] // 2) * tree.spacing / 10,
                               (end[n] - tree.shape[n] // 2) * tree.spacing / 10)
                              for n in (right, up))
        found.append([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])
    return found


def tree_figure(field: Octree) -> Figure:
    """The middle plane across z, x and y, and the leaves that it cuts, in nm.

    Args:
        field: the octree.
    """
    tree = field.tree
    nz = tree.shape[0]
    cut: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    first = 0
    for made in field.export():
        for axis in (1, 2):
            cut[axis].append(made.select(axis, tree.shape[axis] // 2))
        if first <= nz // 2 < first + len(made):
            cut[0].append(made[nz // 2 - first])
        first += len(made)
    figure = Figure(figsize=(9.0, 3.6), dpi=120, layout="constrained")
    for axes, (name, axis) in zip(figure.subplots(1, 3), PLANES.items(), strict=True):
        plane = torch.cat(cut[axis]).cpu().numpy()
        lines = edges(tree, axis)
        if axis == 2:  # z to the right
            plane, lines = plane.T, [[(y, x) for x, y in line] for line in lines]
        panel(axes, plane, tree.spacing)
        axes.add_collection(LineCollection(lines, colors="tab:orange", linewidths=0.6))
        across, up = name.split(", ")
        axes.set(xlabel=f"{across} [nm]", ylabel=f"{up} [nm]")
    figure.suptitle(f"{len(tree.leaves)} leaves of {tree.samples}³ samples", fontsize=10)
    return figure

