"""Particles as TEM-simulator 1.3 has them: voxel maps of the potential inside solvent.

Rullgard et al. 2011. Every atom is at least as wide as the voxels resolve, b >= 200 voxel^2 in
exp(-b |k|^2 / 4), which overrides most B-factors; solvent is a floor of the potential.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from tem_taichi.device import as_tensor
from tem_taichi.grid import check_pixel_size, frequencies
from tem_taichi.physics import SCATTERING_TO_POTENTIAL, interaction_constant
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.cross_sections import total_cross_section
from tem_taichi.specimen.potential import peng_table

ICE_POTENTIAL = 4.877462
"""Mean inner potential of the solvent [V]."""

ICE_DENSITY = 0.0335
"""Water molecules in 1 A^3 of it, as in liquid water."""

_NARROWEST = 200.0
"""Smallest b of an atom [voxel^2]."""

_MARGIN = 5.0
"""Around the atoms [A]."""

_PADDING = 10
"""Voxels beyond the map in which atoms may still end, before it is cut out."""

_NOTHING = 1e-5
"""Share of a layer that the rounding of a right angle makes in single precision."""

_FEW = 10
"""Layers that begin in the same column on the average, from which rows are faster than layers."""

_STEP = 1.02
"""Ratio of the widths that count as the same."""

_EQUAL = 1e-6
"""Relative difference of scales that single precision's rounding makes."""


@dataclass(frozen=True)
class VoxelParticle:
    """Maps of a particle with its solvent; the centre of the map is the particle's origin.

    Attributes:
        potential: [V], shape (nz, ny, nx).
        absorption: imaginary potential [V], of the same shape; absorbs where positive.
        voxel_size: [A].
    """

    potential: torch.Tensor
    absorption: torch.Tensor
    voxel_size: float

    def __post_init__(self) -> None:
        check_pixel_size(self.voxel_size)
        shapes = tuple(self.potential.shape), tuple(self.absorption.shape)
        if len(shapes[0]) != 3 or shapes[0] != shapes[1]:
            raise ValueError(f"potential of shape {shapes[0]}, absorption of shape {shapes[1]}: "
                             "must both be (nz, ny, nx)")


def absorption_potential(density: float, voltage: float) -> float:
    """Imaginary potential [V] of matter with a total cross-section density [1/A].

    V_im = density / (2 sigma): it takes exp(-density z) of the intensity over a way z.
    """
    return density / (2 * interaction_constant(voltage))


def ice_density(voltage: float) -> float:
    """Total cross-section of the solvent in a volume [A^2/A^3]."""
    return ICE_DENSITY * float(2 * total_cross_section(1, voltage)
                               + total_cross_section(8, voltage))


def particle_from_atoms(atoms: Atoms, voltage: float, voxel_size: float) -> VoxelParticle:
    """Maps of atoms in solvent.

    The file is best read with model="all" and hydrogens="parent". The centre of the atoms'
    bounding box becomes the origin.

    Args:
        atoms: of one particle.
        voltage: [kV]; decides the absorption.
        voxel_size: [A].

    Returns:
        Maps that are differentiable in the positions and occupancies of the atoms.

    Raises:
        ValueError: if the voxel size or the voltage is not positive.
    """
    voxel_size = check_pixel_size(voxel_size)
    low, high = atoms.positions.detach().amin(0), atoms.positions.detach().amax(0)
    size = torch.ceil((high - low + 2 * _MARGIN) / voxel_size)
    shape = tuple(int(n) + 2 * _PADDING for n in size.flip(0))
    at = (atoms.positions - (low + high) / 2) / voxel_size + (size - 1) / 2 + _PADDING
    table = peng_table()[atoms.numbers]
    amount = atoms.occupancies / voxel_size**3
    scattering = table[:, 0] * SCATTERING_TO_POTENTIAL * amount[:, None]
    sections = as_tensor(total_cross_section(atoms.numbers.cpu().numpy(), voltage))
    absorption = sections * amount * absorption_potential(1.0, voltage)
    widths = 4 * table[:, 1] + atoms.b_factors[:, None]
    potential = _blurred(shape, at, scattering, widths / voxel_size**2)
    imaginary = _blurred(shape, at, absorption[:, None], atoms.b_factors[:, None] / voxel_size**2)
    inside = (slice(_PADDING, -_PADDING),) * 3
    ice = absorption_potential(ice_density(voltage), voltage)
    return VoxelParticle(potential[inside].clamp(min=ICE_POTENTIAL),
                         imaginary[inside].clamp(min=ice), voxel_size)


def _blurred(
    shape: tuple[int, ...], at: torch.Tensor, weights: torch.Tensor, widths: torch.Tensor
) -> torch.Tensor:
    """Sum of Gaussians of weights and b [voxel^2], both (n, gaussians), at positions (n, 3)."""
    k = [frequencies(n, half=axis == 2).reshape([-1 if a == axis else 1 for a in range(3)])
         for axis, n in enumerate(shape)]
    squared = k[0] ** 2 + k[1] ** 2 + k[2] ** 2
    # What the cubic B-spline of `_splat` has blurred already.
    spline = (torch.sinc(k[0]) * torch.sinc(k[1]) * torch.sinc(k[2])) ** 4
    classes = torch.round(torch.log(widths.detach().clamp(min=_NARROWEST) / _NARROWEST)
                          / math.log(_STEP))
    spectrum: torch.Tensor | float = 0.0
    for one in torch.unique(classes):
        members = classes == one
        atoms = members.any(1)
        splatted = _splat(shape, at[atoms], (weights * members).sum(1)[atoms])
        b = _NARROWEST * _STEP ** float(one)
        spectrum = spectrum + torch.fft.rfftn(splatted) * torch.exp(-b / 4 * squared) / spline
    return torch.fft.irfftn(spectrum, s=shape)


def _splat(shape: tuple[int, ...], at: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cubic B-splines of weights (n,) at x, y, z (n, 3) [voxel] on a grid (nz, ny, nx)."""
    start = torch.floor(at.detach())
    f = at - start
    parts = torch.stack([(1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4,
                         1 + 3 * (f + f**2 - f**3), f**3]) / 6
    start = start.long() - 1
    out = torch.zeros(math.prod(shape), dtype=at.dtype, device=at.device)
    for i, j, k in itertools.product(range(4), repeat=3):
        index = ((start[:, 2] + k) * shape[1] + start[:, 1] + j) * shape[2] + start[:, 0] + i
        out = out.index_add(0, index, weights * parts[i, :, 0] * parts[j, :, 1] * parts[k, :, 2])
    return out.reshape(shape)


@dataclass(frozen=True)
class Contrast:
    """What a particle adds to the solvent, for many projections; see `contrast_of`.

    Attributes:
        maps: real and imaginary potential [V], (2, nz, ny, nx).
        voxel_size: [A].
        layers: the maps as layers across one of their axes, (n, rows, 2, columns), by the axes
            of layers, rows and columns; made when first needed.
    """

    maps: torch.Tensor
    voxel_size: float
    layers: dict[tuple[int, int, int], torch.Tensor]

    def across(self, beam: int, other: int, main: int) -> torch.Tensor:
        """The layers across the axis `beam`, with rows along `other` and columns along `main`."""
        axes = (beam, other, main)
        if axes not in self.layers:
            first, second, third = (3 - axis for axis in axes)  # x, y, z are the last to the first
            self.layers[axes] = self.maps.permute(first, second, 0, third).contiguous()
        return self.layers[axes]


def contrast_of(particle: VoxelParticle) -> Contrast:
    """The maps less the solvent, which is their mean over the map's faces."""
    maps = torch.stack([particle.potential, particle.absorption])
    return Contrast(maps - _face_means(maps)[:, None, None, None], particle.voxel_size, {})


def project(
    particle: VoxelParticle | Contrast, rotation: torch.Tensor, position: torch.Tensor,
    shape: tuple[int, int], pixel_size: float,
) -> torch.Tensor:
    """What a particle adds to the solvent's potential, projected and averaged over pixels.

    In the three steps whose traces the reference's images show, each a spreading over cells:
    layers across the map's axis closest to the beam are sheared along the beam onto a lattice of
    voxels (`_sheared`); the lattice is averaged over pixels along one axis of the image, row by
    row, then along the other, column by column (Catmull & Smith 1980). Rows and columns are
    placed by their edges instead of their middles, so particles turned in the image are shifted,
    as in the reference (`pass_offset`). The mean over the map's faces counts as the solvent.

    Args:
        particle: maps, or `contrast_of` them, which is faster for many projections.
        rotation: particle to image frame, (3, 3).
        position: of the particle's origin in the image's frame [A], (3,).
        shape: (ny, nx), with the origin in its middle, between pixels where even.
        pixel_size: [A].

    Returns:
        Real and imaginary potential [V A], shape (2, ny, nx); what falls outside is left out.
    """
    contrast = contrast_of(particle) if isinstance(particle, VoxelParticle) else particle
    first, main, other = _passes(rotation)
    second = 1 - first
    voxel = contrast.voxel_size / pixel_size
    lattice = _sheared(contrast, rotation, main, other) * (contrast.voxel_size * voxel**2)
    middle = position[:2] / pixel_size + as_tensor(shape[::-1]) / 2
    rows, columns = lattice.shape[1:]
    row = torch.arange(rows, dtype=lattice.dtype, device=lattice.device) - rows / 2
    scale = rotation[first, main] * voxel
    begin = middle[first] + row * (rotation[first, other] * voxel) - columns / 2 * scale
    lattice, start = _spread(lattice, begin, scale)
    slope = rotation[second, main] / rotation[first, main]
    scale = (rotation[second, other] - slope * rotation[first, other]) * voxel
    pixels = start + torch.arange(lattice.shape[2], dtype=lattice.dtype, device=lattice.device)
    begin = middle[second] + slope * (pixels - middle[first]) - rows / 2 * scale
    image, across = _spread(lattice.transpose(1, 2), begin, scale)
    if first == 0:
        image, start, across = image.transpose(1, 2), across, start
    return _placed(image, start, across, shape)


def pass_offset(rotation: torch.Tensor, voxel_size: float, pixel_size: float) -> torch.Tensor:
    """Shift x, y [A] of a projection, from edges that `project` takes for middles, (2,).

    Zero where the particle's axes are those of the image.
    """
    first, main, other = _passes(rotation)
    along = -rotation[first, other] * voxel_size / 2
    across = rotation[1 - first, main] / rotation[first, main] * (along - pixel_size / 2)
    return torch.stack([across, along] if first else [along, across])


def _passes(rotation: torch.Tensor) -> tuple[int, int, int]:
    """Axis of the image to resample first, axis of the map along it, and the other in its rows.

    The map's axis closest to the beam is neither. The passes scale by a = R[first, main] and, at
    fixed pixels of the first, by det / a, det the determinant of R's rows and columns in the
    image: as the cofactor of a rotation it is +-R[2, beam], whatever the order. What one pass
    spares, the other pays: the narrowest point (Catmull & Smith's bottleneck) is widest, and the
    largest change of scale either way least, where both scale alike, a^2 = |det|, for any ratio of
    voxels to pixels. The first of equals counts, as of particles turned about the beam alone.
    """
    size = rotation.detach().abs()
    beam = int(size[2].argmax())
    kept = [axis for axis in range(3) if axis != beam]
    unlike = (size[:2][:, kept] ** 2 / size[2, beam]).log().abs().flatten()
    first, column = divmod(int((unlike < unlike.min() + _EQUAL).int().argmax()), 2)
    return first, kept[column], kept[1 - column]


class _Shear(torch.autograd.Function):
    """Layers added up, each shifted by its own whole cells and shared among four of them."""

    @staticmethod
    def forward(ctx: Any, layers: torch.Tensor, shares: torch.Tensor, starts: torch.Tensor,
                sizes: tuple[int, int]) -> torch.Tensor:
        ctx.save_for_backward(layers, shares)
        ctx.starts = starts.tolist()
        out = layers.new_zeros((sizes[0], 2, sizes[1]))
        columns, counts = torch.unique_consecutive(starts[:, 1], return_counts=True)
        if layers.dtype == torch.float32 and len(columns) * _FEW < len(layers):
            counts = counts.tolist()
            for column, *part in zip(columns.tolist(), layers.split(counts), shares.split(counts),
                                     starts[:, 0].split(counts), strict=True):
                _add_rows(out, column, *part)
            return out
        for layer, share, start in zip(layers, shares.tolist(), ctx.starts, strict=True):
            for i, part in enumerate(share):
                if part > _NOTHING:
                    _window(out, start, layer, i).add_(layer, alpha=part)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple:
        layers, shares = ctx.saved_tensors
        of_layers, of_shares = torch.zeros_like(layers), torch.zeros_like(shares)
        for n, start in enumerate(ctx.starts):
            for i in range(4):
                window = _window(grads[0], start, layers[n], i)
                of_layers[n].add_(window * shares[n, i])
                of_shares[n, i] = (window * layers[n]).sum()
        return of_layers, of_shares, None, None


def _window(out: torch.Tensor, start: list[int], layer: torch.Tensor, i: int) -> torch.Tensor:
    """One of the four parts of a lattice that a layer is shared among; rows first."""
    (y, x), (ny, _, nx) = start, layer.shape
    y, x = y + i // 2, x + i % 2
    return out[y:y + ny, :, x:x + nx]


def _add_rows(
    out: torch.Tensor, column: int, layers: torch.Tensor, shares: torch.Tensor, rows: torch.Tensor
) -> None:
    """Add layers that begin in the same column to a lattice, each row of it in one go.

    The layers are read once and not once for each share, and torch sums rows of single precision
    with all that the processor has: three times as fast as layer by layer.
    """
    n, ny, _, nx = layers.shape
    first, last = int(rows.min()), int(rows.max()) + ny + 1
    two, of_layers, lattice = (torch.arange(*ends, dtype=torch.int32, device=out.device)
                               for ends in ((2,), (0, n * ny, ny), (first, last)))
    row = lattice[:, None, None] - (rows.int()[:, None] + two)  # of each layer: (rows, n, 2)
    inside = (row >= 0) & (row < ny)
    row += of_layers[:, None]
    for i in range(2):
        share = shares[:, i::2]
        taken = inside & (share > _NOTHING)
        each = taken.flatten().nonzero()[:, 0]
        if len(each):
            counts = taken.sum((1, 2))
            sums = embedding_bag(
                row.flatten()[each], layers.view(n * ny, -1), (counts.cumsum(0) - counts).int(),
                mode="sum", per_sample_weights=share.expand_as(taken).reshape(-1)[each])
            out[first:last, :, column + i:column + i + nx] += sums.view(-1, 2, nx)


def _sheared(
    contrast: Contrast, rotation: torch.Tensor, main: int, other: int
) -> torch.Tensor:
    """Contrast summed along the beam over a lattice (2, rows along `other`, along `main`) [V].

    A lattice is as long as the map and the whole voxels by which the beam moves along the axis on
    its way through; where these are odd, it lies between the map's voxels.
    """
    beam = 3 - main - other
    slopes = rotation[2].detach().abs()
    if slopes[main] > slopes[other]:  # rows are what is shifted most
        return _sheared_by_rows(contrast, rotation, beam, main, other).permute(1, 2, 0)
    return _sheared_by_rows(contrast, rotation, beam, other, main).permute(1, 0, 2)


def _sheared_by_rows(
    contrast: Contrast, rotation: torch.Tensor, beam: int, other: int, main: int
) -> torch.Tensor:
    """As `_sheared`, (rows, 2, columns)."""
    layers = contrast.across(beam, other, main)
    height = (torch.arange(len(layers), dtype=layers.dtype, device=layers.device)
              - (len(layers) - 1) / 2)
    sizes, starts, shares = [], [], []
    for axis, length in zip((other, main), layers.shape[1::2], strict=True):
        slope = (rotation[2, axis] / rotation[2, beam]).to(layers)
        sizes.append(length + int(len(layers) * abs(float(slope.detach()))) + 2)
        index = (sizes[-1] - length) / 2 - slope * height
        starts.append(torch.floor(index.detach() + _NOTHING))
        part = index - starts[-1]
        shares.append(torch.stack([1 - part, part], dim=1))
    four = (shares[0][:, :, None] * shares[1][:, None, :]).flatten(1)
    return _Shear.apply(layers, four, torch.stack(starts, dim=1).long(), tuple(sizes))


def _spread(
    values: torch.Tensor, begin: torch.Tensor, width: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Rows of adjoining boxes averaged over unit cells.

    Args:
        values: what each box holds, (k, m, n).
        begin: edge of the first box of each row, (m,).
        width: from one box to the next; negative = boxes follow each other downwards.

    Returns:
        What each cell holds, (k, m, cells), and the number of the first cell.
    """
    ends = torch.stack([begin.detach(), begin.detach() + width.detach() * values.shape[2]])
    first, last = math.floor(float(ends.min())), math.ceil(float(ends.max()))
    edges = torch.arange(first, last + 1, dtype=values.dtype, device=values.device)
    at = ((edges - begin[:, None]) / width).clamp(0, values.shape[2])  # in boxes
    box = at.detach().long().clamp(max=values.shape[2] - 1)
    before = torch.cumsum(values, dim=2) - values
    box = box.expand(len(values), -1, -1)
    # What lies between an edge and the beginning of the row.
    whole = torch.gather(before, 2, box) + torch.gather(values, 2, box) * (at - box)
    return torch.diff(whole, dim=2) * torch.sign(width.detach()), first


def _placed(
    image: torch.Tensor, row: int, column: int, shape: tuple[int, int]
) -> torch.Tensor:
    """An image within another one (..., ny, nx), its first pixel at a row and column of it."""
    pads: list[int] = []
    for axis, (first, n) in enumerate(zip((row, column), shape, strict=True), start=-2):
        begin, end = max(first, 0), min(first + image.shape[axis], n)
        image = image.narrow(axis, max(begin - first, 0) if begin < end else 0,
                             max(end - begin, 0))
        pads = [begin, n - end, *pads] if begin < end else [0, n, *pads]
    return torch.nn.functional.pad(image, pads)


def _face_means(maps: torch.Tensor) -> torch.Tensor:
    """Mean over the outermost voxels of each of several maps (n, nz, ny, nx)."""
    inner = maps[:, 1:-1, 1:-1, 1:-1]
    count = maps[0].numel() - inner[0].numel()
    # In single precision the two sums of millions would hide the difference.
    whole, within = (part.sum((1, 2, 3), dtype=torch.float64) for part in (maps, inner))
    return ((whole - within) / count).to(maps)
