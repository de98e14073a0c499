"""Where the copies of each kind of particle are, and how they are turned."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tem_taichi.files.particles import read_placements
from tem_taichi.machine import check_memory
from tem_taichi.rotations import euler_to_matrix, matrix_to_euler, random_rotations
from tem_taichi.scene.particle import ParticleSettings
from tem_taichi.scene.placing import HelixSettings, PlacingSettings
from tem_taichi.scene.settings import Scene
from tem_taichi.series.filaments import along_filaments, helix, random_filaments
from tem_taichi.series.proposals import proposals
from tem_taichi.series.spheres import adsorbed, in_ball, on_sphere, too_close
from tem_taichi.specimen.poses import Poses
from tem_taichi.streams import Key

_PER_COPY = 500.0
"""Memory of a copy while it is placed [bytes]."""

_BLOCK = 64
"""Orientations drawn at once, so that more copies begin with those of fewer."""


def particle_table(names: list[str], poses: tuple[Poses, ...]) -> pd.DataFrame:
    """Truth of all copies: kind, x, y, z [A from the specimen's centre], rot, tilt, psi [deg].

    Where there are filaments, `filament` numbers those of all kinds from 1; 0 = in none.
    """
    parts = []
    filaments = 0
    for name, pose in zip(names, poses, strict=True):
        rot, tilt, psi = matrix_to_euler(pose.rotations)
        x, y, z = pose.positions.T
        parts.append(pd.DataFrame({"kind": name, "x": x, "y": y, "z": z,
                                   "rot": rot, "tilt": tilt, "psi": psi}))
        if any(other.filament is not None for other in poses):
            number = np.zeros(len(x), dtype=np.int64)
            if pose.filament is not None and len(x):
                number = pose.filament + filaments
                filaments = int(number.max())
            parts[-1]["filament"] = number
    columns = ["kind", "x", "y", "z", "rot", "tilt", "psi"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def place(scene: Scene, radii: dict[str, float]) -> tuple[Poses, ...]:
    """Poses of every kind, in the order of the scene.

    Listed and lattice copies and listed filaments stand where the scene puts them; then random
    filaments are added, thickest first, and then random copies, largest kind first, where their
    bounding spheres overlap with none. A filament is the spheres about the points of its axis
    where its copies stand. The sphere of a copy holds those that stand around it as well.

    Args:
        scene: particles, seed and box.
        radii: of the bounding sphere of each kind [A].

    Raises:
        ValueError: if a random kind does not fit into the ice, or not all of its copies.
    """
    particles = scene.specimen.particles
    reach = _reaches(particles, radii)
    placed: dict[str, Poses] = {}
    for name, particle in particles.items():
        placing, filaments = particle.placing, particle.helix
        if placing.placement == "listed":
            placed[name] = _listed(name, placing)
        elif placing.placement == "lattice":
            placed[name] = _lattice(name, placing, reach[name], scene.seed)
        elif filaments is not None and (placing.positions is not None or placing.file):
            listed = _listed(name, placing)
            placed[name] = _filaments(filaments, np.asarray(listed.positions),
                                      np.asarray(listed.rotations))
    middles = {name: particle.sphere.around for name, particle in particles.items()
               if particle.sphere is not None}

    def stand(around: Sequence[str]) -> None:
        """Largest first, clear of the others about the same middle."""
        for name in sorted(around, key=lambda name: (-radii[name], name)):
            middle = middles[name]
            beside = [(placed[other], radii[other]) for other in around
                      if other in placed and middles[other] == middle]
            placed[name] = _around(
                name, scene, _CENTRE if middle is None else placed[middle], radii, beside)

    stand([name for name, middle in middles.items() if middle is None])
    for name in sorted(set(particles) - set(placed) - set(middles), key=lambda name: (
            particles[name].helix is None, -reach[name], name)):
        taken = [(np.asarray(poses.positions), reach[other]) for other, poses in placed.items()]
        placing, filaments = particles[name].placing, particles[name].helix
        placed[name] = (
            _random(name, scene, placing, reach[name], taken) if filaments is None else
            _random_filaments(name, scene, placing, filaments, reach[name], taken))
    stand([name for name, middle in middles.items() if middle is not None])
    return tuple(placed[name] for name in particles)


_CENTRE = Poses(np.zeros((1, 3)), np.eye(3)[None])


def _reaches(
    particles: Mapping[str, ParticleSettings], radii: dict[str, float]
) -> dict[str, float]:
    """Radius of the sphere about a copy that holds it and all that stand around it [A]."""
    reach = dict(radii)
    for name, particle in particles.items():
        sphere = particle.sphere
        if sphere is not None and sphere.around is not None and particle.placing.count:
            own = radii[name] if particle.placing.placement == "sphere" else 0.0
            reach[sphere.around] = max(reach[sphere.around], sphere.radius + own)
    return reach


def _around(
    name: str, scene: Scene, middles: Poses, radii: dict[str, float],
    beside: list[tuple[Poses, float]],
) -> Poses:
    """Copies on spheres or in balls around others.

    Args:
        name: of the kind.
        scene: that has it.
        middles: what it stands around.
        radii: of the bounding sphere of each kind [A].
        beside: kinds that stand around the same already, and their radii.
    """
    particle, radius = scene.specimen.particles[name], radii[name]
    placing, sphere = particle.placing, particle.sphere
    if sphere is None:
        raise ValueError(f"specimen.particles.{name}.radius: must be given [A]")
    n, count = len(middles.positions), placing.count
    check_memory(f"specimen.particles.{name}.count={count}: around each of {n}",
                 _PER_COPY * count * n, "lower it")
    turn = _turned(name, placing, 1)
    apart = 2 * radius + placing.gap
    points, turns = [np.empty((0, 3))], [np.empty((0, 3, 3))]
    for i in range(n):
        centre, rotation = np.asarray(middles.positions)[i], np.asarray(middles.rotations)[i]
        taken = [((there.reshape(n, -1, 3)[i] - centre) @ rotation, radius + other + placing.gap)
                 for there, other in ((np.asarray(poses.positions), other)
                                      for poses, other in beside)]
        # An arrangement of its own for each, the same however many there are.
        rng = Key.of(scene.seed, "placement", name).generator(part=i)
        if placing.placement == "ball":
            if sphere.radius < radius:
                raise ValueError(f"specimen.particles.{name}.radius={sphere.radius:g}: must be at "
                                 f"least that of the particle, {radius:.0f} A")
            local, turned = in_ball(count, sphere.radius - radius, apart, taken, rng)
        else:
            local, turned = on_sphere(count, sphere.radius, apart, sphere.even,
                                      np.eye(3) if turn is None else turn[0], taken, rng)
            if sphere.even and i == 0 and (close := too_close(local, apart, taken)):
                warnings.warn(
                    f"specimen.particles.{name}.even=true: the bounding spheres of {close} of "
                    f"{count} copies overlap with others; lower the count or enlarge the radius, "
                    "unless their shapes leave room", stacklevel=2)
        if len(local) < count:
            raise ValueError(
                f"specimen.particles.{name}.count={count}: only {len(local)} of radius "
                f"{radius:.0f} A found room without overlap at specimen.particles.{name}.radius="
                f"{sphere.radius:g}; lower the count or enlarge the radius")
        points.append(local @ rotation.T + centre)
        turns.append(rotation @ turned)
    return Poses(np.concatenate(points), np.concatenate(turns))


def _turned(name: str, placing: PlacingSettings, n: int) -> np.ndarray | None:
    """Rotations of the scene's orientations for n copies; None where it gives none."""
    given = placing.orientations
    if given is None:
        return None
    if len(given) not in (1, n):
        raise ValueError(f"specimen.particles.{name}.orientations: has {len(given)} entries; must "
                         f"have one, or one for each of the {n} copies")
    rot, tilt, psi = np.asarray(given, dtype=float).T
    return np.broadcast_to(euler_to_matrix(rot, tilt, psi), (n, 3, 3)).copy()


def _listed(name: str, placing: PlacingSettings) -> Poses:
    if placing.file is not None:
        try:
            table = read_placements(Path(placing.file))
        except (ValueError, OSError) as error:
            raise ValueError(f"specimen.particles.{name}.file: {error}") from error
        if "kind" in table and table["kind"].notna().any():
            table = table[table["kind"] == name]
        return Poses(table[["x", "y", "z"]].to_numpy(float, copy=True),
                     euler_to_matrix(table["rot"], table["tilt"], table["psi"]))
    positions = np.asarray(placing.positions, dtype=float).reshape(-1, 3)
    rotations = _turned(name, placing, len(positions))
    if rotations is None:
        rotations = np.tile(np.eye(3), (len(positions), 1, 1))
    return Poses(positions, rotations)


def _lattice(name: str, placing: PlacingSettings, radius: float, seed: int) -> Poses:
    spacing = placing.spacing or [2.2 * radius] * 3
    check_memory(f"specimen.particles.{name}.copies={list(placing.copies)}",
                 _PER_COPY * math.prod(placing.copies), "lower them")
    axes = [(np.arange(n) - (n - 1) / 2) * step
            for n, step in zip(placing.copies, spacing, strict=True)]
    positions = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    rotations = _turned(name, placing, len(positions))
    return Poses(positions, _any_way_up(name, len(positions), seed) if rotations is None
                 else rotations)


def _any_way_up(name: str, n: int, seed: int) -> np.ndarray:
    """Rotations of n copies, those of the first the same however many there are."""
    rng = Key.of(seed, "orientation", name).generator()
    blocks = [random_rotations(_BLOCK, rng) for _ in range(-(-n // _BLOCK))]
    return np.concatenate([np.empty((0, 3, 3)), *blocks])[:n]


def _subunits(filaments: HelixSettings) -> tuple[np.ndarray, np.ndarray]:
    """Heights and turns along a filament."""
    n = max(1, round(filaments.length / filaments.rise))
    return helix(n, filaments.rise, filaments.twist)


def _filaments(filaments: HelixSettings, middles: np.ndarray, rotations: np.ndarray) -> Poses:
    heights, turns = _subunits(filaments)
    return Poses(*along_filaments(middles, rotations, heights, turns),
                 np.repeat(np.arange(len(middles)) + 1, len(heights)))


def _random_filaments(
    name: str, scene: Scene, placing: PlacingSettings, filaments: HelixSettings, radius: float,
    taken: list[tuple[np.ndarray, float]],
) -> Poses:
    thickness = scene.specimen.ice.thickness
    if 2 * radius > thickness and placing.count:
        raise ValueError(
            f"specimen.ice.thickness={thickness:g}: must be at least the diameter of the filament "
            f"specimen.particles.{name}, {2 * radius:.0f} A, to place it at random")
    x, y = _field(scene)
    heights, _ = _subunits(filaments)
    check_memory(
        f"specimen.particles.{name}.count={placing.count}: {len(heights):,} copies each",
        _PER_COPY * placing.count * len(heights), "lower it or length")
    middles, rotations = random_filaments(
        placing.count, np.array([x / 2, y / 2, thickness / 2 - radius]), heights,
        [(points, radius + other + placing.gap) for points, other in taken],
        2 * radius + placing.gap, filaments.inclination,
        Key.of(scene.seed, "placement", name).generator())
    if len(middles) < placing.count:
        raise ValueError(
            f"specimen.particles.{name}.count={placing.count}: only {len(middles)} filaments of "
            f"radius {radius:.0f} A and length {filaments.length:g} A found room without overlap "
            f"in {x:g} x {y:g} x {thickness:g} A; lower the count or enlarge specimen.size or "
            "specimen.ice.thickness")
    return _filaments(filaments, middles, rotations)


def _field(scene: Scene) -> Sequence[float]:
    """Extent in x and y within which random copies are placed [A]."""
    return scene.specimen.size or [n * scene.pixel_size for n in reversed(scene.shape)]


def _random(
    name: str, scene: Scene, placing: PlacingSettings, radius: float,
    taken: list[tuple[np.ndarray, float]],
) -> Poses:
    """Random sequential adsorption of spheres, many proposals at a time."""
    thickness = scene.specimen.ice.thickness
    if placing.count == 0:
        return Poses(np.empty((0, 3)), np.empty((0, 3, 3)))
    if 2 * radius > thickness:
        raise ValueError(
            f"specimen.ice.thickness={thickness:g}: must be at least the diameter of "
            f"specimen.particles.{name}, {2 * radius:.0f} A, to place it at random")
    size = _field(scene)
    if 2 * radius > min(size):
        raise ValueError(
            f"specimen.size: the field of {size[0]:g} x {size[1]:g} A (null = the image's) must be "
            f"at least the diameter of specimen.particles.{name}, {2 * radius:.0f} A, to place it "
            "at random")
    room = (size[0] + 2 * radius) * (size[1] + 2 * radius) * thickness
    sphere = 4 / 3 * math.pi * radius**3
    if placing.count * sphere > room:
        raise ValueError(
            f"specimen.particles.{name}.count={placing.count}: only {room / sphere:.0f} of radius "
            f"{radius:.0f} A would fill {size[0]:g} x {size[1]:g} x {thickness:g} A; lower the "
            "count or enlarge specimen.size or specimen.ice.thickness")
    check_memory(f"specimen.particles.{name}.count={placing.count}",
                 _PER_COPY * placing.count, "lower it")
    accepted = adsorbed(
        placing.count, 2 * radius + placing.gap,
        proposals(scene, placing, radius, Key.of(scene.seed, "placement", name).generator()),
        [(centres, radius + other + placing.gap) for centres, other in taken])
    if len(accepted) < placing.count:
        raise ValueError(
            f"specimen.particles.{name}.count={placing.count}: only {len(accepted)} of radius "
            f"{radius:.0f} A found room without overlap in {size[0]:g} x {size[1]:g} x "
            f"{thickness:g} A; lower the count or enlarge specimen.size or specimen.ice.thickness")
    return Poses(accepted, _any_way_up(name, placing.count, scene.seed))
