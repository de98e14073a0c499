"""How images see a grid of voxels along parallel rays, and the lattices on which they are made.

An image's own lattice has rows along the grid's axis that lies nearest to the tilt axis: all voxels
of such a line have the same weights. Lengths are pixels where not said else.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tem_taichi.arguments import check_array, check_grid, check_positive_number
from tem_taichi.device import as_tensor

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
class Lattice:
    """The images' own lattices, and where each voxel lies on them."""

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


def lattice_of(rays: Rays) -> Lattice:
    """The lattices of images; differentiable in their poses and shifts."""
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
    return Lattice(
        upright=upright, shape=shape, across=across, along=along, offset=offset, shift=left,
        beside=on_lattice(beside), down=on_lattice(z), is_image=is_image,
        beam=as_tensor(rays.rotations)[:, 2, [0 if upright else 1, 2]])


def image_places(rays: Rays, lattice: Lattice) -> Tensor:
    """Where each pixel lies on the lattice, as grid_sample counts, (n, ny, nx, 2)."""
    y, x = (as_tensor(torch.arange(n) - n // 2) for n in rays.shape)
    places = []
    for step, size in zip((lattice.along, lattice.across), lattice.shape[::-1], strict=True):
        unit = (step / step.square().sum(1, keepdim=True))[:, :, None, None]
        from_middle = (unit[:, 0] * (x - lattice.shift[:, 0, None, None])
                       + unit[:, 1] * (y[:, None] - lattice.shift[:, 1, None, None]))
        places.append(2 * (from_middle + size // 2) / max(size - 1, 1) - 1)
    return torch.stack(places, dim=-1)


def lattice_places(rays: Rays, lattice: Lattice) -> Tensor:
    """Where each place of the lattice lies in the image, as grid_sample counts, (n, m, l, 2)."""
    column, number = (as_tensor(torch.arange(n) - n // 2) for n in lattice.shape)
    steps = lattice.across[:, :, None, None], lattice.along[:, :, None, None]
    places = []
    for n, size in enumerate(rays.shape[::-1]):
        pixel = (steps[0][:, n] * column[:, None] + steps[1][:, n] * number
                 + lattice.shift[:, n, None, None] + size // 2)
        places.append(2 * pixel / max(size - 1, 1) - 1)
    return torch.stack(places, dim=-1)


@dataclass(frozen=True)
class Planes:
    """How a grid's voxels lie in memory, by planes and lines."""

    count: int
    by_plane: int
    lines: int
    by_line: int
    length: int


def layers(planes: Planes, maps: Tensor, first: int, count: int) -> tuple[Planes, Tensor]:
    """Planes and maps of some layers of the grid along z, which alone are in memory.

    Args:
        planes: of `parts_of`.
        maps: of `parts_of`.
        first: layer.
        count: how many.
    """
    if planes.by_plane > planes.by_line:  # planes are layers
        return replace(planes, count=count), maps[:, first:first + count]
    moved = maps.clone()
    moved[..., 0] -= first
    return replace(planes, lines=count), moved


def parts_of(rays: Rays, lattice: Lattice) -> Iterator[tuple[Planes, Tensor, Tensor, Tensor]]:
    """Planes, maps, numbers of the images and steps of their rays [A].

    Of rays nearer to z, then of those nearer to the axis beside.
    """
    nz, ny, nx = rays.grid
    lines, length = (nx, ny) if lattice.upright else (ny, nx)
    along_z = Planes(nz, lines * length, lines, length, length)
    along_beside = Planes(lines, length, nz, lines * length, length)
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
