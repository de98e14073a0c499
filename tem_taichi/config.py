"""The scene: every setting of a simulation with its unit, its sign and its allowed range.

These dataclasses are the schema of every YAML file in conf/ and of the user's scenes. They are
not frozen because OmegaConf makes frozen ones read-only before a scene can fill them in; nothing
changes them after `load_scene`.
"""

import math
import re
from dataclasses import dataclass, field

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _check(ok: bool, key: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{key}={value}: must be {allowed}")


def _positive(key: str, value: float, unit: str) -> None:
    _check(math.isfinite(value) and value > 0, key, value, f"positive [{unit}]")


def _not_negative(key: str, value: float, unit: str) -> None:
    _check(math.isfinite(value) and value >= 0, key, value, f"zero or positive [{unit}]")


def _finite(key: str, value: float, unit: str) -> None:
    _check(math.isfinite(value), key, value, f"a finite number [{unit}]")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    _check(value in allowed, key, repr(value), "one of " + ", ".join(allowed))


def _whole(key: str, value: int, least: int) -> None:
    _check(value >= least, key, value, f"a whole number from {least} up")


def _rows(key: str, rows: list[list[float]] | None, columns: int, unit: str) -> None:
    for n, row in enumerate(rows or []):
        _check(len(row) == columns and all(map(math.isfinite, row)), f"{key}[{n}]", list(row),
               f"{columns} finite numbers [{unit}]")


@dataclass
class Microscope:
    """The instrument's own constants."""

    name: str = "microscope"
    voltage: float = 300.0
    """[kV]"""
    spherical_aberration: float = 2.7
    """Cs [mm]"""
    chromatic_aberration: float = 2.7
    """Cc [mm]"""
    energy_spread: float = 0.0
    """1/e half-width of the beam's energies [eV]; FWHM / 1.665"""
    convergence: float = 0.0
    """1/e half-angle of illumination [mrad]"""
    aperture: float | None = None
    """objective aperture's diameter [um]; null = open"""
    focal_length: float = 3.0
    """of the objective lens [mm]"""

    def __post_init__(self) -> None:
        _positive("microscope.voltage", self.voltage, "kV")
        _finite("microscope.spherical_aberration", self.spherical_aberration, "mm")
        _not_negative("microscope.chromatic_aberration", self.chromatic_aberration, "mm")
        _not_negative("microscope.energy_spread", self.energy_spread, "eV")
        _not_negative("microscope.convergence", self.convergence, "mrad")
        _positive("microscope.focal_length", self.focal_length, "mm")
        if self.aperture is not None:
            _positive("microscope.aperture", self.aperture, "um")


@dataclass
class Imaging:
    """How the lens is set for these images."""

    defocus: float = 20000.0
    """[A] of the specimen's centre, positive = underfocus"""
    astigmatism: float = 0.0
    """defocus U - V [A]; U lies along the angle"""
    astigmatism_angle: float = 0.0
    """direction of defocus U [deg], from +x towards +y"""
    phase_shift: float = 0.0
    """by a phase plate [deg]"""
    amplitude_contrast: float = 0.07
    """Q: absorption over potential of the specimen, in [0, 1)"""

    def __post_init__(self) -> None:
        for key, unit in (("defocus", "A"), ("astigmatism", "A"), ("astigmatism_angle", "deg"),
                          ("phase_shift", "deg")):
            _finite(f"optics.{key}", getattr(self, key), unit)
        _check(0 <= self.amplitude_contrast < 1, "optics.amplitude_contrast",
               self.amplitude_contrast, "in [0, 1)")


@dataclass
class Camera:
    """The detector, see tem_taichi.detector."""

    name: str = "detector"
    kind: str = "counting"
    """integrating or counting"""
    gain: float = 1.0
    """counts per electron"""
    dqe: float | None = None
    """DQE(0) in (0, 1]; null = 1"""
    mtf: list[float] | None = None
    """a, b, c, alpha, beta of [a/(1+alpha w^2) + b/(1+beta w^2) + c]/(a+b+c), w in cycles/pixel"""
    mtf_table: list[list[float]] | None = None
    """rows of frequency [cycles/pixel] and MTF, instead of parameters"""
    mtf_file: str | None = None
    """RELION star file or two columns of frequency [cycles/pixel] and MTF"""
    dqe_file: str | None = None
    """the same for DQE(w) of a counting detector"""
    integer: bool = False
    """round counts to whole numbers and store 16 bits"""

    def __post_init__(self) -> None:
        _one_of("detector.kind", self.kind, ("integrating", "counting"))
        _positive("detector.gain", self.gain, "counts per electron")


@dataclass
class TiltErrors:
    """Standard deviations of seeded random errors of each tilt; the truth is written out."""

    angle: float = 0.0
    """of the tilt angle [deg]"""
    axis_angle: float = 0.0
    """of the image's rotation [deg]"""
    shift: float = 0.0
    """of the image's shift in x and in y [A]"""
    defocus: float = 0.0
    """[A]"""
    dose: float = 0.0
    """as a fraction of the dose, below 0.3"""

    def __post_init__(self) -> None:
        for key, unit in (("angle", "deg"), ("axis_angle", "deg"), ("shift", "A"),
                          ("defocus", "A"), ("dose", "fraction")):
            _not_negative(f"tilts.errors.{key}", getattr(self, key), unit)
        _check(self.dose < 0.3, "tilts.errors.dose", self.dose, "below 0.3")


@dataclass
class Tilts:
    """The tilt series; `scheme: listed` with `angles: [0]` is a single micrograph."""

    scheme: str = "dose_symmetric"
    """linear, dose_symmetric, bidirectional or listed: the order of acquisition"""
    minimum: float = -60.0
    """[deg]"""
    maximum: float = 60.0
    """[deg]"""
    step: float = 3.0
    """[deg]"""
    start: float = 0.0
    """first angle of bidirectional and dose_symmetric [deg]"""
    group: int = 1
    """tilts on one side before the other, for dose_symmetric"""
    angles: list[float] | None = None
    """for listed: in the order of acquisition [deg]"""
    axis_angle: float = 0.0
    """of the tilt axis from +y, counter-clockwise [deg], as IMOD's; a positive tilt turns the
    specimen right-handedly about it"""
    shifts: list[list[float]] | None = None
    """x, y of each image [A], in the order of acquisition"""
    defocus_offsets: list[float] | None = None
    """added to the defocus of each image [A], in the order of acquisition"""
    doses: list[float] | None = None
    """of each image [e-/A^2], in the order of acquisition, instead of `dose`"""
    errors: TiltErrors = field(default_factory=TiltErrors)

    def __post_init__(self) -> None:
        _one_of("tilts.scheme", self.scheme,
                ("linear", "dose_symmetric", "bidirectional", "listed"))
        for key in ("minimum", "maximum", "start", "axis_angle"):
            _finite(f"tilts.{key}", getattr(self, key), "deg")
        _whole("tilts.group", self.group, 1)
        if self.scheme == "listed":
            _check(bool(self.angles), "tilts.angles", self.angles,
                   "a list of angles [deg] for scheme: listed")
        else:
            _check(self.angles is None, "tilts.angles", self.angles,
                   f"null for scheme: {self.scheme} (use scheme: listed)")
            _positive("tilts.step", self.step, "deg")
            _check(self.minimum <= self.maximum, "tilts.minimum", self.minimum,
                   f"at most tilts.maximum={self.maximum} [deg]")
            if self.scheme != "linear":
                _check(self.minimum <= self.start <= self.maximum, "tilts.start", self.start,
                       f"between tilts.minimum={self.minimum} and tilts.maximum={self.maximum}")
        _rows("tilts.shifts", self.shifts, 2, "A")
        for n, offset in enumerate(self.defocus_offsets or []):
            _finite(f"tilts.defocus_offsets[{n}]", offset, "A")
        for n, dose in enumerate(self.doses or []):
            _positive(f"tilts.doses[{n}]", dose, "e-/A^2")


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
        _positive("specimen.ice.thickness", self.thickness, "A")
        _not_negative("specimen.ice.potential", self.potential, "V")
        if self.mean_free_path is not None:
            _positive("specimen.ice.mean_free_path", self.mean_free_path, "A")


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
        if self.size is not None:
            _check(len(self.size) == 2 and all(math.isfinite(s) and s > 0 for s in self.size),
                   "specimen.size", list(self.size), "two positive numbers [A]")
        for name, particle in self.particles.items():
            _check_particle(name, particle)


def _check_particle(name: str, particle: Particle) -> None:
    key = f"specimen.particles.{name}"
    _check(bool(_NAME.fullmatch(name)), "specimen.particles", repr(name),
           "a name of letters, digits, '_', '-' and '.'")
    _check((particle.structure is None) != (particle.map is None), f"{key}.structure",
           particle.structure, "given, or else map, and not both")
    _one_of(f"{key}.hydrogens", particle.hydrogens, ("file", "parent", "none"))
    _one_of(f"{key}.altlocs", particle.altlocs, ("all", "highest"))
    _check(particle.model == "all" or particle.model.isdecimal(), f"{key}.model",
           particle.model, "a MODEL number or all")
    _one_of(f"{key}.placement", particle.placement, ("random", "lattice", "listed"))
    _whole(f"{key}.count", particle.count, 0)
    _not_negative(f"{key}.gap", particle.gap, "A")
    _finite(f"{key}.map_scale", particle.map_scale, "1")
    if particle.b_factor is not None:
        _not_negative(f"{key}.b_factor", particle.b_factor, "A^2")
    if particle.voxel_size is not None:
        _positive(f"{key}.voxel_size", particle.voxel_size, "A")
    _check(len(particle.copies) == 3 and min(particle.copies) >= 1, f"{key}.copies",
           list(particle.copies), "three whole numbers from 1 up")
    if particle.spacing is not None:
        _check(len(particle.spacing) == 3 and all(math.isfinite(s) and s > 0
                                                  for s in particle.spacing),
               f"{key}.spacing", list(particle.spacing), "three positive numbers [A]")
    _rows(f"{key}.positions", particle.positions, 3, "A")
    _rows(f"{key}.orientations", particle.orientations, 3, "deg")
    if particle.placement == "listed":
        _check((particle.positions is None) != (particle.file is None), f"{key}.positions",
               particle.positions, "given for placement: listed, or else file, and not both")
    else:
        _check(particle.positions is None and particle.file is None, f"{key}.positions",
               particle.positions or particle.file,
               f"null for placement: {particle.placement} (use placement: listed)")


@dataclass
class Interaction:
    """How the beam passes through the specimen."""

    mode: str = "multislice"
    """multislice, projection or weak_phase"""
    slice_thickness: float = 20.0
    """[A]"""
    depth: str = "nearest"
    """nearest = an atom belongs to one slice; smooth = shared by two, differentiable in z"""
    oversampling: float = 1.5
    """detector pixels over wave pixels, a multiple of 0.5; below 1.5 signal beyond
    oversampling / 1.5 of the detector's Nyquist frequency is lost"""
    margin: float | None = None
    """computed around the image against wrap-around [A]; null = wavelength defocus / (2 pixel)"""

    def __post_init__(self) -> None:
        _one_of("interaction.mode", self.mode, ("multislice", "projection", "weak_phase"))
        _positive("interaction.slice_thickness", self.slice_thickness, "A")
        _one_of("interaction.depth", self.depth, ("nearest", "smooth"))
        _check(1 <= self.oversampling <= 8 and 2 * self.oversampling == int(2 * self.oversampling),
               "interaction.oversampling", self.oversampling, "a multiple of 0.5 from 1 to 8")
        if self.margin is not None:
            _not_negative("interaction.margin", self.margin, "A")


@dataclass
class Compute:
    """Where to compute."""

    arch: str = "auto"
    """auto, cpu or gpu"""
    dtype: str = "float32"
    """float32 or float64"""

    def __post_init__(self) -> None:
        _one_of("compute.arch", self.arch, ("auto", "cpu", "gpu"))
        _one_of("compute.dtype", self.dtype, ("float32", "float64"))


@dataclass
class Scene:
    """Everything that decides a simulation."""

    name: str = "tilt_series"
    """of the tilt series in files and tables"""
    seed: int = 0
    """of everything random"""
    output: str = "tem_taichi_output"
    """folder for the results"""
    overwrite: bool = False
    """replace an earlier result in that folder"""
    shape: list[int] = field(default_factory=lambda: [512, 512])
    """rows and columns of an image [pixel]"""
    pixel_size: float = 2.0
    """at the specimen [A]"""
    dose: float = 3.0
    """of each image [e-/A^2]"""
    specimen: Specimen = field(default_factory=Specimen)
    microscope: Microscope = field(default_factory=Microscope)
    optics: Imaging = field(default_factory=Imaging)
    detector: Camera = field(default_factory=Camera)
    tilts: Tilts = field(default_factory=Tilts)
    interaction: Interaction = field(default_factory=Interaction)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        _check(bool(_NAME.fullmatch(self.name)), "name", repr(self.name),
               "letters, digits, '_', '-' and '.'")
        _whole("seed", self.seed, 0)
        _check(bool(self.output.strip()), "output", repr(self.output), "the name of a folder")
        _check(len(self.shape) == 2 and 16 <= min(self.shape) and max(self.shape) <= 16384,
               "shape", list(self.shape), "two whole numbers from 16 to 16384 [pixel]")
        _positive("pixel_size", self.pixel_size, "A")
        _positive("dose", self.dose, "e-/A^2")
        _check(self.interaction.slice_thickness <= self.specimen.ice.thickness,
               "interaction.slice_thickness", self.interaction.slice_thickness,
               f"at most specimen.ice.thickness={self.specimen.ice.thickness} [A]")
