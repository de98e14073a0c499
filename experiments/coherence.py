"""Partially coherent images against the average over thousands of sources, and their electrons.

    python -m experiments.coherence

Each case is granular ice imaged by a source of finite size and energy spread. The truth is the
mean of coherent images over a random sample of angles and energies; what is linear in the scattered
wave is taken from the envelope, which is exact, so that the sample's noise is small. Printed are
the means (electrons kept) and the deviation of three treatments from the truth, as fractions of
the image's contrast: the envelope on the wave alone (its mean corrected, which is an even
background of what was lost), both parts unblurred, and what `form_image` does.
"""

import math

import torch

from tem_taichi import Optics, multislice
from tem_taichi.device import init
from tem_taichi.grid import fourier_crop, frequencies, squared_frequencies
from tem_taichi.instrument.optics import defocus_per_energy, envelope, form_image, image_spectrum
from tem_taichi.physics import wavelength
from tem_taichi.specimen.ice import ice_slice

VOLTAGE = 300.0
CASES = (  # detector pixel [A], ice [A], defocus [A], energy spread [eV], convergence [mrad]
    (1.0, 1000.0, 2e4, 0.42, 0.03), (1.7, 1500.0, 3e4, 0.42, 0.03), (0.7, 500.0, 5e3, 0.42, 0.0),
    (0.7, 500.0, 2e4, 0.42, 0.1), (1.0, 1000.0, 2e4, 15.0, 0.03))
_SLICE = 20.0


def ice_wave(pixels: int, pixel_size: float, thickness: float) -> torch.Tensor:
    """Exit wave of granular ice on a grid of 1.5 times the detector's pixels."""
    n, fine = 3 * pixels // 2, pixel_size / 1.5
    slices = torch.stack([ice_slice((n, n), fine, _SLICE, 1, 0, i)
                          for i in range(int(thickness / _SLICE))])
    return multislice(slices, fine, _SLICE, VOLTAGE)


def average(wave: torch.Tensor, pixel_size: float, optics: Optics, sources: int) -> torch.Tensor:
    """Mean image over a stratified sample of angles and energies of the source."""
    shape = (wave.shape[0], wave.shape[1])
    spectrum = image_spectrum(wave, pixel_size, VOLTAGE, optics)
    unscattered = torch.zeros_like(spectrum)
    unscattered[0, 0] = spectrum[0, 0]
    generator = torch.Generator().manual_seed(0)
    even = (torch.arange(sources, dtype=torch.float64) + 0.5) / sources
    normal = [torch.special.ndtri(even)[torch.randperm(sources, generator=generator)]
              / math.sqrt(2) for _ in range(3)]  # a 1/e half-width is sqrt(2) deviations
    squared = squared_frequencies(shape, pixel_size)
    length = wavelength(VOLTAGE)
    slope = optics.defocus - optics.spherical_aberration * 1e7 * length**2 * squared
    ky, kx = frequencies(shape[0], pixel_size)[:, None], frequencies(shape[1], pixel_size)
    focus = (math.pi * length * squared * optics.energy_spread
             * defocus_per_energy(VOLTAGE, optics.chromatic_aberration))
    across, along = (2e-3 * math.pi * optics.convergence * slope * k for k in (kx, ky))
    total = torch.zeros(shape, dtype=torch.float64)
    for energy, x, y in zip(*normal, strict=True):
        turn = energy * focus + x * across + y * along
        scattered = (spectrum - unscattered) * torch.polar(torch.ones_like(turn), turn)
        total += torch.fft.ifft2(scattered).abs().square() / sources
    damped = (spectrum - unscattered) * envelope(shape, pixel_size, VOLTAGE, optics)
    beam = torch.fft.ifft2(unscattered)
    return beam.abs().square() + 2 * (torch.fft.ifft2(damped) * beam.conj()).real + total


def deviations(pixels: int, sources: int, case: tuple) -> tuple[list[float], list[float]]:
    """Means of wave, envelope alone and `form_image`, and deviations of the three treatments."""
    pixel_size, thickness, defocus, spread, convergence = case
    wave, fine = ice_wave(pixels, pixel_size, thickness), pixel_size / 1.5
    optics = Optics(defocus=defocus, energy_spread=spread, convergence=convergence)
    truth = average(wave, fine, optics, sources)
    spectrum = image_spectrum(wave, fine, VOLTAGE, optics)
    damping = envelope((len(wave), len(wave)), fine, VOLTAGE, optics)
    alone = torch.fft.ifft2(damping * spectrum).abs().square()
    rest = torch.fft.ifft2((1 - damping**2).clamp(min=0).sqrt() * spectrum).abs().square()
    ours = form_image(wave, fine, VOLTAGE, optics)
    scale = fourier_crop(truth, (pixels, pixels)).std()
    found = [float(fourier_crop(image - truth, (pixels, pixels)).std() / scale)
             for image in (alone, alone + rest, ours)]
    return [float(i.mean()) for i in (wave.abs().square(), alone, ours)], found


def main() -> None:
    """Print a row for each case."""
    init("cpu", "float64")
    print("| pixel, ice, defocus [A]; spread [eV]; convergence [mrad] | electrons: wave | envelope "
          "alone | ours | deviation: even background | unblurred | ours |\n" + "| --- " * 7 + "|")
    for case in CASES:
        means, found = deviations(96, 3000, case)
        print("| {:g}, {:.0f}, {:.0f}; {:g}; {:g} | ".format(*case)
              + " | ".join(f"{m:.4f}" for m in means) + " | "
              + " | ".join(f"{d:.3f}" for d in found) + " |")


if __name__ == "__main__":
    main()
