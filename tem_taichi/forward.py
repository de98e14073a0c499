"""The differentiable model of one image: specimen, instrument and exposure to expected counts.

Every number may be a tensor with a gradient. What is not continuous (grids, the number of
slices, which slice an atom belongs to unless depth is "smooth") has none.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch

from tem_taichi.detector import Detector, expected_counts
from tem_taichi.device import as_tensor, current
from tem_taichi.geometry import tilt_rotation
from tem_taichi.grid import fourier_crop
from tem_taichi.optics import Optics, form_image
from tem_taichi.physics import Value
from tem_taichi.propagation import multislice
from tem_taichi.recompute import recomputed, tensors_in, with_tensors
from tem_taichi.specimen import Specimen, View, extent, slices

_GROUP = 6
"""Slices held at once; of very many slices more, as the root of their number, since on the way
back a slice needs ten times the memory of the wave that is kept for each group."""

_WHOLE = 16
"""Up to so many slices the way back starts from all of them: faster, and no more memory."""

Stages = Callable[[str], AbstractContextManager]
"""Called with the name of a stage; what it returns is held during the stage."""


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
    amplitude_contrast: Value = 0.07
    """Absorption over potential of the particles, in [0, 1)."""
    mode: str = "multislice"
    """multislice, projection or weak_phase."""
    slice_thickness: float = 20.0
    """[A]"""
    depth: str = "nearest"
    """nearest, or smooth: differentiable in z."""
    detector: Detector = field(default_factory=Detector)

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


def view_of(specimen: Specimen, instrument: Instrument, exposure: Exposure) -> View:
    """How an exposure sees the specimen, with as many slices as its particles need.

    Slices begin at multiples of their thickness from the specimen's centre. The modes that
    know no depth have one slice that holds everything.
    """
    rotation = tilt_rotation(exposure.tilt_angle, exposure.axis_angle)
    shift = torch.stack([as_tensor(exposure.shift_x), as_tensor(exposure.shift_y)])
    shape, pixel_size = instrument.wave_shape, instrument.wave_pixel
    low, high = extent(specimen, rotation)
    if instrument.mode != "multislice":
        return View(rotation, shift, shape, pixel_size, max(high - low, 1.0), low, 1)
    thickness = instrument.slice_thickness
    # Where slices share their atoms, the outermost atoms too need a slice on either side.
    spare = thickness / 2 if instrument.depth == "smooth" else 0.0
    first, last = (math.floor(z / thickness) for z in (low - spare, high + spare))
    return View(rotation, shift, shape, pixel_size, thickness, first * thickness,
                last - first + 1)


def exit_wave(
    specimen: Specimen, instrument: Instrument, exposure: Exposure,
    stages: Stages = nullcontext,
) -> tuple[torch.Tensor, float]:
    """Wave behind the tilted specimen, some slices at a time.

    Where gradients are asked for, only the waves between the groups of slices are kept; the
    potential is made again from the atoms on the way back.

    Args:
        specimen: particles.
        instrument: grids, voltage and mode.
        exposure: tilt and shift.
        stages: for timing.

    Returns:
        Complex wave (ny, nx) on the wave's grid, and the distance [A] by which the specimen's
        centre is further under focus than its plane.
    """
    view = view_of(specimen, instrument, exposure)
    device = current()

    def pass_through(wave: torch.Tensor, n: int, *tensors: torch.Tensor) -> torch.Tensor:
        here, seen, how = with_tensors(parts, iter(tensors))
        first = n * size
        with stages("potential"):
            chunk = slices(here, seen, first, min(size, view.n_slices - first), how.depth)
        with stages("interaction"):
            return multislice(chunk, view.pixel_size, view.slice_thickness, how.voltage,
                              amplitude_contrast=how.amplitude_contrast, mode=how.mode,
                              incident=wave)

    parts = (specimen, view, instrument)
    tensors = tensors_in(parts)
    recompute = torch.is_grad_enabled() and view.n_slices > _WHOLE
    whole = torch.is_grad_enabled() and not recompute
    size = _WHOLE if whole else max(_GROUP, math.isqrt(view.n_slices // 10))
    n_groups = -(-view.n_slices // size)
    wave = torch.ones(view.shape, dtype=device.complex_dtype, device=device.torch_device)
    if recompute:
        wave = recomputed(pass_through, n_groups, wave, *tensors)
    else:
        for n in range(n_groups):
            wave = pass_through(wave, n, *tensors)
    if instrument.mode != "multislice":
        return wave, 0.0
    # A slice acts where it begins; its scatterers are half a slice further on the average.
    return wave, view.entrance + (view.n_slices + 0.5) * view.slice_thickness


def intensity(
    specimen: Specimen, instrument: Instrument, exposure: Exposure, wave: torch.Tensor,
    distance: float,
) -> torch.Tensor:
    """Relative intensity on the detector's pixels, margin included.

    The ice attenuates by exp(-thickness / (mean free path cos(tilt))).

    Args:
        specimen: for its ice.
        instrument: grids, voltage and mode.
        exposure: lens and tilt.
        wave: from `exit_wave`, and so is the distance [A].
        distance: see wave.

    Returns:
        Real tensor of the detector's shape, about 1, not negative.
    """
    lens = replace(exposure.optics, defocus=exposure.optics.defocus + distance)
    image = form_image(wave, instrument.wave_pixel, instrument.voltage, lens,
                       linear=instrument.mode == "weak_phase")
    image = fourier_crop(image, instrument.detector_shape)
    ice = specimen.ice
    if ice.mean_free_path is not None:
        path = as_tensor(ice.thickness) / torch.cos(torch.deg2rad(as_tensor(exposure.tilt_angle)))
        image = image * torch.exp(-path / as_tensor(ice.mean_free_path))
    # Cropping rings below zero only beside edges far sharper than a specimen has.
    return image.clamp(min=0)


def expected_image(
    specimen: Specimen, instrument: Instrument, exposure: Exposure
) -> torch.Tensor:
    """Expected counts on the detector, margin included, from specimen to detector in one call.

    Args:
        specimen: particles and ice.
        instrument: microscope, grids and detector.
        exposure: tilt, lens and dose.

    Returns:
        Counts of the detector's shape; differentiable in every tensor of the three.
    """
    wave, distance = exit_wave(specimen, instrument, exposure)
    image = intensity(specimen, instrument, exposure, wave, distance)
    return expected_counts(image, pixel_size=instrument.pixel_size, dose=exposure.dose,
                           detector=instrument.detector)
