"""Projections of a grid at any pose along parallel rays, and the exact adjoint, back-projection.

Rays cross the grid's planes one by one, each plane linear between its voxels (Joseph 1982); planes
are those to which a ray is nearest upright. Images are first made on a lattice of their own, whose
rows run along the grid's axis that lies nearest to the tilt axis: all voxels of such a line have
the same weights. Where that lattice is not the image's, which takes a tilt axis along neither side
of the image or a shift along the axis, images are interpolated from it (cubic convolution).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import taichi as ti
import torch
from torch import Tensor

from tem_taichi.arguments import check_array, check_grid, check_positive_number, to_field
from tem_taichi.bridge import differentiable, launch
from tem_taichi.device import as_tensor, many_threads
from tem_taichi.kernels import rays as kernels

_NOTHING = 1e-5
"""Pixels that make no difference: rounding of single precision across an image."""


@dataclass(frozen=True, eq=False)
class Rays:
    """How images see a grid of voxels."""

    rotations: Tensor
    """From the grid's frame (x, y, z) to the image's, (n, 3, 3)."""
    shifts: Tensor
    """Of the images towards +x and +y [A], (n, 2)."""
    grid: tuple[int, int, int]
    """Voxels (nz, ny, nx); the middle is n // 2."""
    voxel: float
    """Edge [A]."""
    shape: tuple[int, int]
    """Of an image (ny, nx); the middle is n // 2."""
    pixel: float
    """[A]"""

    def __post_init__(self) -> None:
        check_array("rotations", self.rotations, ("n", 3, 3), "1")
        check_array("shifts", self.shifts, (len(self.rotations), 2), "A")
        for name in ("voxel", "pixel"):
            check_positive_number(name, getattr(self, name), "A")
        check_grid("shape", self.shape)
        if len(self.grid) != 3 or min(self.grid) < 1:
            raise ValueError(f"grid={self.grid}: must be (nz, ny, nx), each at least 1")

    def some(self, which: list[int]) -> "Rays":
        """Those of some images."""
        return Rays(self.rotations[which], self.shifts[which], self.grid, self.voxel, self.shape,
                    self.pixel)


@dataclass(frozen=True, eq=False)
class _Lattice:
    """The images' own lattices, and where each voxel lies on them; lengths are pixels."""

    upright: bool
    """Whether lines run along the grid's y, else x."""
    shape: tuple[int, int]
    """Columns (one step across the lines each), numbers along a line."""
    across: Tensor
    """A step from column to column, (n, 2)."""
    along: Tensor
    """A step along a line, that of a voxel, (n, 2)."""
    offset: Tensor
    """Shift across the lines [column], (n,)."""
    shift: Tensor
    """What is left of it, along the lines, (n, 2)."""
    beside: Tensor
    """Of a voxel's step aside (x where lines run along y): columns and numbers, (n, 2)."""
    down: Tensor
    """Of a voxel's step along z: columns and numbers, (n, 2)."""
    beam: Tensor
    """How far steps aside and along z lead down the beam [voxel], (n, 2)."""
    is_image: bool
    """Whether it is the images' own."""


def _lattice(rays: Rays) -> _Lattice:
    ratio = rays.voxel / rays.pixel
    steps = as_tensor(rays.rotations) * ratio
    x, y, z = (steps[:, :2, n] for n in range(3))
    upright = bool(y.detach().norm(dim=1).sum() >= x.detach().norm(dim=1).sum())
    along, beside = (y, x) if upright else (x, y)
    sign = 1.0 if upright else -1.0
    length = along.norm(dim=1, keepdim=True)
    normal = sign * torch.stack([along[:, 1], -along[:, 0]], dim=1) / length
    across = normal * min(1.0, ratio)
    shift = as_tensor(rays.shifts) / rays.pixel

    def on_lattice(vector: Tensor) -> Tensor:
        return torch.stack([(vector * step).sum(1) / step.square().sum(1)
                            for step in (across, along)], dim=1)

    offset = on_lattice(shift)[:, 0]
    left = shift - offset[:, None] * across
    ny, nx = rays.shape
    own = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    wanted = torch.stack([across, along], dim=1).detach().cpu().double()
    apart = (wanted - (own if upright else own.flip(1))).abs().max() * max(ny, nx)
    is_image = (float(apart) < _NOTHING and float(left.detach().abs().max()) < _NOTHING
                and not (along.requires_grad or shift.requires_grad))
    if is_image:
        shape = (nx, ny) if upright else (ny, nx)
    else:
        corners = as_tensor([[nx // 2, ny // 2], [nx // 2, -(ny // 2)]])
        reach = [max(float(on_lattice(corner.expand_as(shift) + sign * left).detach()[:, n]
                           .abs().max()) for corner in corners for sign in (1, -1))
                 for n in range(2)]
        shape = (2 * math.ceil(reach[0]) + 5, 2 * math.ceil(reach[1]) + 5)
    return _Lattice(
        upright, shape, across, along, offset, left, on_lattice(beside), on_lattice(z),
        as_tensor(rays.rotations)[:, 2, [0 if upright else 1, 2]], is_image)


def _image_places(rays: Rays, lattice: _Lattice) -> Tensor:
    """Where each pixel lies on the lattice, as grid_sample counts, (n, ny, nx, 2)."""
    y, x = (as_tensor(torch.arange(n) - n // 2) for n in rays.shape)
    places = []
    for step, size in zip((lattice.along, lattice.across), lattice.shape[::-1], strict=True):
        unit = (step / step.square().sum(1, keepdim=True))[:, :, None, None]
        from_middle = (unit[:, 0] * (x - lattice.shift[:, 0, None, None])
                       + unit[:, 1] * (y[:, None] - lattice.shift[:, 1, None, None]))
        places.append(2 * (from_middle + size // 2) / max(size - 1, 1) - 1)
    return torch.stack(places, dim=-1)


def _lattice_places(rays: Rays, lattice: _Lattice) -> Tensor:
    """Where each place of the lattice lies in the image, as grid_sample counts, (n, m, l, 2)."""
    column, number = (as_tensor(torch.arange(n) - n // 2) for n in lattice.shape)
    steps = lattice.across[:, :, None, None], lattice.along[:, :, None, None]
    places = []
    for n, size in enumerate(rays.shape[::-1]):
        pixel = (steps[0][:, n] * column[:, None] + steps[1][:, n] * number
                 + lattice.shift[:, n, None, None] + size // 2)
        places.append(2 * pixel / max(size - 1, 1) - 1)
    return torch.stack(places, dim=-1)


def _interpolated(images: Tensor, places: Tensor) -> Tensor:
    return torch.nn.functional.grid_sample(
        images[:, None], places, mode="bicubic", align_corners=True)[:, 0]


@dataclass(frozen=True)
class _Planes:
    """How a grid's voxels lie in memory, by planes and lines."""

    count: int
    by_plane: int
    lines: int
    by_line: int
    length: int


def _parts(rays: Rays, lattice: _Lattice) -> Iterator[tuple[_Planes, Tensor, Tensor, Tensor]]:
    """Planes, maps, numbers of the images and steps of their rays [A].

    Of rays nearer to z, then of those nearer to the axis beside.
    """
    nz, ny, nx = rays.grid
    lines, length = (nx, ny) if lattice.upright else (ny, nx)
    along_z = _Planes(nz, lines * length, lines, length, length)
    along_beside = _Planes(lines, length, nz, lines * length, length)
    steep = lattice.beam.detach().abs()
    for which, planes, in_plane, through in (
            (steep[:, 1] >= steep[:, 0], along_z, lattice.beside, lattice.down),
            (steep[:, 1] < steep[:, 0], along_beside, lattice.down, lattice.beside)):
        numbers = torch.nonzero(which).flatten()
        if not len(numbers):
            continue
        q, p = in_plane[numbers], through[numbers]
        middle = as_tensor(torch.arange(planes.count) - planes.count // 2)
        # Column j of the lattice, of which the shift makes j - offset, is on the line
        # (j - p[0] plane) / q[0]; the number there is less by how far the steps lead along it.
        slope = 1 / q[:, 0]
        first = -(lattice.shape[0] // 2 + lattice.offset[numbers])
        line = slope[:, None] * (first[:, None] - p[:, :1] * middle)
        by_number = -q[:, 1] * slope
        number = by_number[:, None] * (first[:, None] - p[:, :1] * middle) - p[:, 1:] * middle
        ones = torch.ones_like(middle)
        maps = torch.stack([
            line + planes.lines // 2, slope[:, None] * ones,
            number + planes.length // 2 - lattice.shape[1] // 2, by_number[:, None] * ones], dim=-1)
        beam = lattice.beam[numbers][:, 1 if planes is along_z else 0]
        yield planes, maps, numbers.int(), rays.voxel / beam.abs()


def _safe(maps: Tensor, columns: int, length: int, plane_length: int) -> tuple[Tensor, Tensor]:
    """First and end of numbers of a line between those of all planes, and of planes' of images."""
    first, last = maps[..., 2], maps[..., 2] + maps[..., 3] * (columns - 1)
    low, high = torch.minimum(first, last).min(), torch.maximum(first, last).max()
    whole = (low == high) & (low == low.round())
    low, high = (torch.where(whole, low, low - 0.01).floor(),
                 torch.where(whole, high, (high + 0.01).ceil()))
    zero = torch.zeros_like(low)
    forward = [torch.maximum(zero, -low), torch.minimum(zero + length, plane_length - high)]
    back = [torch.maximum(zero, high), torch.minimum(zero + plane_length, length + low)]
    return torch.stack(forward).int(), torch.stack(back).int()


def _spread(images: Tensor, maps: Tensor, numbers: Tensor, planes: _Planes, volume: Tensor) -> None:
    """Add the adjoint of `_gather`, of images on the lattice, to a grid, flat."""
    sizes = (planes.count, planes.by_plane, planes.lines, planes.by_line, planes.length)
    columns, length = images.shape[1:]
    if many_threads():
        launch(kernels.scatter_each, images.reshape(-1), maps, numbers, columns, length, *sizes,
               volume)
    else:
        safe = _safe(maps, columns, length, planes.length)[1]
        launch(kernels.scatter, images.reshape(-1), maps, numbers, safe, columns, length, *sizes,
               volume)


@ti.ad.grad_replaced
def _gather(volume, maps, numbers, planes, out):  # type: ignore[no-untyped-def]
    sizes = (planes.count, planes.by_plane, planes.lines, planes.by_line, planes.length)
    if many_threads():
        launch(kernels.gather_each, volume, maps, numbers, *sizes, out)
    else:
        safe = _safe(maps, out.shape[1], out.shape[2], planes.length)[0]
        launch(kernels.gather, volume, maps, numbers, safe, *sizes, out)


@ti.ad.grad_for(_gather)
def _gather_adjoint(volume, maps, numbers, planes, out):  # type: ignore[no-untyped-def]
    if volume.grad is not None:
        _spread(out.grad, maps, numbers, planes, volume.grad)
    if maps.grad is not None:
        launch(kernels.slopes, volume, maps, numbers, planes.by_plane, planes.lines,
               planes.by_line, planes.length, out.grad, maps.grad)


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
    lattice = _lattice(rays)
    field = to_field("volume", volume)
    lines = (field.transpose(1, 2) if lattice.upright else field).contiguous()
    out = lines.new_empty((len(rays.rotations), *lattice.shape))
    steps, order = [], []
    for planes, maps, numbers, step in _parts(rays, lattice):
        out = differentiable(_gather, out, lines.view(-1), maps.contiguous(), numbers, planes)
        steps.append(step)
        order.append(numbers)
    out = out * torch.cat(steps)[torch.argsort(torch.cat(order))][:, None, None]
    if lattice.is_image:
        return out.transpose(1, 2) if lattice.upright else out
    return _interpolated(out, _image_places(rays, lattice))


class _BackProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, rays: Rays) -> Tensor:
        ctx.rays = rays
        lattice = _lattice(rays)
        if lattice.is_image:
            columns = images.transpose(1, 2) if lattice.upright else images
        else:
            places = _image_places(rays, lattice)
            with torch.enable_grad():
                columns = images.new_zeros((len(images), *lattice.shape), requires_grad=True)
                again = _interpolated(columns, places)
            columns, = torch.autograd.grad(again, columns, images)
        nz, ny, nx = rays.grid
        lines = images.new_zeros((nz, nx, ny) if lattice.upright else (nz, ny, nx))
        for planes, maps, numbers, step in _parts(rays, lattice):
            part = columns[numbers.long()] * step[:, None, None]
            own = torch.arange(len(part), dtype=torch.int32, device=part.device)
            _spread(part, maps.contiguous(), own, planes, lines.view(-1))
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
        lattice = _lattice(rays)
        images = _images(images, rays)
        if lattice.is_image:
            columns = images.transpose(1, 2) if lattice.upright else images
        else:
            columns = _interpolated(images, _lattice_places(rays, lattice))
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
        planes = _Planes(len(images), lattice.shape[0] * lattice.shape[1], lattice.shape[0],
                         lattice.shape[1], lattice.shape[1])
        numbers = torch.arange(nz, dtype=torch.int32, device=out.device)
        _gather(columns.reshape(-1).contiguous(), maps.contiguous(), numbers, planes, out)
    return out.transpose(1, 2) if lattice.upright else out


def _images(images: Tensor, rays: Rays) -> Tensor:
    wanted = (len(rays.rotations), *rays.shape)
    if tuple(images.shape) != wanted:
        raise ValueError(f"images of shape {tuple(images.shape)}: must be {wanted}")
    return to_field("images", images)


def _fixed(rays: Rays) -> Rays:
    return replace(rays, rotations=rays.rotations.detach(), shifts=rays.shifts.detach())
