"""What is in the ice: kinds of particles as sums of Gaussians, and their copies."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from tem_taichi.config import Particle, Scene
from tem_taichi.device import as_tensor, current
from tem_taichi.io import read_volume
from tem_taichi.physics import SCATTERING_TO_POTENTIAL, Value
from tem_taichi.placement import Poses, place
from tem_taichi.potential import Gaussians, atom_gaussians, narrow, render, solvent_gaussians
from tem_taichi.structures import Atoms, read_structure

_BATCH = 1_000_000
"""Scatterers rendered at once: bounds the memory of crowded scenes."""

_VOXEL_GAUSSIAN = 14.0
"""exp(-14 |k|^2), k in cycles/voxel: the Gaussian that stands for a voxel of a map."""


@dataclass(frozen=True)
class Kind:
    """One kind of particle, about its own centre."""

    name: str
    positions: torch.Tensor
    """Of its scatterers [A], shape (n, 3)."""
    group: Gaussians
    """What each scatterer adds to the potential."""
    displaced: Gaussians | None = None
    """The same for each volt of the solvent that it displaces, where it displaces any."""

    @property
    def radius(self) -> float:
        """Of the sphere about the centre that holds all scatterers [A]."""
        return float(torch.linalg.vector_norm(self.positions.detach(), dim=1).max())


@dataclass(frozen=True)
class Ice:
    """A slab of vitreous ice; uniform, so that it only attenuates and is displaced."""

    thickness: Value = 0.0
    """Untilted [A]."""
    potential: Value = 0.0
    """Mean inner potential [V]; 0 = particles in vacuum."""
    mean_free_path: Value | None = None
    """Of the loss from the image [A]; None = no loss."""


@dataclass(frozen=True)
class Specimen:
    """Particles in ice."""

    kinds: tuple[Kind, ...]
    poses: tuple[Poses, ...]
    """Where the copies of each kind are."""
    ice: Ice = field(default_factory=Ice)

    @property
    def n_scatterers(self) -> int:
        """Of all copies."""
        return sum(len(kind.positions) * len(pose.positions)
                   for kind, pose in zip(self.kinds, self.poses, strict=True))


def map_gaussians(volume: np.ndarray, voxel_size: float) -> tuple[torch.Tensor, Gaussians]:
    """A potential map as Gaussians on a grid, exact under any rotation.

    The map is interpolated to 1.5 times as many voxels, so that its whole spectrum lies inside
    the band in which the Gaussians' aliases are negligible; dividing by their transform
    gives the weights. Voxels below 1e-4 of the largest weight are left out.

    Args:
        volume: potential [V] relative to the surroundings, shape (nz, ny, nx), centre at n // 2.
        voxel_size: [A].

    Returns:
        Positions (n, 3) [A] from the centre, and the Gaussians there.
    """
    coarse = volume.shape
    fine = tuple(2 * math.ceil(0.75 * n) for n in coarse)
    spectrum = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume.astype(np.float64))))
    pad = [(f // 2 - c // 2, f - f // 2 - (c - c // 2)) for f, c in zip(fine, coarse, strict=True)]
    spectrum = np.pad(spectrum, pad)
    k = np.meshgrid(*(np.fft.fftshift(np.fft.fftfreq(n)) for n in fine), indexing="ij")
    spectrum *= np.exp(_VOXEL_GAUSSIAN * sum(axis**2 for axis in k))
    weights = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(spectrum)).real)
    # f voxels span the length of c: the values keep their scale by f / c along each axis, and a
    # voxel stands for its volume, so that together the factor is that of the coarse voxel.
    weights *= voxel_size**3
    z, y, x = np.nonzero(np.abs(weights) > 1e-4 * np.abs(weights).max(initial=1e-300))
    steps = [voxel_size * c / f for f, c in zip(fine, coarse, strict=True)]
    positions = np.stack([(x - fine[2] // 2) * steps[2], (y - fine[1] // 2) * steps[1],
                          (z - fine[0] // 2) * steps[0]], axis=1)
    weight = as_tensor(weights[z, y, x] / SCATTERING_TO_POTENTIAL)
    width = _VOXEL_GAUSSIAN * max(steps) ** 2
    return as_tensor(positions), Gaussians(
        weight, torch.full_like(weight, width),
        torch.zeros(len(weight), dtype=torch.int64, device=weight.device),
        as_tensor([[[1.0], [0.0]]]))


def load_kind(name: str, particle: Particle) -> Kind:
    """Read a structure or map and make it a kind of particle, centred on its bounding box.

    Raises:
        ValueError: for a file that cannot be read, or as `read_structure`, naming the key.
    """
    key = f"specimen.particles.{name}"
    if particle.map is not None:
        try:
            volume, voxel = read_volume(Path(particle.map), particle.voxel_size)
        except (ValueError, OSError) as error:
            raise ValueError(f"{key}.map: {error}") from error
        positions, group = map_gaussians(volume * particle.map_scale, voxel)
        if len(positions) == 0:
            raise ValueError(f"{key}.map={particle.map}: is zero everywhere")
        return Kind(name, positions, group)
    model = particle.model if particle.model == "all" else int(particle.model)
    try:
        atoms = read_structure(particle.structure or "", particle.assembly, model,
                               particle.hydrogens, particle.altlocs).centred()
    except (ValueError, OSError) as error:
        raise ValueError(f"{key}.structure: {error}") from error
    if particle.b_factor is not None:
        atoms = replace(atoms, b_factors=torch.full_like(atoms.b_factors, particle.b_factor))
    return kind_of(atoms, name)


def kind_of(atoms: Atoms, name: str = "atoms") -> Kind:
    """Atoms as a kind of particle about the origin; differentiable in every tensor of theirs."""
    return Kind(name, atoms.positions, atom_gaussians(atoms), solvent_gaussians(atoms))


def build_specimen(scene: Scene) -> Specimen:
    """Read all particles and place their copies; the seed decides what is random.

    Raises:
        ValueError: for files that cannot be read, particles that do not fit into the ice, or
            more copies than fit without overlap.
    """
    names = list(scene.specimen.particles)
    kinds = tuple(load_kind(name, scene.specimen.particles[name]) for name in names)
    poses = place(scene, {kind.name: kind.radius for kind in kinds})
    for kind, pose in zip(kinds, poses, strict=True):
        _check_inside(kind, pose, scene.specimen.ice.thickness)
    ice = scene.specimen.ice
    return Specimen(kinds, poses, Ice(ice.thickness, ice.potential, ice.mean_free_path))


def _check_inside(kind: Kind, pose: Poses, thickness: float) -> None:
    """ValueError if a copy sticks out of the ice."""
    low, high = _depths(kind, pose, torch.eye(3, dtype=current().dtype))
    out = torch.nonzero(torch.maximum(-low, high) > thickness / 2).flatten()
    if len(out):
        n = int(out[0])
        raise ValueError(
            f"specimen.particles.{kind.name}: copy {n} reaches from z={float(low[n]):.0f} to "
            f"{float(high[n]):.0f} A: must lie within the ice, "
            f"specimen.ice.thickness={thickness:g}")


def _depths(
    kind: Kind, pose: Poses, rotation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest z [A] of the scatterers of each copy, after a rotation."""
    axis = rotation[2].detach().to(kind.positions)
    centres = as_tensor(pose.positions).detach() @ axis
    rows = axis @ as_tensor(pose.rotations).detach()  # (copies, 3)
    if len(centres) == 0:
        return centres, centres
    at_once = max(1, _BATCH // len(kind.positions))
    reach = [(z.amin(1), z.amax(1)) for z in
             (part @ kind.positions.detach().T for part in rows.split(at_once))]
    low, high = (torch.cat(bound) for bound in zip(*reach, strict=True))
    return centres + low, centres + high


@dataclass(frozen=True)
class View:
    """One tilted view of the specimen, cut into slices."""

    rotation: torch.Tensor
    """Specimen to image frame, (3, 3)."""
    shift: torch.Tensor
    """Of the image [A], (2,)."""
    shape: tuple[int, int]
    """(ny, nx) of the wave's grid."""
    pixel_size: float
    """Of the wave's grid [A]."""
    slice_thickness: float
    """[A]"""
    entrance: float
    """z where the first slice begins [A]."""
    n_slices: int


def extent(specimen: Specimen, rotation: torch.Tensor) -> tuple[float, float]:
    """Least and largest z [A] of all scatterers in a view; (0, 0) if there are none."""
    depths = [_depths(kind, pose, rotation)
              for kind, pose in zip(specimen.kinds, specimen.poses, strict=True)
              if len(pose.positions)]
    if not depths:
        return 0.0, 0.0
    return (min(float(low.min()) for low, _ in depths),
            max(float(high.max()) for _, high in depths))


def slices(
    specimen: Specimen, view: View, first: int, count: int, depth: str = "nearest"
) -> torch.Tensor:
    """Projected potential of slices first .. first + count - 1 of a view.

    Args:
        specimen: particles.
        view: how they lie and how they are sliced.
        first: number of the first slice.
        count: how many.
        depth: see `potential.depth_weights`.

    Returns:
        Band-limited slices (count, ny, nx) [V A] relative to the ice.
    """
    device = current()
    ny, nx = view.shape
    out = torch.zeros((count, ny, nx), dtype=device.dtype, device=device.torch_device)
    low = view.entrance + (first - 1) * view.slice_thickness
    high = view.entrance + (first + count + 1) * view.slice_thickness
    half_x, half_y = nx * view.pixel_size / 2, ny * view.pixel_size / 2
    vacuum = not isinstance(specimen.ice.potential, torch.Tensor) and specimen.ice.potential == 0
    scale = as_tensor([view.pixel_size, view.pixel_size, view.slice_thickness])
    origin = as_tensor([nx // 2, ny // 2, -view.entrance / view.slice_thickness])
    for kind, pose in zip(specimen.kinds, specimen.poses, strict=True):
        centres = as_tensor(pose.positions) @ view.rotation.T
        centres = torch.cat([centres[:, :2] + view.shift, centres[:, 2:]], dim=1)
        r = kind.radius
        seen = torch.nonzero((centres[:, 2] > low - r) & (centres[:, 2] < high + r)
                             & (centres[:, 0].abs() < half_x + r)
                             & (centres[:, 1].abs() < half_y + r)).flatten()
        rotations = view.rotation @ as_tensor(pose.rotations)
        at_once = max(1, _BATCH // len(kind.positions))
        for copies in seen.split(at_once):
            placed = (torch.einsum("cij,nj->cni", rotations[copies], kind.positions)
                      + centres[copies, None, :]).reshape(-1, 3)
            pixels = placed / scale + origin
            inside = torch.nonzero((pixels[:, 0] > -0.5) & (pixels[:, 0] < nx - 0.5)
                                   & (pixels[:, 1] > -0.5) & (pixels[:, 1] < ny - 0.5)
                                   & (pixels[:, 2] > first - 1)
                                   & (pixels[:, 2] < first + count + 1)).flatten()
            template = inside.remainder(len(kind.positions))
            groups = [kind.group.take(template)]
            if kind.displaced is not None and not vacuum:
                groups.append(kind.displaced.take(template).scaled(specimen.ice.potential))
            out = render(out, groups, pixels[inside], view.pixel_size, first_slice=first,
                         n_slices=view.n_slices, depth=depth)
    return narrow(out, SCATTERING_TO_POTENTIAL / view.pixel_size**2)
