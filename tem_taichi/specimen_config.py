"""The part of the scene that says what is in the box: ice, particles and where they are."""

import re
from dataclasses import dataclass, field

from tem_taichi import checks

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
"""What may become part of a file's name or a word in a table."""


@dataclass
class Ice:
    """The slab of vitreous ice that holds the particles."""

    thickness: float = 600.0
    """of the untilted slab [A]"""
    potential: float = 4.48
    """mean inner potential [V]; 0 = particles in vacuum"""
    mean_free_path: float | None = 3950.0
    """of the loss from the image [A]; null = no loss. 3950 A: zero-loss imaging at 300 kV"""

    def __post_init__(self) -> None:
        checks.positive("specimen.ice.thickness", self.thickness, "A")
        checks.within("specimen.ice.potential", self.potential, 0, 100, "V")
        checks.positive("specimen.ice.mean_free_path", self.mean_free_path, "A")


@dataclass
class Particle:
    """One kind of particle and where its copies are."""

    structure: str | None = None
    """PDB or mmCIF file, also .gz, or a PDB id"""
    assembly: str | None = None
    """biological assembly, as '1'; null = the coordinates as they stand"""
    model: str = "1"
    """MODEL number, or all = the sum of them"""
    altlocs: str = "all"
    """all = every conformation at its occupancy; highest = the likeliest alone"""
    hydrogens: str = "parent"
    """file = those in the file; parent = added on their heavy atoms if the file has none; none"""
    b_factor: float | None = None
    """one B-factor for every atom [A^2]; null = the file's"""
    map: str | None = None
    """MRC map of the potential [V] instead of a structure; its voxel size is the header's"""
    voxel_size: float | None = None
    """overrides the map's header [A]"""
    map_scale: float = 1.0
    """multiplies the map's values"""
    placement: str = "random"
    """random, lattice or listed"""
    count: int = 1
    """of random copies"""
    gap: float = 0.0
    """least distance between the bounding spheres of random copies [A]"""
    spacing: list[float] | None = None
    """of the lattice in x, y, z [A]; null = 1.1 diameters"""
    copies: list[int] = field(default_factory=lambda: [1, 1, 1])
    """of the lattice in x, y, z"""
    positions: list[list[float]] | None = None
    """for listed: x, y, z from the specimen's centre [A]"""
    orientations: list[list[float]] | None = None
    """for listed and lattice: rot, tilt, psi as RELION's [deg]; one for all, or one each;
    null = none turned if listed, random on a lattice"""
    file: str | None = None
    """for listed: RELION star or CSV file with positions and orientations"""


@dataclass
class Specimen:
    """What is in the box."""

    ice: Ice = field(default_factory=Ice)
    size: list[float] | None = None
    """extent in x and y within which random copies are placed [A]; null = the image's field"""
    particles: dict[str, Particle] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.positives("specimen.size", self.size, 2, "A")
        for name, particle in self.particles.items():
            checks.check(bool(re.fullmatch(NAME, name)), "specimen.particles", name,
                         "names of letters, digits, '_', '-' and '.'")
            _check_kind(f"specimen.particles.{name}", particle)
            _check_placement(f"specimen.particles.{name}", particle)


def _check_kind(key: str, particle: Particle) -> None:
    checks.check((particle.structure is None) != (particle.map is None), f"{key}.structure",
                 particle.structure, "given, or else map, and not both")
    checks.one_of(f"{key}.hydrogens", particle.hydrogens, ("file", "parent", "none"))
    checks.one_of(f"{key}.altlocs", particle.altlocs, ("all", "highest"))
    checks.check(particle.model == "all" or bool(re.fullmatch(r"[1-9][0-9]{0,8}", particle.model)),
                 f"{key}.model", particle.model, "a MODEL number from 1 up, or all")
    checks.not_negative(f"{key}.b_factor", particle.b_factor, "A^2")
    checks.positive(f"{key}.voxel_size", particle.voxel_size, "A")
    checks.within(f"{key}.map_scale", particle.map_scale, -1e6, 1e6, "1")


def _check_placement(key: str, particle: Particle) -> None:
    checks.one_of(f"{key}.placement", particle.placement, ("random", "lattice", "listed"))
    checks.whole(f"{key}.count", particle.count, 0, 10_000_000)
    checks.not_negative(f"{key}.gap", particle.gap, "A")
    checks.positives(f"{key}.spacing", particle.spacing, 3, "A")
    checks.check(len(particle.copies) == 3 and all(1 <= n <= 1000 for n in particle.copies),
                 f"{key}.copies", particle.copies, "three whole numbers from 1 to 1000")
    checks.rows(f"{key}.positions", particle.positions, 3, "A")
    checks.rows(f"{key}.orientations", particle.orientations, 3, "deg")
    if particle.placement == "listed":
        checks.check((particle.positions is None) != (particle.file is None), f"{key}.positions",
                     particle.positions, "given for placement: listed, or else file, and not both")
    else:
        checks.check(particle.positions is None and particle.file is None, f"{key}.positions",
                     particle.positions or particle.file,
                     f"null for placement: {particle.placement} (use placement: listed)")
