"""Projected potential of atoms, straight into slices.

Every scattering factor is a sum of Gaussians (Peng et al. 1996), which stays one under a
B-factor. Each Gaussian is widened until the grid resolves it, splatted, and narrowed again in
Fourier space, where the widening is a known factor: exact inside the band up to the aliasing
of the widened Gaussians. The cost is one small stencil an atom and one pair of real FFTs a
slice.
"""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache

import gemmi
import numpy as np
import torch

from tem_taichi.arguments import (
    check_array,
    check_grid,
    check_number,
    check_positive_number,
    no_gradient,
    to_field,
)
from tem_taichi.device import as_tensor, current, many_threads, number, present
from tem_taichi.physics import SCATTERING_TO_POTENTIAL, Value
from tem_taichi.specimen.atoms import Atoms, displaced_volumes
from tem_taichi.specimen.depth import depth_for, depth_weights
from tem_taichi.specimen.splatting import narrow, splat


@cache
def peng_factors() -> np.ndarray:
    """Numbers of `peng_table` in float64, not to be changed; of Peng's s-range up to 2 1/A."""
    elements = [gemmi.Element(z).c4322 for z in range(1, 99)]
    factors = np.array([[[0.0] * 5, [1.0] * 5],
                        *([list(e.a), [b / 4 for b in e.b]] for e in elements)])
    factors.flags.writeable = False
    return factors


def peng_table() -> torch.Tensor:
    """Scattering factors f(k) = sum_g a_g exp(-b_g |k|^2), shape (99, 2, 5): a [A], b [A^2]."""
    return as_tensor(peng_factors().copy())


@dataclass(frozen=True)
class Gaussians:
    """What each of n scatterers at given positions adds: sums of Gaussians.

    Scatterer j of kind t has the projected potential whose Fourier transform is
    47.878 V A^2 weight_j sum_g a_tg exp(-(b_tg + broadening_j) |k|^2).
    """

    weight: torch.Tensor
    """Factor of each, shape (n,)."""
    broadening: torch.Tensor
    """[A^2], B / 4 of an atom, shape (n,)."""
    kind: torch.Tensor
    """Row of the table, integers (n,)."""
    table: torch.Tensor
    """a [A] and b [A^2] of each kind, shape (kinds, 2, n_gaussians); without a gradient."""

    def __post_init__(self) -> None:
        for name in ("weight", "broadening", "table"):
            object.__setattr__(self, name, to_field(name, getattr(self, name)))
        n = len(self.weight) if self.weight.ndim else 0
        for name, shape, unit in (("weight", (n,), "1"), ("broadening", (n,), "A^2"),
                                  ("kind", (n,), "1"), ("table", ("k", 2, "g"), "A")):
            check_array(name, getattr(self, name), shape, unit)
        no_gradient("table", self.table, "scattering factors are constants of the kernels")
        if n and not 0 <= int(self.kind.min()) <= int(self.kind.max()) < len(self.table):
            raise ValueError(f"kind from {int(self.kind.min())} to {int(self.kind.max())}: must be "
                             f"rows of the table, 0 to {len(self.table) - 1}")

    @classmethod
    def single(cls, weight: torch.Tensor, broadening: Value) -> "Gaussians":
        """One Gaussian for each scatterer, weight exp(-broadening |k|^2) in the units above.

        Args:
            weight: that of each [A], shape (n,).
            broadening: [A^2], shape (n,), or one for all, which takes no memory for each.
        """
        kind = torch.zeros((), dtype=torch.int64, device=weight.device)
        return cls(weight, as_tensor(broadening).expand(weight.shape), kind.expand(weight.shape),
                   as_tensor([[[1.0], [0.0]]]))

    def take(self, rows: torch.Tensor) -> "Gaussians":
        """Those of the scatterers that an index selects."""
        taken = copy(self)  # what was checked is not checked again, which would wait for a GPU
        for name in ("weight", "broadening", "kind"):
            object.__setattr__(taken, name, getattr(self, name)[rows])
        return taken

    def scaled(self, factor: Value) -> "Gaussians":
        """The same, a factor stronger."""
        return replace(self, weight=self.weight * factor)


def atom_gaussians(atoms: Atoms) -> Gaussians:
    """Scattering of atoms: Peng's factors, B-factors and occupancies."""
    return Gaussians(atoms.occupancies, atoms.b_factors / 4, atoms.numbers, peng_table())


def solvent_gaussians(atoms: Atoms) -> Gaussians:
    """What atoms take away for each volt of mean inner potential of a solvent around them.

    A Gaussian of each atom's volume (Fraser et al. 1978), soft, and integrating to that volume.
    """
    volumes = displaced_volumes(atoms)
    return Gaussians.single(-volumes * atoms.occupancies / SCATTERING_TO_POTENTIAL,
                            math.pi * volumes ** (2 / 3) + atoms.b_factors / 4)


def render(
    out: torch.Tensor,
    groups: Sequence[Gaussians],
    pixels: torch.Tensor,
    pixel_size: float,
    *,
    first_slice: int = 0,
    n_slices: int | None = None,
    depth: str = "nearest",
) -> torch.Tensor:
    """Splat scatterers into some slices of a stack; `narrow` then finishes them.

    Args:
        out: slices first_slice, first_slice + 1, ... of the stack, shape (m, ny, nx).
        groups: what the scatterers add, all at the same positions.
        pixels: column, row and depth of each, in pixels, pixels and slices, shape (n, 3).
        pixel_size: [A].
        first_slice: number of the first slice of `out` in the stack.
        n_slices: length of the stack; by default that of `out`.
        depth: see `depth_weights`.

    Returns:
        out, added to; scatterers of other slices add nothing.
    """
    for layer, part in zip(*depth_weights(pixels[:, 2], n_slices or len(out), depth), strict=True):
        local = layer - first_slice
        # The splat leaves out what lies elsewhere; to count it would wait for a GPU.
        here = None
        if not many_threads():
            here = torch.nonzero((local >= 0) & (local < len(out))).flatten()
            here = None if len(here) == len(local) else here
        x, y = (pixels[:, i] if here is None else pixels[here, i] for i in (0, 1))
        for group in groups:
            if here is not None:
                group = group.take(here)
            weight = group.weight * (part if here is None else part[here])
            table = group.table.clone()
            table[:, 1] /= pixel_size**2
            out = splat(out, x, y, local if here is None else local[here], weight,
                        group.broadening / pixel_size**2, group.kind, table)
    return out


def slice_potential(
    atoms: Atoms,
    shape: tuple[int, int],
    pixel_size: float,
    slice_thickness: float,
    thickness: float,
    *,
    periodic: bool = False,
    clip: bool = False,
    depth: str | None = None,
    solvent_potential: float | torch.Tensor = 0.0,
) -> torch.Tensor:
    """Projected potential of atoms in slices across the beam.

    V(k) = 47.878 V A^2 sum_j occ_j f_j(k) exp(-B_j |k|^2 / 4) exp(-2 pi i k r_j) per area,
    exact to 1e-3 (relative L2) at the frequencies below 2/3 Nyquist and zero beyond. The
    tails of atoms at the rim come back at the opposite side, as in any Fourier series.

    Args:
        atoms: positions [A]; the origin is at pixel (nx // 2, ny // 2) and mid-thickness.
        shape: (ny, nx) of a slice.
        pixel_size: [A].
        slice_thickness: [A] along the beam.
        thickness: of all slices [A]; rounded up to whole slices.
        periodic: put atoms outside the box back into it, modulo its size.
        clip: leave atoms outside the box out.
        depth: "nearest" or "smooth" (differentiable in z), see `depth_weights`; by default
            "smooth" if the positions require a gradient, else "nearest".
        solvent_potential: mean inner potential [V] of the solvent the atoms displace; 0 for
            atoms in vacuum, 4.48 for vitreous ice. The solvent itself is not added: the
            result is the difference from it.

    Returns:
        Slices (n_slices, ny, nx) [V A], the one of smallest z first; differentiable in
        positions, B-factors, occupancies and the solvent potential.

    Raises:
        ValueError: for atoms outside the box, impossible sizes, or a slice thicker than the
            box; if a gradient is asked for in a length of the grid.
    """
    for name, value in (("pixel_size", pixel_size), ("slice_thickness", slice_thickness),
                        ("thickness", thickness)):
        check_positive_number(name, value, "A")
        no_gradient(name, value, "it makes the grid; scale positions and B-factors instead")
    check_number("solvent_potential", solvent_potential, "V")
    pixel_size, slice_thickness, thickness = map(
        number, (pixel_size, slice_thickness, thickness))
    depth, atoms = depth_for(depth, atoms.positions), atoms.here()
    if slice_thickness > thickness * (1 + 1e-6):
        raise ValueError(f"slice_thickness={slice_thickness}: must be at most "
                         f"thickness={thickness} [A]")
    ny, nx = check_grid("shape", shape)
    n_slices = math.ceil(thickness / slice_thickness - 1e-6)
    box = as_tensor([nx, ny, n_slices])
    scale = as_tensor([pixel_size, pixel_size, slice_thickness])
    origin = as_tensor([nx // 2, ny // 2, n_slices / 2])
    pixels = atoms.positions / scale + origin
    atoms, pixels = _within(box, scale, atoms, pixels, periodic=periodic, clip=clip)
    device = current()
    out = torch.zeros((n_slices, ny, nx), dtype=device.dtype, device=device.torch_device)
    groups = [atom_gaussians(atoms)]
    if present(solvent_potential):
        groups.append(solvent_gaussians(atoms).scaled(solvent_potential))
    out = render(out, groups, pixels, pixel_size, depth=depth)
    return narrow(out, SCATTERING_TO_POTENTIAL / pixel_size**2)


def _within(
    box: torch.Tensor, scale: torch.Tensor, atoms: Atoms, pixels: torch.Tensor, *,
    periodic: bool, clip: bool,
) -> tuple[Atoms, torch.Tensor]:
    """Atoms and their pixels, put back into a box of some pixels of some size [A], or left out."""
    # A pixel's own area reaches half a pixel around its centre; a slice starts at its edge.
    low = as_tensor([-0.5, -0.5, 0.0])
    outside = ((pixels < low) | (pixels > low + box)).any(1)
    if not bool(outside.any()):
        return atoms, pixels
    if periodic:
        return atoms, pixels - box * torch.floor((pixels.detach() - low) / box)
    if clip:
        inside = torch.nonzero(~outside).flatten()
        return atoms[inside], pixels[inside]
    first = [round(float(c), 2) for c in atoms.positions[outside][0]]
    sides = " x ".join(f"{float(side):g}" for side in box * scale)
    raise ValueError(
        f"positions: {int(outside.sum())} atoms lie outside the box of {sides} A, the first at "
        f"{first}; enlarge it, or allow periodic=True or clip=True")
