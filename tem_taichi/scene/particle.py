"""A kind of particle in YAML: what it is made from, which decides its keys, and where copies are.

The keys of both stand beside each other in one mapping. To add a source, write a class like those
below with its key first, add it to `Source`, and a function to series/build.py that makes it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, get_args

from tem_taichi import checks
from tem_taichi.checks import shown
from tem_taichi.scene.placing import (
    OF_HELIX,
    OF_SPHERE,
    ROUND,
    HelixSettings,
    PlacingSettings,
    SphereSettings,
    check_placement,
    helix_of,
    sphere_of,
)
from tem_taichi.scene.typed import BESIDE, below, hints_of, keep_tuples, typed


@dataclass(frozen=True)
class StructureSettings:
    """Atoms of a model."""

    structure: str
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

    def check(self, key: str) -> None:
        """ValueError unless the values are allowed; `key` is the particle's."""
        checks.one_of(f"{key}.hydrogens", self.hydrogens, ("file", "parent", "none"))
        checks.one_of(f"{key}.altlocs", self.altlocs, ("all", "highest"))
        checks.check(self.model == "all" or bool(re.fullmatch(r"[1-9][0-9]{0,8}", self.model)),
                     f"{key}.model", self.model, "a MODEL number from 1 up, or all")
        checks.not_negative(f"{key}.b_factor", self.b_factor, "A^2")


@dataclass(frozen=True)
class MapSettings:
    """A map of the potential."""

    map: str
    """MRC map of the potential [V]; its voxel size is the header's"""
    voxel_size: float | None = None
    """overrides the map's header [A]"""
    map_scale: float = 1.0
    """multiplies the map's values"""

    def check(self, key: str) -> None:
        """ValueError unless the values are allowed; `key` is the particle's."""
        checks.positive(f"{key}.voxel_size", self.voxel_size, "A")
        checks.within(f"{key}.map_scale", self.map_scale, -1e6, 1e6, "1")


@dataclass(frozen=True)
class FiducialSettings:
    """A ball of fcc gold."""

    fiducial: float
    """diameter of a ball of fcc gold [A]"""
    b_factor: float | None = None
    """of its atoms [A^2]; null = 0.2, that of the crystal near 100 K"""

    def check(self, key: str) -> None:
        """ValueError unless the values are allowed; `key` is the particle's."""
        checks.positive(f"{key}.fiducial", self.fiducial, "A")
        checks.not_negative(f"{key}.b_factor", self.b_factor, "A^2")


@dataclass(frozen=True)
class GlobuleSettings:
    """A featureless ball of protein."""

    globule: float
    """mass of a featureless ball of protein [kDa]"""

    def check(self, key: str) -> None:
        """ValueError unless the value is allowed; `key` is the particle's."""
        checks.positive(f"{key}.globule", self.globule, "kDa")


@dataclass(frozen=True)
class VesicleSettings:
    """A vesicle of lipid bilayer."""

    vesicle: float
    """outer diameter of a vesicle of lipid bilayer, filled with ice [A]"""
    lipids: str | None = None
    """PDB or mmCIF file of a flat patch of bilayer, normal along z, whose molecules are bent into
    the vesicle atom by atom; null = the mean profile of a bilayer"""
    lipid_area: float | None = None
    """of a lipid in a leaflet of that patch [A^2]; null = by the cell that the file states"""

    def check(self, key: str) -> None:
        """ValueError unless the values are allowed; `key` is the particle's."""
        checks.positive(f"{key}.vesicle", self.vesicle, "A")
        checks.positive(f"{key}.lipid_area", self.lipid_area, "A^2")
        checks.check(self.lipid_area is None or self.lipids is not None, f"{key}.lipid_area",
                     self.lipid_area, "null where lipids is")


@dataclass(frozen=True)
class MembraneSettings:
    """A patch of lipid bilayer."""

    membrane: tuple[float, ...]
    """sides of a patch of lipid bilayer along x and y, normal along z [A]"""
    bend: float | None = None
    """radius of curvature of the membrane about an axis along y below it [A]; null = flat"""

    def __post_init__(self) -> None:
        keep_tuples(self)

    def check(self, key: str) -> None:
        """ValueError unless the values are allowed; `key` is the particle's."""
        checks.positives(f"{key}.membrane", self.membrane, 2, "A")
        checks.positive(f"{key}.bend", self.bend, "A")


Source = (StructureSettings | MapSettings | FiducialSettings | GlobuleSettings | VesicleSettings
          | MembraneSettings)
SOURCES: dict[str, type[Source]] = {fields(kind)[0].name: kind for kind in get_args(Source)}
"""What a kind of particle can be made from, by the key that says so, the first of its class."""

_FILES = ("structure", "map", "lipids")
"""Keys that name files which particles are made from."""


@dataclass(frozen=True)
class ParticleSettings:
    """One kind of particle and where its copies are."""

    source: Source = field(metadata=BESIDE)
    placing: PlacingSettings = field(default=PlacingSettings(), metadata=BESIDE)
    helix: HelixSettings | None = field(default=None, metadata=BESIDE)
    sphere: SphereSettings | None = field(default=None, metadata=BESIDE)
    render: str | None = None
    """atoms = every copy atom by atom; volume = copies of one volume, within 2e-3 of the atoms and
    faster for many copies at coarse pixels; null = volume where at least twice as fast"""

    @classmethod
    def from_plain(cls, content: Any, key: str = "particle") -> "ParticleSettings":
        """The kind whose key is there, from a mapping of its keys and those of placing.

        A key of another kind may stand there at its default, as scenes of 0.1.0 have them.

        Raises:
            ValueError: with one line that names key, value and what is allowed.
        """
        if not isinstance(content, dict):
            raise ValueError(f"{key}={shown(content)}: must be a mapping of "
                             f"{', '.join(hints_of(cls))}")
        name = _source_of(content, key)
        parts = [hints_of(part) for part in (
            SOURCES[name], PlacingSettings, HelixSettings, SphereSettings)]
        own = parts[0] | parts[1] | parts[2] | parts[3] | {"render": str | None}
        values: dict[str, Any] = {}
        for word, value in content.items():
            place = below(key, word)
            if word in own:
                # Scenes of 0.1.0 have them as null where there is no helix.
                if value is not None or word not in (*OF_HELIX, *OF_SPHERE):
                    values[word] = typed(own[word], value, place)
            elif not _is_default(word, value, place):
                near = get_close_matches(str(word), own, 1)
                meant = f"did you mean {near[0]}? A" if near else "a"
                raise ValueError(f"{place}={shown(value)}: no such key; {meant} {name} has "
                                 f"{', '.join(own)}")
        source, placing, helix, sphere = ({word: values[word] for word in part if word in values}
                                  for part in parts)
        placed = PlacingSettings(**placing)
        check_placement(placed.placement, key)  # before others' errors tell it
        return cls(SOURCES[name](**source), placed, helix_of(helix, placed.placement, key),
                   sphere_of(sphere, placed.placement, key), values.get("render"))

    def check(self, key: str) -> None:
        """ValueError unless every value is allowed; `key` is the particle's."""
        self.source.check(key)
        self.placing.check(key)
        if self.render is not None:
            checks.one_of(f"{key}.render", self.render, ("atoms", "volume"))
        checks.check((self.helix is not None) == (self.placing.placement == "helix"),
                     f"{key}.placement", self.placing.placement,
                     "helix where rise, twist and length are given, and not elsewhere")
        checks.check((self.sphere is not None) == (self.placing.placement in ROUND),
                     f"{key}.placement", self.placing.placement,
                     "sphere or ball where radius is given, and not elsewhere")
        for part in (self.helix, self.sphere):
            if part is not None:
                part.check(key)

    @property
    def made_from(self) -> str:
        """The key that says what it is made from, one of `SOURCES`."""
        return next(key for key, kind in SOURCES.items() if isinstance(self.source, kind))

    @property
    def files(self) -> list[str]:
        """Names of the files that it is read from."""
        names = [getattr(self.source, name, None) for name in _FILES]
        return [name for name in (*names, self.placing.file) if name]

    def with_files(self, found: Callable[[str | None], str | None]) -> "ParticleSettings":
        """The same with the name of every file changed by a function."""
        source: Any = self.source
        files = {name: found(getattr(source, name)) for name in _FILES
                 if hasattr(source, name)}
        return replace(self, source=replace(source, **files),
                       placing=replace(self.placing, file=found(self.placing.file)))


def particle_of(**keys: Any) -> ParticleSettings:
    """A particle from the keys that it has in YAML, such as globule=50.0, count=3.

    Raises:
        ValueError: as `ParticleSettings.from_plain`.
    """
    return ParticleSettings.from_plain(keys)


def _source_of(content: dict[Any, Any], key: str) -> str:
    """The one key that says what a particle is made from."""
    given = [name for name in SOURCES if content.get(name) is not None]
    first, *others = SOURCES
    checks.check(bool(given), f"{key}.{first}", None, f"given, or else one of {', '.join(others)}")
    name = given[0]
    value = typed(hints_of(SOURCES[name])[name], content[name], f"{key}.{name}")
    checks.check(len(given) == 1, f"{key}.{name}", value,
                 f"null where {given[-1]} is given: a particle is one of {', '.join(SOURCES)}")
    return name


def _is_default(name: object, value: Any, key: str) -> bool:
    """Whether a key of some source has the value that it has where it is not given."""
    for kind in SOURCES.values():
        for one in fields(kind):
            if one.name == name:
                return value is None or typed(hints_of(kind)[one.name], value, key) == one.default
    return False
