"""How well an octree explains images: all in one projection and one back-projection.

Leaves are written to the finest grid once for all images, some planes at a time, and once more for
the gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tem_taichi.estimate.tomogram_model import Explained, Model
from tem_taichi.inverse.accelerated import Diagonal
from tem_taichi.specimen.octree import Octree, Tree, project_octree
from tem_taichi.specimen.rays import Rays
from tem_taichi.streams import Key

_LOOKS = 6
"""At gradients, for the largest curvature."""
_PROBE = 0.1
"""Of the values' unit: greatest change with which it is looked for."""
_UNSEEN = 0.01
"""Of the largest curvature of a node: what is less curved is taken for that."""


@dataclass(frozen=True, eq=False)
class Integrals:
    """Images that are line integrals and normal noise; `Explained`."""

    images: Tensor
    """(n, ny, nx)."""
    weights: Tensor
    """One over the noise's variance, 0 = left out, (n, ny, nx)."""
    rays: Rays
    levels: bool = False
    """Whether each image may lie higher or lower as a whole."""

    def explained(self, parts: Tensor) -> tuple[float, Tensor]:
        """See `Explained`."""
        left = parts - self.images
        if self.levels:
            left -= (left * self.weights).sum((1, 2), keepdim=True) / self.weights.sum(
                (1, 2), keepdim=True).clamp(min=1e-30)
        slopes = left * self.weights
        return float((slopes * left).sum(dtype=torch.float64)) / 2, slopes


def _thick(images: Explained) -> bool:
    """Whether waves pass the specimen in slices."""
    return isinstance(images, Model) and images.lens.model != "projection"


def gradient(images: Explained, tree: Tree, values: Tensor) -> tuple[float, Tensor]:
    """Minus the log of the images' probability, and its gradient by the leaves' values.

    Of waves that pass a thick specimen, the finest grid is made as a whole.

    Args:
        images: whose rays are of the tree's finest grid.
        tree: where leaves are.
        values: of them.
    """
    with torch.enable_grad():
        free = values.detach().requires_grad_()
        field = Octree(tree, free)
        parts = (field.planes(0, tree.shape[0]) if _thick(images)
                 else project_octree(field, images.rays))
    if isinstance(images, Model) and _thick(images):
        total, slopes = images.gradient(parts.detach())
    else:
        total, slopes = images.explained(parts.detach())
    found, = torch.autograd.grad(parts, free, slopes)
    return total, found


def misfit(images: Explained, tree: Tree, values: Tensor) -> float:
    """Minus the log of the images' probability."""
    with torch.no_grad():
        field = Octree(tree, values)
        if isinstance(images, Model) and _thick(images):
            return images.misfit(field.planes(0, tree.shape[0]))
        return images.explained(project_octree(field, images.rays))[0]


def metric_of(images: Explained, tree: Tree, unit: float) -> Diagonal:
    """Curvatures of the misfit, value by value: none is more curved along any way.

    The back-projection of the projection of ones, times the largest curvature found relative to it.

    Args:
        images: see `gradient`.
        tree: see `gradient`.
        unit: of the values.
    """
    n = tree.samples
    ones = torch.ones((len(tree.leaves), n, n, n), dtype=images.rays.rotations.dtype,
                      device=images.rays.rotations.device, requires_grad=True)
    with torch.enable_grad():
        through = project_octree(Octree(tree, ones), images.rays)
    found, = torch.autograd.grad(through, ones, through.detach())
    shares = torch.as_tensor(tree.steps).to(found)[:, None, None, None]**3
    even = found / shares
    metric = Diagonal(shares * even.clamp(min=_UNSEEN * float(even.max())))
    start = torch.zeros_like(metric.curvature)
    here = gradient(images, tree, start)[1]
    way = torch.as_tensor(Key(0, "trials").generator().random(tuple(start.shape))).to(start)
    largest = 1e-30
    for _ in range(_LOOKS):
        length = _PROBE * unit
        change = (gradient(images, tree, start + length * way)[1] - here) / length
        moved = metric.step(change)
        along = float((way * metric.curvature * way).sum(dtype=torch.float64))
        if not along > 0:  # nothing is seen
            break
        largest = max(largest, float((way * change).sum(dtype=torch.float64)) / along)
        way = moved / moved.abs().max().clamp(min=1e-30)
    return Diagonal(metric.curvature * largest)
