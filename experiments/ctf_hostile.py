"""Images that have no rings, or not those that were stated: is any CTF fit sure and wrong?

Each kind is drawn with its own seed: noise blurred by Gaussians and boxes, with and without the
camera's noise or rounding, balls and beads in focus, gradients, stripes, lattices, a carbon edge,
empty and saturated images; then true rings fitted as what they are not (a phase plate that is not
looked for, overfocus, another pixel size or voltage), and true rings fitted rightly.

    python -m experiments.ctf_hostile --seed 7 --size 512           # minutes; one line a kind
"""

import argparse
import math
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.signal import fftconvolve

from experiments.ctf_bench import Truth, linear_micrograph
from experiments.ctf_simulated import PIXEL_SIZE, SPHERICAL_ABERRATION, VOLTAGE
from tem_taichi.estimate import ctf_pool
from tem_taichi.estimate.ctf_fit import fit_micrograph

Image = Callable[[np.random.Generator, int], np.ndarray]
WRONG = 0.02  # relative error of the defocus: above it a reliable fit is silently wrong


def blurred(width: float, noise: float = 0.0, step: float = 0.0) -> Image:
    """White noise blurred by a Gaussian [pixel], with white noise or rounding after it."""
    def make(generator: np.random.Generator, size: int) -> np.ndarray:
        image = gaussian_filter(generator.normal(size=(size, size)), width)
        image = image / image.std() + noise * generator.normal(size=image.shape)
        return np.round(image / step) * step if step else image
    return make


def boxed(width: int) -> Image:
    """White noise blurred by a square, whose transform has zeros."""
    return lambda generator, size: (uniform_filter(generator.normal(size=(size, size)), width)
                                    + 0.02 * generator.normal(size=(size, size)))


def balls(radius: float, count: int, noise: float) -> Image:
    """Projections of balls [pixel] in focus."""
    def make(generator: np.random.Generator, size: int) -> np.ndarray:
        dots = np.zeros((size, size))
        np.add.at(dots, tuple(generator.integers(0, size, (2, count))), 1.0)
        half = math.ceil(radius)
        y, x = np.mgrid[-half:half + 1, -half:half + 1]
        ball = np.sqrt(np.clip(1 - (y**2 + x**2) / radius**2, 0, None))
        return fftconvolve(dots, ball, "same") + noise * generator.normal(size=dots.shape)
    return make


def unlike_balls(radius: float, spread: float, count: int, noise: float) -> Image:
    """The same of nine radii [pixel] with a relative standard deviation."""
    def make(generator: np.random.Generator, size: int) -> np.ndarray:
        radii = radius * (1 + spread * generator.normal(size=9))
        image = sum(balls(r, count // 9, 0.0)(generator, size) for r in radii)
        image = image / image.std()
        return image + noise * generator.normal(size=image.shape)
    return make


def gradient(generator: np.random.Generator, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size
    return 50 * x + 20 * y**2 + generator.normal(size=(size, size))


def stripes(generator: np.random.Generator, size: int) -> np.ndarray:
    return 3 * np.sin(np.arange(size) / 2.1) + generator.normal(size=(size, size))


def lattice(generator: np.random.Generator, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.cos(x * 0.9) + np.cos(0.45 * x + 0.78 * y) + generator.normal(size=(size, size))


def carbon_edge(generator: np.random.Generator, size: int) -> np.ndarray:
    image = generator.normal(size=(size, size))
    image[:, size // 3:] -= 20
    return image


def empty(generator: np.random.Generator, size: int) -> np.ndarray:
    return generator.poisson(40.0, (size, size)).astype(float)


def saturated(generator: np.random.Generator, size: int) -> np.ndarray:
    return np.minimum(gaussian_filter(generator.normal(size=(size, size)), 2), 0.05)


def steep(generator: np.random.Generator, size: int, power: float = 4.0) -> np.ndarray:
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    spectrum = np.fft.rfft2(generator.normal(size=(size, size))) / (0.01 + k)**power
    return np.fft.irfft2(spectrum)


RINGLESS: dict[str, Image] = {
    **{f"blurred {w:g}": blurred(w) for w in (1.0, 1.7, 2.5, 3.3, 4.5, 7.0, 12.0)},
    **{f"blurred {w:g} + noise {n:g}": blurred(w, n) for w in (1.5, 2.5, 4.0)
       for n in (0.003, 0.05, 0.5)},
    **{f"blurred {w:g}, rounded": blurred(w, step=0.1) for w in (2.0, 3.0, 5.0)},
    **{f"box {w}": boxed(w) for w in (3, 5, 9)},
    **{f"balls {r:g} A": balls(r / PIXEL_SIZE, 150, 0.05) for r in (20, 28, 32, 36, 40, 55)},
    **{f"beads {r:g} A": balls(r / PIXEL_SIZE, 1500, 0.1) for r in (7, 10, 14)},
    **{f"unlike balls {r:g} A": unlike_balls(r / PIXEL_SIZE, 0.04, 90, 0.1)
       for r in (18, 24, 30, 36)},
    "gradient": gradient, "stripes": stripes, "lattice": lattice, "carbon edge": carbon_edge,
    "empty": empty, "saturated": saturated, "steep": steep}

LENS = VOLTAGE, SPHERICAL_ABERRATION, 0.07
STATED: dict[str, tuple[dict[str, float], tuple[float, float, float, float]]] = {
    "right": ({}, (PIXEL_SIZE, *LENS)),
    "right, Q = 0": ({}, (PIXEL_SIZE, VOLTAGE, SPHERICAL_ABERRATION, 0.0)),
    "phase plate 30 deg": ({"phase_shift": 30.0}, (PIXEL_SIZE, *LENS)),
    "phase plate 90 deg": ({"phase_shift": 90.0}, (PIXEL_SIZE, *LENS)),
    "overfocus": ({"sign": -1.0}, (PIXEL_SIZE, *LENS)),
    "pixel x 1.1": ({}, (1.1 * PIXEL_SIZE, *LENS)),
    "pixel x 0.9": ({}, (0.9 * PIXEL_SIZE, *LENS)),
    "200 kV": ({}, (PIXEL_SIZE, 200.0, SPHERICAL_ABERRATION, 0.07))}
"""What is true beside the defocus, and what is told to the fit."""


def ringed(name: str, defocus: float, generator: np.random.Generator, size: int) -> np.ndarray:
    """A micrograph of a defocus [A] for one of STATED."""
    true = STATED[name][0]
    return linear_micrograph(Truth(true.get("sign", 1.0) * defocus, 200.0, 40.0, 400.0,
                                   true.get("phase_shift", 0.0)), size, generator)


def verdict(image: np.ndarray, defocus: float,
            lens: tuple[float, float, float, float] = (PIXEL_SIZE, *LENS)) -> tuple[str, str]:
    """What a fit is, and a line that says why; a defocus of NaN has no rings.

    right; flagged as doubtful; and reliable but off: warned of by the recipe, or unchecked
    where it says that the rings cannot tell the pixel size, else WRONG.
    """
    try:
        fit = fit_micrograph(image, *lens)
    except ValueError as error:
        return "flagged", str(error)
    line = (f"{fit.defocus:.0f} +- {fit.errors[0]:.0f} A, Cs {fit.spherical_aberration:.2f} +- "
            f"{fit.spherical_error:.2f} mm; {'; '.join(fit.doubts)}")
    if not fit.reliable:
        return "flagged", line
    if abs(fit.defocus / defocus - 1) < WRONG:
        return "right", line
    pooled = ctf_pool.pool([fit])
    if not math.isfinite(defocus) or pooled is None:
        return "WRONG", line
    if ctf_pool.differs(pooled, lens[2]):
        return "warned", line
    told = "cannot check" in ctf_pool.assumption(pooled, lens[2])
    return ("unchecked" if told else "WRONG"), line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--count", type=int, default=4, help="defoci of each kind with rings")
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    tally: dict[str, int] = {}
    cases = [(name, make(generator, options.size), math.nan, (PIXEL_SIZE, *LENS))
             for name, make in RINGLESS.items()]
    for name, (_, lens) in STATED.items():
        for defocus in np.exp(generator.uniform(math.log(4000), math.log(40000), options.count)):
            cases.append((f"{name}, {defocus:.0f} A",
                          ringed(name, defocus, generator, options.size), defocus, lens))
    for name, image, defocus, lens in cases:
        found, line = verdict(image, defocus, lens)
        group = name.split(",")[0] if math.isfinite(defocus) else "no rings"
        tally[f"{group}: {found}"] = tally.get(f"{group}: {found}", 0) + 1
        print(f"{name:24s} {found:8s} {line}", flush=True)
    print(tally)


if __name__ == "__main__":
    main()
