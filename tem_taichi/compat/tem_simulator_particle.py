"""Particles as TEM-simulator 1.3 has them: voxel maps of the potential inside solvent.

Rullgard et al. 2011. Every atom is at least as wide as the voxels resolve, b >= 200 voxel^2 in
exp(-b |k|^2 / 4), which overrides most B-factors; solvent is a floor of the potential.
"""

import itertools
import math
from dataclasses import dataclass

import torch

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

_NOTHING = 1e-6
"""Of the largest contrast: voxels below it are solvent."""

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


def project(
    particle: VoxelParticle, rotation: torch.Tensor, position: torch.Tensor,
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
        particle: maps.
        rotation: particle to image frame, (3, 3).
        position: of the particle's origin in the image's frame [A], (3,).
        shape: (ny, nx), with the origin in its middle, between pixels where even.
        pixel_size: [A].

    Returns:
        Real and imaginary potential [V A], shape (2, ny, nx); what falls outside is left out.
    """
    first, main, other = _passes(rotation)
    second = 1 - first
    voxel = particle.voxel_size / pixel_size
    lattice = _sheared(particle, rotation, main, other) * (particle.voxel_size * voxel**2)
    middle = position[:2] / pixel_size + as_tensor(shape[::-1]) / 2
    rows, columns = (torch.arange(n, dtype=lattice.dtype, device=lattice.device) - (n - 1) / 2
                     for n in lattice.shape[1:])
    scale = rotation[first, main] * voxel
    centre = (middle[first] + columns * scale
              + (rows[:, None] - 0.5) * (rotation[first, other] * voxel))
    rows_first = _spread(lattice, centre, scale.abs(), shape[1 - first])
    slope = rotation[second, main] / rotation[first, main]
    scale = (rotation[second, other] - slope * rotation[first, other]) * voxel
    pixels = torch.arange(shape[1 - first], dtype=lattice.dtype, device=lattice.device)
    centre = middle[second] + rows * scale + slope * (pixels[:, None] - middle[first])
    image = _spread(rows_first.transpose(1, 2), centre, scale.abs(), shape[1 - second])
    return image if first == 1 else image.transpose(1, 2)


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


def _sheared(
    particle: VoxelParticle, rotation: torch.Tensor, main: int, other: int
) -> torch.Tensor:
    """Contrast summed along the beam over a lattice (2, rows along `other`, along `main`) [V].

    A lattice is as long as the map and the whole voxels by which the beam moves along the axis on
    its way through; where these are odd, it lies between the map's voxels.
    """
    maps = torch.stack([particle.potential, particle.absorption])
    contrast = maps - _face_means(maps)[:, None, None, None]
    size = contrast.detach().abs()
    grid = torch.nonzero((size > _NOTHING * size.amax()).any(0))
    values = contrast[:, grid[:, 0], grid[:, 1], grid[:, 2]]
    lengths = particle.potential.shape[::-1]
    at = (grid - as_tensor([(n - 1) / 2 for n in particle.potential.shape])).flip(1)
    beam = 3 - main - other
    sizes, starts, shares = [], [], []
    for axis in (other, main):
        slope = rotation[2, axis] / rotation[2, beam]
        sizes.append(lengths[axis] + int(lengths[beam] * abs(float(slope.detach()))) + 2)
        index = at[:, axis] - slope * at[:, beam] + (sizes[-1] - 1) / 2
        starts.append(torch.floor(index.detach()).long())
        shares.append((1 + starts[-1] - index, index - starts[-1]))
    out = torch.zeros((2, sizes[0] * sizes[1]), dtype=values.dtype, device=values.device)
    for i, j in itertools.product(range(2), repeat=2):
        cell = (starts[0] + i) * sizes[1] + starts[1] + j
        out = out.index_add(1, cell, values * (shares[0][i] * shares[1][j]))
    return out.reshape(2, *sizes)


def _spread(
    values: torch.Tensor, centre: torch.Tensor, width: torch.Tensor, size: int
) -> torch.Tensor:
    """Boxes about `centre` (m, n) of a width, with sums (k, m, n), over m rows of unit cells."""
    left = centre - width / 2
    start = torch.floor(left.detach())
    left, start = left - start, start.long()
    row = torch.arange(len(centre), device=values.device)[:, None] * size
    out = torch.zeros((len(values), len(centre) * size), dtype=values.dtype,
                      device=values.device)
    for i in range(math.ceil(float(width.detach())) + 1):
        cell = start + i
        overlap = ((left + width - i).clamp(max=1) - (left - i).clamp(min=0)).clamp(min=0)
        share = overlap / width * ((cell >= 0) & (cell < size))
        out = out.index_add(1, (row + cell.clamp(0, size - 1)).flatten(),
                            (values * share).flatten(1))
    return out.reshape(len(values), len(centre), size)


def _face_means(maps: torch.Tensor) -> torch.Tensor:
    """Mean over the outermost voxels of each of several maps (n, nz, ny, nx)."""
    inner = maps[:, 1:-1, 1:-1, 1:-1]
    count = maps[0].numel() - inner[0].numel()
    return (maps.sum((1, 2, 3)) - inner.sum((1, 2, 3))) / count
