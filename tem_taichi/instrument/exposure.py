"""What forms an image of a specimen: the instrument, and the exposures it makes."""

from dataclasses import dataclass, field

from tem_taichi.arguments import (
    check_amplitude_contrast,
    check_grid,
    check_number,
    check_positive_number,
    check_voltage,
    no_gradient,
)
from tem_taichi.checks import one_of
from tem_taichi.instrument.multislice import MODES
from tem_taichi.instrument.optics import Optics
from tem_taichi.noise.detector import Detector
from tem_taichi.physics import Value
from tem_taichi.specimen.potential import DEPTHS


@dataclass(frozen=True)
class Instrument:
    """What is the same for all images of a series."""

    detector_shape: tuple[int, int]
    """(ny, nx) of the detector's pixels with the margin."""
    wave_shape: tuple[int, int]
    """(ny, nx) of the wave's pixels over the same field."""
    pixel_size: float
    """Of the detector at the specimen [A]; makes the grids and has no gradient."""
    voltage: Value = 300.0
    """[kV]"""
    amplitude_contrast: Value | None = 0.07
    """Absorption over potential of the particles [1], in [0, 1); None = by their composition and
    the ice's mean free path."""
    mode: str = "multislice"
    """multislice, projection or weak_phase."""
    slice_thickness: float = 20.0
    """[A]; a step of the numerics, without a gradient."""
    depth: str | None = None
    """nearest, or smooth: differentiable in z; None = smooth where something that moves particles
    in z requires a gradient (positions, orientations, tilt or axis angle), else nearest."""
    detector: Detector = field(default_factory=Detector)
    anisotropy: Value = 0.0
    """Of the magnification [1], see `distortion.anisotropic`."""
    anisotropy_angle: Value = 0.0
    """Direction of the larger magnification [deg]."""
    energy_filter: bool = True
    """Whether electrons that lost energy are kept from the detector."""
    damage: Value = 0.0
    """Radiation damage over the measured one [1], see `damage.damping`; 0 = none."""

    def __post_init__(self) -> None:
        detector, wave = (check_grid(name, getattr(self, name))
                          for name in ("detector_shape", "wave_shape"))
        even = detector == wave or not any(n % 2 for n in (*detector, *wave))
        alike = wave[0] >= detector[0] and wave[0] * detector[1] == wave[1] * detector[0]
        if not (even and alike):
            raise ValueError(f"wave_shape={wave}: must be detector_shape={detector} times one "
                             "factor of at least 1, even numbers unless they are the same")
        for name in ("pixel_size", "slice_thickness"):
            check_positive_number(name, getattr(self, name), "A")
            no_gradient(name, getattr(self, name), "it makes the grid")
        check_voltage(self.voltage)
        if self.amplitude_contrast is not None:
            check_amplitude_contrast(self.amplitude_contrast)
        one_of("mode", self.mode, MODES)
        if self.depth is not None:
            one_of("depth", self.depth, DEPTHS)
        check_number("anisotropy", self.anisotropy, "1", above=-1.0, below=1.0)
        check_number("anisotropy_angle", self.anisotropy_angle, "deg")
        check_number("damage", self.damage, "1", 0.0, 100.0)

    @property
    def wave_pixel(self) -> float:
        """Of the wave's grid [A]."""
        return self.pixel_size * self.detector_shape[0] / self.wave_shape[0]


@dataclass(frozen=True)
class Exposure:
    """What may differ from image to image; for b of them see `forward.expected_images`."""

    optics: Optics = field(default_factory=Optics)
    """Lens, with units of its own; its defocus [A] is that of the specimen's centre."""
    tilt_angle: Value = 0.0
    """[deg], right-handed about the axis."""
    axis_angle: Value = 0.0
    """Of the tilt axis from +y, counter-clockwise [deg]."""
    shift_x: Value = 0.0
    """Of the image towards +x [A]."""
    shift_y: Value = 0.0
    """Of the image towards +y [A]."""
    dose: Value = 1.0
    """[e-/A^2]"""
    prior_dose: Value = 0.0
    """What the specimen had before [e-/A^2]; it only matters for damage."""
    stream: int = 0
    """Number of the ice's random structure and of the image's noise."""

    def __post_init__(self) -> None:
        check_number("tilt_angle", self.tilt_angle, "deg", above=-90.0, below=90.0, batch=True)
        for name, unit in (("axis_angle", "deg"), ("shift_x", "A"), ("shift_y", "A")):
            check_number(name, getattr(self, name), unit, batch=True)
        check_positive_number("dose", self.dose, "e-/A^2", batch=True)
        # The sum over a series whose images each have the largest dose.
        check_number("prior_dose", self.prior_dose, "e-/A^2", 0.0, 1e12, batch=True)
