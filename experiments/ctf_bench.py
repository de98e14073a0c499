"""Accuracy of the CTF fit on simulated micrographs whose defocus is known.

Micrographs of granular ice and protein by the linear image model: independent water molecules
whose structure factor peaks at 1/3.7 A, protein at low frequencies, CTF, B-factor, Poisson counts.
Torch-CTF-estimation (teamtomo) is run beside where it is installed.

Run `python -m experiments.ctf_bench n=20 size=2048 seed=0` from the checkout.
"""

import math
import sys
import time
from collections.abc import Callable
from importlib import import_module, util
from typing import NamedTuple

import numpy as np
import torch

from tem_taichi import optics
from tem_taichi.fits.ctf_fit import fit_micrograph
from tem_taichi.grid import squared_frequencies

PIXEL_SIZE, VOLTAGE, SPHERICAL_ABERRATION, AMPLITUDE_CONTRAST = 1.35, 300.0, 2.7, 0.07
DOSE, B_FACTOR = 30.0, 60.0  # [e-/A^2], [A^2]
WATER = 0.0334 * 0.053**2 * 3  # (molecules / A^3) (phase x area [A^2] at 1/3.7 A)^2, k = 0 larger
FAILED = 100.0  # [A] that U or V is off


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


def draw(generator: np.random.Generator) -> Truth:
    """Defocus 0.3 to 4 um, astigmatism up to 1000 A, ice of 30 to 60 nm."""
    return Truth(math.exp(generator.uniform(math.log(3000), math.log(40000))),
                 generator.uniform(0, 1000), generator.uniform(0, 180), generator.uniform(300, 600))


class Estimate(NamedTuple):
    """What a program says; lengths [A], angle [deg]."""

    defocus: float
    astigmatism: float
    angle: float
    reliable: bool = True
    error: float = math.nan


def fit_ours(image: np.ndarray) -> Estimate:
    fit = fit_micrograph(image, PIXEL_SIZE, VOLTAGE, SPHERICAL_ABERRATION, AMPLITUDE_CONTRAST)
    return Estimate(fit.defocus, fit.astigmatism, fit.astigmatism_angle, fit.reliable,
                    max(fit.errors[:2]))


def fit_teamtomo(image: np.ndarray) -> Estimate:
    """One defocus for the whole image, in our range of resolutions."""
    package = import_module("torch_ctf_estimation")
    lens = package.OpticalParams(
        pixel_spacing_angstroms=PIXEL_SIZE, voltage_kev=VOLTAGE,
        spherical_aberration_mm=SPHERICAL_ABERRATION,
        amplitude_contrast_fraction=AMPLITUDE_CONTRAST, target_pixel_spacing_angstroms=1.5)
    settings = package.CTFFittingParams(
        defocus_grid_resolution=(1, 1, 1), frequency_fit_range_angstroms=(30.0, 4.0),
        defocus_range_microns=(0.15, 6.0), patch_sidelength=512)
    _, _, result = package.estimate_ctf(torch.as_tensor(image), lens, settings)
    mean = (result.defocus_u + result.defocus_v) / 2 * 1e4
    return Estimate(mean, (result.defocus_u - result.defocus_v) * 1e4, result.astigmatism_angle)


def summary(name: str, truths: list[Truth], found: list[Estimate], seconds: list[float]) -> str:
    """One row of the table."""
    pairs = list(zip(truths, found, strict=True))
    defocus = np.array([abs(e.defocus - t.defocus) for t, e in pairs])
    # The difference of two astigmatisms as vectors at twice their angles.
    astigmatism = np.array([abs(e.astigmatism * np.exp(2j * np.radians(e.angle))
                                - t.astigmatism * np.exp(2j * np.radians(t.angle)))
                            for t, e in pairs])
    wrong = defocus + astigmatism / 2 > FAILED
    flagged = np.array([not e.reliable for _, e in pairs])
    ratio = np.sqrt(np.mean(np.square([(e.defocus - t.defocus) / e.error for (t, e), bad in zip(
        pairs, wrong, strict=True) if not bad] or [math.nan])))
    return (f"| {name} | {np.median(defocus):.1f} | {np.quantile(defocus, 0.95):.1f} "
            f"| {np.median(astigmatism):.1f} | {wrong.sum()} of {len(wrong)} "
            f"| {(wrong & flagged).sum()} | {(flagged & ~wrong).sum()} | {ratio:.2f} "
            f"| {np.median(seconds):.2f} |")


def main() -> None:
    options = {"n": 20, "size": 2048, "seed": 0, "dose": DOSE, "details": 0}
    options.update((key, float(value)) for key, value in (word.split("=") for word in sys.argv[1:]))
    generator = np.random.default_rng(int(options["seed"]))
    programs: dict[str, Callable[[np.ndarray], Estimate]] = {"tem_taichi": fit_ours}
    if util.find_spec("torch_ctf_estimation"):
        programs["torch-ctf-estimation"] = fit_teamtomo
    truths: list[Truth] = []
    found: dict[str, list[Estimate]] = {name: [] for name in programs}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(int(options["n"])):
        truths.append(draw(generator))
        image = linear_micrograph(truths[-1], int(options["size"]), generator, dose=options["dose"])
        for name, program in programs.items():
            began = time.perf_counter()
            found[name].append(program(image))
            seconds[name].append(time.perf_counter() - began)
            if options["details"]:
                print(name, truths[-1], found[name][-1])
    print("| program | median defocus error [A] | 95 % [A] | median astigmatism error [A] "
          "| failures | of these flagged | others flagged | error / standard error | s |\n"
          + "|---" * 9 + "|")
    for name in programs:
        print(summary(name, truths, found[name], seconds[name]))


if __name__ == "__main__":
    main()
