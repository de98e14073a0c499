"""How well a camera's noise spectrum and MTF are recovered from simulated flat fields and edges.

    python experiments/detector_bench.py [--curves FOLDER] [--plot FILE.png]

FOLDER holds measured MTF curves as RELION star files; without it, those of conf/detector.
"""

import argparse
import time
from importlib import import_module
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from scipy.interpolate import BSpline
from scipy.optimize import nnls
from scipy.stats import norm

from experiments.panels import WIDTH, letter, save, small
from tem_taichi.device import as_tensor, init
from tem_taichi.estimate.edge_fit import estimate_mtf_from_edge
from tem_taichi.estimate.focal_loss import mtf_by_focal_loss, positive_widths
from tem_taichi.estimate.noise_fit import FREQUENCIES, Band, Known, estimate_noise
from tem_taichi.noise.curves import evaluate, mtf_parametric, numbers, read_mtf
from tem_taichi.noise.detector import Detector, detect
from tem_taichi.series.camera import detector_from_config

TMV = (0.7, 0.2, 0.1, 10.0, 40.0)
ELECTRONS = 22.0


def flat_crops(detector, seed, count=10, side=256, margin=0):
    """Crops (count, side, side), cut from periodic fields that are larger by a margin."""
    field = as_tensor(np.ones((count, side + margin, side + margin)))
    counts = detect(field, pixel_size=1.0, dose=ELECTRONS, detector=detector, seed=seed)
    return numbers(counts)[:, :side, :side]


def disturbed(crops, seed):
    """A gain error of 2 % of each pixel, common to the crops, and a gradient of 10 %."""
    gain = 1 + 0.02 * np.random.default_rng(seed).standard_normal(crops.shape[1:])
    return crops * gain * (1 + np.linspace(-0.05, 0.05, crops.shape[-1]))


def slanted_edge(side, angle, offset, dark=0.1, fine=8):
    """Half-plane (side, side) of an 8 times finer grid, cropped in Fourier space.

    A crop rings by 9 % of the contrast: no darker side keeps the intensity from going below 0.
    """
    place = (np.arange(side * fine) + 0.5) / fine - 0.5 - side // 2
    distance = (np.cos(np.radians(angle)) * place + np.sin(np.radians(angle)) * place[:, None]
                - offset)
    spectrum = np.fft.fft2(dark + (1 - dark) * np.clip(distance * fine + 0.5, 0, 1)) / fine**2
    w = np.fft.fftfreq(side)
    kept = (w * side).round().astype(int)
    shift = np.exp(1j * np.pi * w * (fine - 1) / fine)
    # The fine grid draws a step as a ramp of one of its pixels: 0.6 % less at 0.5 cycles/pixel.
    ramp = np.sinc((np.cos(np.radians(angle)) * w + np.sin(np.radians(angle)) * w[:, None]) / fine)
    return np.fft.ifft2(spectrum[np.ix_(kept, kept)] * shift * shift[:, None] / ramp).real


def score(band, truth, size):
    """Greatest error and share of frequencies inside the band, from 2/size to 0.5."""
    chosen = (band.w >= 2 / size) & (band.w <= 0.5)
    expected = numbers(evaluate(truth, as_tensor(band.w)))
    inside = (band.lower <= expected) & (expected <= band.upper)
    return np.abs(band.values - expected)[chosen].max(), inside[chosen].mean()


def row(name, curve, seeds, data_of, run):
    """Run one method on every seed and print a line of the table."""
    scores, seconds = [], []
    for seed in range(seeds):
        data = data_of(seed)
        start = time.perf_counter()
        band, truth = run(data)
        seconds.append(time.perf_counter() - start)
        scores.append(score(band, truth, data.shape[-1]))
    errors, coverage = np.transpose(scores)
    print(f"| {name} | {curve} | {max(errors):.4f} | {np.median(errors):.4f} | "
          f"{np.mean(coverage):.2f} | {np.median(seconds):.2f} |", flush=True)
    return band


def measured_curves(folder):
    if folder:
        return {path.stem.removeprefix("mtf_"): read_mtf(path)
                for path in sorted(Path(folder).glob("*.star"))}
    shipped = Path(str(import_module("tem_taichi.conf").__file__)).parent / "detector"
    nodes = [OmegaConf.to_object(OmegaConf.load(path)) for path in sorted(shipped.glob("*.yaml"))]
    return {node["name"]: detector_from_config(node).mtf for node in nodes if node["mtf_table"]}


def paper(crops):
    fitted = mtf_by_focal_loss(as_tensor(crops), ELECTRONS, gamma=0.5, steps=150)
    mtf = mtf_parametric(as_tensor(FREQUENCIES), *positive_widths(fitted.values["mtf"]))
    return Band(FREQUENCIES, *(3 * [numbers(mtf)])), TMV


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves")
    parser.add_argument("--plot")
    options = parser.parse_args()
    init("cpu", "float32")
    known, unscaled = Known("integrating", gain=10.0, dqe=0.4), Known("integrating")

    def camera(curve, kind="integrating"):
        return Detector(kind, gain=10.0, mtf=curve, dqe=0.4)

    def noise(curve, form, knowledge, taper=0.0, order=0):
        return (lambda seed: flat_crops(camera(curve), seed), lambda crops: (estimate_noise(
            crops, knowledge, form=form, taper=taper, order=order, shared=taper > 0).mtf, curve))

    def small(form, change=lambda crops, seed: crops):
        return (lambda seed: change(flat_crops(camera(TMV), seed, 6, 64, margin=32), seed),
                lambda crops: (estimate_noise(crops, known, form=form).mtf, TMV))

    def edge(kind, form, dose, dark):
        scene = as_tensor(np.repeat(slanted_edge(256, 5.0, 3.3, dark)[None], 10, 0))
        return (lambda seed: numbers(detect(scene, pixel_size=1.0, dose=dose, seed=seed,
                                            detector=camera(TMV, kind))),
                lambda images: (estimate_mtf_from_edge(
                    images, form=form, highest=0.5 / np.cos(np.radians(5.0))).mtf, TMV))

    print("| method | curve | max error | median | coverage | s |\n|" + 6 * " --- |")
    bands, measured = {}, measured_curves(options.curves)
    for form in ("parametric", "free"):
        bands[form] = row(f"{form}, scale known", "TMV", 5, *noise(TMV, form, known))
        row(f"{form}, scale known, tapered", "TMV", 5, *noise(TMV, form, known, 0.1, 1))
        row(f"{form}, scale unknown", "TMV", 5, *noise(TMV, form, unscaled))
    row("focal frequency loss", "TMV", 2, lambda seed: flat_crops(camera(TMV), seed), paper)
    for name, curve in measured.items():
        bands[name] = row("free, scale known", name, 5, *noise(curve, "free", known))
    for form in ("parametric", "free"):
        row(f"{form}, 6 crops of 64^2", "TMV", 100, *small(form))
        row(f"{form}, the same, 2 % gain, gradient", "TMV", 100, *small(form, disturbed))
    for kind, form in product(("integrating", "counting"), ("parametric", "free")):
        for dose, dark in ((22.0, 0.1), (100.0, 0.2), (100.0, 0.1), (400.0, 0.1)):
            bands[f"{kind} edge, {form}"] = row(
                f"{form}, edge {dark:g} to 1, 10 x {dose:g} e-/pixel", f"TMV, {kind}", 5,
                *edge(kind, form, dose, dark))
    parametric = tmv_slopes(rings()[0]) / tmv(rings()[0])[:, None]
    for known_scale in (True, False):
        print(f"\nCramer-Rao deviation of TMV's MTF at the worst frequency, scale "
              f"{'known' if known_scale else 'unknown'}: parametric "
              f"{deviation(parametric, known_scale):.4f}, cubic splines "
              f"{deviation(spline_slopes(), known_scale):.4f}")
    print("\n| curve | sets within 0.015 | with 40 crops each | nearest rival [standard errors] "
          "| five of five at best |\n|" + 5 * " --- |")
    for name, curve in measured.items():
        shares = []
        for count in (10, 40):
            errors = [score(estimate_noise(flat_crops(camera(curve), seed, count), known, taper=0.0,
                                           order=0, shared=False).mtf, curve, 256)[0]
                      for seed in range(100, 140)]
            shares.append(np.mean(np.array(errors) < 0.015))
        print("| {} | {:.2f} | {:.2f} | {:.2f} | {:.2f} |".format(
            name, *shares, *rival_odds(curve)), flush=True)
    if options.plot:
        plot(bands, measured, options.plot)


def rings(count=10, side=256):
    """Frequencies, and the information of each ring on log MTF."""
    ring = np.arange(1, int(0.707 * side) + 1)
    return ring / side, 4 * count * np.pi * ring * np.where(ring > side // 2, 0.5, 1)


def tmv(w, change=(0, 0, 0, 0)):
    """TMV's MTF in double precision, a, b, log alpha and log beta changed."""
    change = np.array(change)
    a, b = np.array(TMV[:2]) + change[:2]
    return mtf_parametric(torch.from_numpy(w), a, b, 1 - a - b,
                          *(np.array(TMV[3:]) * np.exp(change[2:]))).numpy()


def tmv_slopes(w):
    """Its derivatives by these four, (len(w), 4)."""
    return np.stack([tmv(w, step) - tmv(w, -step) for step in 1e-5 * np.eye(4)], 1) / 2e-5


def spline_slopes():
    """A free form: cubic splines over log(1 + w), the fewest that miss TMV's by only 0.001."""
    knots = np.pad(np.linspace(0, 1, 4), 3, "edge")
    place = np.log1p(np.append(0, rings()[0])) / np.log1p(0.708)
    values = BSpline.design_matrix(place, knots, 3).toarray()
    return (values - values[0])[1:, 1:]  # those that are 0 at w = 0; the rest is the scale


def deviation(slopes, known_scale):
    """Standard deviation of the MTF where it is greatest, from the inverse information.

    Args:
        slopes: derivatives of log MTF at the rings, by what is fitted.
        known_scale: whether MTF(0) is known to be 1.
    """
    w, information = rings()
    truth = tmv(w)
    columns = slopes if known_scale else np.append(slopes, np.ones((len(w), 1)), 1)
    variance = np.linalg.inv(columns.T * information @ columns)[:slopes.shape[1], :slopes.shape[1]]
    spread = truth * np.sqrt(np.einsum("ki,ij,kj->k", slopes, variance, slopes))
    return spread[(w >= 2 / 256) & (w <= 0.5)].max()


def rival_odds(curve, apart=0.03, count=10, side=256):
    """How often five sets of crops can tell a curve from a rival, at best.

    The rival is 0.03 away at one frequency from 2/side on, and chosen to give nearly the same
    spectra: both are mixtures of Gaussians of positive weights, smooth and falling. No estimate
    is within 0.015 of both, so that one of the two is missed with at least the probability that
    the best test confuses them (Le Cam 1973), d standard errors apart.

    Returns:
        The rival's distance d, and the largest probability that all of five estimates can be
        within 0.015 whichever of the two is true; NaN if the curve is no such mixture.
    """
    w, information = (part[:side // 2] for part in rings(count, side))
    widths = np.geomspace(0.5 / side, 8, 60)
    mixture = np.append(np.exp(-(w[:, None] / widths) ** 2), np.ones((len(w), 1)), 1)
    truth = numbers(evaluate(curve, as_tensor(w)))
    errors = np.sqrt(information) / truth  # of which a deviation of the MTF is so many
    rows, wanted = mixture * errors[:, None], truth * errors
    whole = 1e5 * np.ones(mixture.shape[1])

    def nearest(*conditions):
        """The mixture nearest to the truth that has given values, (ring, value) each."""
        fixed = [1e5 * mixture[k - 1] for k, _ in conditions]
        values = [1e5 * value for _, value in conditions]
        weights = nnls(np.vstack([rows, whole, *fixed]), np.concatenate([wanted, [1e5], values]),
                       maxiter=10**5)[0]
        return mixture @ weights

    if np.abs(nearest() - truth).max() > 0.003:
        return np.nan, np.nan
    distances = []
    for k in (2, 3, 4, 6, 8, 12, 16, 24, 32, 64):
        for value in (truth[k - 1] - apart, truth[k - 1] + apart):
            found = nearest((k, value))
            if value < 1 and abs(found[k - 1] - value) < 1e-3:
                distances.append(np.linalg.norm((found - truth) * errors))
    return min(distances), norm.cdf(min(distances) / 2) ** 5


def plot(bands, measured, path):
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots(3, 5, sharex="all", sharey="all")
    for axis, (name, band) in zip(axes.flat, bands.items(), strict=False):
        truth = numbers(evaluate(measured.get(name, TMV), as_tensor(band.w)))
        axis.fill_between(band.w, band.lower, band.upper, alpha=0.4)
        axis.plot(band.w, band.values, lw=1, label="estimate, 95 %")
        axis.plot(band.w, truth, "k:", lw=1, label="truth")
        axis.set(xlim=(0, 0.5), ylim=(0, 1.05))
        title = name if name in measured else f"TMV, {name}".replace(" edge, ", "\nedge, ")
        axis.set_title(title, fontsize=6)
        small(axis)
    axes[0, 0].legend(fontsize=6)
    figure.supxlabel("frequency [cycles/pixel]", fontsize=8)
    figure.supylabel("MTF", fontsize=8)
    letter(list(axes.flat)[:len(bands)])
    save(figure, Path(path))


if __name__ == "__main__":
    main()
