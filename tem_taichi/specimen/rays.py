"""Projections of a grid at any pose along parallel rays, and the exact adjoint, back-projection.

Rays cross the grid's planes one by one, each plane linear between its voxels (Joseph 1982); planes
are those to which a ray is nearest upright. Images are first made on a lattice of their own
(`lattice`). Where that is not the image's, which takes a tilt axis along neither side of the image
or a shift along the axis, images are interpolated from it (cubic convolution).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import taichi as ti
import torch
from torch import Tensor

from tem_taichi.arguments import to_field
from tem_taichi.bridge import differentiable, launch
from tem_taichi.device import as_tensor, many_threads
from tem_taichi.kernels import rays as kernels
from tem_taichi.specimen.lattice import (
    Lattice,
    Planes,
    Rays,
    image_places,
    lattice_of,
    lattice_places,
    parts_of,
)


def interpolated(images: Tensor, places: Tensor) -> Tensor:
    """Images (n, ny, nx) at places of `lattice`, by cubic convolution."""
    return torch.nn.functional.grid_sample(
        images[:, None], places, mode="bicubic", align_corners=True)[:, 0]


def by_number(images: Tensor, volume: Tensor) -> bool:
    """Whether numbers are summed one by one, as GPUs do it and as indices demand."""
    return many_threads() or max(images.numel(), volume.numel()) > kernels.INDICES


def spread(images: Tensor, maps: Tensor, numbers: Tensor, planes: Planes, volume: Tensor) -> None:
    """Add the adjoint of `gather`, of images on the lattice, to a grid, flat.

    Args:
        images: (n, columns, numbers).
        maps: of `lattice.parts_of`.
        numbers: of the images that are meant.
        planes: how the grid lies.
        volume: added to.
    """
    sizes = (planes.count, planes.by_plane, planes.lines, planes.by_line, planes.length)
    columns, length = images.shape[1:]
    kernel = kernels.scatter_each if by_number(images, volume) else kernels.scatter
    launch(kernel, images.reshape(-1), maps, numbers, columns, length, *sizes, volume)


def slopes(volume: Tensor, maps: Tensor, numbers: Tensor, planes: Planes, grad: Tensor,
           out: Tensor) -> None:
    """Add the gradient of `gather` in the maps to `out`.

    Args:
        volume: flat.
        maps: of `gather`.
        numbers: of `gather`.
        planes: of `gather`.
        grad: of the images.
        out: like the maps, added to.
    """
    launch(kernels.slopes, volume, maps, numbers, planes.by_plane, planes.lines, planes.by_line,
           planes.length, grad, out)


@ti.ad.grad_replaced
def gather(volume, maps, numbers, planes, out):  # type: ignore[no-untyped-def]
    """Write images of a grid, flat, on their own lattices; a stage for `bridge.differentiable`."""
    sizes = (planes.count, planes.by_plane, planes.lines, planes.by_line, planes.length)
    if by_number(out, volume):
        launch(kernels.gather_each, volume, maps, numbers, *sizes, out)
    else:
        launch(kernels.gather, volume, maps, numbers, *sizes, *out.shape[1:], out.view(-1))


@ti.ad.grad_for(gather)
def _gather_adjoint(volume, maps, numbers, planes, out):  # type: ignore[no-untyped-def]
    if volume.grad is not None:
        spread(out.grad, maps, numbers, planes, volume.grad)
    if maps.grad is not None:
        slopes(volume, maps, numbers, planes, out.grad, maps.grad)


def project(volume: Tensor, rays: Rays) -> Tensor:
    """Line integrals of a grid along the beam.

    Args:
        volume: (nz, ny, nx), 0 beyond. No copy is made of one whose voxels follow one another in
            memory along the grid's axis nearest to the tilt axis, as those of `back_project` do.
        rays: how the images see it.

    Returns:
        (n, ny, nx) in the grid's unit times A; differentiable in the volume, the rotations and the
        shifts. Detail of the grid finer than the pixels is aliased.

    Raises:
        ValueError: if the volume is not of the rays' grid.
    """
    if tuple(volume.shape) != tuple(rays.grid):
        raise ValueError(f"volume of shape {tuple(volume.shape)}: must be {tuple(rays.grid)}")
    lattice = lattice_of(rays)
    field = to_field("volume", volume)
    lines = (field.transpose(1, 2) if lattice.upright else field).contiguous()
    return imaged(rays, lattice, lines, lambda out, maps, numbers, planes: differentiable(
        gather, out, lines.view(-1), maps, numbers, planes))


def imaged(rays: Rays, lattice: Lattice, like: Tensor,
           part: Callable[[Tensor, Tensor, Tensor, Planes], Tensor]) -> Tensor:
    """Images of what is summed plane by plane on the images' own lattices.

    Args:
        rays: how images see the grid.
        lattice: of them.
        like: a tensor of the images' type and place.
        part: from (n, columns, numbers) to the same with some images written, by their maps, their
            numbers and how the grid's planes lie.
    """
    out = like.new_empty((len(rays.rotations), *lattice.shape))
    steps, order = [], []
    for planes, maps, numbers, step in parts_of(rays, lattice):
        out = part(out, maps.contiguous(), numbers, planes)
        steps.append(step)
        order.append(numbers)
    out = out * torch.cat(steps)[torch.argsort(torch.cat(order))][:, None, None]
    if lattice.is_image:
        return out.transpose(1, 2) if lattice.upright else out
    return interpolated(out, image_places(rays, lattice))


class _BackProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, rays: Rays) -> Tensor:
        ctx.rays = rays
        lattice = lattice_of(rays)
        if lattice.is_image:
            columns = images.transpose(1, 2) if lattice.upright else images
        else:
            places = image_places(rays, lattice)
            with torch.enable_grad():
                columns = images.new_zeros((len(images), *lattice.shape), requires_grad=True)
                again = interpolated(columns, places)
            columns, = torch.autograd.grad(again, columns, images)
        nz, ny, nx = rays.grid
        lines = images.new_zeros((nz, nx, ny) if lattice.upright else (nz, ny, nx))
        for planes, maps, numbers, step in parts_of(rays, lattice):
            part = columns[numbers.long()] * step[:, None, None]
            own = torch.arange(len(part), dtype=torch.int32, device=part.device)
            spread(part, maps.contiguous(), own, planes, lines.view(-1))
        return lines.transpose(1, 2) if lattice.upright else lines

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        return project(grads[0], ctx.rays), None


def back_project(images: Tensor, rays: Rays) -> Tensor:
    """The adjoint of `project`: each voxel's sum of the rays that cross it, by their weights in it.

    Args:
        images: (n, ny, nx).
        rays: how they see the grid; what requires a gradient here gets none.

    Returns:
        (nz, ny, nx), in the images' unit times A; differentiable in the images.

    Raises:
        ValueError: if the images are not those of the rays.
    """
    return _BackProjection.apply(_images(images, rays), _fixed(rays))


def smear(images: Tensor, rays: Rays) -> Tensor:
    """Sum of the images where each sees a voxel: the back-projection of Radon's formula.

    Unlike the adjoint it interpolates between pixels, so that even images make an even sum.

    Args:
        images: (n, ny, nx); 0 beyond.
        rays: how they see the grid; what requires a gradient here gets none.

    Returns:
        (nz, ny, nx), in the images' unit; without gradients.

    Raises:
        ValueError: if the images are not those of the rays.
    """
    rays = _fixed(rays)
    with torch.no_grad():
        lattice = lattice_of(rays)
        images = _images(images, rays)
        if lattice.is_image:
            columns = images.transpose(1, 2) if lattice.upright else images
        else:
            columns = interpolated(images, lattice_places(rays, lattice))
        nz, ny, nx = rays.grid
        lines, length = (nx, ny) if lattice.upright else (ny, nx)
        out = images.new_empty((nz, lines, length))
        beside, down = lattice.beside, lattice.down
        z = as_tensor(torch.arange(nz) - nz // 2)[:, None]
        flat = torch.ones_like(z)
        # A voxel's place on the lattice, its column and its number along the line.
        maps = torch.stack([
            z * down[:, 0] - lines // 2 * beside[:, 0] + lattice.offset + lattice.shape[0] // 2,
            flat * beside[:, 0],
            z * down[:, 1] - lines // 2 * beside[:, 1] + lattice.shape[1] // 2 - length // 2,
            flat * beside[:, 1]], dim=-1)
        planes = Planes(len(images), lattice.shape[0] * lattice.shape[1], lattice.shape[0],
                         lattice.shape[1], lattice.shape[1])
        numbers = torch.arange(nz, dtype=torch.int32, device=out.device)
        gather(columns.reshape(-1).contiguous(), maps.contiguous(), numbers, planes, out)
    return out.transpose(1, 2) if lattice.upright else out


def _images(images: Tensor, rays: Rays) -> Tensor:
    wanted = (len(rays.rotations), *rays.shape)
    if tuple(images.shape) != wanted:
        raise ValueError(f"images of shape {tuple(images.shape)}: must be {wanted}")
    return to_field("images", images)


def _fixed(rays: Rays) -> Rays:
    return replace(rays, rotations=rays.rotations.detach(), shifts=rays.shifts.detach())
