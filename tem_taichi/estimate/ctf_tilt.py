"""Defocus of an image of a tilted specimen, whose defocus varies across it by a known slope.

The rings of strips along the tilt axis are searched together, each with its own height added to
the defocus at the image's centre. The strips' spectra are then stretched until their rings fall
on those of the centre, averaged, and fitted as one spectrum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate import ctf_fit, ctf_model, ctf_search, spectra
from tem_taichi.estimate.ctf_band import Band, make_band
from tem_taichi.estimate.ctf_curves import equal_phase
from tem_taichi.estimate.ctf_fit import CtfFit
from tem_taichi.estimate.ctf_model import Lens
from tem_taichi.estimate.ctf_search import CtfSearch, Sectors, default_search
from tem_taichi.grid import check_pixel_size

_STRIPS = 3  # to a tile's width: within a strip heights differ less than within its tiles
_STRETCH = 1.5  # of a strip's frequencies, beyond which its background differs too much
_LEVEL = 50.0  # height of the corners [A], below which an image is as good as not tilted
_SAME = 5e-3  # relative change of the defocus that leaves the stretch as it is


def fit_tilted_micrograph(image: ArrayLike | Tensor, pixel_size: float,
                          tilt: tuple[float, float], voltage: float,
                          spherical_aberration: float, amplitude_contrast: float = 0.07,
                          search: CtfSearch | None = None) -> CtfFit:
    """`ctf_fit.fit_micrograph` of a flat specimen that is tilted about an axis through the centre.

    What lies at u [A] across the axis is at the height -u tan(tilt) along the beam, by which its
    underfocus is larger. Tiles are the shorter the steeper the tilt, which leaves less height in
    each.

    Args:
        image: (ny, nx).
        pixel_size: [A].
        tilt: angle, right-handed about the axis, and the axis's angle counter-clockwise from +y
            [deg].
        voltage: [kV].
        spherical_aberration: Cs [mm].
        amplitude_contrast: Q, within [0, 1).
        search: where to look, at the image's centre.

    Returns:
        The fit of the stretched spectra; defocus is that at the image's centre, and `hand_gain`
        the log-likelihood by which this tilt explains the rings better than the opposite one.

    Raises:
        ValueError: as `fit_micrograph`, or for a tilt of 80 degrees or more.
    """
    check_pixel_size(pixel_size)
    angle, axis = (math.radians(one) for one in tilt)
    if not (abs(tilt[0]) < 80 and math.isfinite(axis)):
        raise ValueError(f"tilt={tilt}: must be an angle below 80 degrees, and that of the axis")
    search = search or default_search(pixel_size)
    lens = ctf_model.make_lens(voltage, spherical_aberration, amplitude_contrast)
    pixels = spectra.check_image(image)
    shape = (pixels.shape[0], pixels.shape[1])
    if math.tan(abs(angle)) * math.hypot(*shape) / 2 * pixel_size < _LEVEL:
        found = ctf_fit.fit_micrograph(pixels, pixel_size, voltage, spherical_aberration,
                                       amplitude_contrast, search)
        return replace(found, hand_gain=0.0)
    tile = spectra.tile_size(shape, pixel_size / math.cos(angle))
    strips = spectra.strip_periodograms(pixels, tile, (math.cos(axis), math.sin(axis)),
                                        tile / _STRIPS)
    slope = -math.tan(angle) * pixel_size
    flat = []
    for place, count, spectrum in strips:
        values, size = spectra.crop_spectrum(spectrum, pixel_size, ctf_fit.SHOWN
                                             * search.resolution[1])
        flat.append(make_strip(place * slope, count, make_band(values, size, *search.resolution),
                               (len(values), len(values)), size))
    constants = voltage, spherical_aberration, amplitude_contrast
    fits = [_fit_strips(flat, hand, constants, lens, search) for hand in (1, -1)]
    return replace(fits[0], hand_gain=fits[0].gain - fits[1].gain)


def fit_stack(images: Sequence[ArrayLike] | np.ndarray | Tensor, pixel_size: float, voltage: float,
              spherical_aberration: float, amplitude_contrast: float = 0.07,
              search: CtfSearch | None = None,
              tilts: Sequence[tuple[float, float]] | None = None) -> list[CtfFit]:
    """Fit of each image (ny, nx) of a stack, or of a tilt series with `tilts` (angle, axis).

    Args:
        images: n of (ny, nx).
        pixel_size: [A].
        voltage: [kV].
        spherical_aberration: Cs [mm].
        amplitude_contrast: Q [1], in [0, 1).
        search: what is looked for; None = `default_search`.
        tilts: tilt angle and axis angle of each image [deg]; None = not tilted.
    """
    lens = voltage, spherical_aberration, amplitude_contrast
    if tilts is None:
        return [ctf_fit.fit_micrograph(image, pixel_size, *lens, search) for image in images]
    return [fit_tilted_micrograph(image, pixel_size, tilt, *lens, search)
            for image, tilt in zip(images, tilts, strict=True)]


def common_astigmatism(fits: Sequence[CtfFit]) -> tuple[float, float] | None:
    """What the images of a series share, for `CtfSearch.known`.

    Returns:
        U - V [A] and the angle of U [deg]: medians, weighted with the inverse variance, of its two
        components in images whose rings are beyond chance; None if these are less than three.
    """
    good = [fit for fit in fits if fit.gain > ctf_fit.RINGS]
    if len(good) < 3:
        return None
    vectors = np.array([fit.astigmatism * np.exp(2j * np.radians(fit.astigmatism_angle))
                        for fit in good])
    weights = np.array([1 / (fit.errors[0]**2 + fit.errors[1]**2) for fit in good])

    def median(values: np.ndarray) -> float:
        order = values.argsort()
        share = (weights[order].cumsum() - weights[order] / 2) / weights.sum()
        return float(np.interp(0.5, share, values[order]))

    shared = complex(median(vectors.real), median(vectors.imag))
    return abs(shared), math.degrees(np.angle(shared)) / 2 % 180


@dataclass(frozen=True)
class Strip:
    """Spectrum of a strip over its smooth mean."""

    height: float
    """By which its defocus is larger than the centre's [A]."""
    count: float
    """Of its tiles, which is its weight."""
    flat: Tensor
    """(n, n), centred."""
    pixel_size: float
    """That it reaches to [A]."""
    sectors: Sectors
    """The same averaged, for a search."""


def make_strip(height: float, count: int, band: Band, shape: tuple[int, int],
               pixel_size: float) -> Strip:
    """What is used of a strip's spectrum.

    Args:
        height: by which its defocus is larger than the centre's [A].
        count: of its tiles.
        band: of its spectrum.
        shape: of the spectrum.
        pixel_size: that it reaches to [A].
    """
    sectors = ctf_search.bin_sectors(band)
    return Strip(height, count, band.flat.power.view(shape), pixel_size,
                 sectors._replace(weight=sectors.weight * count))


def _fit_strips(strips: Sequence[Strip], hand: int, constants: tuple[float, float, float],
                lens: Lens, search: CtfSearch) -> CtfFit:
    """Fit of all strips, their heights times `hand`."""
    starts = ctf_search.search([(one.sectors, hand * one.height) for one in strips], lens,
                               search.defocus, search.astigmatisms,
                               as_tensor(search.phases), 1)
    if not starts:
        raise ValueError("image: no trace of rings at any defocus searched")
    defocus, (cosine, sine) = starts[0].defocus, starts[0][1:3]
    for _ in range(3):
        merged = merge(strips, hand, lens, (defocus, cosine, sine))
        found = ctf_fit.fit_spectrum(merged, strips[0].pixel_size, *constants, search)
        change = abs(found.defocus / defocus - 1)
        turn = 2 * math.radians(found.astigmatism_angle)
        half = found.astigmatism / 2
        defocus, cosine, sine = found.defocus, half * math.cos(turn), half * math.sin(turn)
        if change < _SAME:
            break
    return found


def merge(strips: Sequence[Strip], hand: int, lens: Lens,
          at_centre: tuple[float, float, float]) -> Tensor:
    """Mean of the strips, each stretched to the rings of the centre's defocus and astigmatism.

    Args:
        strips: of one image or several.
        hand: 1, or -1 for the opposite heights.
        lens: constants.
        at_centre: mean defocus, and half the astigmatism times cos and sin of twice its angle [A].

    Returns:
        Spectrum of the shape and reach of the first strip's; 1 where no strip tells.
    """
    shape = strips[0].flat.shape
    kx, ky = spectra.centred_frequencies((shape[0], shape[1]), strips[0].pixel_size)
    squared, twice = kx**2 + ky**2, 2 * torch.atan2(ky, kx)
    mean, cosine, sine = at_centre
    defocus = mean + cosine * torch.cos(twice) + sine * torch.sin(twice)
    total, weight = torch.zeros(shape).to(squared), torch.zeros(shape).to(squared)
    for strip in strips:
        own = defocus + hand * strip.height
        stretch = (equal_phase(squared, defocus, own, lens) / squared).sqrt()
        used = (own > 0) & (stretch < _STRETCH) & (stretch > 1 / _STRETCH)
        place = [(stretch * k * 2 * strip.pixel_size) for k in (kx, ky)]
        # Where there is no such frequency, at 0 say, it is NaN, which no comparison lets through.
        # Frequencies run from -1 to 1 - 2 / n in units of Nyquist; samples are at their centres.
        grid = torch.stack([part + 1 / n for part, n in zip(
            place, strip.flat.shape[::-1], strict=True)], -1)
        inside = used & (grid.abs() < 1).all(dim=-1)
        sampled = torch.nn.functional.grid_sample(
            strip.flat[None, None], grid[None], mode="bilinear", padding_mode="border",
            align_corners=False)[0, 0]
        total += strip.count * torch.where(inside, sampled, 0.0)
        weight += strip.count * inside
    return torch.where(weight > 0, total / weight.clamp(min=1), as_tensor(1.0))
