"""What may differ from image to image."""

from dataclasses import dataclass, field

from tem_taichi.arguments import check_number, check_positive_number
from tem_taichi.instrument.optics import Optics
from tem_taichi.physics import Value


@dataclass(frozen=True)
class Exposure:
    """One exposure of a series; for b of them at once see `batches.expected_images`."""

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
