"""From the exit wave to the intensity on the detector's pixels."""

import math
import warnings
from dataclasses import replace

import numpy as np
import torch

from tem_taichi.device import as_tensor, number, present
from tem_taichi.grid import fourier_crop
from tem_taichi.instrument.distortion import anisotropic, distort
from tem_taichi.instrument.exposure import Exposure, Instrument
from tem_taichi.instrument.optics import Optics, defocus_per_energy, form_image
from tem_taichi.physics import Value, wavelength
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.absorption import absorption_ratios
from tem_taichi.specimen.ice import mean_potential
from tem_taichi.specimen.ice_shape import path_length
from tem_taichi.specimen.particles import Ice, ParticlesInIce


def intensity(
    specimen: ParticlesInIce, instrument: Instrument, exposure: Exposure, wave: torch.Tensor,
    distance: float,
) -> torch.Tensor:
    """Relative intensity on the detector's pixels, margin included.

    The ice and its film attenuate by exp(-path / mean free path) along each ray. Without an energy
    filter what they take comes back as an image of electrons that lost energy.

    Args:
        specimen: for its ice.
        instrument: grids, voltage and mode.
        exposure: lens and tilt.
        wave: from `exit_wave`, and so is the distance [A].
        distance: see wave.

    Returns:
        Real tensor of the detector's shape, about 1, not negative.

    Warns:
        UserWarning: if setting to zero what is below adds more than a thousandth of the electrons.
    """
    lens = replace(exposure.optics, defocus=exposure.optics.defocus + distance)
    rotation = tilt_rotation(exposure.tilt_angle, exposure.axis_angle)

    def on_detector(optics: Optics) -> torch.Tensor:
        image = field_image(wave, instrument, optics, rotation)
        if present(instrument.anisotropy):
            image = distort(image, anisotropic(instrument.anisotropy, instrument.anisotropy_angle))
        return fourier_crop(image, instrument.detector_shape)

    image = on_detector(lens)
    if specimen.ice.mean_free_path is not None:
        shift = (exposure.shift_x, exposure.shift_y)
        left = transmitted(specimen.ice, instrument.detector_shape, instrument.pixel_size,
                           rotation, shift)
        image = image * left
        if not instrument.energy_filter:
            back = (1 - left) * (1 - specimen.ice.stopped)
            image = image + on_detector(after_loss(lens, instrument.voltage)) * back
    return _not_negative(image, instrument.mode)


def _not_negative(image: torch.Tensor, mode: str) -> torch.Tensor:
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
               if mode == "weak_phase" else "")
        warnings.warn("the image is below zero in places: setting it to zero adds more than a "
                      f"thousandth of its electrons.{why}", stacklevel=3)
    return kept


def transmitted(
    ice: Ice, shape: tuple[int, int], pixel_size: float, rotation: torch.Tensor,
    shift: tuple[Value, Value] = (0.0, 0.0),
) -> torch.Tensor:
    """Part of the electrons that pass the ice and its film without loss.

    Args:
        ice: with a mean free path.
        shape: (ny, nx) of the image.
        pixel_size: [A].
        rotation: specimen to image frame, (3, 3).
        shift: of the image in x, y [A].

    Returns:
        exp(-path / mean free path) of each pixel's ray, (ny, nx).
    """
    mean_free_path = math.inf if ice.mean_free_path is None else ice.mean_free_path
    # Rays on a coarse grid, about 8 pixels apart, since a film's edge costs many steps for each.
    coarse = [n if ice.shape is None else -(-n // 8) + 1 for n in shape]
    y, x = (as_tensor(np.linspace(-(n // 2), n - 1 - n // 2, few)) * pixel_size - by
            for n, few, by in zip(shape, coarse, (shift[1], shift[0]), strict=True))
    lost = path_length(ice.layer, rotation, x[None, :], y[:, None]) / mean_free_path
    if present(ice.layer.carbon_thickness):
        stronger = float(absorption_ratios(ice.ratios)[6]) * mean_potential("carbon")
        film = path_length(ice.layer, rotation, x[None, :], y[:, None], "carbon")
        lost = lost + film * stronger / mean_free_path
    if ice.shape is not None:
        lost = torch.nn.functional.interpolate(lost[None, None], shape, mode="bilinear",
                                               align_corners=True)[0, 0]
    return torch.exp(-lost)


def field_image(
    wave: torch.Tensor, instrument: Instrument, lens: Optics, rotation: torch.Tensor
) -> torch.Tensor:
    """Image of a wave; where no slices hold the depth of a tilted specimen, the lens does.

    A projection through a tilted specimen is in one plane, though its parts are at depths of
    their own. Its image is put together of strips along the tilt axis: each pixel is interpolated
    between images at the two defoci about its own, so near that the phase chi differs by less than
    half a radian at the detector's Nyquist frequency.

    Args:
        wave: exit wave (ny, nx).
        instrument: mode, voltage and grids.
        lens: its defocus is that of the image's centre.
        rotation: specimen to image frame, (3, 3).

    Returns:
        Intensity (ny, nx) on the wave's grid.
    """
    def image_at(defocus: Value) -> torch.Tensor:
        return form_image(wave, instrument.wave_pixel, instrument.voltage,
                          replace(lens, defocus=defocus), linear=instrument.mode == "weak_phase")

    if instrument.mode == "multislice":
        return image_at(lens.defocus)
    ny, nx = wave.shape
    x, y = (as_tensor((torch.arange(n) - n // 2) * instrument.wave_pixel) for n in (nx, ny))
    height = -(x[None, :] * rotation[0, 2] + y[:, None] * rotation[1, 2]) / rotation[2, 2]
    nyquist = 0.5 / instrument.pixel_size
    step = 0.5 / (math.pi * number(wavelength(instrument.voltage)) * nyquist**2)
    last = math.ceil(float(height.detach().abs().max()) / step - 1e-6)
    if last == 0:
        return image_at(lens.defocus)
    out = torch.zeros_like(height)
    for n in range(-last, last + 1):
        share = (1 - (height / step - n).abs()).clamp(min=0)
        out = out + share * image_at(lens.defocus + n * step)
    return out


def after_loss(lens: Optics, voltage: Value) -> Optics:
    """The lens as electrons see it that lost energy in the specimen: by the mean, over focus.

    Losses of ice spread about 25 eV by some 15 eV (1/e half-width; Egerton 2011).
    """
    shift = 25.0 * defocus_per_energy(voltage, lens.chromatic_aberration)
    spread = (lens.energy_spread**2 + 15.0**2) ** 0.5
    return replace(lens, defocus=lens.defocus - shift, energy_spread=spread)
