"""A grid's slices along the beam at any pose: line integrals as `rays`, shared by depth."""

from typing import NamedTuple

import taichi as ti
import torch
from torch import Tensor

from tem_taichi.arguments import to_field
from tem_taichi.bridge import differentiable, launch
from tem_taichi.device import as_tensor
from tem_taichi.kernels import slabs as kernels
from tem_taichi.specimen.lattice import Lattice, Planes, Rays, image_places, lattice_of, parts_of
from tem_taichi.specimen.rays import by_number, interpolated


class Slabs(NamedTuple):
    """Slices of which some are made."""

    entrance: float
    """z where the first of all begins [A]."""
    thickness: float
    """[A]"""
    n_slices: int
    """All."""
    first: int
    """Number of the first that is made."""
    made: int
    """How many are."""
    smooth: bool = True
    """Whether two neighbours share what lies between their middles, see `depth`."""

    @property
    def numbers(self) -> tuple[int, int, int]:
        """As kernels take them."""
        return self.first, self.n_slices, int(self.smooth)


@ti.ad.grad_replaced
def _gather(volume, maps, planes, slabs, level, out):  # type: ignore[no-untyped-def]
    sizes = (planes.by_plane, planes.lines, planes.by_line, planes.length)
    if by_number(out, volume):
        launch(kernels.gather_slabs_each, volume, maps, *sizes, *slabs.numbers, out)
    else:
        launch(kernels.gather_slabs, volume, maps, level, *sizes, *slabs.numbers, *out.shape,
               out.view(-1))


@ti.ad.grad_for(_gather)
def _gather_adjoint(volume, maps, planes, slabs, level, out):  # type: ignore[no-untyped-def]
    if volume.grad is not None:
        sizes = (*out.shape, planes.by_plane, planes.lines, planes.by_line, planes.length)
        images = out.grad.reshape(-1)
        if by_number(images, volume):
            launch(kernels.scatter_slabs_each, images, maps, *sizes, *slabs.numbers, volume.grad)
        else:
            launch(kernels.scatter_slabs, images, maps, level, *sizes, *slabs.numbers, volume.grad)
    if maps.grad is not None:
        launch(kernels.slab_slopes, volume, maps, planes.by_plane, planes.lines, planes.by_line,
               planes.length, *slabs.numbers, out.grad, maps.grad)


def sliced(volume: Tensor, rays: Rays, slabs: Slabs) -> Tensor:
    """Parts of `rays.project` of one image by their depth; all slices add up to it.

    Args:
        volume: (nz, ny, nx), 0 beyond; laid out best as for `project`.
        rays: how one image sees the grid.
        slabs: which slices.

    Returns:
        (slabs.made, ny, nx) in the grid's unit times A; differentiable in the volume and, but for
        the steps of slices that do not share, in the rotation and the shift.

    Raises:
        ValueError: if the volume is not of the rays' grid, or there is more than one image.
    """
    if tuple(volume.shape) != tuple(rays.grid):
        raise ValueError(f"volume of shape {tuple(volume.shape)}: must be {tuple(rays.grid)}")
    if len(rays.rotations) != 1:
        raise ValueError(f"rays of {len(rays.rotations)} images: must be one")
    lattice = lattice_of(rays)
    field = to_field("volume", volume)
    lines = (field.transpose(1, 2) if lattice.upright else field).contiguous()
    (planes, maps, _, step), = parts_of(rays, lattice)
    depths = _depths(rays, lattice, planes, maps[0], slabs)
    maps = torch.cat([maps[0], depths], dim=1).contiguous()
    level = int(not depths[:, 2].detach().any())
    out = differentiable(_gather, lines.new_zeros((slabs.made, *lattice.shape)), lines.view(-1),
                         maps, planes, slabs, level) * step
    if lattice.is_image:
        return out.transpose(1, 2) if lattice.upright else out
    return interpolated(out, image_places(rays, lattice).expand(slabs.made, -1, -1, -1))


def _depths(rays: Rays, lattice: Lattice, planes: Planes, maps: Tensor, slabs: Slabs) -> Tensor:
    """Depth of number 0 of column 0 of the lattice, and its steps by column and by number.

    In slices from the middle of the first; (planes, 3).
    """
    beam = as_tensor(rays.rotations)[0, 2] * (rays.voxel / slabs.thickness)
    beside, along = (beam[0], beam[1]) if lattice.upright else (beam[1], beam[0])
    steep = lattice.beam.detach().abs()[0]
    through, in_plane = (beam[2], beside) if steep[1] >= steep[0] else (beside, beam[2])
    plane = as_tensor(torch.arange(planes.count) - planes.count // 2)
    line, number = maps[:, 0] - planes.lines // 2, maps[:, 2] - planes.length // 2
    start = (through * plane + in_plane * line + along * number
             - slabs.entrance / slabs.thickness - 0.5)
    return torch.stack([start, in_plane * maps[:, 1] + along * maps[:, 3],
                        along.expand_as(start)], dim=1)
