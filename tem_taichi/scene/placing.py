"""Where the copies of a particle are, in YAML."""

from dataclasses import dataclass
from typing import Any

from tem_taichi import checks
from tem_taichi.scene.typed import keep_tuples


@dataclass(frozen=True)
class PlacingSettings:
    """Where the copies are, and how they are turned."""

    placement: str = "random"
    """random, lattice, listed, or helix = copies repeat along straight filaments"""
    count: int = 1
    """of random copies, or of random filaments"""
    gap: float = 0.0
    """least distance between the bounding spheres of random copies [A]"""
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

    def check(self, key: str) -> None:
        """ValueError unless the values are allowed; `key` is the particle's."""
        checks.one_of(f"{key}.placement", self.placement, ("random", "lattice", "listed", "helix"))
        checks.whole(f"{key}.count", self.count, 0, 10_000_000)
        checks.not_negative(f"{key}.gap", self.gap, "A")
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
