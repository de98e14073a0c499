"""Noise-free images as TEM-simulator 1.3 makes them, from the same inputs.

Rullgard et al. 2011 (J. Microsc. 243:234), in the conventions of this package. It differs from
`simulate` in what it takes for physics: all elastic scattering counts as absorption, which the
part within the aperture then gives back as a blurred incoherent image; a particle is one phase
object, averaged over the detector's pixels; solvent is liquid water. Use it to compare, not to
predict.

With the ice's path L and mean free path l, C the scattering transform and x = q |z + defocus|,

    I = F^-1[exp(-L (1 - C_water(x)) / l) (F |psi|^2 + C_carbon(x) F B)]

where B = (1 - exp(-2 phi)) |psi|^2 is what a particle of absorption phi takes from the wave.
Particles are projected as there, which shifts turned ones by up to about half a voxel and half a
pixel (`tem_simulator_particle.pass_offset`). Left out: the difference between ice before and behind
a particle, and the blur of particles by the carbon film, which only takes electrons here.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, reduce

import numpy as np
import torch
from scipy.fft import next_fast_len

from tem_taichi.checks import check
from tem_taichi.compat.tem_simulator_particle import (
    Contrast,
    VoxelParticle,
    contrast_of,
    ice_density,
    project,
)
from tem_taichi.device import as_tensor, current, number
from tem_taichi.grid import squared_frequencies
from tem_taichi.instrument.multislice import fresnel_propagator
from tem_taichi.instrument.optics import Optics, aberration_phase, envelope
from tem_taichi.noise import curves
from tem_taichi.noise.detector import Detector, expected_counts
from tem_taichi.physics import interaction_constant, wavelength
from tem_taichi.rotations import tilt_rotation
from tem_taichi.sharing import Sharing
from tem_taichi.specimen.cross_sections import molecular_cross_section, scattering_transform

_SMALLEST_ANGLE = 1.061e-3
"""Of the aperture's half-angle, from which scattering counts: fits the blank's 404.46 nm."""

_CARBON_DENSITY = 0.07428
"""Atoms in 1 A^3 of the film (1.48 g/cm^3): fits the blank's 304.88 nm."""

_WATER = ((1, 2), (8, 1))
_CARBON = ((6, 1),)

_MARGIN = 32
"""Pixels around the image at the least, so that neither waves nor the MTF wrap around its edges."""

_SERIES_ERROR = 1e-6
"""Of the contrast, at which the series in the ice's uneven thickness stops."""


@dataclass(frozen=True)
class Hole:
    """Ice in a round hole of a carbon film that is as thick as the ice's rim; along z."""

    centre_thickness: float
    """Of the ice [A]; grows with the square of the distance from the hole's centre."""
    edge_thickness: float
    """Of the ice at the rim, and of the film [A]."""
    diameter: float
    """[A]"""
    centre_x: float = 0.0
    """Of the hole [A]."""
    centre_y: float = 0.0
    """Of the hole [A]."""

    def __post_init__(self) -> None:
        for name in ("centre_thickness", "edge_thickness", "diameter"):
            value = getattr(self, name)
            check(math.isfinite(value) and value > 0, name, value, "positive [A]")


@dataclass(frozen=True)
class Poses:
    """Where copies of a particle lie.

    Attributes:
        positions: of their origins [A], (n, 3).
        angles: phi, theta, psi [deg], (n, 3); specimen = Rz(psi) Rx(theta) Rz(phi) particle,
            each turning right-handedly.
    """

    positions: torch.Tensor
    angles: torch.Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.positions.shape), tuple(self.angles.shape)
        if shapes[0][1:] != (3,) or shapes[0] != shapes[1]:
            raise ValueError(f"positions of shape {shapes[0]}, angles of shape {shapes[1]}: must "
                             "both be (n, 3)")


@dataclass(frozen=True)
class Setup:
    """Microscope, camera and tilt series."""

    shape: tuple[int, int]
    """(ny, nx) of the detector; the origin is in its middle, between pixels where even."""
    pixel_size: float
    """At the specimen [A]."""
    dose: float
    """Of each image [e-/A^2]."""
    tilts: tuple[float, ...] = (0.0,)
    """[deg], right-handed about the axis."""
    axis_angle: float = -90.0
    """Of the tilt axis from +y, counter-clockwise [deg]; -90 is the x axis."""
    voltage: float = 200.0
    """[kV]"""
    optics: Optics = field(default_factory=lambda: Optics(aperture=50.0))
    """Its defocus is that of z = 0; it must have an aperture."""
    detector: Detector = field(default_factory=Detector)

    def __post_init__(self) -> None:
        check(self.pixel_size > 0, "pixel_size", self.pixel_size, "positive [A]")
        check(self.dose > 0, "dose", self.dose, "positive [e-/A^2]")
        check(all(abs(tilt) < 90 for tilt in self.tilts), "tilts", self.tilts,
              "within 90 degrees of 0")
        if self.optics.aperture is None:
            raise ValueError("optics.aperture=None: must be given, it decides the absorption")

    @property
    def slice_distance(self) -> float:
        """Between the planes in which particles lie, pixel^2 kappa / (4 pi) [A]."""
        return self.pixel_size**2 / (2 * wavelength(self.voltage))


def simulate_compat(
    hole: Hole, setup: Setup, particle: VoxelParticle | None = None, poses: Poses | None = None
) -> torch.Tensor:
    """Expected counts of a tilt series.

    Args:
        hole: ice and film.
        setup: microscope, camera and tilts.
        particle: maps of the only kind of particle; None for none.
        poses: of its copies.

    Returns:
        Counts (n_tilts, ny, nx), differentiable in the maps, positions and angles.

    Raises:
        ValueError: if a particle has no poses or the other way round, or a value is out of range.
    """
    if (particle is None) != (poses is None):
        raise ValueError("particle and poses: must be given together")
    (ny, nx), (my, mx) = setup.shape, (_margin(n) for n in setup.shape)
    wide = replace(setup, shape=(ny + 2 * my, nx + 2 * mx))
    # What all tilts have in common.
    contrast = None if particle is None else contrast_of(particle)
    transfer = _transfer(wide)
    taken = ice_density(setup.voltage) * (1 - _kept(_WATER, wide, 0.0))
    kept = cache(lambda z: _kept(_CARBON, wide, z))
    images = []
    with Sharing() as share:
        for tilt in setup.tilts:
            share()
            rotation = tilt_rotation(tilt, setup.axis_angle)
            scattered = None if contrast is None or poses is None else _scattered(
                contrast, poses, wide, rotation, transfer, kept)
            image = _through_ice(hole, wide, rotation, taken, scattered)
            # One at a time: all would pass through the processor's cache at every step.
            counts = expected_counts(image, pixel_size=setup.pixel_size, dose=setup.dose,
                                     detector=setup.detector)
            images.append(counts[my:my + ny, mx:mx + nx])
    return torch.stack(images)


def _margin(pixels: int) -> int:
    """Pixels on either side of so many, at least _MARGIN, that make a number of small factors."""
    return next(margin for margin in itertools.count(_MARGIN)
                if next_fast_len(pixels + 2 * margin) == pixels + 2 * margin)


def euler_rotations(angles: torch.Tensor) -> torch.Tensor:
    """Rz(psi) Rx(theta) Rz(phi) of phi, theta, psi [deg], (n, 3): matrices (n, 3, 3)."""
    phi, theta, psi = torch.deg2rad(angles).unbind(-1)
    zero, one = torch.zeros_like(phi), torch.ones_like(phi)

    def about_z(angle: torch.Tensor) -> list[torch.Tensor]:
        c, s = torch.cos(angle), torch.sin(angle)
        return [c, -s, zero, s, c, zero, zero, zero, one]

    c, s = torch.cos(theta), torch.sin(theta)
    first, second, third = (torch.stack(rows, -1).reshape(-1, 3, 3) for rows in (
        about_z(phi), [one, zero, zero, zero, c, -s, zero, s, c], about_z(psi)))
    return third @ second @ first


def path_lengths(
    hole: Hole, setup: Setup, rotation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Way of the beam through ice and through film at each pixel [A], both (ny, nx).

    Exact for the lens z = +-t/2, t = centre + (edge - centre) rho^2 / R^2, cut by the hole's wall.
    """
    device = current()
    y, x = ((torch.arange(n, dtype=torch.float64, device=device.torch_device) - (n - 1) / 2)
            * setup.pixel_size for n in setup.shape)
    (ax, ay, az), along = rotation.detach()[:2].T.tolist(), rotation[2].tolist()  # the beam's

    def plane(by_x: float, by_y: float, constant: float) -> torch.Tensor:
        return (x * by_x + constant).to(device.dtype) + (y * by_y).to(device.dtype)[:, None]

    def crossing(axis: list[float], way: float, centre: float) -> tuple[float, float, float]:
        """Where rays cross z = 0, along an axis of the specimen from the hole's centre."""
        by_x, by_y = (part - height * way / along[2] for part, height in zip(axis, az, strict=True))
        return by_x, by_y, -centre

    of_u = crossing(ax, along[0], hole.centre_x)
    of_v = crossing(ay, along[1], hole.centre_y)
    u, v = plane(*of_u), plane(*of_v)
    by_x, by_y, constant = (along[0] * a + along[1] * b for a, b in zip(of_u, of_v, strict=True))
    skew = plane(by_x, by_y, constant)
    square = torch.addcmul(u * u, v, v)
    radius = hole.diameter / 2
    bend = (hole.edge_thickness - hole.centre_thickness) / radius**2
    across = along[0] ** 2 + along[1] ** 2
    middle = hole.centre_thickness + bend * square

    def surface(sign: int) -> torch.Tensor:
        """Way to the upper (1) or lower (-1) surface, infinite where a ray misses it."""
        slope = along[2] - sign * bend * skew
        root = torch.sub(slope * slope, middle, alpha=bend * across)
        return torch.where(root >= 0, middle / slope.add_(root.sqrt()), math.inf)

    if across > 1e-12:
        half = (skew * skew).sub_(square.sub_(radius**2), alpha=across).clamp_(min=0).sqrt_()
        enter, leave = (half + skew).div_(-across), half.sub_(skew).div_(across)
    else:
        leave = torch.where(square < radius**2, math.inf, 0.0).to(square)
        enter = -leave
    film = hole.edge_thickness / (2 * along[2])
    upper, lower = surface(1), surface(-1).neg_()
    ice = torch.minimum(upper, leave).sub_(torch.maximum(lower, enter)).clamp_(min=0)
    hollow = leave.clamp_(max=film).sub_(enter.clamp_(min=-film)).clamp_(min=0)
    return ice, hollow.neg_().add_(2 * film)


def _scattered(
    particle: Contrast, poses: Poses, setup: Setup, rotation: torch.Tensor,
    transfer: torch.Tensor, kept: Callable[[float], torch.Tensor],
) -> torch.Tensor:
    """Spectrum of what particles change of the intensity, without the ice, of its rfft2."""
    rotations = rotation @ euler_rotations(as_tensor(poses.angles))
    positions = as_tensor(poses.positions) @ rotation.T
    planes = torch.round(positions[:, 2].detach() / setup.slice_distance)
    sigma = interaction_constant(setup.voltage)
    wave: torch.Tensor | None = None
    background: torch.Tensor | float = 0.0
    z = 0.0
    for plane in torch.unique(planes).tolist():  # ascending: along the beam
        distance, z = plane * setup.slice_distance - z, plane * setup.slice_distance
        if wave is not None:  # else it is still 1 everywhere
            wave = _filtered(wave, _step(setup, distance))
        here = torch.nonzero(planes == plane).flatten().tolist()
        phase, decay = sigma * reduce(torch.add, (
            project(particle, rotations[i], positions[i], setup.shape, setup.pixel_size)
            for i in here))
        lost = 1 - torch.exp(-2 * decay)
        if wave is not None:
            lost = lost * (wave.real**2 + wave.imag**2)
        background = background + kept(z) * torch.fft.rfft2(lost)
        passed = torch.polar(torch.exp(-decay), phase)
        wave = passed if wave is None else wave * passed
    if wave is None:
        return torch.fft.rfft2(torch.zeros(setup.shape).to(rotation))
    wave = _filtered(wave, transfer * _step(setup, -z) if z else transfer)
    return torch.fft.rfft2(wave.real**2 + wave.imag**2 - 1) + background


def _transfer(setup: Setup) -> torch.Tensor:
    """What the lens makes of a wave's spectrum, complex (ny, nx)."""
    chi = aberration_phase(setup.shape, setup.pixel_size, setup.voltage, setup.optics)
    resolved = squared_frequencies(setup.shape) < 0.25  # a round limit at Nyquist
    return torch.polar(resolved * envelope(setup.shape, setup.pixel_size, setup.voltage,
                                           setup.optics), -chi)


def _step(setup: Setup, distance: float) -> torch.Tensor:
    """What a way through free space [A] makes of a wave's spectrum, complex (ny, nx)."""
    return fresnel_propagator(setup.shape, setup.pixel_size, wavelength(setup.voltage), distance)


def _filtered(wave: torch.Tensor, transfer: torch.Tensor) -> torch.Tensor:
    return torch.fft.ifft2(torch.fft.fft2(wave) * transfer)


def _through_ice(
    hole: Hole, setup: Setup, rotation: torch.Tensor, taken: torch.Tensor,
    scattered: torch.Tensor | None,
) -> torch.Tensor:
    """Intensity behind ice and film, (ny, nx).

    exp(-L taken(q)) with L(x, y) about its mean: a series, each term of which is a filter.
    """
    ice, film = path_lengths(hole, setup, rotation)
    water = ice_density(setup.voltage)
    carbon = _CARBON_DENSITY * molecular_cross_section(dict(_CARBON), setup.voltage)
    blank = torch.exp(-film * carbon * (1 - _table(_CARBON, setup)[1][0]))
    out = torch.exp(-ice * taken[0, 0])
    if scattered is None:
        return blank * out
    mean = ice.mean()
    thinner = mean - ice
    spread = float(thinner.abs().max()) * water
    term = scattered * torch.exp(-mean * taken)
    out = out + torch.fft.irfft2(term, s=setup.shape)
    power, order, bound = thinner, 1, spread
    while bound > _SERIES_ERROR:
        term = term * taken
        out = torch.addcmul(out, power, torch.fft.irfft2(term, s=setup.shape),
                            value=1 / math.factorial(order))
        order += 1
        power, bound = power * thinner, bound * spread / order
    return blank * out


def _kept(composition: tuple, setup: Setup, z: float) -> torch.Tensor:
    """C of an object at z over the frequencies of the image's rfft2, (ny, nx // 2 + 1)."""
    distance = abs(z + number(setup.optics.defocus))
    q = 2 * math.pi * squared_frequencies(setup.shape, setup.pixel_size, half=True).sqrt()
    x, values = _table(composition, setup)
    return curves.interpolate(q * distance, as_tensor(x), as_tensor(values))


def _table(composition: tuple, setup: Setup) -> tuple[np.ndarray, np.ndarray]:
    aperture = setup.optics.aperture or math.nan  # `Setup` has checked that there is one
    largest = number(aperture) * 1e-3 / (2 * number(setup.optics.focal_length))
    return _transform(composition, setup.voltage, largest)


@cache
def _transform(
    composition: tuple, voltage: float, largest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Table of the scattering transform over x."""
    x = np.concatenate([[0.0], np.geomspace(1e-2, 1e4, 1200) / largest])
    angles = (_SMALLEST_ANGLE * largest, largest)
    return x, scattering_transform(dict(composition), voltage, angles, x)
