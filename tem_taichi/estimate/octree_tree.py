"""Trees that hold a tilt series' grid, as coarse as images of half the size can see, and finer."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tem_taichi.estimate.tilt_images import Series
from tem_taichi.specimen.octree import PLANES, Octree, Tree, uniform
from tem_taichi.specimen.refinement import changed, chosen

_SMALLEST = 16
"""Pixels along a side of images that are made smaller."""


@dataclass(frozen=True)
class Growth:
    """How a tree grows."""

    samples: int = 9
    """Along a leaf's side."""
    depth: int = 3
    """Largest level."""
    leaves: int = 320
    """At most."""
    start: int = 1
    """Level of all leaves at first."""
    updates: int = 2
    """Of the tree with images of each smaller size."""
    smaller: int = 2
    """How often images are halved at most, while the tree changes."""
    stretched: bool = False
    """Whether one cube is as wide as the grid, however far its samples are apart then; else they
    are as far apart as the voxels and as many cubes as hold the grid."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.depth:
            raise ValueError(f"start={self.start}: must be from 0 to depth={self.depth}")
        if self.leaves < 8**self.start:
            raise ValueError(f"leaves={self.leaves}: must be at least the {8**self.start} of level "
                             f"start={self.start}")
        for name, least in (("updates", 1), ("smaller", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")


def tree_of(series: Series, growth: Growth) -> Tree:
    """The tree at first, which holds the series' grid."""
    side = 2**growth.depth * (growth.samples - 1)
    grid, voxel = series.rays.grid, series.rays.voxel
    if growth.stretched:
        roots, spacing = (1, 1, 1), (max(grid) - 1) * voxel / side
    else:
        z, y, x = (max(1, math.ceil((n - 1) / side)) for n in grid)
        roots, spacing = (z, y, x), voxel
    return uniform(roots, growth.start, growth.depth, growth.samples, spacing)


def halvings(series: Series, growth: Growth) -> int:
    """How often images and the tree can be made coarser, so that middles stay where they are."""
    by_size = int(math.log2(max(min(series.rays.shape) / _SMALLEST, 1)))
    return max(0, min(growth.smaller, growth.depth - max(growth.start, 1), by_size))


def coarser(tree: Tree, times: int) -> Tree:
    """The same leaves in a tree of smaller depth, whose finest grid is as much coarser.

    The field is the same where leaves agree on their common faces.

    Args:
        tree: without leaves of the levels that go.
        times: levels.
    """
    return replace(tree, depth=tree.depth - times, spacing=tree.spacing * 2**times)


def most_memory(series: Series, growth: Growth) -> float:
    """About what a fit takes at most, beside the series [bytes].

    Some thirty numbers for each of the leaves' values, a dozen for each pixel, some planes of the
    finest grid and the tomogram.
    """
    tree = tree_of(series, growth)
    leaves = min(max(growth.leaves, len(tree.leaves)), np.prod(tree.roots) * 8**growth.depth)
    planes = 3 * PLANES * np.prod(sorted(tree.shape)[1:])
    return 4.0 * float(30 * leaves * tree.samples**3 + 12 * series.images.numel() + planes
                       + 2 * np.prod(series.rays.grid))


def updated(field: Octree, leaves: int) -> Octree:
    """Split and merged where that leaves the least error; the same if nothing changes it."""
    change = chosen(field, leaves)
    return changed(field, change) if change else field


def on_tree(series: Series, tree: Tree) -> Series:
    """The same images, which see the finest grid of a tree."""
    return replace(series, rays=replace(series.rays, grid=tree.shape, voxel=tree.spacing),
                   margin=(0, 0))


def volume_of(found: Octree, grid: tuple[int, int, int], voxel: float | None = None) -> Tensor:
    """Voxels of a grid with the same middle, (nz, ny, nx).

    Args:
        found: the octree.
        grid: (nz, ny, nx).
        voxel: edge [A]; None = the spacing of the finest grid, of which some planes at a time are
            made then. Others are linear between its nodes, all of which are made.

    Raises:
        ValueError: if the grid does not lie within the tree.
    """
    tree = found.tree
    ratio = 1.0 if voxel is None else voxel / tree.spacing
    places = [have // 2 + ratio * (torch.arange(want).double() - want // 2)
              for have, want in zip(tree.shape, grid, strict=True)]
    # Half a voxel beyond a border is the border's.
    if any(float(at[0]) < -ratio or float(at[-1]) > have - 1 + ratio
           for at, have in zip(places, tree.shape, strict=True)):
        raise ValueError(f"grid={grid}: must lie within the tree's {tree.shape}")
    if ratio == 1 and all(float(at[0]) >= 0 and float(at[-1]) <= have - 1
                          for at, have in zip(places, tree.shape, strict=True)):
        return _cut(found, [int(at[0]) for at in places], grid)
    volume = torch.cat(list(found.export()))
    for axis, at in enumerate(places):
        last = volume.shape[axis] - 1
        at = at.clamp(0, last)
        low = at.floor().clamp(max=max(last - 1, 0)).long().to(volume.device)
        part = (at - low.cpu()).to(volume).reshape([-1 if n == axis else 1 for n in range(3)])
        volume = torch.lerp(volume.index_select(axis, low),
                            volume.index_select(axis, (low + 1).clamp(max=last)), part)
    return volume


def _cut(found: Octree, first: list[int], grid: tuple[int, int, int]) -> Tensor:
    """Part of the finest grid."""
    (z, y, x), (nz, ny, nx) = first, grid
    out = found.values.new_empty(grid)
    start = 0
    for planes in found.export():
        low, high = max(z, start), min(z + nz, start + len(planes))
        if low < high:
            out[low - z:high - z] = planes[low - start:high - start, y:y + ny, x:x + nx]
        start += len(planes)
    return out
