"""Where the copies of a particle are, in YAML."""

from dataclasses import dataclass
from typing import Any

from tem_taichi import checks
from tem_taichi.scene.typed import keep_tuples

ROUND = ("sphere", "ball")
"""Placements about a middle."""


def check_knots(key: str, knots: Any, least: float, most: float = 1000.0, unit: str = "1"
                ) -> None:
    """ValueError unless numbers at knots are a table of two rows and columns or more, or null.

    Args:
        key: for the message.
        knots: rows of numbers.
        least: of a number.
        most: of a number.
        unit: of both.
    """
    if knots is None:
        return
    checks.check(len(knots) >= 2 and len(knots[0]) >= 2
                 and all(len(row) == len(knots[0]) for row in knots), key, knots,
                 "two rows of numbers or more, all as long, of two or more")
    for n, row in enumerate(knots):
        for m, value in enumerate(row):
            checks.within(f"{key}[{n}][{m}]", value, least, most, unit)


@dataclass(frozen=True)
class PlacingSettings:
    """Where the copies are, and how they are turned."""

    placement: str = "random"
    """random, lattice, listed, helix = copies repeat along straight filaments, sphere = copies
    stand on spheres, z outward, or ball = copies fill balls"""
    count: int = 1
    """of random copies, of random filaments, or of copies on each sphere or in each ball"""
    gap: float = 0.0
    """least distance between the bounding spheres of random copies [A]"""
    density: tuple[tuple[float, ...], ...] | None = None
    """where random copies rather are: relative numbers at knots about the specimen's centre, rows
    along y from the least, each along x, linear between knots; null = everywhere alike"""
    density_spacing: float = 500.0
    """between knots of the density, along x and y [A]"""
    spacing: tuple[float, ...] | None = None
    """of the lattice in x, y, z [A]; null = 1.1 diameters"""
    copies: tuple[int, ...] = (1, 1, 1)
    """of the lattice in x, y, z"""
    positions: tuple[tuple[float, ...], ...] | None = None
    """for listed: x, y, z from the specimen's centre [A]; for helix: of the filaments' middles,
    null = random"""
    orientations: tuple[tuple[float, ...], ...] | None = None
    """for listed, lattice and helix: rot, tilt, psi as RELION's [deg]; one for all, or one each;
    null = none turned if listed, random on a lattice. For sphere: one, by which a copy is turned
    before it stands upright"""
    file: str | None = None
    """for listed and helix: RELION star or CSV file with positions and orientations"""

    def __post_init__(self) -> None:
        keep_tuples(self)

    def check(self, key: str) -> None:
        """ValueError unless the values are allowed; `key` is the particle's."""
        check_placement(self.placement, key)
        checks.whole(f"{key}.count", self.count, 0, 10_000_000)
        checks.not_negative(f"{key}.gap", self.gap, "A")
        check_knots(f"{key}.density", self.density, 0.0)
        checks.positive(f"{key}.density_spacing", self.density_spacing, "A")
        if self.density is not None:
            checks.check(self.placement == "random", f"{key}.density", self.density,
                         f"null for placement: {self.placement} (use placement: random)")
            checks.check(any(map(any, self.density)), f"{key}.density", self.density,
                         "above 0 somewhere")
        checks.positives(f"{key}.spacing", self.spacing, 3, "A")
        checks.check(len(self.copies) == 3 and all(1 <= n <= 1000 for n in self.copies),
                     f"{key}.copies", self.copies, "three whole numbers from 1 to 1000")
        checks.rows(f"{key}.positions", self.positions, 3, "A")
        checks.rows(f"{key}.orientations", self.orientations, 3, "deg")
        if self.placement == "helix":
            checks.check(self.positions is None or self.file is None, f"{key}.positions",
                         self.positions, "null where file is given")
            checks.check(self.orientations is None or self.positions is not None,
                         f"{key}.orientations", self.orientations,
                         "null for random filaments (give positions too)")
        elif self.placement == "listed":
            checks.check((self.positions is None) != (self.file is None), f"{key}.positions",
                         self.positions, "given for placement: listed, or else file, and not both")
        else:
            checks.check(self.orientations is None or self.placement != "ball",
                         f"{key}.orientations", self.orientations,
                         "null in a ball, whose copies are turned at random")
            checks.check(self.orientations is None or self.placement != "random",
                         f"{key}.orientations", self.orientations,
                         "null for placement: random, whose copies are turned at random (use "
                         "placement: listed or lattice)")
            checks.check(self.orientations is None or self.placement != "sphere"
                         or len(self.orientations) == 1, f"{key}.orientations", self.orientations,
                         "one for all on a sphere")
            checks.check(self.positions is None and self.file is None, f"{key}.positions",
                         self.positions or self.file,
                         f"null for placement: {self.placement} (use placement: listed)")


@dataclass(frozen=True)
class HelixSettings:
    """Filaments along which copies repeat, for `placement: helix`."""

    rise: float
    """for helix: from one copy to the next along the filament's axis, which is the particle's z
    [A]"""
    twist: float
    """for helix: turn from one copy to the next [deg]; positive = right-handed"""
    length: float
    """of each filament [A], in whole rises"""
    axis_distance: float | None = None
    """for helix: from the axis to the copies' own centres, along their x [A]; null = the axis is
    where x and y are 0 in the structure's file or in the middle of a map"""
    inclination: float = 5.0
    """largest angle of random filaments to the ice's plane [deg]"""

    def check(self, key: str) -> None:
        """ValueError unless the values are allowed; `key` is the particle's."""
        checks.within(f"{key}.rise", self.rise, 0.01, checks.LARGE, "A")
        checks.within(f"{key}.twist", self.twist, -360, 360, "deg")
        checks.within(f"{key}.length", self.length, self.rise,
                      min(checks.LARGE, 1e5 * self.rise), "A, from one rise to 100,000")
        checks.not_negative(f"{key}.axis_distance", self.axis_distance, "A")
        checks.within(f"{key}.inclination", self.inclination, 0, 90, "deg")


OF_HELIX = ("rise", "twist", "length", "axis_distance")
"""Keys that nothing but filaments may have; the first three they must."""


def check_placement(placement: str, key: str) -> None:
    """ValueError unless there is such a placement; `key` is the particle's."""
    checks.one_of(f"{key}.placement", placement,
                  ("random", "lattice", "listed", "helix", *ROUND))


def helix_of(values: dict[str, Any], placement: str, key: str) -> HelixSettings | None:
    """Filaments from their keys, which are all or none.

    Raises:
        ValueError: for one too many or missing; `key` is the particle's.
    """
    if placement == "helix":
        for name, unit in zip(OF_HELIX, ("A", "deg", "A"), strict=False):
            checks.check(name in values, f"{key}.{name}", None,
                         f"given for placement: helix [{unit}]")
        return HelixSettings(**values)
    for name in OF_HELIX:
        checks.check(name not in values, f"{key}.{name}", values.get(name),
                     f"null for placement: {placement} (use placement: helix)")
    return None


@dataclass(frozen=True)
class SphereSettings:
    """Spheres on which copies stand, or balls which they fill, for `placement: sphere` or `ball`.

    A virus is put together so: an envelope, and around it spikes and what it holds.
    """

    radius: float
    """for sphere: of the copies' centres from its middle; for ball: of the ball that holds them
    whole [A]"""
    around: str | None = None
    """for sphere and ball: name of another kind of particle, around each copy of which there is
    one, turned with it; null = one about the specimen's centre"""
    even: bool = False
    """for sphere: whether copies are spread evenly, even where they overlap, which a warning says,
    instead of at random without overlap"""

    def check(self, key: str) -> None:
        """ValueError unless the values are allowed; `key` is the particle's."""
        checks.positive(f"{key}.radius", self.radius, "A")


OF_SPHERE = ("radius", "around", "even")
"""Keys that nothing but spheres and balls may have; the first they must."""


def sphere_of(values: dict[str, Any], placement: str, key: str) -> SphereSettings | None:
    """A sphere or ball from its keys, which are all or none.

    Raises:
        ValueError: for one too many or missing; `key` is the particle's.
    """
    if placement in ROUND:
        checks.check("radius" in values, f"{key}.radius", None,
                     f"given for placement: {placement} [A]")
        checks.check(placement == "sphere" or not values.get("even"), f"{key}.even",
                     values.get("even"), f"false for placement: {placement}")
        return SphereSettings(**values)
    for name in OF_SPHERE:
        checks.check(not values.get(name), f"{key}.{name}", values.get(name),
                     f"null for placement: {placement} (use placement: {' or '.join(ROUND)})")
    return None
