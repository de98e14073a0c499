"""The part of the scene that says what is in the box: ice, particles and where they are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tem_taichi import checks
from tem_taichi.scene.typed import keep_tuples

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
"""What may become part of a file's name or a word in a table."""

NAME_SAYS = "letters, digits, '_', '-' and '.', at most 100 in all"

SOURCES = ("structure", "map", "fiducial", "globule", "vesicle", "membrane")
"""What a kind of particle can be made from."""


@dataclass(frozen=True)
class IceSettings:
    """The slab of vitreous ice that holds the particles."""

    thickness: float = 600.0
    """of the untilted slab [A]"""
    potential: float = 4.48
    """mean inner potential [V]; 0 = particles in vacuum"""
    mean_free_path: float | None = 3950.0
    """of the loss from the image at 300 kV [A], scaled by (v/c)^2 to other voltages; null = no
    loss. 3950 A is that of zero-loss imaging"""
    protein_mean_free_path: float | None = None
    """the same of solid protein at 300 kV [A], which scales what all particles absorb; null = by
    composition, 3010 A where that of ice is 3950 A"""
    granularity: float = 1.0
    """strength of the random structure of amorphous ice: 1 = physical, 0 = a continuum"""
    edge_thickness: float | None = None
    """at the rim of the hole and beyond [A]; null = as in the centre. Between them the ice is a
    lens, centre + (edge - centre) rho^2 / R^2"""
    hole_radius: float | None = None
    """of the hole in the carbon film [A]; null = a slab without end"""
    hole_centre: tuple[float, ...] = (0.0, 0.0)
    """x, y from the specimen's centre [A]"""
    slope: tuple[float, ...] = (0.0, 0.0)
    """of the layer's mid-plane along x, y [A of z per A]"""
    carbon_thickness: float = 0.0
    """of the carbon film around the hole [A]; 0 = none"""

    def __post_init__(self) -> None:
        keep_tuples(self)
        protein = self.protein_mean_free_path
        checks.check(protein is None or 1 <= protein < 1e12, "specimen.ice.protein_mean_free_path",
                     protein, "at least 1 [A], or null")
        checks.check(protein is None or self.mean_free_path is not None,
                     "specimen.ice.protein_mean_free_path", protein,
                     "null where mean_free_path is")
        checks.within("specimen.ice.granularity", self.granularity, 0, 10, "1")
        checks.positive("specimen.ice.edge_thickness", self.edge_thickness, "A")
        checks.positive("specimen.ice.hole_radius", self.hole_radius, "A")
        for key in ("hole_centre", "slope"):
            checks.check(len(getattr(self, key)) == 2, f"specimen.ice.{key}", getattr(self, key),
                         "two numbers, x and y")
        for n, slope in enumerate(self.slope):
            checks.within(f"specimen.ice.slope[{n}]", slope, -1, 1, "1")
        checks.not_negative("specimen.ice.carbon_thickness", self.carbon_thickness, "A")
        needs_hole = self.edge_thickness is not None or self.carbon_thickness > 0
        checks.check(self.hole_radius is not None or not needs_hole, "specimen.ice.hole_radius",
                     self.hole_radius, "given where edge_thickness or carbon_thickness is [A]")
        checks.positive("specimen.ice.thickness", self.thickness, "A")
        checks.within("specimen.ice.potential", self.potential, 0, 100, "V")
        checks.check(self.mean_free_path is None or 1 <= self.mean_free_path < 1e12,
                     "specimen.ice.mean_free_path", self.mean_free_path,
                     "at least 1 [A], or null")


@dataclass(frozen=True)
class ParticleSettings:
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
    fiducial: float | None = None
    """diameter of a ball of fcc gold [A] instead of a structure"""
    globule: float | None = None
    """mass of a featureless ball of protein [kDa] instead of a structure"""
    vesicle: float | None = None
    """outer diameter of a vesicle of lipid bilayer, filled with ice [A], instead of a structure"""
    membrane: tuple[float, ...] | None = None
    """sides of a patch of lipid bilayer along x and y, normal along z [A], instead of a
    structure"""
    bend: float | None = None
    """radius of curvature of the membrane about an axis along y below it [A]; null = flat"""
    placement: str = "random"
    """random, lattice, listed, or helix = copies repeat along straight filaments"""
    count: int = 1
    """of random copies, or of random filaments"""
    gap: float = 0.0
    """least distance between the bounding spheres of random copies [A]"""
    rise: float | None = None
    """for helix: from one copy to the next along the filament's axis, which is the particle's z
    [A]"""
    twist: float | None = None
    """for helix: turn from one copy to the next [deg]; positive = right-handed"""
    length: float | None = None
    """of each filament [A], in whole rises"""
    axis_distance: float | None = None
    """for helix: from the axis to the copies' own centres, along their x [A]; null = the axis is
    where x and y are 0 in the structure's file or in the middle of a map"""
    inclination: float = 5.0
    """largest angle of random filaments to the ice's plane [deg]"""
    spacing: tuple[float, ...] | None = None
    """of the lattice in x, y, z [A]; null = 1.1 diameters"""
    copies: tuple[int, ...] = (1, 1, 1)
    """of the lattice in x, y, z"""
    positions: tuple[tuple[float, ...], ...] | None = None
    """for listed: x, y, z from the specimen's centre [A]; for helix: of the filaments' middles,
    null = random"""
    orientations: tuple[tuple[float, ...], ...] | None = None
    """for listed, lattice and helix: rot, tilt, psi as RELION's [deg]; one for all, or one each;
    null = none turned if listed, random on a lattice"""
    file: str | None = None
    """for listed and helix: RELION star or CSV file with positions and orientations"""

    def __post_init__(self) -> None:
        keep_tuples(self)


@dataclass(frozen=True)
class SpecimenSettings:
    """What is in the box."""

    ice: IceSettings = field(default_factory=IceSettings)
    damage: float = 1.0
    """radiation damage by the accumulated dose: 1 = as measured, 0 = none"""
    size: tuple[float, ...] | None = None
    """extent in x and y within which random copies are placed [A]; null = the image's field"""
    particles: Mapping[str, ParticleSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keep_tuples(self)
        checks.within("specimen.damage", self.damage, 0, 100, "1")
        checks.positives("specimen.size", self.size, 2, "A")
        for name, particle in self.particles.items():
            checks.check(bool(re.fullmatch(NAME, name)), "specimen.particles", name,
                         f"names of {NAME_SAYS}")
            _check_kind(f"specimen.particles.{name}", particle)
            _check_placement(f"specimen.particles.{name}", particle)


def _check_kind(key: str, particle: ParticleSettings) -> None:
    given = [source for source in SOURCES if getattr(particle, source) is not None]
    checks.check(bool(given), f"{key}.structure", None,
                 f"given, or else one of {', '.join(SOURCES[1:])}")
    checks.check(len(given) == 1, f"{key}.{given[0]}", getattr(particle, given[0]),
                 f"null where {given[-1]} is given: a particle is one of {', '.join(SOURCES)}")
    checks.positive(f"{key}.fiducial", particle.fiducial, "A")
    checks.positive(f"{key}.globule", particle.globule, "kDa")
    checks.positive(f"{key}.vesicle", particle.vesicle, "A")
    checks.positives(f"{key}.membrane", particle.membrane, 2, "A")
    checks.positive(f"{key}.bend", particle.bend, "A")
    checks.check(particle.bend is None or particle.membrane is not None, f"{key}.bend",
                 particle.bend, "null without membrane")
    checks.one_of(f"{key}.hydrogens", particle.hydrogens, ("file", "parent", "none"))
    checks.one_of(f"{key}.altlocs", particle.altlocs, ("all", "highest"))
    checks.check(particle.model == "all" or bool(re.fullmatch(r"[1-9][0-9]{0,8}", particle.model)),
                 f"{key}.model", particle.model, "a MODEL number from 1 up, or all")
    checks.not_negative(f"{key}.b_factor", particle.b_factor, "A^2")
    checks.positive(f"{key}.voxel_size", particle.voxel_size, "A")
    checks.within(f"{key}.map_scale", particle.map_scale, -1e6, 1e6, "1")


def _check_placement(key: str, particle: ParticleSettings) -> None:
    checks.one_of(f"{key}.placement", particle.placement, ("random", "lattice", "listed", "helix"))
    checks.whole(f"{key}.count", particle.count, 0, 10_000_000)
    checks.not_negative(f"{key}.gap", particle.gap, "A")
    checks.positives(f"{key}.spacing", particle.spacing, 3, "A")
    checks.check(len(particle.copies) == 3 and all(1 <= n <= 1000 for n in particle.copies),
                 f"{key}.copies", particle.copies, "three whole numbers from 1 to 1000")
    checks.rows(f"{key}.positions", particle.positions, 3, "A")
    checks.rows(f"{key}.orientations", particle.orientations, 3, "deg")
    _check_helix(key, particle)
    if particle.placement == "helix":
        checks.check(particle.positions is None or particle.file is None, f"{key}.positions",
                     particle.positions, "null where file is given")
        checks.check(particle.orientations is None or particle.positions is not None,
                     f"{key}.orientations", particle.orientations,
                     "null for random filaments (give positions too)")
    elif particle.placement == "listed":
        checks.check((particle.positions is None) != (particle.file is None), f"{key}.positions",
                     particle.positions, "given for placement: listed, or else file, and not both")
    else:
        checks.check(particle.positions is None and particle.file is None, f"{key}.positions",
                     particle.positions or particle.file,
                     f"null for placement: {particle.placement} (use placement: listed)")


def _check_helix(key: str, particle: ParticleSettings) -> None:
    """Keys of filaments, which are all or none."""
    if particle.placement != "helix":
        for name in ("rise", "twist", "length", "axis_distance"):
            checks.check(getattr(particle, name) is None, f"{key}.{name}",
                         getattr(particle, name),
                         f"null for placement: {particle.placement} (use placement: helix)")
        return
    for name, unit in (("rise", "A"), ("twist", "deg"), ("length", "A")):
        checks.check(getattr(particle, name) is not None, f"{key}.{name}", None,
                     f"given for placement: helix [{unit}]")
    rise, twist, length = particle.rise or 0.0, particle.twist or 0.0, particle.length or 0.0
    checks.within(f"{key}.rise", rise, 0.01, checks.LARGE, "A")
    checks.within(f"{key}.twist", twist, -360, 360, "deg")
    checks.within(f"{key}.length", length, rise, min(checks.LARGE, 1e5 * rise),
                  "A, from one rise to 100,000")
    checks.not_negative(f"{key}.axis_distance", particle.axis_distance, "A")
    checks.within(f"{key}.inclination", particle.inclination, 0, 90, "deg")
