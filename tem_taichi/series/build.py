"""From a scene to its specimen: kinds read or made, copies placed, the ice and its loss."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from tem_taichi.device import as_tensor, current
from tem_taichi.files.mrc import read_volume
from tem_taichi.grid import BAND_LIMIT
from tem_taichi.physics import wavelength
from tem_taichi.scene.particle import (
    FiducialSettings,
    GlobuleSettings,
    MapSettings,
    MembraneSettings,
    ParticleSettings,
    Source,
    StructureSettings,
    VesicleSettings,
)
from tem_taichi.scene.settings import Scene
from tem_taichi.scene.specimen import IceSettings
from tem_taichi.series.placement import place
from tem_taichi.series.tilts import acquisition_angles
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
from tem_taichi.specimen.ice_shape import IceShape
from tem_taichi.specimen.kinds import Kind, kind_of
from tem_taichi.specimen.lipids import Patch, bent_into_sphere, read_patch
from tem_taichi.specimen.maps import map_gaussians, ratio_of_maps
from tem_taichi.specimen.membranes import membrane_kind, vesicle_kind
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.scanned import of_atoms, of_ice
from tem_taichi.specimen.slicing import depths


def load_kind(name: str, particle: ParticleSettings, ratios: Ratios | None = None) -> Kind:
    """Read a structure or map, or make a part, and make it a kind of particle.

    A structure is centred on its bounding box; if it repeats along a helix at no given distance
    from the axis, only along the axis, which stays where x and y are 0 in its file.

    Raises:
        ValueError: for a file that cannot be read, or as `read_structure`, or for a part of a
            size that cannot be, naming the key.
    """
    distance = particle.helix.axis_distance if particle.helix else None
    keeps_axis = particle.helix is not None and distance is None
    source, key = particle.source, f"specimen.particles.{name}"
    patch = None
    if isinstance(source, VesicleSettings) and source.lipids is not None:
        with _said_of(f"{key}.lipids"):
            patch = read_patch(source.lipids, source.lipid_area)
    with _said_of(f"{key}.{particle.made_from}"):
        kind = replace(_made(name, source, keeps_axis, ratios, patch), render=particle.render)
    if distance is None:
        return kind
    return replace(kind, positions=kind.positions + as_tensor([distance, 0, 0]))


@contextmanager
def _said_of(key: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{key}: {error}") from error


def _made(name: str, source: Source, keeps_axis: bool, ratios: Ratios | None,
          patch: Patch | None) -> Kind:
    """What a particle is made from, by its class; a vesicle of a patch, if there is one."""
    match source:
        case StructureSettings():
            return _of_structure(name, source, keeps_axis, ratios)
        case MapSettings():
            return _of_map(name, source, ratios)
        case FiducialSettings():
            b_factor = GOLD_B_FACTOR if source.b_factor is None else source.b_factor
            return gold_kind(name, source.fiducial, b_factor, ratios)
        case GlobuleSettings():
            return globule_kind(name, source.globule, ratios)
        case VesicleSettings():
            if patch is not None:
                return kind_of(bent_into_sphere(patch, source.vesicle), name, ratios)
            return vesicle_kind(name, source.vesicle, ratios)
        case MembraneSettings():
            along_x, along_y = source.membrane
            return membrane_kind(name, (along_x, along_y), source.bend, ratios)


def _of_structure(name: str, source: StructureSettings, keeps_axis: bool,
                  ratios: Ratios | None) -> Kind:
    model = source.model if source.model == "all" else int(source.model)
    atoms = read_structure(source.structure, source.assembly, model, source.hydrogens,
                           source.altlocs)
    centred = atoms.centred().positions
    if keeps_axis:
        centred = torch.cat([atoms.positions[:, :2], centred[:, 2:]], dim=1)
    atoms = replace(atoms, positions=centred)
    if source.b_factor is not None:
        atoms = replace(atoms, b_factors=torch.full_like(atoms.b_factors, source.b_factor))
    return kind_of(atoms, name, ratios)


def _of_map(name: str, source: MapSettings, ratios: Ratios | None) -> Kind:
    volume, voxel = read_volume(Path(source.map), source.voxel_size)
    positions, group = map_gaussians(volume * source.map_scale, voxel)
    if len(positions) == 0:
        raise ValueError(f"{source.map}: is zero everywhere")
    return Kind(name, positions, group, absorbing=group.scaled(ratio_of_maps(ratios)))


def build_specimen(scene: Scene) -> ParticlesInIce:
    """Read all particles and place their copies; the seed decides what is random.

    Raises:
        ValueError: for files that cannot be read, particles that do not fit into the ice, or
            more copies than fit without overlap.
    """
    names = list(scene.specimen.particles)
    ice = ice_of(scene)
    images = len(acquisition_angles(scene.tilts))
    kinds = tuple(replace(load_kind(name, scene.specimen.particles[name], ice.ratios),
                          images=images) for name in names)
    poses = place(scene, {kind.name: kind.radius for kind in kinds})
    for kind, pose in zip(kinds, poses, strict=True):
        _check_inside(kind, pose, scene.specimen.ice)
    if scene.instrument == "stem":
        stem = scene.stem
        seen = (scene.microscope.voltage, stem.signal, (stem.inner_angle, stem.outer_angle))
        # A map's values are densities already.
        kinds = tuple(kind if scene.specimen.particles[kind.name].made_from == "map" else
                      of_atoms(kind, *seen) for kind in kinds)
        ice = of_ice(ice, *seen)
    return ParticlesInIce(kinds, poses, ice)


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
    if (ice.hole_radius is not None or any(ice.slope) or ice.relief is not None
            or ice.absorption is not None):
        (x, y), (along_x, along_y) = ice.hole_centre, ice.slope
        shape = IceShape(thickness=ice.thickness, edge_thickness=ice.edge_thickness,
                         hole_radius=ice.hole_radius or math.inf, centre_x=x, centre_y=y,
                         slope_x=along_x, slope_y=along_y, carbon_thickness=ice.carbon_thickness,
                         relief=None if ice.relief is None else as_tensor(ice.relief),
                         relief_heights=None if ice.relief_heights is None else
                         as_tensor(ice.relief_heights), relief_spacing=ice.relief_spacing,
                         absorption=None if ice.absorption is None else
                         as_tensor(ice.absorption), absorption_spacing=ice.absorption_spacing)
    # Particles in vacuum have no ice around them.
    granularity = ice.granularity if ice.potential else 0.0
    made = Ice(thickness=ice.thickness, potential=ice.potential, mean_free_path=path,
               particle_absorption=stronger, granularity=granularity, seed=scene.seed, shape=shape)
    if loss is None:
        return made
    return replace(made, mean_free_path=loss.mean_free_path, ratios=loss.ratios,
                   stopped=loss.stopped)


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


def _check_inside(kind: Kind, pose: Poses, ice: IceSettings) -> None:
    """ValueError if a copy sticks out of the ice."""
    # Faces that are no planes, or what stands for such, may have beads on them.
    if ice.relief is not None or ice.absorption is not None:
        return
    thickness = ice.thickness
    low, high = depths(kind, pose, torch.eye(3, dtype=current().dtype))
    out = torch.nonzero(torch.maximum(-low, high) > thickness / 2).flatten()
    if len(out):
        n = int(out[0])
        raise ValueError(
            f"specimen.particles.{kind.name}: copy {n} reaches from z={float(low[n]):.0f} to "
            f"{float(high[n]):.0f} A: must lie within the ice, "
            f"specimen.ice.thickness={thickness:g}")
