"""How well a camera's noise spectrum and MTF are recovered from simulated flat fields and edges.

    python experiments/detector_bench.py [--curves FOLDER] [--plot FILE.png]

FOLDER holds measured MTF curves as RELION star files; without it, those of conf/detector.
"""

import argparse
import time
from importlib import import_module
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from scipy.interpolate import BSpline

from tem_taichi.cameras import detector_from_config
from tem_taichi.curves import evaluate, mtf_parametric, numbers, read_mtf
from tem_taichi.detector import Detector, detect
from tem_taichi.device import as_tensor, init
from tem_taichi.fits.edge_fit import estimate_mtf_from_edge
from tem_taichi.fits.focal_loss import mtf_by_focal_loss, positive_widths
from tem_taichi.fits.noise_fit import FREQUENCIES, Band, Known, estimate_noise

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


def slanted_edge(side, angle, offset, dark=0.2, fine=8):
    """Half-plane (side, side) of an 8 times finer grid, cropped in Fourier space."""
    place = (np.arange(side * fine) + 0.5) / fine - 0.5 - side // 2
    distance = (np.cos(np.radians(angle)) * place + np.sin(np.radians(angle)) * place[:, None]
                - offset)
    spectrum = np.fft.fft2(dark + (1 - dark) * np.clip(distance * fine + 0.5, 0, 1)) / fine**2
    kept = np.fft.fftfreq(side, 1 / side).astype(int)
    shift = np.exp(1j * np.pi * np.fft.fftfreq(side) * (fine - 1) / fine)
    return np.fft.ifft2(spectrum[np.ix_(kept, kept)] * shift * shift[:, None]).real


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

    def edge(kind, form, dose):
        scene = as_tensor(np.repeat(slanted_edge(256, 5.0, 3.3)[None], 10, 0))
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
    for kind in ("integrating", "counting"):
        for form, dose in (("parametric", 22.0), ("parametric", 100.0), ("parametric", 400.0),
                           ("free", 100.0), ("free", 400.0)):
            bands[f"{kind} edge, {form}"] = row(f"{form}, slanted edge, 10 x {dose:g} e-/pixel",
                                                f"TMV, {kind}", 5, *edge(kind, form, dose))
    print("\n| curve | best spline by the truth, expected greatest error of five |\n| --- | --- |")
    for name, curve in measured.items():
        print(f"| {name} | {oracle(curve):.4f} |", flush=True)
    if options.plot:
        plot(bands, measured, options.plot)


def oracle(curve, count=10, side=256):
    """Expected greatest error of five fits by the best spline of log MTF, chosen by the truth.

    Least squares with MTF(0) = 1 and all the information of `count` crops, the noise Gaussian:
    degrees 1 to 3, up to 15 intervals, even in log(1 + w/scale) for five scales.
    """
    ring = np.arange(1, int(0.707 * side) + 1)
    weight = count * np.pi * ring * np.where(ring > side // 2, 0.5, 1)
    chosen = (ring >= 2) & (ring <= side // 2)
    truth = numbers(evaluate(curve, as_tensor(ring / side)))
    normal = np.random.default_rng(0).standard_normal((2000, 20))
    best = np.inf
    for scale in (0.003, 0.01, 0.03, 0.1, 1.0):
        place = np.log1p(ring / side / scale) / np.log1p(0.708 / scale)
        for degree, intervals in np.ndindex(3, 15):
            knots = np.pad(np.linspace(0, 1, intervals + 2), degree + 1, "edge")
            basis = BSpline.design_matrix(place, knots, degree + 1).toarray()[:, 1:]
            information = basis.T * weight @ basis
            if np.linalg.cond(information) > 1e12:
                continue
            middle = np.linalg.solve(information, basis.T @ (weight * np.log(truth)))
            spread = np.linalg.cholesky(np.linalg.inv(information)) / 2
            fits = np.exp((middle + normal[:, :len(middle)] @ spread.T) @ basis[chosen].T)
            worst = np.abs(fits - truth[chosen]).max(axis=1).reshape(-1, 5).max(axis=1)
            best = min(best, worst.mean())
    return best


def plot(bands, measured, path):
    from matplotlib import pyplot as plt
    plt.switch_backend("Agg")
    figure, axes = plt.subplots(3, 5, figsize=(16, 8), sharex="all", sharey="all", layout="tight")
    for axis, (name, band) in zip(axes.flat, bands.items(), strict=False):
        truth = numbers(evaluate(measured.get(name, TMV), as_tensor(band.w)))
        axis.fill_between(band.w, band.lower, band.upper, alpha=0.4)
        axis.plot(band.w, band.values, lw=1, label="estimate, 95 %")
        axis.plot(band.w, truth, "k:", lw=1, label="truth")
        axis.set(title=name if name in measured else f"{name}", xlim=(0, 0.5), ylim=(0, 1.05))
    axes[0, 0].legend()
    figure.supxlabel("frequency [cycles/pixel], MTF upwards; TMV where no camera is named")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
