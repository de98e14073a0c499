"""The scene: every setting of a simulation with its unit, its sign and its allowed range.

These dataclasses are what every YAML file in conf/ and every scene of a user is read into. Each
checks its values when it is made and stays as it is: `dataclasses.replace` makes a changed one.
What YAML gives as a list is a tuple; in Python either will do. File names in a scene are relative
to the scene's folder, or else, if there is no such file, to the working folder; `output` is
relative to the working folder.
"""

import re
from dataclasses import dataclass, field

from tem_taichi import checks
from tem_taichi.files.copick import copick_name
from tem_taichi.scene.microscope import DetectorSettings as DetectorSettings
from tem_taichi.scene.microscope import MicroscopeSettings as MicroscopeSettings
from tem_taichi.scene.microscope import OpticsSettings as OpticsSettings
from tem_taichi.scene.microscope import StemSettings as StemSettings
from tem_taichi.scene.particle import ParticleSettings as ParticleSettings
from tem_taichi.scene.particle import particle_of as particle_of
from tem_taichi.scene.specimen import NAME, NAME_SAYS
from tem_taichi.scene.specimen import IceSettings as IceSettings
from tem_taichi.scene.specimen import SpecimenSettings as SpecimenSettings
from tem_taichi.scene.stack import StackSettings as StackSettings
from tem_taichi.scene.style import StyleSettings
from tem_taichi.scene.typed import keep_tuples

_VOLTAGES_ALIKE = 0.05
"""Relative difference of voltages at which a camera's curves are taken for the same."""
MAX_TILT = 89.9
"""[deg]; a slab seen edge-on has no end."""

FORMATS = ("relion5", "warp", "aretomo", "imod", "shrec", "copick", "coordinates", "tiff")
"""Of other programs, see tem_taichi.export.formats."""


@dataclass(frozen=True)
class TiltErrorSettings:
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
        for key, high, unit in (("angle", 90, "deg"), ("axis_angle", 360, "deg"),
                                ("shift", 1e6, "A"), ("defocus", 1e6, "A")):
            checks.within(f"tilts.errors.{key}", getattr(self, key), 0, high, unit)
        checks.check(0 <= self.dose < 0.3, "tilts.errors.dose", self.dose, "in [0, 0.3)")


@dataclass(frozen=True)
class TiltSettings:
    """The tilt series; `scheme: listed` with `angles: [0]` is a single micrograph."""

    scheme: str = "dose_symmetric"
    """linear, dose_symmetric, bidirectional or listed: the order of acquisition"""
    minimum: float = -60.0
    """[deg]"""
    maximum: float = 60.0
    """[deg]"""
    step: float = 3.0
    """[deg], at least 0.01"""
    start: float = 0.0
    """first angle of bidirectional and dose_symmetric [deg]"""
    group: int = 1
    """tilts on one side before the other, for dose_symmetric"""
    angles: tuple[float, ...] | None = None
    """for listed: in the order of acquisition [deg]"""
    axis_angle: float = 0.0
    """of the tilt axis from +y, counter-clockwise [deg], as IMOD's; a positive tilt turns the
    specimen right-handedly about it"""
    shifts: tuple[tuple[float, ...], ...] | None = None
    """x, y of each image [A], in the order of acquisition"""
    defocus_offsets: tuple[float, ...] | None = None
    """added to the defocus of each image [A], in the order of acquisition"""
    doses: tuple[float, ...] | None = None
    """of each image [e-/A^2], in the order of acquisition, instead of `dose`"""
    prior_dose: float = 0.0
    """before the first image [e-/A^2]"""
    errors: TiltErrorSettings = field(default_factory=TiltErrorSettings)

    def __post_init__(self) -> None:
        keep_tuples(self)
        checks.one_of("tilts.scheme", self.scheme,
                      ("linear", "dose_symmetric", "bidirectional", "listed"))
        for key in ("minimum", "maximum", "start"):
            checks.within(f"tilts.{key}", getattr(self, key), -MAX_TILT, MAX_TILT, "deg")
        checks.within("tilts.axis_angle", self.axis_angle, -360, 360, "deg")
        checks.within("tilts.step", self.step, 0.01, 180, "deg")
        checks.whole("tilts.group", self.group, 1, 10_000)
        checks.not_negative("tilts.prior_dose", self.prior_dose, "e-/A^2")
        checks.check(self.minimum <= self.maximum, "tilts.minimum", self.minimum,
                     f"at most tilts.maximum={self.maximum:g} [deg]")
        if self.scheme == "listed":
            checks.check(bool(self.angles), "tilts.angles", self.angles,
                         "a list of angles [deg] for scheme: listed")
        else:
            checks.check(self.angles is None, "tilts.angles", self.angles,
                         f"null for scheme: {self.scheme} (use scheme: listed)")
        if self.scheme in ("dose_symmetric", "bidirectional"):
            checks.within("tilts.start", self.start, self.minimum, self.maximum,
                          "deg, tilts.minimum to tilts.maximum")
        for n, angle in enumerate(self.angles or ()):
            checks.check(abs(angle) <= MAX_TILT, f"tilts.angles[{n}]", angle,
                         f"finite and within {MAX_TILT} degrees of 0")
        checks.rows("tilts.shifts", self.shifts, 2, "A")
        for n, offset in enumerate(self.defocus_offsets or ()):
            checks.within(f"tilts.defocus_offsets[{n}]", offset, -1e6, 1e6, "A")
        for n, dose in enumerate(self.doses or ()):
            checks.positive(f"tilts.doses[{n}]", dose, "e-/A^2")


@dataclass(frozen=True)
class MovieSettings:
    """Each image as a movie of frames that share its dose."""

    frames: int = 1
    """of each image; `formats: [tiff]` writes them"""
    drift: tuple[float, ...] = (0.0, 0.0)
    """of the whole field in x, y during an image [A], even, about its middle"""
    motion: float = 0.0
    """standard deviation of how far each particle moves in x, y and z [A]; most of it within the
    first 4 e-/A^2, seeded"""

    def __post_init__(self) -> None:
        keep_tuples(self)
        checks.whole("movie.frames", self.frames, 1, 1000)
        checks.check(len(self.drift) == 2, "movie.drift", self.drift, "two numbers, x and y [A]")
        for n, way in enumerate(self.drift):
            checks.within(f"movie.drift[{n}]", way, -1e4, 1e4, "A")
        checks.within("movie.motion", self.motion, 0, 1e3, "A")


@dataclass(frozen=True)
class InteractionSettings:
    """How the beam passes through the specimen."""

    mode: str = "multislice"
    """multislice, projection or weak_phase"""
    slice_thickness: float | None = None
    """[A]; null = the thickest that keep the error of images below 1 % of their contrast"""
    depth: str | None = None
    """nearest = an atom belongs to one slice; smooth = shared by two, differentiable in z;
    null = smooth where slice_thickness is null, or a gradient in z is asked for in Python, else
    nearest"""
    oversampling: float = 1.5
    """detector pixels over wave pixels, a multiple of 0.5; below 1.5 signal beyond
    oversampling / 1.5 of the detector's Nyquist frequency is lost, at 1.5 that in the corners of
    the square, which takes 2.5"""
    margin: float | None = None
    """computed around the image against wrap-around [A]; null = wavelength defocus / (2 pixel)"""

    def __post_init__(self) -> None:
        checks.one_of("interaction.mode", self.mode, ("multislice", "projection", "weak_phase"))
        if self.slice_thickness is not None:
            checks.check(self.slice_thickness >= 0.1, "interaction.slice_thickness",
                         self.slice_thickness, "at least 0.1 [A], or null")
        if self.depth is not None:
            checks.one_of("interaction.depth", self.depth, ("nearest", "smooth"))
        checks.check(1 <= self.oversampling <= 8 and (2 * self.oversampling).is_integer(),
                     "interaction.oversampling", self.oversampling, "a multiple of 0.5 from 1 to 8")
        checks.not_negative("interaction.margin", self.margin, "A")


@dataclass(frozen=True)
class ComputeSettings:
    """Where to compute."""

    arch: str = "auto"
    """auto, cpu or gpu"""
    dtype: str = "float32"
    """float32 or float64"""

    def __post_init__(self) -> None:
        checks.one_of("compute.arch", self.arch, ("auto", "cpu", "gpu"))
        checks.one_of("compute.dtype", self.dtype, ("float32", "float64"))


@dataclass(frozen=True)
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
    force: bool = False
    """run even what is foreseen to take longer than a day"""
    formats: tuple[str, ...] = ()
    """also written, each in a subfolder: relion5, warp, aretomo, imod, shrec, copick, coordinates,
    tiff"""
    shape: tuple[int, ...] = (512, 512)
    """rows and columns of an image [pixel]"""
    pixel_size: float = 2.0
    """at the specimen [A]"""
    dose: float = 3.0
    """of each image [e-/A^2]"""
    specimen: SpecimenSettings = field(default_factory=SpecimenSettings)
    instrument: str = "tem"
    """tem, or stem: a scanned beam that passes by Beer and Lambert's law, see `stem`; maps times
    map_scale are then what each A takes from the beam [1/A], and no damage is done"""
    microscope: MicroscopeSettings = field(default_factory=MicroscopeSettings)
    optics: OpticsSettings = field(default_factory=OpticsSettings)
    detector: DetectorSettings = field(default_factory=DetectorSettings)
    tilts: TiltSettings = field(default_factory=TiltSettings)
    movie: MovieSettings = field(default_factory=MovieSettings)
    interaction: InteractionSettings = field(default_factory=InteractionSettings)
    stem: StemSettings = field(default_factory=StemSettings)
    noise: StyleSettings = field(default_factory=StyleSettings)
    stack: StackSettings = field(default_factory=StackSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)

    def __post_init__(self) -> None:
        keep_tuples(self)
        checks.check(bool(re.fullmatch(NAME, self.name)), "name", self.name,
                     NAME_SAYS)
        checks.whole("seed", self.seed, 0, 2**63 - 1)
        checks.check(bool(self.output.strip()), "output", self.output, "the name of a folder")
        for n, name in enumerate(self.formats):
            checks.one_of(f"formats[{n}]", name, FORMATS)
            checks.check(name not in self.formats[:n], f"formats[{n}]", name, "given only once")
        checks.one_of("instrument", self.instrument, ("tem", "stem"))
        for name, particle in self.specimen.particles.items() if self.instrument == "stem" else ():
            checks.one_of(f"specimen.particles.{name}", particle.made_from,
                          ("structure", "map", "fiducial"))
        same: dict[str, str] = {}
        for kind in self.specimen.particles if "copick" in self.formats else ():
            other = same.setdefault(copick_name(kind), kind)
            checks.check(other == kind, "specimen.particles", kind, "named differently from "
                         f"{other} for formats: [copick], which takes '_' and '-' for the same")
        for kind in self.specimen.particles if "shrec" in self.formats else ():
            checks.check(f"{kind}_mask" not in self.specimen.particles, "specimen.particles",
                         f"{kind}_mask", f"named differently from the mask of {kind} for formats: "
                         "[shrec]")
        checks.check(len(self.shape) == 2 and 16 <= min(self.shape) and max(self.shape) <= 16384,
                     "shape", self.shape, "two whole numbers from 16 to 16384 [pixel]")
        checks.check(self.stack.box is None or self.stack.box <= min(self.shape), "stack.box",
                     self.stack.box, f"at most the image's least side, {min(self.shape)} [pixel]")
        if self.stack.kind is not None:
            checks.one_of("stack.kind", self.stack.kind, list(self.specimen.particles))
        if self.noise.style is not None:
            checks.check(not self.detector.halves, "detector.halves", self.detector.halves,
                         "false with noise.style, which knows no electrons")
            checks.check(self.movie.frames == 1, "movie.frames", self.movie.frames,
                         "1 with noise.style, which is of whole images")
        checks.within("pixel_size", self.pixel_size, 0.01, 1000, "A")
        checks.positive("dose", self.dose, "e-/A^2")
        slices = self.interaction.slice_thickness
        checks.check(slices is None or slices <= self.specimen.ice.thickness,
                     "interaction.slice_thickness", slices,
                     f"at most specimen.ice.thickness={self.specimen.ice.thickness:g} [A]")


def doubts(scene: Scene) -> list[str]:
    """What can be simulated but is hardly meant, one line each that names the keys."""
    found, camera = [], scene.detector
    if camera.voltage is not None and (
            abs(camera.voltage / scene.microscope.voltage - 1) > _VOLTAGES_ALIKE):
        found.append(f"detector.voltage={camera.voltage:g}: MTF and DQE of {camera.name} are not "
                     f"those at microscope.voltage={scene.microscope.voltage:g} [kV]; choose "
                     "another detector (--list), or detector.voltage=null to keep its curves")
    least = min(scene.tilts.doses or [scene.dose]) / scene.movie.frames
    counts = camera.gain * least * scene.pixel_size**2
    if camera.integer and max(counts, camera.gain) < 0.5:
        found.append(f"detector.gain={camera.gain:g}: {counts:.2g} counts a pixel, rounded to "
                     "whole numbers by detector.integer=true, leave next to nothing of the images")
    return found
