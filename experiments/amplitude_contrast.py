"""The amplitude contrast of protein in ice that results from what the simulator knows.

Nothing is tuned: absorption comes from the measured mean free path of ice and the composition,
the rest from elastic scattering itself. Q is the slope of the amplitude against the phase part of
the exit wave's spectrum, brought back to the middle of the particle, from 1/100 to 1/20 1/A.

    python -m experiments.amplitude_contrast
"""

import numpy as np
import torch

import tem_taichi as tt
from tem_taichi.grid import squared_frequencies
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics, image_spectrum
from tem_taichi.instrument.tem import TEM
from tem_taichi.specimen.absorption import amplitude_contrast_of_protein, mean_free_path
from tem_taichi.specimen.particles import Ice, ParticlesInIce, kind_of
from tem_taichi.specimen.poses import Poses

SHAPE = (256, 256)


def measured(kind, voltage: float, contrast: float | None) -> float:
    """Q of a particle in ice by multislice; contrast 0 leaves absorption out, None has it."""
    ice = Ice(400.0, 4.48, mean_free_path(3950.0, voltage))
    specimen = ParticlesInIce((kind,), (Poses(np.zeros((1, 3)), np.eye(3)[None]),), ice)
    instrument = TEM(SHAPE, SHAPE, 1.0, voltage, contrast, slice_thickness=10.0)
    wave, distance = instrument.exit_wave(specimen, Exposure())
    wave = torch.fft.ifft2(image_spectrum(wave, 1.0, voltage, Optics(
        defocus=distance, spherical_aberration=0.0)))
    amplitude, phase = torch.fft.fft2(wave.real - 1), torch.fft.fft2(wave.imag)
    k = squared_frequencies(SHAPE, 1.0).sqrt()
    low = (k > 1 / 100) & (k < 1 / 20)
    return -float((amplitude * phase.conj()).real[low].sum() / phase.abs().square()[low].sum())


def main() -> None:
    atoms = tt.read_structure("4v1w", hydrogens="parent").centred()
    kind = kind_of(atoms)
    print("| kV | mean free path [A] | composition | apoferritin: elastic | with absorption |\n"
          "| --- | --- | --- | --- | --- |")
    for voltage in (100.0, 200.0, 300.0):
        path = mean_free_path(3950.0, voltage)
        print(f"| {voltage:.0f} | {path:.0f} | {amplitude_contrast_of_protein(path, voltage):.3f} "
              f"| {measured(kind, voltage, 0.0):.3f} | {measured(kind, voltage, None):.3f} |")


if __name__ == "__main__":
    main()
