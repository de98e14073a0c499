"""What forms an image of a specimen: the instrument, and the exposures it makes."""

from dataclasses import dataclass, field

from tem_taichi.detector import Detector
from tem_taichi.optics import Optics
from tem_taichi.physics import Value


@dataclass(frozen=True)
class Instrument:
    """What is the same for all images of a series."""

    detector_shape: tuple[int, int]
    """(ny, nx) of the detector's pixels with the margin."""
    wave_shape: tuple[int, int]
    """(ny, nx) of the wave's pixels over the same field."""
    pixel_size: float
    """Of the detector at the specimen [A]."""
    voltage: Value = 300.0
    """[kV]"""
    amplitude_contrast: Value | None = 0.07
    """Absorption over potential of the particles, in [0, 1); None = by their composition and the
    ice's mean free path."""
    mode: str = "multislice"
    """multislice, projection or weak_phase."""
    slice_thickness: float = 20.0
    """[A]"""
    depth: str = "nearest"
    """nearest, or smooth: differentiable in z."""
    detector: Detector = field(default_factory=Detector)
    anisotropy: Value = 0.0
    """Of the magnification, see `distortion.anisotropic`."""
    anisotropy_angle: Value = 0.0
    """[deg]"""
    energy_filter: bool = True
    """Whether electrons that lost energy are kept from the detector."""
    damage: Value = 0.0
    """Radiation damage over the measured one, see `damage.damping`; 0 = none."""

    @property
    def wave_pixel(self) -> float:
        """Of the wave's grid [A]."""
        return self.pixel_size * self.detector_shape[0] / self.wave_shape[0]


@dataclass(frozen=True)
class Exposure:
    """What may differ from image to image."""

    optics: Optics = field(default_factory=Optics)
    """Lens; its defocus is that of the specimen's centre."""
    tilt_angle: Value = 0.0
    """[deg], right-handed about the axis."""
    axis_angle: Value = 0.0
    """Of the tilt axis from +y, counter-clockwise [deg]."""
    shift_x: Value = 0.0
    """Of the image [A]."""
    shift_y: Value = 0.0
    """Of the image [A]."""
    dose: Value = 1.0
    """[e-/A^2]"""
    prior_dose: Value = 0.0
    """What the specimen had before [e-/A^2]; it only matters for damage."""
    stream: int = 0
    """Number of the ice's random structure."""
