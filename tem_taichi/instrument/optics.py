"""Image formation: aberrations, coherence envelopes, aperture and the CTF."""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch

from tem_taichi.arguments import (
    check_amplitude_contrast,
    check_number,
    check_positive_number,
    check_voltage,
    no_gradient,
    to_field,
)
from tem_taichi.checks import LARGE
from tem_taichi.device import as_tensor, number, present
from tem_taichi.grid import frequencies, pixel_length, radial_frequencies, squared_frequencies
from tem_taichi.instrument.coherence import Source, Transfer, blur, incoherent
from tem_taichi.physics import REST_ENERGY, Value, wavelength

_RANGES: dict[str, tuple[float, float, str]] = {
    "defocus": (-1e7, 1e7, "A"), "spherical_aberration": (-100, 100, "mm"),
    "astigmatism": (-1e7, 1e7, "A"), "phase_shift": (-LARGE, LARGE, "deg"),
    "beam_tilt_x": (-100, 100, "mrad"), "beam_tilt_y": (-100, 100, "mrad"),
    "coma": (-1e8, 1e8, "A"), "trefoil": (-1e8, 1e8, "A"),
    **{f"{name}_angle": (-LARGE, LARGE, "deg") for name in ("astigmatism", "coma", "trefoil")},
    "chromatic_aberration": (0, 100, "mm"), "energy_spread": (0, 1e3, "eV"),
    "convergence": (0, 100, "mrad"),
}
"""Least and largest value, and unit."""

_ODD = ("coma", "trefoil", "beam_tilt_x", "beam_tilt_y")
"""What makes the phase of the lens differ between k and -k."""


@dataclass(frozen=True)
class Optics:
    """Lens and source; every field is a float, or a tensor with a gradient where not said else.

    A tensor of shape (b,) stands for a batch of b images of one exit wave.
    """

    defocus: Value = 0.0
    """[A], positive = underfocus; the mean of the two principal defoci."""
    spherical_aberration: Value = 2.7
    """Cs [mm], positive for a round lens."""
    astigmatism: Value = 0.0
    """Difference of the principal defoci U - V [A]; U lies along the angle."""
    astigmatism_angle: Value = 0.0
    """Direction of the larger defocus U [deg], from +x towards +y, as RELION's."""
    phase_shift: Value = 0.0
    """Of the scattered wave against the unscattered by a phase plate [deg], 0 without."""
    beam_tilt_x: Value = 0.0
    """Of the illumination [mrad], positive where electrons travel towards +x; causes coma."""
    beam_tilt_y: Value = 0.0
    """The same towards +y [mrad]."""
    coma: Value = 0.0
    """Axial coma C21 [A] of the lens, beside that of beam tilt."""
    coma_angle: Value = 0.0
    """Direction of the coma [deg], from +x towards +y."""
    trefoil: Value = 0.0
    """Three-fold astigmatism C23 [A]."""
    trefoil_angle: Value = 0.0
    """Direction of one of its three arms [deg], from +x towards +y."""
    chromatic_aberration: Value = 2.7
    """Cc [mm]."""
    energy_spread: Value = 0.0
    """1/e half-width of the beam's energy distribution [eV] (FWHM / 1.665); 0 = none."""
    convergence: Value = 0.0
    """1/e half-angle of illumination [mrad]; 0 = parallel."""
    aperture: Value | None = None
    """Objective aperture's diameter [um]; None = open. Its edge is sharp: no gradient."""
    focal_length: Value = 3.0
    """Of the objective lens [mm]; matters only for the aperture and has no gradient either."""

    def __post_init__(self) -> None:
        for name, (low, high, unit) in _RANGES.items():
            check_number(name, getattr(self, name), unit, low, high, batch=True)
        for name, unit in (("aperture", "um"), ("focal_length", "mm")):
            value = getattr(self, name)
            if value is not None or name == "focal_length":
                check_positive_number(name, value, unit, batch=True)
                no_gradient(name, value, "the aperture has a sharp edge")


def _per_image(value: Value) -> torch.Tensor:
    """A number, or one of each of a batch of images, so that it multiplies (ny, nx)."""
    return as_tensor(value)[..., None, None]


def round_phase(squared: Any, defocus: Any, spherical_aberration: Any, wavelength: Any) -> Any:
    """Phase chi = pi lambda k^2 (Cs lambda^2 k^2 / 2 - D) [rad] of what is alike all around.

    Numbers, arrays or tensors that broadcast; the image wave is F^-1[exp(-i chi) F psi].

    Args:
        squared: |k|^2 [1/A^2].
        defocus: D [A], positive = underfocus; that of each direction, where they differ.
        spherical_aberration: Cs [A].
        wavelength: [A].
    """
    half = spherical_aberration * wavelength**2 / 2
    return math.pi * wavelength * squared * (half * squared - defocus)


def aberration_phase(
    shape: tuple[int, int], pixel_size: Value, voltage: Value, optics: Optics
) -> torch.Tensor:
    """Even part of the phase chi(k) [rad] of the lens; the image wave is F^-1[exp(-i chi) F psi].

    chi = -pi lambda D(azimuth) |k|^2 + (pi / 2) Cs lambda^3 |k|^4 - phase shift, with
    D = defocus + astigmatism / 2 cos(2 (azimuth - angle)). The phase shift leaves k = 0 out.
    What is odd in k is `odd_phase`.

    Args:
        shape: (ny, nx).
        pixel_size: [A].
        voltage: [kV].
        optics: lens.

    Returns:
        Real tensor (ny, nx) in FFT order.
    """
    wave = _per_image(wavelength(voltage))
    ky = frequencies(shape[0], pixel_size)[:, None]
    kx = frequencies(shape[1], pixel_size)[None, :]
    squared = kx**2 + ky**2
    chi = round_phase(squared, _per_image(optics.defocus),
                      _per_image(optics.spherical_aberration) * 1e7, wave)
    if present(optics.astigmatism):
        # Half the difference of the defoci; |k|^2 cos, which is kx^2 - ky^2, is smooth at k = 0.
        twice = 2 * torch.deg2rad(_per_image(optics.astigmatism_angle))
        half = math.pi * wave * _per_image(optics.astigmatism) / 2
        along, across = half * torch.cos(twice), 2 * half * torch.sin(twice)
        chi = chi - (along * kx + across * ky) * kx + along * ky**2
    if present(optics.phase_shift):
        chi = chi - torch.deg2rad(_per_image(optics.phase_shift)) * (squared > 0)
    return chi


def odd_phase(
    shape: tuple[int, int], pixel_size: Value, voltage: Value, optics: Optics
) -> torch.Tensor:
    """Part of chi(k) [rad] that is odd in k: it shifts what the CTF transfers, by exp(-i chi).

    Coma C21 and trefoil C23 are (2 pi / (3 lambda)) (lambda |k|)^3 C cos(m (azimuth - angle)),
    m = 1 and 3. A beam tilt t gives 2 pi Cs lambda^2 |k|^2 (k t): the odd part of the spherical
    aberration about the tilted beam, less the image's shift. The small defocus and astigmatism
    that a tilt brings as well are taken to be part of those settings.

    Args:
        shape: (ny, nx).
        pixel_size: [A].
        voltage: [kV].
        optics: lens and source.

    Returns:
        Real tensor (ny, nx) in FFT order.
    """
    wave = _per_image(wavelength(voltage))
    ky = frequencies(shape[0], pixel_size)[:, None]
    kx = frequencies(shape[1], pixel_size)[None, :]
    squared = kx**2 + ky**2
    once, thrice = (torch.deg2rad(_per_image(angle)) * fold for angle, fold in (
        (optics.coma_angle, 1), (optics.trefoil_angle, 3)))
    coma = _per_image(optics.coma) * squared * (kx * torch.cos(once) + ky * torch.sin(once))
    trefoil = _per_image(optics.trefoil) * ((kx**3 - 3 * kx * ky**2) * torch.cos(thrice)
                                            + (3 * kx**2 * ky - ky**3) * torch.sin(thrice))
    tilted = 1e-3 * (kx * _per_image(optics.beam_tilt_x) + ky * _per_image(optics.beam_tilt_y))
    spherical = _per_image(optics.spherical_aberration) * 1e7
    return 2 * math.pi * wave**2 * ((coma + trefoil) / 3 + spherical * squared * tilted)


def defocus_per_energy(voltage: Value, chromatic_aberration: Value) -> torch.Tensor:
    """Cc' = Cc (1 + U/E0) / (U (1 + U / (2 E0))) [A/eV]: focus that a lost eV costs.

    Args:
        voltage: [kV].
        chromatic_aberration: Cc [mm].
    """
    volts = as_tensor(voltage) * 1e3
    return as_tensor(chromatic_aberration) * 1e7 * (1 + volts / REST_ENERGY) / (
        volts * (1 + volts / (2 * REST_ENERGY)))


def _source(voltage: Value, optics: Optics) -> Source:
    spread = _per_image(optics.energy_spread) * defocus_per_energy(
        _per_image(voltage), _per_image(optics.chromatic_aberration))
    return Source(2 * math.pi / _per_image(wavelength(voltage)),
                  _per_image(optics.convergence) * 1e-3, spread, _per_image(optics.defocus),
                  _per_image(optics.spherical_aberration) * 1e7)


def _opening(
    shape: tuple[int, int], pixel_size: Value, voltage: Value, optics: Optics
) -> torch.Tensor | float:
    """1 inside the objective aperture, 0 outside, (ny, nx); 1.0 if there is none."""
    if optics.aperture is None:
        return 1.0
    angle = squared_frequencies(shape, number(pixel_size)).sqrt() * _per_image(
        wavelength(voltage))
    limit = _per_image(optics.aperture) * 1e-3 / (2 * _per_image(optics.focal_length))
    return (angle < limit).to(angle.dtype)


def envelope(
    shape: tuple[int, int], pixel_size: Value, voltage: Value, optics: Optics
) -> torch.Tensor:
    """Damping E(k) of linear contrast by the source's angle and energy spread, times the aperture.

    With q = 2 pi k, kappa = 2 pi / lambda (Rullgard et al. 2011, eqs. 12-14):
    exp[-(alpha^2 / 4) (D q - Cs q^3 / kappa^2)^2 - (dE Cc')^2 q^4 / (16 kappa^2)], with Cc' of
    `defocus_per_energy`.

    Args:
        shape: (ny, nx).
        pixel_size: [A].
        voltage: [kV].
        optics: lens and source.

    Returns:
        Real tensor (ny, nx) in FFT order, 1 at k = 0.
    """
    check_voltage(voltage)
    q = 2 * math.pi * radial_frequencies(shape, pixel_length(pixel_size))
    return (torch.exp(-_source(voltage, optics).lost(q))
            * _opening(shape, pixel_size, voltage, optics))


def ctf(
    shape: tuple[int, int],
    pixel_size: Value,
    voltage: Value,
    optics: Optics,
    amplitude_contrast: Value = 0.0,
) -> torch.Tensor:
    """Contrast transfer function E(k) sin(chi - asin Q): an image is 1 + 2 F^-1[CTF F(sigma V)].

    Negative at low frequencies under focus, so that matter is dark; RELION's is its negative.
    With odd aberrations the image's spectrum is this times exp(-i `odd_phase`).

    Args:
        shape: (ny, nx).
        pixel_size: [A].
        voltage: [kV].
        optics: lens and source.
        amplitude_contrast: Q, within [0, 1).

    Returns:
        Real tensor (ny, nx) in FFT order.
    """
    check_amplitude_contrast(amplitude_contrast)
    lag = torch.asin(_per_image(amplitude_contrast))
    return envelope(shape, pixel_size, voltage, optics) * torch.sin(
        aberration_phase(shape, pixel_size, voltage, optics) - lag)


def _coherent(
    shape: tuple[int, int], pixel_size: Value, voltage: Value, optics: Optics
) -> torch.Tensor:
    """exp(-i chi) A of a coherent source, with the aperture A and all aberrations."""
    chi = aberration_phase(shape, pixel_size, voltage, optics)
    if any(present(getattr(optics, name)) for name in _ODD):
        chi = chi + odd_phase(shape, pixel_size, voltage, optics)
    # Not torch's own polar form, which takes several times as long on the way back.
    wave = torch.complex(torch.cos(chi), -torch.sin(chi))
    opening = _opening(shape, pixel_size, voltage, optics)
    return wave * opening if isinstance(opening, torch.Tensor) else wave


def image_spectrum(
    exit_wave: torch.Tensor, pixel_size: Value, voltage: Value, optics: Optics
) -> torch.Tensor:
    """Spectrum of the wave in the image plane of a coherent source: exp(-i chi) A F psi.

    Args:
        exit_wave: complex (..., ny, nx); defocus is measured from its plane.
        pixel_size: [A].
        voltage: [kV].
        optics: lens and source.

    Returns:
        Complex (..., ny, nx) in FFT order, with the aperture A and all aberrations.
    """
    shape = (exit_wave.shape[-2], exit_wave.shape[-1])
    return _coherent(shape, pixel_size, voltage, optics) * torch.fft.fft2(exit_wave)


def lens_transfer(
    shape: tuple[int, int], pixel_size: Value, voltage: Value, optics: Optics,
    linear: bool = False,
) -> Transfer:
    """What a lens makes of waves of a shape: exp(-i chi) with aperture and coherence.

    Args:
        shape: (ny, nx).
        pixel_size: [A].
        voltage: [kV].
        optics: lens and source.
        linear: whether for linear images, which the envelope damps.

    Returns:
        Differentiable in everything that is continuous.
    """
    coherent = _coherent(shape, pixel_size, voltage, optics)
    if not (present(optics.energy_spread) or present(optics.convergence)):
        return Transfer(coherent, linear=linear)
    source = _source(voltage, optics)
    lost = source.lost(2 * math.pi * radial_frequencies(shape, pixel_size))
    wave = coherent * torch.exp(-lost)
    if linear:
        return Transfer(wave, linear=True)
    return Transfer(wave, coherent * incoherent(lost), blur(shape, pixel_size, source))


def form_image(
    exit_wave: torch.Tensor,
    pixel_size: Value,
    voltage: Value,
    optics: Optics | None = None,
    *,
    linear: bool = False,
    **parameters: Any,
) -> torch.Tensor:
    """Intensity in the image plane, relative to the incident beam.

    Two complex FFTs for a coherent source; for one that is not, a third and two real ones keep
    the electrons that no longer interfere, see `coherence`.

    Args:
        exit_wave: complex (ny, nx), or (b, ny, nx), also as an array; defocus is measured from
            its plane.
        pixel_size: [A]; differentiable.
        voltage: [kV].
        optics: lens and source.
        linear: drop the square of the scattered wave: 1 + 2 Re(psi - 1).
        **parameters: fields of `Optics` (defocus=, spherical_aberration=, ...), which replace
            those of `optics`.

    Returns:
        Real intensity (ny, nx), or (b, ny, nx) for a batch; about 1 where nothing scatters. Its
        mean is that of the exit wave's intensity within the aperture.

    Raises:
        ValueError: for values out of range; TypeError for an unknown parameter.
    """
    pixel_size = pixel_length(pixel_size)
    exit_wave = to_field("exit_wave", exit_wave, "complex")
    if exit_wave.ndim not in (2, 3):
        raise ValueError(f"exit_wave of shape {tuple(exit_wave.shape)}: must be (ny, nx) or "
                         "(b, ny, nx)")
    settings = {f.name: getattr(optics, f.name) for f in fields(optics)} if optics else {}
    lens = Optics(**{**settings, **parameters})
    shape = (exit_wave.shape[-2], exit_wave.shape[-1])
    return lens_transfer(shape, pixel_size, voltage, lens, linear).image(
        torch.fft.fft2(exit_wave))
