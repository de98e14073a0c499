"""Electrons that partial coherence keeps from interfering with the unscattered beam.

A source of finite size and energy spread averages images over angles and foci. What is left of the
interference of a scattered beam k with the unscattered one is E(k) (`optics.envelope`); the
scattered electrons themselves stay. With T(k, k') the transmission cross-coefficient, so that
an image is `sum_k,k' T psi_k psi*_k'`, the image is put together of two:

    |F^-1[E psi]|^2 + B * |F^-1[sqrt(1 - E^2) psi]|^2

The first has T = E(k) E(k'), exact for k' = 0: the linear transfer. The second makes T(k, k) = 1:
no electron is lost, and none leaves its neighbourhood by more than the lens moves it. Its
interference among scattered beams is damped by the blur B, the mean of T(k, k - kappa) over the
beams that the second holds. Against averages over thousands of sources, images of granular ice
(50 to 150 nm, 0.7 to 1.7 A pixels) differ by 1 to 3 % of their contrast, by 5 to 6 % with an even
background instead (`python -m experiments.coherence`).
"""

import math
from dataclasses import dataclass

import torch

from tem_taichi.device import number
from tem_taichi.grid import BAND_LIMIT, squared_frequencies

_BEAMS, _STEPS = 64, 512
"""Nodes of the mean over scattered beams, and of the table over kappa: the blur to 1e-3."""


@dataclass(frozen=True)
class Source:
    """What decides the coherence; tensors that broadcast with (ny, nx)."""

    wave_number: torch.Tensor
    """kappa = 2 pi / wavelength [1/A]"""
    angle: torch.Tensor
    """1/e half-angle of illumination alpha [rad]"""
    spread: torch.Tensor
    """1/e half-width of the focus dE Cc' [A], by the energies of the beam"""
    defocus: torch.Tensor
    """[A], positive = underfocus"""
    spherical_aberration: torch.Tensor
    """Cs [A]"""

    def lost(self, q: torch.Tensor) -> torch.Tensor:
        """Exponent x of the envelope E = exp(-x) at q = 2 pi k [1/A].

        Rullgard et al. 2011, eqs. 12-14:
        x = (alpha^2 / 4) (D q - Cs q^3 / kappa^2)^2 + (dE Cc')^2 q^4 / (16 kappa^2).
        """
        # As a polynomial in q^2, which takes fewer passes over large grids.
        curved = self.spherical_aberration / self.wave_number**2
        angle = self.angle**2 / 4
        first = angle * self.defocus**2
        second = (self.spread / self.wave_number) ** 2 / 16 - 2 * angle * self.defocus * curved
        squared = q**2
        lost = ((angle * curved**2 * squared + second) * squared + first) * squared
        return lost.clamp(min=0)  # which rounding alone makes it


def blur(
    shape: tuple[int, int], pixel_size: float | torch.Tensor, source: Source
) -> torch.Tensor:
    """B(kappa): how scattered beams that differ by kappa still interfere, on the average.

    With Q = 2 pi kappa, T(q, q - Q) falls off as exp(-A sin^2 - C cos^2) of the angle between
    the two, A = (alpha Q D_t / 2)^2 and C = (alpha Q D_r / 2)^2 + (dE Cc' q Q / (2 kappa))^2
    for small Q, where D_t = D - Cs q^2 / kappa^2 and D_r = D - 3 Cs q^2 / kappa^2 are the slopes
    of the lens across and along q. It is averaged over all directions, and over q to the end of
    the potentials' band with the weights q (1 - E^2) of equally strong beams.

    Args:
        shape: (ny, nx).
        pixel_size: [A].
        source: of the electrons; what differs from image to image comes first.

    Returns:
        Real tensor (..., ny, nx // 2 + 1) in the order of rfft2, 1 at 0, positive; so is its
        transform.
    """
    # Where a frequency lies in the table does not depend on the pixel size.
    squared = squared_frequencies(shape, number(pixel_size), half=True)
    largest = math.sqrt(0.5) / pixel_size
    q = (torch.arange(_BEAMS, dtype=squared.dtype, device=squared.device) + 0.5) * (
        2 * math.pi * BAND_LIMIT * 0.5 / pixel_size / _BEAMS)
    # Finer steps where kappa is small: the blur may end there.
    step = torch.linspace(0, 1, _STEPS, dtype=squared.dtype, device=squared.device)
    apart = (2 * math.pi * largest * step**2)[:, None]
    weight = q * (-torch.expm1(-2 * source.lost(q)) + 1e-12)
    tilt = source.spherical_aberration * (q / source.wave_number) ** 2
    across = (source.angle * apart * (source.defocus - tilt) / 2) ** 2
    along = ((source.angle * apart * (source.defocus - 3 * tilt) / 2) ** 2
             + (source.spread * q * apart / (2 * source.wave_number)) ** 2)
    mean = torch.exp(-torch.minimum(across, along)) * torch.special.i0e((along - across).abs() / 2)
    table = (mean * weight).sum(-1) / weight.sum(-1)
    place = (squared.sqrt() / number(largest)).sqrt() * (_STEPS - 1)
    low = place.long().clamp(max=_STEPS - 2)
    part = (place - low).clamp(max=1)
    return table[..., low] * (1 - part) + table[..., low + 1] * part


def incoherent(lost: torch.Tensor) -> torch.Tensor:
    """sqrt(1 - E^2) of the envelope E = exp(-lost): amplitude that no longer interferes.

    Args:
        lost: of `Source.lost`, not negative.
    """
    # The root has no slope at zero; there the envelope has none either.
    return torch.sqrt(-torch.expm1(-2 * lost.clamp(min=torch.finfo(lost.dtype).tiny)))


@dataclass(frozen=True)
class Transfer:
    """What a lens makes of the spectra of waves on one grid."""

    wave: torch.Tensor
    """Factor of what interferes with the unscattered beam, complex (..., ny, nx), FFT order."""
    rest: torch.Tensor | None = None
    """That of the other electrons; None = all interfere, or only a linear image is asked for."""
    blur: torch.Tensor | None = None
    """Of the image of these, see `blur`, in the order of rfft2."""
    linear: bool = False
    """Whether the square of the scattered wave is dropped."""

    def image(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Intensity (..., ny, nx) of a wave, from its spectrum (..., ny, nx)."""
        image, background = self.coherent(spectrum), self.background(spectrum)
        return image if background is None else image + background

    def coherent(self, spectrum: torch.Tensor) -> torch.Tensor:
        """That of the electrons which interfere with the unscattered beam."""
        wave = torch.fft.ifft2(self.wave * spectrum)
        return 2 * wave.real - 1 if self.linear else _squared(wave)

    def background(self, spectrum: torch.Tensor) -> torch.Tensor | None:
        """That of the others; None where there are none."""
        if self.rest is None or self.blur is None:
            return None
        rest = _squared(torch.fft.ifft2(self.rest * spectrum))
        return torch.fft.irfft2(torch.fft.rfft2(rest) * self.blur, s=rest.shape[-2:])


def _squared(wave: torch.Tensor) -> torch.Tensor:
    """|wave|^2, in two passes."""
    return torch.addcmul(wave.real**2, wave.imag, wave.imag)
