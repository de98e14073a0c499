"""A specimen that can be asked for its potential anywhere: a grid of voxels, a network."""

import itertools
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from tem_taichi.arguments import check_positive_number, to_field
from tem_taichi.device import as_tensor
from tem_taichi.physics import Value
from tem_taichi.specimen.depth import compensation, spare
from tem_taichi.specimen.rays import Rays, project
from tem_taichi.specimen.slabs import Slabs, sliced
from tem_taichi.specimen.view import Attenuation, View


class Field(Protocol):
    """Anything with a potential at every point.

    Tensors that need gradients are found as those of a `Specimen` are: a network's parameters
    are a tuple in a field of a dataclass.
    """

    def at(self, points: torch.Tensor) -> torch.Tensor:
        """Potential [V] relative to the surroundings at points (..., 3) [A], x, y, z: (...)."""


@runtime_checkable
class Projected(Field, Protocol):
    """A field that knows its line integrals better than by samples: an octree."""

    def integral(self, view: View) -> torch.Tensor:
        """All of it along the beam, (1, ny, nx) [V A]."""


@dataclass(frozen=True, eq=False)
class Voxels:
    """A potential on a grid, linear between its voxels and 0 beyond; a `Field`."""

    values: torch.Tensor
    """[V], (nz, ny, nx); the middle, n // 2, is where the specimen's is."""
    voxel_size: float
    """[A]"""

    def __post_init__(self) -> None:
        check_positive_number("voxel_size", self.voxel_size, "A")
        if self.values.ndim != 3 or min(self.values.shape) < 2:
            raise ValueError(f"values of shape {tuple(self.values.shape)}: must be (nz, ny, nx), "
                             "each at least 2")

    @property
    def size(self) -> tuple[float, float, float]:
        """Of a box about the specimen's centre that holds it, along x, y, z [A]."""
        # The first voxel is n // 2 from the middle, and reaches 0 one further out.
        x, y, z = (self.voxel_size * 2 * (n // 2 + 1) for n in reversed(self.values.shape))
        return x, y, z

    def at(self, points: torch.Tensor) -> torch.Tensor:
        """Trilinear; differentiable in the values and in the points."""
        n = as_tensor([float(n) for n in reversed(self.values.shape)])
        # From -1 in the middle of the first voxel to 1 in that of the last.
        places = 2 * (points / self.voxel_size + (n / 2).floor()) / (n - 1) - 1
        found = torch.nn.functional.grid_sample(
            to_field("values", self.values)[None, None], places.reshape(1, -1, 1, 1, 3),
            align_corners=True)
        return found.reshape(points.shape[:-1])

    def rays(self, view: View) -> Rays:
        """How a view sees the grid."""
        nz, ny, nx = self.values.shape
        return Rays(view.rotation[None], view.shift[None], (nz, ny, nx), self.voxel_size,
                    view.shape, view.pixel_size)

    def slices(self, view: View, first: int, count: int) -> torch.Tensor:
        """Projected potential of some slices of a view, (count, ny, nx) [V A].

        A voxel is shared by the two slices about its depth, unless the view asks for the nearest;
        differentiable in the values, the rotation and the shift.
        """
        rays, depth = self.rays(view), _depth(view)
        if view.n_slices == 1:
            return project(self.values, rays)
        found = sliced(self.values, rays, Slabs(view.entrance, view.slice_thickness, view.n_slices,
                                                first, count, depth == "smooth"))
        factor = compensation(depth, view.shape, view.pixel_size, view.slice_thickness,
                              view.voltage) if view.propagates else None
        if factor is None:
            return found
        return torch.fft.irfft2(torch.fft.rfft2(found) * factor, s=view.shape)


def _depth(view: View) -> str:
    """How voxels are shared by slices."""
    return view.depth or "smooth"


@dataclass(frozen=True)
class Sampled:
    """A field as a `Specimen`: in each slice, the mean of its values times the thickness."""

    field: Field
    size: tuple[float, float, float]
    """Of the box about the specimen's centre that holds it, along x, y, z [A]."""
    step: float
    """Between samples along the beam, at most [A]."""

    def depth_range(self, view: View) -> tuple[float, float]:
        """Of the tilted box, at multiples of the step: samples stay where they are as it tilts."""
        corners = as_tensor(list(itertools.product(*((-s / 2, s / 2) for s in self.size))))
        z = corners @ view.rotation[2].detach()
        more = spare(_depth(view), view.slice_thickness) if isinstance(self.field, Voxels) else 0.0
        return (math.floor(float(z.min()) / self.step) * self.step - more,
                math.ceil(float(z.max()) / self.step) * self.step + more)

    def slices(self, view: View, first: int, count: int) -> torch.Tensor:
        """See `slices_of`; those of a grid of voxels are shared by depth, see `Voxels.slices`.

        What is within one slice and knows its `integral` says that.
        """
        if isinstance(self.field, Voxels):
            return self.field.slices(view, first, count)
        if isinstance(self.field, Projected) and view.n_slices == 1:
            low, high = self.depth_range(view)
            if view.entrance <= low and high <= view.entrance + view.slice_thickness:
                return self.field.integral(view)
        return slices_of(self.field, view, first, count, self.step)

    def attenuation(self, view: View) -> Attenuation | None:
        """Nothing beside what the field absorbs."""
        return None


def voxels(values: torch.Tensor, voxel_size: float) -> Sampled:
    """A grid of voxels as a specimen, sampled about once a voxel.

    Args:
        values: potential [V] relative to the surroundings, (nz, ny, nx).
        voxel_size: [A].
    """
    grid = Voxels(values, voxel_size)
    return Sampled(grid, grid.size, voxel_size)


def slices_of(field: Field, view: View, first: int, count: int, step: Value) -> torch.Tensor:
    """Projected potential of some slices of a field, sampled at the wave's pixels.

    Args:
        field: what is asked.
        view: how it lies and how it is sliced.
        first: number of the first slice.
        count: how many.
        step: between samples along the beam, at most [A].

    Returns:
        (count, ny, nx) [V A]; differentiable in the field, the rotation and the shift. Detail of
        the field finer than the wave's pixels is aliased.
    """
    ny, nx = view.shape
    samples = math.ceil(view.slice_thickness / float(step) - 1e-6)
    y, x = (as_tensor((torch.arange(n) - n // 2) * view.pixel_size) - by
            for n, by in zip((ny, nx), view.shift.flip(0), strict=True))
    plane = torch.stack([x.expand(ny, nx), y[:, None].expand(ny, nx)], dim=-1)
    across = plane @ view.rotation[:2]  # back to the specimen's frame
    out = []
    for n in range(first, first + count):
        depths = view.entrance + view.slice_thickness * (
            n + (torch.arange(samples) + 0.5) / samples)
        total = sum(field.at(across + float(z) * view.rotation[2]) for z in depths)
        out.append(as_tensor(total) * (view.slice_thickness / samples))
    return torch.stack(out)
