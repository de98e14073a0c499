"""The part of the scene that says what is in the box: ice, particles and radiation damage."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tem_taichi import checks
from tem_taichi.scene.particle import ParticleSettings as ParticleSettings
from tem_taichi.scene.placing import check_knots
from tem_taichi.scene.typed import keep_tuples

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
"""What may become part of a file's name or a word in a table."""

NAME_SAYS = "letters, digits, '_', '-' and '.', at most 100 in all"


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

    relief: tuple[tuple[float, ...], ...] | None = None
    """factors on the thickness at knots about the specimen's centre, rows along y from the least,
    each along x: linear between knots, beyond them as at the nearest; null = 1"""
    relief_heights: tuple[tuple[float, ...], ...] | None = None
    """of the mid-plane at the same knots, above that of the slope [A]; null = 0"""
    relief_spacing: float = 500.0
    """between knots of the relief, along x and y [A]"""
    absorption: tuple[tuple[tuple[float, ...], ...], ...] | None = None
    """what the ice takes from the beam over what ice does, as where it is denser: in layers of
    equal thickness from below, each as the relief, linear between their middles; null = 1"""
    absorption_spacing: float = 500.0
    """between knots of the absorption, along x and y [A]"""

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
        check_knots("specimen.ice.relief", self.relief, 0.001)
        check_knots("specimen.ice.relief_heights", self.relief_heights, -checks.LARGE,
                    checks.LARGE, "A")
        checks.check(self.relief_heights is None or (self.relief is not None and (
            len(self.relief), len(self.relief[0])) == (
            len(self.relief_heights), len(self.relief_heights[0]))), "specimen.ice.relief_heights",
            self.relief_heights, "at as many knots as specimen.ice.relief")
        checks.positive("specimen.ice.relief_spacing", self.relief_spacing, "A")
        self._check_absorption()
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

    def _check_absorption(self) -> None:
        key = "specimen.ice.absorption"
        checks.positive(f"{key}_spacing", self.absorption_spacing, "A")
        if self.absorption is None:
            return
        for n, layer in enumerate(self.absorption):
            check_knots(f"{key}[{n}]", layer, 0.0)
        sizes = {(len(layer), len(layer[0])) for layer in self.absorption}
        checks.check(len(self.absorption) >= 2 and len(sizes) == 1, key, self.absorption,
                     "two layers or more, of as many knots")
        checks.check(self.mean_free_path is not None, key, self.absorption,
                     "null where mean_free_path is")


@dataclass(frozen=True)
class SpecimenSettings:
    """What is in the box."""

    ice: IceSettings = field(default_factory=IceSettings)
    damage: float = 1.0
    """radiation damage by the accumulated dose: 1 = as measured, 0 = none"""
    size: tuple[float, ...] | None = None
    """extent in x and y within which random copies are placed [A]; null = the image's field"""
    particles: Mapping[str, ParticleSettings] = field(default_factory=dict)
    """by name; each is made from a structure, map, fiducial, globule, vesicle or membrane"""

    def __post_init__(self) -> None:
        keep_tuples(self)
        checks.within("specimen.damage", self.damage, 0, 100, "1")
        checks.positives("specimen.size", self.size, 2, "A")
        for name, particle in self.particles.items():
            checks.check(bool(re.fullmatch(NAME, name)), "specimen.particles", name,
                         f"names of {NAME_SAYS}")
            particle.check(f"specimen.particles.{name}")
            if particle.sphere is not None and particle.sphere.around is not None:
                around = particle.sphere.around
                middle = self.particles.get(around)
                checks.check(middle is not None and middle.sphere is None and middle.helix is None,
                             f"specimen.particles.{name}.around", around,
                             "the name of another particle, of placement random, listed or lattice")
