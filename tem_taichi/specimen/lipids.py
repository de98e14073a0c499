"""Vesicles of lipids atom by atom: the molecules of a flat patch of bilayer, bent onto a sphere.

Each leaflet is a sphere of its own, as far from the bilayer's middle as its molecules are, and is
cut into cells of the patch's area about evenly spread points. A cell holds the molecules of the
patch, periodic and turned its own way, that an equal-area map (Lambert 1772) brings into it, each
upright and unbent. So both leaflets have the patch's area a lipid, whatever the curvature, and
holes and clashes are no larger than a molecule, where cells meet.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from tem_taichi.checks import within
from tem_taichi.machine import check_memory
from tem_taichi.specimen.atoms import Atoms, concatenate, read_residues
from tem_taichi.specimen.membranes import (
    HALF_THICKNESS,
    LARGEST,
    SMALLEST_VESICLE,
    fibonacci_sphere,
)

_PER_ATOM = 300.0
"""Memory while a vesicle is made and of its kind [bytes]."""

_GOLDEN = (math.sqrt(5) - 1) / 2
_SILVER = math.sqrt(2) - 1
"""Irrational steps: how patches are turned and shifted from cell to cell."""


@dataclass(frozen=True)
class Patch:
    """A flat, periodic patch of bilayer, its middle at z = 0."""

    molecules: tuple[Atoms, ...]
    """Lipids, each about the place x, y where it stands."""
    places: np.ndarray
    """Of the molecules in the patch [A], (n, 2), from 0 to its sides."""
    upper: np.ndarray
    """Which of them are in the leaflet of positive z, (n,)."""
    sides: tuple[float, float]
    """Of the patch along x and y [A]."""


def read_patch(source: str, lipid_area: float | None = None) -> Patch:
    """The lipids of a file, without its water.

    Args:
        source: PDB or mmCIF file, or id, of a bilayer whose normal is z; each residue that is not
            water is a lipid.
        lipid_area: of a lipid in its leaflet [A^2]; None = by the file's unit cell.

    Raises:
        ValueError: if the file is no readable structure, has no two leaflets, or states no cell
            where one is needed.
    """
    atoms, residue, cell = read_residues(source)
    dry = ~atoms.is_water.cpu().numpy()
    numbers = np.unique(residue[dry])
    lipids = [atoms[torch.as_tensor(np.flatnonzero(residue == number))] for number in numbers]
    heights = np.array([float(lipid.positions[:, 2].mean()) for lipid in lipids])
    if len(lipids) < 2:
        raise ValueError(f"{source}: must be a bilayer, of lipids in two leaflets beside water")
    middle = (heights.min() + heights.max()) / 2
    upper = heights > middle
    middle = (heights[upper].mean() + heights[~upper].mean()) / 2
    if lipid_area is None:
        if min(cell[:2]) < 10:
            raise ValueError(f"{source}: states no unit cell: lipid_area must be given [A^2]")
        sides = (float(cell[0]), float(cell[1]))
    else:
        sides = (math.sqrt(lipid_area * len(lipids) / 2),) * 2
    places = np.array([lipid.positions[:, :2].mean(0).tolist() for lipid in lipids])
    standing = tuple(
        Atoms(lipid.numbers, lipid.positions - torch.tensor([x, y, middle]).to(lipid.positions),
              lipid.b_factors, lipid.occupancies, lipid.is_water)
        for lipid, (x, y) in zip(lipids, places, strict=True))
    return Patch(standing, places % np.array(sides), upper, sides)


def bent_into_sphere(patch: Patch, diameter: float) -> Atoms:
    """A vesicle of the patch's lipids.

    Args:
        patch: flat.
        diameter: outer, of the surface of equal displaced water [A], 150 to 3000.

    Returns:
        Atoms about the vesicle's centre.

    Raises:
        ValueError: for another diameter, or more atoms than fit into memory.
    """
    within("diameter", diameter, SMALLEST_VESICLE, LARGEST, "A")
    radius = diameter / 2 - HALF_THICKNESS
    atoms = sum(map(len, patch.molecules)) * 4 * math.pi * radius**2 / math.prod(patch.sides)
    check_memory(f"diameter={diameter:g}: {atoms:,.0f} atoms of lipids", _PER_ATOM * atoms,
                 "make it smaller")
    parts = []
    for upper in (True, False):
        members = np.flatnonzero(patch.upper == upper)
        depth = float(np.mean(
            [float(patch.molecules[n].positions[:, 2].mean()) for n in members]))
        which, frames = _leaflet(patch.places[members], patch.sides, radius + depth)
        for n, member in enumerate(members):
            parts.append(_standing(patch.molecules[member], frames[which == n], radius))
    return concatenate(*parts)


def _leaflet(
    places: np.ndarray, sides: tuple[float, float], radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which molecule stands where on a sphere: numbers (m,), and frames (m, 3, 3).

    The columns of a frame are the molecule's x, y and z.
    """
    count = max(2, round(4 * math.pi * radius**2 / math.prod(sides)))
    centres = fibonacci_sphere(count)
    cell = np.arange(count)
    turn = 2 * math.pi * _GOLDEN * cell
    shift = np.stack([cell * _SILVER, cell * _GOLDEN], axis=1) % 1 * sides
    first, second = _across(centres)
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    first, second = cos * first + sin * second, cos * second - sin * first
    tree = cKDTree(centres)
    which, frames = [], []
    # A cell is about as wide as the patch, which thus reaches into its neighbours.
    for image in itertools.product((-1, 0, 1), repeat=2):
        flat = (places + shift[:, None]) % sides + (np.array(image) - 0.5) * sides
        distance = np.linalg.norm(flat, axis=-1)
        angle = 2 * np.arcsin(np.minimum(distance / (2 * radius), 1))
        u, v = np.moveaxis(flat / np.maximum(distance, 1e-9)[..., None], -1, 0)
        outward = u[..., None] * first[:, None] + v[..., None] * second[:, None]
        c, s = np.cos(angle)[..., None], np.sin(angle)[..., None]
        up = c * centres[:, None] + s * outward
        kept = tree.query(up.reshape(-1, 3))[1].reshape(distance.shape) == cell[:, None]
        # Carried along the great circle: only what lies along it is turned.
        along = c * outward - s * centres[:, None]
        x = first[:, None] + u[..., None] * (along - outward)
        y = second[:, None] + v[..., None] * (along - outward)
        which.append(np.broadcast_to(np.arange(len(places)), kept.shape)[kept])
        frames.append(np.stack([x[kept], y[kept], up[kept]], axis=-1))
    return np.concatenate(which), np.concatenate(frames)


def _across(normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors at right angles to each of some, and to each other, (n, 3) each."""
    axis = np.where(np.abs(normals[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    first = np.cross(axis, normals)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return first, np.cross(normals, first)


def _standing(lipid: Atoms, frames: np.ndarray, radius: float) -> Atoms:
    """Copies of a molecule on a sphere about the origin."""
    copies = torch.as_tensor(frames).to(lipid.positions)
    up = lipid.positions.new_tensor([0.0, 0.0, radius])
    positions = torch.einsum("mij,nj->mni", copies, lipid.positions + up).reshape(-1, 3)
    n = len(frames)
    return Atoms(lipid.numbers.repeat(n), positions, lipid.b_factors.repeat(n),
                 lipid.occupancies.repeat(n), lipid.is_water.repeat(n))
