"""The transmission electron microscope: a specimen's waves by multislice, and their images.

Every number may be a tensor with a gradient. What is not continuous (grids, the number of slices,
which slice an atom belongs to with depth "nearest") has none: a tensor there is refused.
"""

import gc
import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch

from tem_taichi.arguments import (
    check_amplitude_contrast,
    check_grid,
    check_number,
    check_positive_number,
    check_voltage,
    no_gradient,
)
from tem_taichi.checks import one_of
from tem_taichi.device import as_tensor, current, present
from tem_taichi.grid import fourier_crop
from tem_taichi.instrument.distortion import anisotropic, distort
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.groups import WHOLE, groups_of
from tem_taichi.instrument.multislice import interact, propagated
from tem_taichi.instrument.optics import Optics, defocus_per_energy, form_image
from tem_taichi.physics import Value
from tem_taichi.recompute import recomputed, tensors_in, with_tensors
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.depth import DEPTHS, depth_for
from tem_taichi.specimen.view import Specimen, View
from tem_taichi.timing import Stages

_HUGE = 1 << 24
"""Pixels of a slice from which room matters more than a tenth of a second."""


@dataclass(frozen=True)
class TEM:
    """A microscope that sees a specimen in slices; what is the same for all images of a series."""

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
    slice_thickness: float = 20.0
    """[A]; a step of the numerics, without a gradient."""
    depth: str | None = None
    """nearest, or smooth: differentiable in z; None = smooth where something that moves particles
    in z requires a gradient (positions, orientations, tilt or axis angle), else nearest."""
    anisotropy: Value = 0.0
    """Of the magnification [1], see `distortion.anisotropic`."""
    anisotropy_angle: Value = 0.0
    """Direction of the larger magnification [deg]."""
    energy_filter: bool = True
    """Whether electrons that lost energy are kept from the detector."""
    damage: Value = 0.0
    """Radiation damage over the measured one [1], see `damage.damping`; 0 = none."""
    linear: bool = False
    """Whether images leave out the square of the scattered wave."""
    stages: Stages = field(default=nullcontext, repr=False, compare=False)
    """For timing: potential, interaction, optics."""

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
        if self.depth is not None:
            one_of("depth", self.depth, DEPTHS)
        check_number("anisotropy", self.anisotropy, "1", above=-1.0, below=1.0)
        check_number("anisotropy_angle", self.anisotropy_angle, "deg")
        check_number("damage", self.damage, "1", 0.0, 100.0)

    @property
    def mode(self) -> str:
        """Of `multislice`."""
        return "multislice"

    @property
    def wave_pixel(self) -> float:
        """Of the wave's grid [A]."""
        return self.pixel_size * self.detector_shape[0] / self.wave_shape[0]

    def intensity(self, specimen: Specimen, exposure: Exposure) -> torch.Tensor:
        """Electrons on the detector's pixels relative to the beam, margin included, (ny, nx)."""
        wave, distance = self.exit_wave(specimen, exposure)
        return self.image(specimen, exposure, wave, distance)

    def view(self, specimen: Specimen, exposure: Exposure) -> View:
        """How an exposure sees a specimen, with as many slices as it needs.

        Slices begin at multiples of their thickness from the specimen's centre.
        """
        view = self._gaze(exposure)
        low, high = specimen.depth_range(view)
        thickness = self.slice_thickness
        first, last = (math.floor(z / thickness) for z in (low, high))
        return replace(view, entrance=first * thickness, n_slices=last - first + 1)

    def _gaze(self, exposure: Exposure) -> View:
        """A view before it is cut into slices."""
        damage: Value = 0.0
        if present(self.damage):
            damage = self.damage * (exposure.prior_dose + exposure.dose / 2)
        depth = self.depth
        if depth_for(depth, exposure.tilt_angle, exposure.axis_angle) == "smooth":
            depth = "smooth"
        return View(
            tilt_rotation(exposure.tilt_angle, exposure.axis_angle),
            torch.stack([as_tensor(exposure.shift_x), as_tensor(exposure.shift_y)]),
            self.wave_shape, self.wave_pixel, self.slice_thickness, voltage=self.voltage,
            amplitude_contrast=self.amplitude_contrast, exposure=damage, stream=exposure.stream,
            depth=depth, propagates=True)

    def exit_wave(
        self, specimen: Specimen, exposure: Exposure, only: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, float]:
        """Wave behind the tilted specimen, some slices at a time.

        Where gradients are asked for, only the waves between the groups of slices are kept; the
        potential is made again from the specimen on the way back.

        Args:
            specimen: what scatters.
            exposure: tilt and shift.
            only: numbers of groups of slices that alone are passed, to time them; None = all.

        Returns:
            Complex wave (ny, nx) on the wave's grid, and the distance [A] by which the specimen's
            centre is further under focus than its plane.
        """
        view = self.view(specimen, exposure)
        groups = groups_of(specimen, view)

        def pass_through(wave: torch.Tensor, n: int, *tensors: torch.Tensor) -> torch.Tensor:
            # To make them anew is to check them anew, which would wait for a GPU.
            here, seen, how = with_tensors(parts, iter(tensors)) if recompute else parts
            first, size, gap = groups[n]
            with self.stages("potential"):
                chunk = here.slices(seen, first, size)
                if chunk[0].numel() >= _HUGE:
                    gc.collect()  # what Taichi compiled keeps the arrays that it was first given
            with self.stages("interaction"):
                wave = how.passed(chunk, seen, wave)
                if gap == 0:
                    return wave
                return propagated(wave, seen.pixel_size, gap * seen.slice_thickness, how.voltage)

        parts = (specimen, view, self)
        tensors = tensors_in(parts)
        recompute = torch.is_grad_enabled() and sum(group.size for group in groups) > WHOLE
        wave = torch.ones(view.shape, dtype=current().complex_dtype,
                          device=current().torch_device)
        if recompute:
            wave = recomputed(pass_through, len(groups), wave, *tensors)
        else:
            for n in range(len(groups)) if only is None else only:
                wave = pass_through(wave, n, *tensors)
        return wave, self.focus(view)

    def passed(
        self, slices: torch.Tensor, view: View, incident: torch.Tensor
    ) -> torch.Tensor:
        """The wave behind some slices; real ones absorb by the amplitude contrast."""
        contrast = self.amplitude_contrast
        return interact(
            slices, view.pixel_size, view.slice_thickness, self.voltage, incident=incident,
            amplitude_contrast=0.0 if contrast is None or slices.is_complex() else contrast,
            mode=self.mode)

    def focus(self, view: View) -> float:
        """How much further under focus than the exit wave's plane the specimen's centre is [A]."""
        # A slice acts where it begins; its scatterers are half a slice further on the average.
        return view.entrance + (view.n_slices + 0.5) * view.slice_thickness

    def image(
        self, specimen: Specimen, exposure: Exposure, wave: torch.Tensor, distance: float
    ) -> torch.Tensor:
        """Relative intensity on the detector's pixels, margin included.

        What surrounds the specimen attenuates each ray. Without an energy filter what it takes
        comes back as an image of electrons that lost energy.

        Args:
            specimen: for what it attenuates.
            exposure: lens and tilt.
            wave: from `exit_wave`, and so is the distance [A].
            distance: see wave.

        Returns:
            Real tensor of the detector's shape, about 1, not negative.

        Warns:
            UserWarning: if setting to zero what is below adds more than a thousandth of the
                electrons.
        """
        lens = replace(exposure.optics, defocus=exposure.optics.defocus + distance)
        view = self._gaze(exposure)

        def on_detector(optics: Optics) -> torch.Tensor:
            image = self.field_image(wave, optics, view.rotation)
            if present(self.anisotropy):
                image = distort(image, anisotropic(self.anisotropy, self.anisotropy_angle))
            return fourier_crop(image, self.detector_shape)

        with self.stages("optics"):
            image = on_detector(lens)
            lost = specimen.attenuation(replace(view, shape=self.detector_shape,
                                                pixel_size=self.pixel_size))
            if lost is not None:
                image = image * lost.left
                if not self.energy_filter:
                    back = (1 - lost.left) * (1 - lost.stopped)
                    image = image + on_detector(after_loss(lens, self.voltage)) * back
            return _not_negative(image, self.linear)

    def field_image(
        self, wave: torch.Tensor, lens: Optics, rotation: torch.Tensor
    ) -> torch.Tensor:
        """Intensity (ny, nx) on the wave's grid of a wave whose slices hold the tilt's depth."""
        return form_image(wave, self.wave_pixel, self.voltage, lens, linear=self.linear)


def _not_negative(image: torch.Tensor, linear: bool) -> torch.Tensor:
    """Zero where an intensity is below it, which takes a sharp edge or a linear image.

    Cropping rings below zero at a gold bead in focus: 6e-4 of the electrons are added at 300 kV
    and 1 A, next to none out of focus. Linear images of strong specimens miss by percents.

    Warns:
        UserWarning: if more than a thousandth of the electrons is added.
    """
    kept = image.clamp(min=0)
    with torch.no_grad():
        added = float((kept - image).sum() / kept.sum())
    if added > 1e-3:
        why = (" interaction.mode=weak_phase does not hold for what scatters so strongly"
               if linear else "")
        warnings.warn("the image is below zero in places: setting it to zero adds more than a "
                      f"thousandth of its electrons.{why}", stacklevel=4)
    return kept


def after_loss(lens: Optics, voltage: Value) -> Optics:
    """The lens as electrons see it that lost energy in the specimen: by the mean, over focus.

    Losses of ice spread about 25 eV by some 15 eV (1/e half-width; Egerton 2011).

    Args:
        lens: as electrons see it that lost nothing.
        voltage: [kV].
    """
    shift = 25.0 * defocus_per_energy(voltage, lens.chromatic_aberration)
    spread = (lens.energy_spread**2 + 15.0**2) ** 0.5
    return replace(lens, defocus=lens.defocus - shift, energy_spread=spread)
