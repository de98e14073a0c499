"""Accuracy of the CTF fit on images of a linear model whose defocus is known: quick to make.

Micrographs of granular ice and protein: independent water molecules whose structure factor peaks
at 1/3.7 A, protein at low frequencies, CTF, B-factor, Poisson counts. The programs, their settings
and the table are those of ctf_simulated.

Run `python -m experiments.ctf_bench --count 20 --size 2048` from the checkout, or with --tilted.
"""

import argparse
import math
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from experiments.ctf_simulated import (
    PIXEL_SIZE,
    SPHERICAL_ABERRATION,
    VOLTAGE,
    compare,
    programs,
    table,
)
from tem_taichi.estimate.ctf_fit import fit_micrograph
from tem_taichi.estimate.ctf_tilt import fit_tilted_micrograph
from tem_taichi.grid import squared_frequencies
from tem_taichi.instrument import optics

AMPLITUDE_CONTRAST = 0.07
DOSE, B_FACTOR = 30.0, 60.0  # [e-/A^2], [A^2]
WATER = 0.0334 * 0.053**2 * 3  # (molecules / A^3) (phase x area [A^2] at 1/3.7 A)^2, k = 0 larger


class Truth(NamedTuple):
    """Of one micrograph; lengths [A], angle [deg]."""

    defocus: float
    astigmatism: float
    angle: float
    thickness: float = 400.0
    phase_shift: float = 0.0


def linear_micrograph(truth: Truth, size: int, generator: np.random.Generator,
                      pixel_size: float = PIXEL_SIZE, dose: float = DOSE) -> np.ndarray:
    """Counts (size, size) of weak phase contrast, 1 + 2 F^-1[CTF F(phase)], under Poisson noise."""
    squared = squared_frequencies((size, size), pixel_size).double()
    k = squared.sqrt()
    structure = 0.07 + 1.2 * torch.exp(-((k - 1 / 3.7) / 0.04) ** 2) + 0.93 / (
        1 + torch.exp(-(k - 0.33) / 0.03))
    water = truth.thickness * WATER * structure * torch.exp(-10 * squared)
    protein = 0.3 * torch.exp(-600 * squared) + 0.02 * torch.exp(-60 * squared)
    power = (water + protein) * torch.exp(-B_FACTOR / 2 * squared) / pixel_size**2
    lens = optics.Optics(
        defocus=truth.defocus, astigmatism=truth.astigmatism, astigmatism_angle=truth.angle,
        phase_shift=truth.phase_shift, spherical_aberration=SPHERICAL_ABERRATION)
    ctf = optics.ctf((size, size), pixel_size, VOLTAGE, lens, AMPLITUDE_CONTRAST).double()
    white = torch.as_tensor(generator.normal(size=(size, size)))
    image = 1 + 2 * torch.fft.ifft2(torch.fft.fft2(white) * power.sqrt() * ctf).real
    return generator.poisson(dose * pixel_size**2 * image.clamp(min=0).numpy()).astype(np.float32)


def tilted_micrograph(truth: Truth, tilt: tuple[float, float], size: int, seed: int,
                      pixel_size: float) -> np.ndarray:
    """Of a plane tilted by an angle about an axis [deg], from images of 24 heights.

    Each pixel is of the nearest height; the specimen, and all noise but that of the counts'
    rounding, is the same in all of them.
    """
    angle, axis = np.radians(tilt)
    place = (np.arange(size) - size // 2) * pixel_size
    height = -(np.cos(axis) * place + np.sin(axis) * place[:, None]) * np.tan(angle)
    steps = np.linspace(height.min(), height.max(), 24)
    nearest = np.abs(height[..., None] - steps).argmin(axis=-1)
    image = np.zeros((size, size), np.float32)
    for number, step in enumerate(steps):
        own = linear_micrograph(truth._replace(defocus=truth.defocus + step), size,
                                np.random.default_rng(seed), pixel_size)
        image = np.where(nearest == number, own, image)
    return image


def fit_tilted(generator: np.random.Generator, seed: int) -> dict[str, Any]:
    """A row of the table: one image of 768^2 pixels of 2 A, tilted by 20 to 62 degrees."""
    truth = draw(generator)._replace(defocus=generator.uniform(8000, 35000))
    tilt = generator.uniform(20, 62) * generator.choice([-1, 1]), generator.uniform(0, 180)
    image = tilted_micrograph(truth, tilt, 768, seed, 2.0)
    lens = VOLTAGE, SPHERICAL_ABERRATION, AMPLITUDE_CONTRAST
    found = {}
    for name, run in (("tem_taichi, tilt given", lambda: fit_tilted_micrograph(
            image, 2.0, tilt, *lens)), ("as if not tilted", lambda: fit_micrograph(
                image, 2.0, *lens))):
        start = time.process_time()
        fit = run()
        found[name] = {"defocus": fit.defocus, "astigmatism": fit.astigmatism,
                       "angle": fit.astigmatism_angle, "reliable": fit.reliable,
                       "hand": fit.hand_gain, "seconds": time.process_time() - start}
    return truth._asdict() | {"found": found}


def draw(generator: np.random.Generator) -> Truth:
    """Defocus 0.3 to 4 um, astigmatism up to 1000 A, ice of 30 to 60 nm."""
    return Truth(math.exp(generator.uniform(math.log(3000), math.log(40000))),
                 generator.uniform(0, 1000), generator.uniform(0, 180), generator.uniform(300, 600))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dose", type=float, default=DOSE)
    parser.add_argument("--tilted", action="store_true", help="small images of tilted planes")
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    if options.tilted:
        rows = [fit_tilted(generator, seed) for seed in range(options.count)]
        least = min(row["found"]["tem_taichi, tilt given"]["hand"] for row in rows)
        print(f"{table(rows)}\nleast log-likelihood over the opposite tilt: {least:.0f}")
        return
    rows = []
    for _ in range(options.count):
        truth = draw(generator)
        image = linear_micrograph(truth, options.size, generator, dose=options.dose)
        rows.append(truth._asdict() | {"found": compare(image, AMPLITUDE_CONTRAST,
                                                        list(programs()))})
    print(table(rows))


if __name__ == "__main__":
    main()
