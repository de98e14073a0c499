"""A microscope that sees a specimen in one plane: the phase object, or its linear image."""

import math
from dataclasses import dataclass, replace

import torch

from tem_taichi.device import as_tensor, number
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.tem import TEM
from tem_taichi.physics import Value, wavelength
from tem_taichi.specimen.view import Specimen, View


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
        their own. Its image is put together of strips along the tilt axis: each pixel is
        interpolated between images at the two defoci about its own, so near that the phase chi
        differs by less than half a radian at the detector's Nyquist frequency.

        Args:
            wave: exit wave (ny, nx).
            lens: its defocus is that of the image's centre.
            rotation: specimen to image frame, (3, 3).

        Returns:
            Intensity (ny, nx) on the wave's grid.
        """
        def image_at(defocus: Value) -> torch.Tensor:
            return super(Projection, self).field_image(
                wave, replace(lens, defocus=defocus), rotation)

        ny, nx = wave.shape
        x, y = (as_tensor((torch.arange(n) - n // 2) * self.wave_pixel) for n in (nx, ny))
        height = -(x[None, :] * rotation[0, 2] + y[:, None] * rotation[1, 2]) / rotation[2, 2]
        nyquist = 0.5 / self.pixel_size
        step = 0.5 / (math.pi * number(wavelength(self.voltage)) * nyquist**2)
        last = math.ceil(float(height.detach().abs().max()) / step - 1e-6)
        if last == 0:
            return image_at(lens.defocus)
        out = torch.zeros_like(height)
        for n in range(-last, last + 1):
            share = (1 - (height / step - n).abs()).clamp(min=0)
            out = out + share * image_at(lens.defocus + n * step)
        return out
