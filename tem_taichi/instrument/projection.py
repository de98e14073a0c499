"""A microscope that sees a specimen in one plane: the phase object, or its linear image."""

import math
from dataclasses import dataclass, replace

import torch

from tem_taichi.device import number
from tem_taichi.instrument.coherence import Transfer
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics, lens_transfer
from tem_taichi.instrument.tem import TEM
from tem_taichi.instrument.tiles import (
    Axis,
    background_is_steady,
    cut,
    image_in_tiles,
    margin_of,
)
from tem_taichi.physics import wavelength
from tem_taichi.specimen.view import Specimen, View


@dataclass(frozen=True)
class Foci:
    """Defoci at which a tilted field is imaged, and the tiles that it is cut into."""

    axes: tuple[Axis, Axis]
    """Along y and x."""
    slopes: tuple[torch.Tensor, torch.Tensor]
    """Of the defocus along y and x, in steps a pixel."""
    step: float
    """From one defocus to the next [A]."""
    depth: float
    """By how much the defocus differs from the centre's, at most [A]."""


@dataclass(frozen=True)
class Projection(TEM):
    """The whole specimen as one slice: exp(i sigma V), or 1 + i sigma V where it is linear.

    A linear one is the image 1 + 2 F^-1[CTF F(sigma V)] of most reconstruction programs.
    """

    def view(self, specimen: Specimen, exposure: Exposure) -> View:
        """One slice that holds everything."""
        view = replace(self._gaze(exposure), depth="nearest", propagates=False)
        low, high = specimen.depth_range(view)
        return replace(view, entrance=low, slice_thickness=max(high - low, 1.0))

    @property
    def mode(self) -> str:
        """Of `multislice`."""
        return "weak_phase" if self.linear else "projection"

    def focus(self, view: View) -> float:
        """The specimen is in the exit wave's plane [A]."""
        return 0.0

    def field_image(
        self, wave: torch.Tensor, lens: Optics, rotation: torch.Tensor
    ) -> torch.Tensor:
        """Image of a wave that knows no depth: the lens does.

        A projection through a tilted specimen is in one plane, though its parts are at depths of
        their own. Each pixel is interpolated between images at the two defoci about its own, so
        near that the phase chi differs by less than half a radian at the detector's Nyquist
        frequency. Large fields are imaged tile by tile, see `tiles`, to 1e-4 of the contrast.

        Args:
            wave: exit wave (ny, nx).
            lens: its defocus is that of the image's centre.
            rotation: specimen to image frame, (3, 3).

        Returns:
            Intensity (ny, nx) on the wave's grid.
        """
        shape = (wave.shape[0], wave.shape[1])
        foci = self.foci(lens, rotation, shape)
        steady = background_is_steady(lens, self.voltage, self.wave_pixel, foci.depth, foci.step)
        return image_in_tiles(wave, foci.axes, foci.slopes,
                              lambda n: self.transfer(lens, foci, n), steady)

    def foci(self, lens: Optics, rotation: torch.Tensor, shape: tuple[int, int]) -> Foci:
        """At which defoci the field is imaged, see `field_image`.

        Args:
            lens: its defocus is that of the image's centre.
            rotation: specimen to image frame, (3, 3).
            shape: of the wave (ny, nx).
        """
        nyquist = 0.5 / self.pixel_size
        step = 0.5 / (math.pi * number(wavelength(self.voltage)) * nyquist**2)
        scale = -self.wave_pixel / step / rotation[2, 2]
        slopes = (rotation[1, 2] * scale, rotation[0, 2] * scale)
        steep = (number(slopes[0]), number(slopes[1]))
        depth = step * sum(abs(slope) * n / 2 for slope, n in zip(steep, shape, strict=True))
        axes = cut(shape, steep, margin_of(lens, self.voltage, self.wave_pixel, depth))
        return Foci(axes, slopes, step, depth)

    def transfer(self, lens: Optics, foci: Foci, n: int) -> Transfer:
        """Of a tile with its margins at a number of steps from the centre's defocus.

        Args:
            lens: its defocus is that of the image's centre.
            foci: of the field.
            n: steps.
        """
        return lens_transfer((foci.axes[0].length, foci.axes[1].length), self.wave_pixel,
                             self.voltage, replace(lens, defocus=lens.defocus + n * foci.step),
                             self.linear)
