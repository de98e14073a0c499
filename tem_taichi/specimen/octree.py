"""A potential on an octree of small grids, fine where the specimen needs it; a `Field`.

Each leaf of a `Tree` is a cube with samples^3 values, the outermost on its faces, trilinear
between them. The field is the trilinear interpolation of the finest grid, whose nodes have the mean
of the leaves' values about them: on a face that two leaves share the mean of theirs. So it is
continuous, and the same as `Voxels` of its `export`; but only a few planes of the finest grid are
ever made at a time.
"""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import taichi as ti
import torch
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi.arguments import check_array, check_positive_number, to_field
from tem_taichi.bridge import differentiable, launch
from tem_taichi.device import as_tensor, current
from tem_taichi.kernels import octree as kernels
from tem_taichi.specimen.lattice import Rays, lattice_of, layers
from tem_taichi.specimen.rays import gather, imaged, slopes, spread
from tem_taichi.specimen.view import View

PLANES = 32
"""Of the finest grid that are in memory at a time."""


@dataclass(frozen=True, eq=False)
class Tree:
    """Which leaves an octree has, and where."""

    leaves: NDArray[np.int64]
    """(n, 4): level, from 0 for a whole cube of the roots to `depth`, and place z, y, x in sides
    of such a leaf."""
    roots: tuple[int, int, int]
    """Cubes that are cut into leaves, side by side along z, y, x."""
    depth: int
    """Largest level."""
    samples: int
    """Along a leaf's side."""
    spacing: float
    """Of the samples of a leaf at the largest level, which is that of the finest grid [A]."""

    def __post_init__(self) -> None:
        check_positive_number("spacing", self.spacing, "A")
        for name, least, most in (("depth", 0, 12), ("samples", 2, 512)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)}: must be from {least} to {most}")
        if len(self.roots) != 3 or min(self.roots) < 1:
            raise ValueError(f"roots={self.roots}: must be (z, y, x), each at least 1")
        levels = self.leaves[:, 0]
        if not len(levels) or levels.min() < 0 or levels.max() > self.depth:
            raise ValueError(f"leaves: levels must be from 0 to depth={self.depth}")
        cubes = np.prod(self.roots) * 8**self.depth
        if (8**(self.depth - levels)).sum() != cubes or (self.cells < 0).any():
            raise ValueError("leaves: must fill the roots, each place once")

    @cached_property
    def cells(self) -> NDArray[np.int32]:
        """Which leaf each of the smallest possible leaves is in, (z, y, x)."""
        found = np.full([n * 2**self.depth for n in self.roots], -1, np.int32)
        for level in range(self.depth + 1):
            which = np.flatnonzero(self.leaves[:, 0] == level)
            size = 2**(self.depth - level)
            places = self.leaves[which, 1:] * size
            if (places < 0).any() or (places + size > found.shape).any():
                raise ValueError("leaves: must lie within the roots")
            for offset in itertools.product(range(size), repeat=3):
                found[tuple((places + offset).T)] = which
        return found

    @property
    def shape(self) -> tuple[int, int, int]:
        """Nodes of the finest grid (nz, ny, nx); the middle, n // 2, is where the specimen's is."""
        z, y, x = (n * 2**self.depth * (self.samples - 1) + 1 for n in self.roots)
        return z, y, x

    @property
    def steps(self) -> NDArray[np.int64]:
        """Between samples of each leaf, in spacings of the finest grid, (n,)."""
        return 2**(self.depth - self.leaves[:, 0])

    @property
    def begins(self) -> NDArray[np.int64]:
        """First node of each leaf, z, y, x, (n, 3)."""
        return self.leaves[:, 1:] * (self.steps * (self.samples - 1))[:, None]

    def rays(self, view: View) -> Rays:
        """How a view sees the finest grid."""
        return Rays(view.rotation[None], view.shift[None], self.shape, self.spacing, view.shape,
                    view.pixel_size)

    @cached_property
    def _for_kernels(self) -> dict[tuple[int, int, int], tuple[Tensor, Tensor]]:
        """Cells and leaves by the order of their axes."""
        table = np.concatenate([self.begins, self.steps[:, None]], axis=1).astype(np.int32)
        place = current().torch_device
        return {axes: (torch.as_tensor(np.ascontiguousarray(self.cells.transpose(axes)),
                                       device=place),
                       torch.as_tensor(np.ascontiguousarray(table[:, [*axes, 3]]), device=place))
                for axes in ((0, 1, 2), (0, 2, 1))}


def uniform(roots: tuple[int, int, int], level: int, depth: int, samples: int, spacing: float
            ) -> Tree:
    """A tree whose leaves are all of one level.

    Args:
        roots: see `Tree`.
        level: of the leaves.
        depth: see `Tree`.
        samples: see `Tree`.
        spacing: see `Tree` [A].
    """
    places = np.stack(np.meshgrid(*(np.arange(n * 2**level) for n in roots), indexing="ij"), -1)
    places = places.reshape(-1, 3)
    return Tree(np.concatenate([np.full((len(places), 1), level), places], axis=1), roots, depth,
                samples, spacing)


@dataclass(frozen=True)
class _Layers:
    """Layers of the finest grid in the order of axes in which they lie in memory."""

    tree: Tree
    transposed: bool
    """Whether lines run along y rather than x."""

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = self.tree.shape
        return (z, x, y) if self.transposed else (z, y, x)

    @property
    def _tables(self) -> tuple[Tensor, Tensor]:
        return self.tree._for_kernels[(0, 2, 1) if self.transposed else (0, 1, 2)]

    @property
    def _strides(self) -> tuple[int, int, int]:
        n = self.tree.samples
        return (n, 1, n) if self.transposed else (n, n, 1)

    def made(self, values: Tensor, first: int, count: int) -> Tensor:
        """Some layers, (count, b, c)."""
        out = values.new_empty((count, *self.shape[1:]))
        launch(kernels.expand, values, *self._tables, *self._strides, first, out)
        return out

    def add_adjoint(self, planes: Tensor, first: int, values_grad: Tensor) -> None:
        """The adjoint of `made`, added."""
        launch(kernels.restrict, planes, self._tables[1], *self._strides, first, self.shape[0],
               values_grad)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First of some layers and how many."""
        for first in range(0, self.shape[0], PLANES):
            yield first, min(PLANES, self.shape[0] - first)


@ti.ad.grad_replaced
def _expand(values, layers, first, out):  # type: ignore[no-untyped-def]
    out.copy_(layers.made(values, first, len(out)))


@ti.ad.grad_for(_expand)
def _expand_adjoint(values, layers, first, out):  # type: ignore[no-untyped-def]
    layers.add_adjoint(out.grad, first, values.grad)


@ti.ad.grad_replaced
def _project(values, maps, numbers, planes, grid, out):  # type: ignore[no-untyped-def]
    rows = numbers.long()
    part = out.new_empty((len(numbers), *out.shape[1:]))
    own = torch.arange(len(numbers), dtype=torch.int32, device=out.device)
    out[rows] = 0
    for first, count in grid.blocks():
        here, moved = layers(planes, maps, first, count)
        gather(grid.made(values, first, count).view(-1), moved.contiguous(), own, here, part)
        out[rows] += part


@ti.ad.grad_for(_project)
def _project_adjoint(values, maps, numbers, planes, grid, out):  # type: ignore[no-untyped-def]
    for first, count in grid.blocks():
        here, moved = layers(planes, maps, first, count)
        moved = moved.contiguous()
        if values.grad is not None:
            made = values.new_zeros((count, *grid.shape[1:]))
            spread(out.grad, moved, numbers, here, made.view(-1))
            grid.add_adjoint(made, first, values.grad)
        if maps.grad is not None:
            made = grid.made(values, first, count)
            grad = torch.zeros_like(moved)
            slopes(made.view(-1), moved, numbers, here, out.grad, grad)
            if here.count == planes.count:
                maps.grad += grad
            else:
                maps.grad[:, first:first + count] += grad


@ti.ad.grad_replaced
def _take(values, nodes, tree, out):  # type: ignore[no-untyped-def]
    launch(kernels.take, values, *tree._for_kernels[0, 1, 2], nodes, tree.samples, out)


@ti.ad.grad_for(_take)
def _take_adjoint(values, nodes, tree, out):  # type: ignore[no-untyped-def]
    launch(kernels.take_adjoint, out.grad, *tree._for_kernels[0, 1, 2], nodes, tree.samples,
           values.grad)


@dataclass(frozen=True, eq=False)
class Octree:
    """A potential on the leaves of a tree, 0 beyond; a `Field`."""

    tree: Tree
    values: Tensor
    """[V], (leaves, samples, samples, samples), each z, y, x."""

    def __post_init__(self) -> None:
        n = self.tree.samples
        check_array("values", self.values, (len(self.tree.leaves), n, n, n), "V")

    @property
    def size(self) -> tuple[float, float, float]:
        """Of a box about the specimen's centre that holds it, along x, y, z [A]."""
        x, y, z = (self.tree.spacing * 2 * (n // 2 + 1) for n in reversed(self.tree.shape))
        return x, y, z

    def at(self, points: Tensor) -> Tensor:
        """See the module; differentiable in the values and in the points."""
        shape = self.tree.shape
        middle = as_tensor([float(n // 2) for n in reversed(shape)])
        places = (points / self.tree.spacing + middle).reshape(-1, 3)
        low = places.detach().floor()
        part = places - low
        ends = as_tensor([float(n - 1) for n in reversed(shape)])
        total = torch.zeros_like(places[:, 0])
        values = to_field("values", self.values).reshape(-1)
        for corner in itertools.product((0, 1), repeat=3):
            step = as_tensor([float(n) for n in corner])
            node = low + step
            there = ((node >= 0) & (node <= ends)).all(1)
            # What is beyond is 0: its place is anywhere.
            numbers = torch.where(there[:, None], node, 0.0).flip(1).int().contiguous()
            found = differentiable(_take, values.new_empty(len(numbers)), values, numbers,
                                   self.tree)
            weight = torch.where(step > 0, part, 1 - part).prod(1)
            total = total + torch.where(there, weight * found, 0.0)
        return total.reshape(points.shape[:-1])

    def integral(self, view: View) -> Tensor:
        """All of it along the beam, (1, ny, nx) [V A]."""
        return project_octree(self, self.tree.rays(view))

    def planes(self, first: int, count: int) -> Tensor:
        """Some planes of the finest grid, (count, ny, nx); differentiable in the values."""
        nz, ny, nx = self.tree.shape
        if not (0 <= first and count >= 1 and first + count <= nz):
            raise ValueError(f"first={first}, count={count}: must be some of the {nz} planes")
        values = to_field("values", self.values).reshape(-1)
        return differentiable(_expand, values.new_empty((count, ny, nx)), values,
                              _Layers(self.tree, False), first)

    def export(self) -> Iterator[Tensor]:
        """The finest grid, some planes at a time, from the first; without gradients."""
        for first, count in _Layers(self.tree, False).blocks():
            with torch.no_grad():  # not around the yield, or it would hold in the caller's loop
                made = self.planes(first, count)
            yield made


def project_octree(field: Octree, rays: Rays) -> Tensor:
    """Line integrals of an octree, the same as `rays.project` of its `export`.

    Args:
        field: the octree.
        rays: how the images see its finest grid.

    Returns:
        (n, ny, nx) in the field's unit times A; differentiable in the values, the rotations and the
        shifts.

    Raises:
        ValueError: if the rays are not of the finest grid.
    """
    if tuple(rays.grid) != field.tree.shape or rays.voxel != field.tree.spacing:
        raise ValueError(f"rays of a grid {tuple(rays.grid)} of {rays.voxel:g} A: must be "
                         f"{field.tree.shape} of {field.tree.spacing:g} A")
    lattice = lattice_of(rays)
    grid = _Layers(field.tree, lattice.upright)
    values = to_field("values", field.values).reshape(-1)
    return imaged(rays, lattice, values, lambda out, maps, numbers, planes: differentiable(
        _project, out, values, maps, numbers, planes, grid))


def save(field: Octree, path: str) -> None:
    """Keep an octree in a numpy file (.npz)."""
    with open(path, "wb") as file:
        file.write(packed(field))


def packed(field: Octree) -> bytes:
    """What `save` writes."""
    tree, file = field.tree, io.BytesIO()
    np.savez(file, values=field.values.detach().cpu().numpy(), leaves=tree.leaves,
             roots=tree.roots, depth=tree.depth, samples=tree.samples, spacing=tree.spacing)
    return file.getvalue()


def load(path: str) -> Octree:
    """An octree that `save` kept.

    Raises:
        ValueError: if the file holds none.
    """
    try:
        with np.load(path, allow_pickle=False) as kept:
            z, y, x = (int(n) for n in kept["roots"])
            tree = Tree(kept["leaves"], (z, y, x), int(kept["depth"]), int(kept["samples"]),
                        float(kept["spacing"]))
            return Octree(tree, as_tensor(kept["values"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is no octree") from error
