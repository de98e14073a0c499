"""Images of a tilt series as spectra of strips, with what is known of each strip's rings."""

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tem_taichi.estimate import ctf_fit, ctf_search, spectra
from tem_taichi.estimate.ctf_band import Band, make_band
from tem_taichi.estimate.ctf_joint import Spectra
from tem_taichi.estimate.ctf_model import Elements, Lens
from tem_taichi.estimate.ctf_search import CtfSearch
from tem_taichi.estimate.ctf_tilt import Strip, make_strip

_STRIPS = 3  # to a tile's width, at least
_TURN = 0.1  # of a ring at the highest frequency, that heights within a strip may differ by
_LENGTHS, _LONGEST = 5.0, 2000.0  # of a tile: times that height along the slope, and [A]


@dataclass(frozen=True)
class Image:
    """Strips of one image."""

    strips: list[Strip]
    """With their heights as the tilt says."""
    angle: float
    """Tilt [rad]."""
    tile: float
    """Side of a tile [A]."""
    axis: float
    """Angle of the axis [rad]."""
    steepness: Tensor
    """Derivative of the spectrum's logarithm by log k: coefficients of a parabola in it, (3,)."""


def cut_image(image: ArrayLike | Tensor, pixel_size: float, tilt: tuple[float, float], lens: Lens,
              search: CtfSearch) -> Image:
    """Strips across the axis, the wider the less the tilt, of one smooth mean.

    Args:
        image: (ny, nx).
        pixel_size: [A].
        tilt: angle and axis angle [deg], as `fit_tilted_micrograph`.
        lens: constants.
        search: whose resolutions are used.
    """
    angle, axis = (math.radians(one) for one in tilt)
    if not (abs(tilt[0]) < 80 and math.isfinite(axis)):
        raise ValueError(f"tilt={tilt}: must be an angle below 80 degrees, and that of the axis")
    pixels = spectra.check_image(image)
    shape = (pixels.shape[0], pixels.shape[1])
    slope = -math.tan(angle) * pixel_size
    same = _TURN * max(search.resolution[1], 2 * pixel_size)**2 / lens.wavelength  # height [A]
    tile = _tile(shape, pixel_size, angle, same)
    width = max(tile / _STRIPS, same / max(abs(slope), same / (4 * math.hypot(*shape))))
    found = spectra.strip_periodograms(pixels, tile, (math.cos(axis), math.sin(axis)), width)
    mean = torch.stack([count * spectrum for _, count, spectrum in found]).sum(dim=0) / sum(
        count for _, count, _ in found)
    whole, size = spectra.crop_spectrum(mean, pixel_size, ctf_fit.SHOWN * search.resolution[1])
    band = make_band(whole, size, *search.resolution)
    strips = [make_strip(place * slope, count, band.again(spectra.crop_spectrum(
        spectrum, pixel_size, ctf_fit.SHOWN * search.resolution[1])[0]), (len(whole), len(whole)),
        size) for place, count, spectrum in found]
    return Image(strips, angle, tile * pixel_size, axis, _steepness(band))


def _tile(shape: tuple[int, int], pixel_size: float, angle: float, same: float) -> int:
    """Pixels of a tile: as long as its heights allow, since short ones pull the rings inwards.

    A window averages over frequencies, most of which lie where the rings are strong: that shifts
    their phase as the inverse square of its length.
    """
    length = min(_LENGTHS * same / max(math.tan(abs(angle)), 1e-3), _LONGEST)
    least = spectra.tile_size(shape, pixel_size / math.cos(angle))
    return max(least, spectra.tile_size(shape, pixel_size * 1000 / length))


def _steepness(band: Band) -> Tensor:
    """Derivative of the smooth mean's logarithm by that of k: coefficients of a parabola."""
    k = band.flat.k[band.inside.view(-1)].log().double()
    mean = band.mean[band.inside.view(-1)].log().double()
    powers = torch.stack([k**n for n in range(4)], dim=1)
    cubic = torch.linalg.solve(powers.T @ powers, powers.T @ mean)
    return (cubic[1:] * torch.arange(1, 4).to(cubic)).to(band.mean.dtype)


def cells_of(image: Image, hand: int, lens: Lens) -> Spectra:
    """Cells of all strips.

    Args:
        image: cut up.
        hand: 1, or -1 for the opposite heights.
        lens: constants.
    """
    cells = [ctf_search.cells(one.sectors) for one in image.strips]
    sector = [torch.nonzero(one.sectors.weight > 0)[:, 0] for one in image.strips]
    height = [torch.full_like(own.k, hand * one.height)
              for own, one in zip(cells, image.strips, strict=True)]
    joined = Elements(*(torch.cat([getattr(own, name) for own in cells])
                        for name in ("power", "k", "cosine", "sine", "weight")))
    turns = lens.wavelength * joined.k**2 * math.tan(image.angle) * image.tile
    blur = _window(turns * math.cos(image.axis)) * _window(turns * math.sin(image.axis))
    return Spectra(joined, torch.cat(height), blur, 1 / math.cos(image.angle), torch.cat(sector),
                   ringing(joined.k, image))


def ringing(k: Tensor, image: Image) -> Tensor:
    """Frequency whose rings a cell has, of all those that a tile's window averages over.

    A Hann window of length L averages over a variance s = 1 / (3 L^2) along x and y. Of rings
    E cos(a k^2) that adds s (1 + d log E / d log k) 2 a to the phase, to first order: E grows or
    falls with the smooth mean.

    Args:
        k: of cells [1/A], (n,).
        image: whose they are.
    """
    steepness = torch.stack([part * k.log()**n
                             for n, part in enumerate(image.steepness)]).sum(dim=0)
    squared = k**2 + 2 / (3 * image.tile**2) * (1 + steepness)
    return squared.clamp(min=0.25 * float(k.min())**2).sqrt()


def _window(turns: Tensor) -> Tensor:
    """Fourier transform of the squared Hann window of a tile, at so many turns over the tile."""
    near, far = (torch.sinc(turns - n) + torch.sinc(turns + n) for n in (1, 2))
    return torch.sinc(turns) + near * 2 / 3 + far / 6


def up_to(one: Spectra, highest: float) -> Spectra:
    """Cells up to a frequency.

    Args:
        one: of an image.
        highest: [1/A].
    """
    inside = one.cells.k <= highest
    return Spectra(Elements(*(getattr(one.cells, name)[inside] for name in (
        "power", "k", "cosine", "sine", "weight"))), one.height[inside], one.blur[inside],
        one.path, one.sector[inside], one.k[inside])


