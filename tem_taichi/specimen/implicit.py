"""A density that a small network knows at every point; a `Field`.

As published (Kniesel et al. 2022): sines and cosines of the place at ten octaves, nine layers of
256 with one skip, a sigmoid. Small and fast: features on grids of several resolutions, two layers
of 64, a softplus. Both are positive, and 0 outside of a box.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tem_taichi.arguments import check_positive_number
from tem_taichi.checks import check, positives, whole
from tem_taichi.device import as_tensor, current
from tem_taichi.specimen.field import Voxels
from tem_taichi.specimen.hash_grid import Levels, encoded
from tem_taichi.specimen.rays import project
from tem_taichi.specimen.view import View
from tem_taichi.streams import Key

CHUNK = 1 << 16
"""Points that a grid asks for at once; layers between are made again on the way back."""


@dataclass(frozen=True)
class Octaves:
    """Sines and cosines of 2^n pi times the place, which is from -1 to 1."""

    count: int = 10
    """Of octaves."""

    def __post_init__(self) -> None:
        whole("count", self.count, 0, 32)


Encoding = Octaves | Levels


@dataclass(frozen=True)
class Shape:
    """Of a network."""

    encoding: Encoding
    layers: int = 2
    """Hidden, each a ReLU."""
    width: int = 64
    """Features of each."""
    skip: int | None = None
    """Number of the hidden layer, from 1, whose output is joined by the encoded place again."""

    def __post_init__(self) -> None:
        whole("layers", self.layers, 1, 64)
        whole("width", self.width, 1, 4096)
        check(self.skip is None or 1 <= self.skip < self.layers, "skip", self.skip,
              f"from 1 to layers - 1={self.layers - 1}, or null")

    @property
    def inputs(self) -> int:
        """Features of an encoded place."""
        if isinstance(self.encoding, Octaves):
            return 3 + 6 * self.encoding.count
        return self.encoding.count * self.encoding.features

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Outputs and inputs of each layer, the last included."""
        found, before = [], self.inputs
        for n in range(1, self.layers + 1):
            found.append((self.width, before))
            before = self.width + (self.inputs if n == self.skip else 0)
        return [*found, (1, before)]


PUBLISHED = Shape(Octaves(10), layers=9, width=256, skip=5)
"""As published; one step takes seconds on a CPU."""


def small(finest: int, width: int = 64, layers: int = 2) -> Shape:
    """Grids up to one of `finest` cells along the longest side, each about 1.7 times finer.

    Args:
        finest: about the voxels of what is to be seen.
        width: of the layers.
        layers: how many.
    """
    coarsest = min(4, finest)
    count = 1 + max(1, round(math.log(finest / coarsest) / math.log(1.7)))
    return Shape(Levels(count, coarsest, finest, 1 << 18), layers, width)


@dataclass(frozen=True, eq=False)
class Implicit:
    """A network's density within a box, 0 beyond; a `Field`."""

    shape: Shape
    size: tuple[float, float, float]
    """Of the box about the specimen's centre, along x, y, z [A]."""
    tensors: tuple[Tensor, ...]
    """Of `start`: what is learned."""
    unit: float = 1.0
    """Density of an output of 1 [1/A], or [V]."""
    bounded: bool = False
    """Whether outputs are sigmoids, from 0 to 1, rather than softpluses."""

    def __post_init__(self) -> None:
        positives("size", self.size, 3, "A")
        check_positive_number("unit", self.unit, "1/A")

    def at(self, points: Tensor) -> Tensor:
        """Density at points (..., 3) [A], x, y, z: (...); differentiable in all tensors."""
        half = as_tensor(self.size) / 2
        inside = (points.abs() <= half).all(-1)
        flat = (points / float(half.max())).reshape(-1, 3)
        return torch.where(inside, self._density(flat).reshape(points.shape[:-1]), 0.0)

    def _density(self, places: Tensor) -> Tensor:
        """At places from -1 to 1 along the longest side, (n, 3): (n,)."""
        parts = list(self.tensors)
        if isinstance(self.shape.encoding, Octaves):
            known = _waves(places, self.shape.encoding.count)
        else:
            known = encoded(parts.pop(0), (places + 1) / 2, self.shape.encoding)
        felt = known
        for n, (weight, offset) in enumerate(zip(parts[::2], parts[1::2], strict=True), 1):
            felt = torch.nn.functional.linear(felt, weight, offset)
            if n <= self.shape.layers:
                felt = torch.relu(felt)
            if n == self.shape.skip:
                felt = torch.cat([felt, known], dim=-1)
        made = torch.sigmoid(felt) if self.bounded else torch.nn.functional.softplus(felt)
        return self.unit * made[:, 0]

    def grid(self, shape: tuple[int, int, int], voxel: float) -> Tensor:
        """Voxels about the same middle, (nz, ny, nx); differentiable, in the memory of a chunk.

        Args:
            shape: (nz, ny, nx); the middle is n // 2.
            voxel: edge [A].
        """
        check_positive_number("voxel", voxel, "A")
        nz, ny, nx = shape
        z, y, x = (as_tensor((torch.arange(n) - n // 2) * voxel) for n in shape)
        half = as_tensor(self.size) / 2
        plane = torch.stack([x.expand(ny, nx), y[:, None].expand(ny, nx)], dim=-1).reshape(-1, 2)
        inner = (plane.abs() <= half[:2]).all(1)
        keep = torch.nonzero(inner).flatten()
        some = torch.nonzero(z.abs() <= half[2]).flatten()
        out = []
        at_once = max(1, CHUNK // max(1, len(keep)))
        needed = torch.is_grad_enabled() and any(one.requires_grad for one in self.tensors)
        for rows in some.split(at_once):
            points = torch.cat([plane[keep].repeat(len(rows), 1),
                                z[rows].repeat_interleave(len(keep))[:, None]], dim=1)
            places = points / float(half.max())
            if needed and len(some) > at_once:
                out.append(checkpoint(_of_tensors, self, places, *self.tensors,
                                      use_reentrant=False))
            else:
                out.append(self._density(places))
        whole_grid = torch.zeros(nz * ny * nx, dtype=current().dtype,
                                 device=current().torch_device)
        if not out or not len(keep):
            return whole_grid.reshape(shape)
        places = (some[:, None] * (ny * nx) + keep).reshape(-1)
        return whole_grid.index_put((places,), torch.cat(out)).reshape(shape)

    def integral(self, view: View) -> Tensor:
        """All of it along the beam, by voxels of the view's pixels, (1, ny, nx)."""
        voxel = view.pixel_size
        nx, ny, nz = (2 * math.floor(length / 2 / voxel) + 1 for length in self.size)
        values = self.grid((nz, ny, nx), voxel)
        return project(values, Voxels(values, voxel).rays(view))

    def values(self) -> dict[str, Tensor]:
        """What is learned by name, for `inverse.problem`."""
        return {f"network{n}": tensor for n, tensor in enumerate(self.tensors)}

    def with_values(self, values: dict[str, Tensor]) -> "Implicit":
        """With what is learned from `values`; other names are left alone."""
        return replace(self, tensors=tuple(values[f"network{n}"]
                                           for n in range(len(self.tensors))))


def _of_tensors(network: Implicit, places: Tensor, *tensors: Tensor) -> Tensor:
    return replace(network, tensors=tensors)._density(places)


def _waves(places: Tensor, count: int) -> Tensor:
    """The place, and sines and cosines of it (Mildenhall et al. 2020)."""
    angles = [places * (math.pi * 2.0**n) for n in range(count)]
    return torch.cat([places, *(wave(angle) for angle in angles
                                for wave in (torch.sin, torch.cos))], dim=-1)


def start(shape: Shape, size: tuple[float, float, float], unit: float = 1.0,
          bounded: bool = False, seed: int = 0, level: float = 0.05) -> Implicit:
    """A network with random weights (He et al. 2015) that says about the same everywhere.

    Args:
        shape: of the network.
        size: see `Implicit` [A].
        unit: see `Implicit`.
        bounded: see `Implicit`.
        seed: of the random weights.
        level: about what it says, in units, above 0 and below 1.
    """
    check(0 < level < 1, "level", level, "above 0 and below 1")
    draw = Key(seed, "trials").generator()
    tensors: list[Any] = []
    if isinstance(shape.encoding, Levels):
        tensors.append(shape.encoding.start(seed))
    for outputs, inputs in shape.sizes:
        spread = math.sqrt(2 / inputs)
        tensors += [as_tensor(spread * draw.standard_normal((outputs, inputs))),
                    as_tensor(torch.zeros(outputs))]
    tensors[-2] = 0.1 * tensors[-2]
    free = math.log(level / (1 - level)) if bounded else math.log(math.expm1(level))
    tensors[-1] = tensors[-1] + free
    return Implicit(shape, size, tuple(tensors), unit, bounded)
