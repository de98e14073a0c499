"""A scanning microscope: what passes a specimen along parallel rays, by Beer and Lambert's law.

A specimen's values are here what each A takes from the beam [1/A], the cross-section of scattering
beyond the bright-field detector per volume, in place of volts: of line integrals L, exp(-L) passes.
Bright field records that, dark field the rest (Kniesel et al. 2022 for bright field).

The beam is a cone, in focus in one plane. A tilted specimen leaves that plane the further, the
further it is from the tilt axis, by the distance times the tangent of the tilt: there each pixel is
the mean over the rays of a wider beam.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tem_taichi.arguments import check_grid, check_number, check_positive_number, no_gradient
from tem_taichi.checks import one_of, whole
from tem_taichi.device import as_tensor, number, present
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.physics import Value
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.view import Specimen, View
from tem_taichi.streams import Key

SIGNALS = ("bright", "dark")

_REACH = 5.0
"""Deviations of the widest beam that are kept beside the field."""


@dataclass(frozen=True)
class STEM:
    """A microscope that scans a specimen; an `Instrument`, what is the same for all images."""

    shape: tuple[int, int]
    """(ny, nx) of the beam's places."""
    pixel_size: float
    """Between them at the specimen [A]; makes the grid and has no gradient."""
    signal: str = "bright"
    """bright, the electrons that pass, or dark, those that are scattered beyond."""
    offset: Value = 0.0
    """What the detector shows without electrons, relative to the beam [1], not negative."""
    convergence: Value = 0.0
    """Half of the beam's opening angle [mrad]; 0 = in focus everywhere."""
    probe: Value = 0.0
    """Standard deviation of the beam in focus along x and y [A]."""
    dynamic_focus: bool = False
    """Whether the focus follows the tilted specimen's middle plane as the beam is scanned."""
    rays: int | None = None
    """Random rays that stand for each pixel's beam; None = its exact mean."""
    seed: int = 0
    """Of the random rays, which differ from exposure to exposure."""

    def __post_init__(self) -> None:
        check_grid("shape", self.shape)
        check_positive_number("pixel_size", self.pixel_size, "A")
        no_gradient("pixel_size", self.pixel_size, "it makes the grid")
        one_of("signal", self.signal, SIGNALS)
        check_number("offset", self.offset, "1", 0.0, 1e6)
        check_number("convergence", self.convergence, "mrad", 0.0, 1e3)
        check_number("probe", self.probe, "A", 0.0)
        if self.rays is not None:
            whole("rays", self.rays, 1, 1_000_000)

    def view(self, specimen: Specimen, exposure: Exposure) -> View:
        """How an exposure sees a specimen: one slice that holds everything."""
        view = View(
            tilt_rotation(exposure.tilt_angle, exposure.axis_angle),
            torch.stack([as_tensor(exposure.shift_x), as_tensor(exposure.shift_y)]),
            self.shape, self.pixel_size, 1.0, stream=exposure.stream)
        low, high = specimen.depth_range(view)
        return replace(view, entrance=low, slice_thickness=max(high - low, 1.0))

    def intensity(self, specimen: Specimen, exposure: Exposure) -> Tensor:
        """Electrons on the detector at each place, relative to the beam, (ny, nx).

        Differentiable in the specimen, the exposure's angles, shifts and defocus, and in the
        instrument's numbers.
        """
        view = self.view(specimen, exposure)
        passed = torch.exp(-specimen.slices(view, 0, 1)[0])
        lost = specimen.attenuation(view)
        return self.recorded(passed if lost is None else passed * lost.left, exposure)

    def recorded(self, passed: Tensor, exposure: Exposure) -> Tensor:
        """The signal of what passes at each place.

        Args:
            passed: part of the beam along the ray of each pixel, (ny, nx).
            exposure: with the defocus.
        """
        if present(self.convergence) or present(self.probe):
            passed = self._of_beams(passed, self.variance(exposure), exposure.stream)
        seen = passed if self.signal == "bright" else 1 - passed
        # Beams of atoms on pixels that are not fine enough for them ring below zero.
        return (as_tensor(self.offset) + seen).clamp(min=0)

    def height(self, exposure: Exposure) -> Tensor:
        """How far the specimen's middle plane is from focus at each place [A], (ny, nx).

        The exposure's defocus, which is that of the specimen's centre, and the plane's z there.
        """
        ny, nx = self.shape
        flat = as_tensor(torch.zeros(ny, nx)) + as_tensor(exposure.optics.defocus)
        if self.dynamic_focus:
            return flat
        y, x = (as_tensor((torch.arange(n) - n // 2) * self.pixel_size) - as_tensor(by)
                for n, by in ((ny, exposure.shift_y), (nx, exposure.shift_x)))
        normal = tilt_rotation(exposure.tilt_angle, exposure.axis_angle)[:, 2]
        return flat - (normal[0] * x + normal[1] * y[:, None]) / normal[2]

    def variance(self, exposure: Exposure) -> Tensor:
        """Of the beam at each place along x and along y [pixel^2], (ny, nx).

        That of an even cone, (angle height / 2)^2, and that of the beam in focus.
        """
        cone = as_tensor(self.convergence) * 1e-3 * self.height(exposure) / 2
        return (cone.square() + as_tensor(self.probe) ** 2) / self.pixel_size**2

    def _of_beams(self, passed: Tensor, variance: Tensor, stream: int) -> Tensor:
        """Mean over the beam of each place; what lies beyond the field is like its rim."""
        widest = float(variance.detach().max())
        room = math.ceil(_REACH * math.sqrt(widest)) + 2
        wide = torch.nn.functional.pad(passed[None, None], (room,) * 4, mode="replicate")[0, 0]
        if self.rays is None:
            return spread_by(wide, variance, room)
        return self._random(wide, variance.clamp(min=1e-12).sqrt(), room, stream)

    def _random(self, wide: Tensor, deviation: Tensor, room: int, stream: int) -> Tensor:
        """Mean of some rays of each beam, each interpolated (cubic) between those at pixels."""
        assert self.rays is not None
        draw = Key(self.seed, "rays", stream).generator()
        sizes = as_tensor([float(n) for n in wide.shape[::-1]])
        y, x = (as_tensor(torch.arange(n)) for n in self.shape)
        centre = torch.stack([x.expand(self.shape), y[:, None].expand(self.shape)], dim=-1) + room
        total = torch.zeros_like(deviation)
        for _ in range(self.rays):
            way = as_tensor(draw.standard_normal((*self.shape, 2)))
            places = 2 * (centre + deviation[..., None] * way) / (sizes - 1) - 1
            total = total + torch.nn.functional.grid_sample(
                wide[None, None], places[None], mode="bicubic", padding_mode="border",
                align_corners=True)[0, 0]
        return total / self.rays


def spread_by(wide: Tensor, variance: Tensor, room: int) -> Tensor:
    """Each pixel's mean under a Gaussian of its own, by diffusion from pixel to pixel.

    exp(-t (2 - cos kx - cos ky)) in Fourier space is positive, sums to 1 and has the variance t
    along x and y for any t (Lindeberg 1990), also of beams narrower than a pixel, where samples of
    a Gaussian have not. It is entire in t: images at some t (Chebyshev's nodes) and the polynomial
    through them are it to rounding, whatever t each pixel has.

    Args:
        wide: image with a rim, (ny + 2 room, nx + 2 room).
        variance: t of each pixel, (ny, nx).
        room: width of the rim [pixel], several of the largest deviation.

    Returns:
        (ny, nx); differentiable in the image and in the variance.
    """
    ny, nx = variance.shape
    low, high = number(variance.min()), number(variance.max())
    half, middle = max((high - low) / 2, 1e-9), (high + low) / 2
    # 4 half is the largest argument of the exponential: the terms fall like those of a Bessel
    # function from about its root on.
    count = 12 + math.ceil(6 * math.sqrt(4 * half))
    turns = torch.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    nodes = as_tensor(middle + half * turns.cos())
    ky, kx = (2 * torch.pi * as_tensor(frequency) for frequency in (
        torch.fft.fftfreq(wide.shape[0], dtype=torch.float64),
        torch.fft.rfftfreq(wide.shape[1], dtype=torch.float64)))
    rate = 2 - ky.cos()[:, None] - kx.cos()
    inner = (slice(room, room + ny), slice(room, room + nx))
    spectrum = torch.fft.rfft2(wide)
    made = torch.stack([torch.fft.irfft2(spectrum * torch.exp(-t * rate), s=wide.shape)[inner]
                        for t in nodes])
    orders = torch.arange(count, dtype=torch.float64)
    series = (orders[:, None] * turns).cos() * (2 / count)
    series[0] /= 2
    coefficients = torch.tensordot(as_tensor(series), made, dims=1)
    place = (variance - middle) / half
    before, now = torch.ones_like(place), place
    total = coefficients[0] + coefficients[1] * place
    for n in range(2, count):
        before, now = now, 2 * place * now - before
        total = total + coefficients[n] * now
    return total
