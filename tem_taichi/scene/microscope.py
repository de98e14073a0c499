"""The part of the scene that says what looks at the specimen: microscope, lens and camera."""

from dataclasses import dataclass

from tem_taichi import checks
from tem_taichi.scene.typed import keep_tuples


@dataclass(frozen=True)
class MicroscopeSettings:
    """The instrument's own constants."""

    name: str = "microscope"
    """for people only"""
    voltage: float = 300.0
    """[kV], 10 to 3000"""
    spherical_aberration: float = 2.7
    """Cs [mm]; negative with a corrector that overcompensates"""
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
    energy_filter: bool = True
    """whether electrons that lost energy are kept from the detector; otherwise they add an image
    of their own, far out of focus"""

    def __post_init__(self) -> None:
        checks.within("microscope.voltage", self.voltage, 10, 3000, "kV")
        checks.within("microscope.spherical_aberration", self.spherical_aberration, -100, 100, "mm")
        checks.within("microscope.chromatic_aberration", self.chromatic_aberration, 0, 100, "mm")
        checks.within("microscope.energy_spread", self.energy_spread, 0, 100, "eV")
        checks.within("microscope.convergence", self.convergence, 0, 100, "mrad")
        checks.positive("microscope.aperture", self.aperture, "um")
        checks.positive("microscope.focal_length", self.focal_length, "mm")


@dataclass(frozen=True)
class OpticsSettings:
    """How the lens is set for these images."""

    defocus: float = 20000.0
    """[A] of the specimen's centre, positive = underfocus"""
    astigmatism: float = 0.0
    """defocus U - V [A]; U lies along the angle"""
    astigmatism_angle: float = 0.0
    """direction of defocus U [deg], from +x towards +y"""
    phase_shift: float = 0.0
    """by a phase plate [deg]"""
    amplitude_contrast: float | None = None
    """Q: absorption over potential of the specimen, in [0, 1); null = by the composition of each
    particle and the ice's mean free path"""
    beam_tilt: tuple[float, ...] = (0.0, 0.0)
    """of the illumination in x, y [mrad]; causes coma, Cs lambda^2 |k|^2 (k tilt)"""
    coma: float = 0.0
    """axial coma C21 [A]"""
    coma_angle: float = 0.0
    """its direction [deg], from +x towards +y"""
    trefoil: float = 0.0
    """three-fold astigmatism C23 [A]"""
    trefoil_angle: float = 0.0
    """direction of one of its arms [deg], from +x towards +y"""
    magnification_anisotropy: float = 0.0
    """difference of the largest and the smallest magnification over their mean, within 0.2"""
    magnification_angle: float = 0.0
    """direction of the largest magnification [deg], from +x towards +y"""

    def __post_init__(self) -> None:
        keep_tuples(self)
        checks.within("optics.defocus", self.defocus, -1e6, 1e6, "A")
        checks.within("optics.astigmatism", self.astigmatism, -1e6, 1e6, "A")
        checks.within("optics.astigmatism_angle", self.astigmatism_angle, -360, 360, "deg")
        checks.within("optics.phase_shift", self.phase_shift, -360, 360, "deg")
        for key, limit, unit in (
                ("coma", 1e8, "A"), ("trefoil", 1e8, "A"), ("coma_angle", 360, "deg"),
                ("trefoil_angle", 360, "deg"), ("magnification_angle", 360, "deg"),
                ("magnification_anisotropy", 0.2, "1")):
            checks.within(f"optics.{key}", getattr(self, key), -limit, limit, unit)
        checks.check(len(self.beam_tilt) == 2 and all(abs(t) <= 100 for t in self.beam_tilt),
                     "optics.beam_tilt", self.beam_tilt, "x, y within 100 of 0 [mrad]")
        checks.check(self.amplitude_contrast is None or 0 <= self.amplitude_contrast < 1,
                     "optics.amplitude_contrast", self.amplitude_contrast, "in [0, 1), or null")


@dataclass(frozen=True)
class StemSettings:
    """The scanned beam and its detector, of `instrument: stem`."""

    signal: str = "bright"
    """bright, the electrons within the detector's outer angle, or dark, those on its ring"""
    inner_angle: float = 40.0
    """of the ring, of signal: dark [mrad]"""
    outer_angle: float = 10.0
    """of the detector [mrad]; above inner_angle for signal: dark"""
    convergence: float = 0.0
    """half of the beam's opening angle [mrad], by which it widens away from focus: by
    optics.defocus, and from the tilt axis by the tangent of the tilt; 0 = in focus everywhere"""
    probe: float = 0.0
    """standard deviation of the beam in focus [A]"""
    dynamic_focus: bool = False
    """whether the focus follows the tilted specimen's middle plane"""
    offset: float = 0.0
    """what the detector shows without electrons, relative to the beam"""
    rays: int | None = None
    """random rays that stand for each pixel's beam; null = its exact mean"""

    def __post_init__(self) -> None:
        checks.one_of("stem.signal", self.signal, ("bright", "dark"))
        checks.within("stem.inner_angle", self.inner_angle, 0, 1000, "mrad")
        checks.within("stem.outer_angle", self.outer_angle, 0.01, 1000, "mrad")
        checks.check(self.signal == "bright" or self.outer_angle > self.inner_angle,
                     "stem.outer_angle", self.outer_angle,
                     f"above stem.inner_angle={self.inner_angle:g} [mrad] for signal: dark")
        checks.within("stem.convergence", self.convergence, 0, 1000, "mrad")
        checks.not_negative("stem.probe", self.probe, "A")
        checks.within("stem.offset", self.offset, 0, 1e6, "1")
        if self.rays is not None:
            checks.whole("stem.rays", self.rays, 1, 1_000_000)


@dataclass(frozen=True)
class DetectorSettings:
    """The detector, see tem_taichi.noise.detector."""

    name: str = "detector"
    """for people only"""
    voltage: float | None = None
    """of the beam for which MTF and DQE hold [kV]; null = any"""
    kind: str = "counting"
    """integrating or counting"""
    gain: float = 1.0
    """counts per electron"""
    dqe: float | None = None
    """DQE(0) in (0, 1]; null = 1. Elsewhere an integrating camera has the same, a counting one
    DQE(0) MTF^2, if dqe_table and dqe_file are null"""
    mtf: tuple[float, ...] | None = None
    """a, b, c, alpha, beta of [a/(1+alpha w^2) + b/(1+beta w^2) + c]/(a+b+c), w in cycles/pixel;
    null = 1, if mtf_table and mtf_file are null too"""
    mtf_table: tuple[tuple[float, ...], ...] | None = None
    """rows of frequency [cycles/pixel] and MTF, instead of parameters"""
    mtf_file: str | None = None
    """RELION star file or two columns of frequency [cycles/pixel] and MTF, instead of either"""
    dqe_file: str | None = None
    """the same for DQE(w), instead of dqe"""
    dqe_table: tuple[tuple[float, ...], ...] | None = None
    """rows of frequency [cycles/pixel] and DQE, instead of dqe"""
    integer: bool = False
    """round counts to whole numbers and store 16 bits"""
    halves: bool = False
    """also write two half-sets, NAME_EVN and NAME_ODD: every electron goes to one of them by
    chance"""

    def __post_init__(self) -> None:
        keep_tuples(self)
        checks.positive("detector.voltage", self.voltage, "kV")
        checks.one_of("detector.kind", self.kind, ("integrating", "counting"))
        checks.within("detector.gain", self.gain, 1e-6, 1e6, "counts per electron")
        checks.check(self.dqe is None or 1e-4 <= self.dqe <= 1, "detector.dqe", self.dqe,
                     "from 0.0001 to 1, or null")
