"""What is in the ice: kinds of particles as sums of Gaussians, their copies, and the ice."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from scipy import fft

from tem_taichi.arguments import check_number
from tem_taichi.device import as_tensor, current, present
from tem_taichi.files.mrc import read_volume
from tem_taichi.grid import BAND_LIMIT
from tem_taichi.machine import check_memory
from tem_taichi.physics import SCATTERING_TO_POTENTIAL, Value, wavelength
from tem_taichi.scene.settings import Particle, Scene
from tem_taichi.series.placement import Poses, place
from tem_taichi.specimen.absorption import (
    Loss,
    Ratios,
    loss_with_aperture,
    mean_free_path,
    protein_potentials,
)
from tem_taichi.specimen.atoms import read_structure
from tem_taichi.specimen.fiducials import GOLD_B_FACTOR, gold_kind
from tem_taichi.specimen.globules import globule_kind
from tem_taichi.specimen.ice import mean_potential
from tem_taichi.specimen.ice_shape import IceShape
from tem_taichi.specimen.kinds import Kind as Kind
from tem_taichi.specimen.kinds import kind_of as kind_of
from tem_taichi.specimen.membranes import membrane_kind, vesicle_kind
from tem_taichi.specimen.potential import Gaussians

BATCH = 1_000_000
"""Scatterers rendered at once: bounds the memory of crowded scenes."""

_VOXEL_GAUSSIAN = 14.0
"""exp(-14 |k|^2), k in cycles/voxel: the Gaussian that stands for a voxel of a map."""

_PER_VOXEL = 140.0
"""Memory for each voxel of a map of which all are kept [bytes]."""


@dataclass(frozen=True)
class Ice:
    """A layer of vitreous ice: it attenuates, is displaced by particles, and may be granular."""

    thickness: Value = 0.0
    """Untilted, in the centre [A]."""
    potential: Value = 0.0
    """Mean inner potential [V]; 0 = particles in vacuum."""
    mean_free_path: Value | None = None
    """Of the loss from the image, at the voltage in use [A]; None = no loss."""
    particle_absorption: Value = 1.0
    """What particles absorb over what their composition says [1]."""
    granularity: Value = 0.0
    """Strength of its random structure [1], 1 = physical; 0 = a continuum."""
    seed: int = 0
    """Of the random structure, which differs from exposure to exposure: molecules move."""
    shape: IceShape | None = None
    """Where it is; None = a slab of its thickness."""
    ratios: Ratios | None = None
    """What elements absorb, of `absorption.Loss`; None = by inelastic scattering alone."""
    stopped: Value = 0.0
    """Part of the loss that an aperture stops [1], which comes back without an energy filter no
    more than with it; 0 to 1."""

    def __post_init__(self) -> None:
        check_number("thickness", self.thickness, "A", 0.0)
        check_number("potential", self.potential, "V", -100.0, 100.0)
        if self.mean_free_path is not None:
            check_number("mean_free_path", self.mean_free_path, "A", above=0.0, high=1e12)
        check_number("particle_absorption", self.particle_absorption, "1", 0.0)
        check_number("granularity", self.granularity, "1", 0.0, 100.0)
        check_number("stopped", self.stopped, "1", 0.0, 1.0)

    @property
    def layer(self) -> IceShape:
        """Where it is."""
        return self.shape or IceShape(self.thickness)

    @property
    def structured(self) -> bool:
        """Whether it has slices of its own: granular, or beside a film of carbon."""
        film = self.shape is not None and present(self.shape.carbon_thickness)
        return film or present(self.granularity)


@dataclass(frozen=True)
class Specimen:
    """Particles in ice."""

    kinds: tuple[Kind, ...]
    poses: tuple[Poses, ...]
    """Where the copies of each kind are."""
    ice: Ice = field(default_factory=Ice)

    def __post_init__(self) -> None:
        for name, wanted in (("kinds", Kind), ("poses", Poses)):
            given = getattr(self, name)
            if not (isinstance(given, tuple) and all(isinstance(one, wanted) for one in given)):
                raise ValueError(f"{name}: must be a tuple of {wanted.__name__}")
        if len(self.kinds) != len(self.poses):
            raise ValueError(f"poses of {len(self.poses)} kinds: must be one for each of the "
                             f"{len(self.kinds)} kinds")

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
    check_memory(f"a map of {' x '.join(map(str, volume.shape))} voxels",
                 _PER_VOXEL * volume.size, "crop it, or bin it")
    coarse = volume.shape
    fine = tuple(2 * math.ceil(0.75 * n) for n in coarse)
    weights = _deconvolved(np.asarray(volume, dtype=as_tensor(0.0).cpu().numpy().dtype), fine)
    # f voxels span the length of c: the values keep their scale by f / c along each axis, and a
    # voxel stands for its volume, so that together the factor is that of the coarse voxel.
    weights *= voxel_size**3 / SCATTERING_TO_POTENTIAL
    least = 1e-4 * max(weights.max(), -weights.min(), 1e-300)
    count = sum(int(np.count_nonzero(np.abs(plane) > least)) for plane in weights)
    positions, weight = as_tensor(np.empty((count, 3))), as_tensor(np.empty(count))
    steps = [voxel_size * c / f for f, c in zip(fine, coarse, strict=True)]
    done = 0
    for z, plane in enumerate(weights):  # one by one, since there are many voxels
        y, x = np.nonzero(np.abs(plane) > least)
        here = slice(done, done + len(x))
        weight[here] = as_tensor(plane[y, x])
        for axis, index in enumerate((x, y, np.full(len(x), z))):
            n, step = fine[2 - axis], steps[2 - axis]
            positions[here, axis] = as_tensor((index - n // 2) * step)
        done += len(x)
    width = as_tensor(_VOXEL_GAUSSIAN * max(steps) ** 2)
    return positions, Gaussians(  # what is the same for all takes no memory for each
        weight, width.expand(count),
        torch.zeros(1, dtype=torch.int64, device=weight.device).expand(count),
        as_tensor([[[1.0], [0.0]]]))


def _deconvolved(volume: np.ndarray, fine: tuple[int, ...]) -> np.ndarray:
    """A map on more voxels, divided by the transform of the Gaussian of a voxel."""
    coarse = volume.shape
    spectrum = fft.rfftn(fft.ifftshift(volume))
    out = np.zeros((fine[0], fine[1], fine[2] // 2 + 1), spectrum.dtype)
    half = coarse[2] // 2 + 1
    for z in _both_ends(coarse[0]):
        for y in _both_ends(coarse[1]):
            out[z, y, :half] = spectrum[z, y]
    del spectrum
    # The map's Nyquist frequency is both, the positive and the negative, where there is more room.
    for axis, n in enumerate(coarse):
        ends = np.moveaxis(out, axis, 0)
        if n % 2 == 0 and axis < 2:
            ends[n // 2] = ends[-(n // 2)]
            ends[-(n // 2)] *= 0.5
        if n % 2 == 0:
            ends[n // 2] *= 0.5
    for axis, n in enumerate(fine):
        k = (fft.rfftfreq(n) if axis == 2 else fft.fftfreq(n)).astype(volume.dtype)
        shape = [1, 1, 1]
        shape[axis] = -1
        out *= np.exp(_VOXEL_GAUSSIAN * k**2).reshape(shape)
    return fft.fftshift(fft.irfftn(out, s=fine, overwrite_x=True))


def _both_ends(n: int) -> tuple[slice, slice]:
    """Frequencies of a transform of n values from 0, and the negative ones at its end."""
    return slice(0, n - n // 2), slice(-(n // 2), None) if n > 1 else slice(0, 0)


def load_kind(name: str, particle: Particle, ratios: Ratios | None = None) -> Kind:
    """Read a structure or map, or make a part, and make it a kind of particle.

    A structure is centred on its bounding box; if it repeats along a helix at no given distance
    from the axis, only along the axis, which stays where x and y are 0 in its file.

    Raises:
        ValueError: for a file that cannot be read, or as `read_structure`, or for a part of a
            size that cannot be, naming the key.
    """
    kind = _kind_alone(name, particle, ratios)
    if particle.axis_distance is None:
        return kind
    return replace(kind, positions=kind.positions + as_tensor([particle.axis_distance, 0, 0]))


def _kind_alone(name: str, particle: Particle, ratios: Ratios | None) -> Kind:
    key = f"specimen.particles.{name}"
    if particle.structure is None and particle.map is None:
        return _made_kind(name, particle, ratios)
    if particle.map is not None:
        try:
            volume, voxel = read_volume(Path(particle.map), particle.voxel_size)
        except (ValueError, OSError) as error:
            raise ValueError(f"{key}.map: {error}") from error
        positions, group = map_gaussians(volume * particle.map_scale, voxel)
        if len(positions) == 0:
            raise ValueError(f"{key}.map={particle.map}: is zero everywhere")
        return Kind(name, positions, group, absorbing=group.scaled(_ratio_of_maps(ratios)))
    model = particle.model if particle.model == "all" else int(particle.model)
    try:
        atoms = read_structure(particle.structure or "", particle.assembly, model,
                               particle.hydrogens, particle.altlocs)
    except (ValueError, OSError) as error:
        raise ValueError(f"{key}.structure: {error}") from error
    centred = atoms.centred()
    if particle.placement == "helix" and particle.axis_distance is None:
        centred = replace(centred, positions=torch.cat(
            [atoms.positions[:, :2], centred.positions[:, 2:]], dim=1))
    atoms = centred
    if particle.b_factor is not None:
        atoms = replace(atoms, b_factors=torch.full_like(atoms.b_factors, particle.b_factor))
    return kind_of(atoms, name, ratios)


def _made_kind(name: str, particle: Particle, ratios: Ratios | None) -> Kind:
    """A part that needs no file."""
    size = particle.membrane or [0.0, 0.0]
    b_factor = GOLD_B_FACTOR if particle.b_factor is None else particle.b_factor
    makers = {
        "fiducial": lambda diameter: gold_kind(name, diameter, b_factor, ratios),
        "globule": lambda mass: globule_kind(name, mass, ratios),
        "vesicle": lambda diameter: vesicle_kind(name, diameter, ratios),
        "membrane": lambda _: membrane_kind(name, (size[0], size[1]), particle.bend, ratios),
    }
    part = next(part for part in makers if getattr(particle, part) is not None)
    try:
        return makers[part](getattr(particle, part))
    except ValueError as error:
        raise ValueError(f"specimen.particles.{name}.{part}: {error}") from error


def _ratio_of_maps(ratios: Ratios | None) -> float:
    """Absorption over potential of what is given relative to ice: that of protein [1/V]."""
    real, imaginary = protein_potentials(ratios)
    return (imaginary - 1) / (real - mean_potential("ice"))


def build_specimen(scene: Scene) -> Specimen:
    """Read all particles and place their copies; the seed decides what is random.

    Raises:
        ValueError: for files that cannot be read, particles that do not fit into the ice, or
            more copies than fit without overlap.
    """
    names = list(scene.specimen.particles)
    ice = ice_of(scene)
    kinds = tuple(load_kind(name, scene.specimen.particles[name], ice.ratios) for name in names)
    poses = place(scene, {kind.name: kind.radius for kind in kinds})
    for kind, pose in zip(kinds, poses, strict=True):
        _check_inside(kind, pose, scene.specimen.ice.thickness)
    return Specimen(kinds, poses, ice)


def ice_of(scene: Scene) -> Ice:
    """The ice of a scene."""
    ice = scene.specimen.ice
    path, stronger, loss = None, 1.0, None
    if ice.mean_free_path is not None:
        path = mean_free_path(ice.mean_free_path, scene.microscope.voltage)
        if ice.protein_mean_free_path is not None:
            by_composition = ice.mean_free_path / protein_potentials()[1]
            stronger = by_composition / ice.protein_mean_free_path
        loss = _loss(scene, float(path), stronger)
    shape = None
    if ice.hole_radius is not None or any(ice.slope):
        (x, y), (along_x, along_y) = ice.hole_centre, ice.slope
        shape = IceShape(ice.thickness, ice.edge_thickness, ice.hole_radius or math.inf, x, y,
                         along_x, along_y, ice.carbon_thickness)
    # Particles in vacuum have no ice around them.
    granularity = ice.granularity if ice.potential else 0.0
    if loss is None:
        return Ice(ice.thickness, ice.potential, path, stronger, granularity, scene.seed, shape)
    return Ice(ice.thickness, ice.potential, loss.mean_free_path, stronger, granularity,
               scene.seed, shape, loss.ratios, loss.stopped)


def _loss(scene: Scene, inelastic: float, stronger: float) -> Loss | None:
    """What an aperture makes of the loss; None without one."""
    microscope, ice = scene.microscope, scene.specimen.ice
    if microscope.aperture is None:
        return None
    angle = microscope.aperture * 1e-3 / (2 * microscope.focal_length)
    band = BAND_LIMIT / 2 * scene.interaction.oversampling / scene.pixel_size
    return loss_with_aperture(
        inelastic, microscope.voltage, angle / wavelength(microscope.voltage),
        band if scene.interaction.mode != "weak_phase" else 0.0,
        ice.granularity if ice.potential else 0.0, stronger)


def _check_inside(kind: Kind, pose: Poses, thickness: float) -> None:
    """ValueError if a copy sticks out of the ice."""
    low, high = depths(kind, pose, torch.eye(3, dtype=current().dtype))
    out = torch.nonzero(torch.maximum(-low, high) > thickness / 2).flatten()
    if len(out):
        n = int(out[0])
        raise ValueError(
            f"specimen.particles.{kind.name}: copy {n} reaches from z={float(low[n]):.0f} to "
            f"{float(high[n]):.0f} A: must lie within the ice, "
            f"specimen.ice.thickness={thickness:g}")


def depths(
    kind: Kind, pose: Poses, rotation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest z [A] of the scatterers of each copy, after a rotation, (copies,)."""
    axis = rotation[2].detach().to(kind.positions)
    centres = as_tensor(pose.positions).detach() @ axis
    rows = axis @ as_tensor(pose.rotations).detach()  # (copies, 3)
    if len(centres) == 0:
        return centres, centres
    at_once = max(1, BATCH // len(kind.positions))
    reach = [(z.amin(1), z.amax(1)) for z in
             (part @ kind.positions.detach().T for part in rows.split(at_once))]
    low, high = (torch.cat(bound) for bound in zip(*reach, strict=True))
    return centres + low, centres + high
