"""A real tilt series (EMPIAR-10499) and its simulated twin, and how far they agree.

Run from the checkout, with the real series in ../shared/data/tilt:
`python -m experiments.twin [FILE.png]`. It takes a few minutes on one thread and also writes the
scene, figures/twin.yaml, for `python -m tem_taichi.simulate`.
"""

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tem_taichi.files.mrc_files import read_image_stack
from tem_taichi.fits.crowd_fit import BackgroundSpectra, background_spectra
from tem_taichi.fits.thickness_fit import fit_thickness, mean_intensities, write_thickness_figure
from tem_taichi.fits.twin import NOT_MODELLED, TwinSettings, make_twin, write_twin
from tem_taichi.pipeline import simulate

FIGURES = Path(__file__).parent / "figures"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "tilt"
PIXEL, SIDE = 10.0, 192
SHOWN = -60.01, -30.01, -0.01, 29.98, 59.98
BAND = 1 / 200, 1 / 25  # [1/A]


def real_series() -> tuple[np.ndarray, pd.DataFrame]:
    table = np.loadtxt(DATA / "empiar10499_00254.tsv")
    images, _ = read_image_stack(DATA / "empiar10499_00254_y0-310.mrc")
    return images, pd.DataFrame({
        "tilt_angle": table[:, 0], "prior_dose": table[:, 1], "defocus": 1e4 * table[:, 2],
        "axis_angle": table[:, 3], "full_frame": table[:, 6]})


def pooled(spectra: BackgroundSpectra, tilts: slice) -> np.ndarray:
    """Noise power over mean, over some neighbouring tilts."""
    ratio, weight = spectra.ratio[tilts], spectra.weight[tilts]
    return np.nansum(ratio * weight, axis=0) / weight.sum(axis=0)


def report(real: BackgroundSpectra, twin: BackgroundSpectra, means: np.ndarray,
           simulated: np.ndarray) -> None:
    k = real.w / PIXEL
    inside = (k >= BAND[0]) & (k <= BAND[1])
    away = simulated / means - 1
    print(f"means: twin / real - 1 at most {100 * np.abs(away).max():.2f} %, "
          f"rms {100 * np.sqrt((away**2).mean()):.2f} %")
    ratio = (twin.ratio / real.ratio)[:, inside]
    near = np.nanmean(np.abs(np.log(ratio)) < np.log(1.3))
    print(f"single rings of single tilts: {100 * near:.1f} % within 1.3, median "
          f"{np.nanmedian(ratio):.3f}")
    worst = []
    for first in range(0, len(means), 5):
        tilts = slice(first, first + 5)
        part = (pooled(twin, tilts) / pooled(real, tilts))[inside]
        worst.append(np.exp(np.abs(np.log(part)).max()))
    print("largest factor, five tilts pooled:", " ".join(f"{factor:.2f}" for factor in worst))
    overall = (pooled(twin, slice(None)) / pooled(real, slice(None)))[inside]
    print(f"all tilts pooled: factors {overall.min():.3f} to {overall.max():.3f}")


def draw_spectra(axes: Axes, real: BackgroundSpectra, twin: BackgroundSpectra,
                 angles: np.ndarray) -> None:
    axes.axvspan(*BAND, color="0.93")
    for number, angle in enumerate((0, 30, 60)):
        near = np.abs(np.abs(angles) - angle) < 4.5
        for spectra, style in ((real, "-"), (twin, "--")):
            rows = spectra.ratio[near], spectra.weight[near]
            axes.plot(spectra.w / PIXEL, np.nansum(rows[0] * rows[1], 0) / rows[1].sum(0), style,
                      color=f"C{number}", label=f"{angle}° {'real' if style == '-' else 'twin'}")
    axes.set(xlabel="frequency [1/Å]", ylabel="background power / mean [counts]", yscale="log",
             title="spectra of the background")
    axes.legend(fontsize=8, ncol=3)


def draw(file: Path, real: tuple[np.ndarray, BackgroundSpectra],
         twin: tuple[np.ndarray, BackgroundSpectra], angles: np.ndarray, quantum: float) -> None:
    (images, measured), (simulated, made) = real, twin
    figure = Figure(figsize=(15, 10.5), layout="constrained")
    grid = figure.add_gridspec(3, 20)
    middle = [slice(n // 2 - SIDE // 2, n // 2 - SIDE // 2 + SIDE) for n in images.shape[1:]]
    for column, angle in enumerate(SHOWN):
        at = int(np.abs(angles - angle).argmin())
        pair = images[at][middle[0], middle[1]], simulated[at]
        low, high = np.percentile(pair[0], [0.5, 99.5])
        for row, image in enumerate(pair):
            axes = figure.add_subplot(grid[row, 4 * column:4 * column + 4])
            axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
            axes.set(xticks=[], yticks=[], title=f"{('real', 'twin')[row]} {round(angle)}°")
    panels = [figure.add_subplot(grid[2, part]) for part in (
        slice(0, 7), slice(7, 12), slice(12, 16), slice(16, 20))]
    draw_spectra(panels[0], measured, made, angles)
    step = 4 * quantum  # the twin's counts are whole electrons
    for number, angle in enumerate((-0.01, 59.98)):
        at = int(np.abs(angles - angle).argmin())
        for image, style in ((images[at], "-"), (simulated[at], "--")):
            counts, edges = np.histogram(image, np.arange(-quantum / 2, 65, step), density=True)
            panels[1].plot((edges[1:] + edges[:-1]) / 2, counts, style, color=f"C{2 * number}")
    panels[1].set(xlabel="counts", title="histograms, 0° and 60°", yticks=[])
    for stack, spectra, style in ((images, measured, "-"), (simulated, made, "--")):
        panels[2].plot(angles, mean_intensities(stack), style)
        panels[3].plot(angles, np.nanmean(spectra.ratio[:, spectra.w > 0.04], axis=1), style)
    panels[2].set(xlabel="tilt [deg]", title="mean [counts]")
    panels[3].set(xlabel="tilt [deg]", title="background variance / mean")
    panels[2].legend(["real", "twin"])
    figure.savefig(file, dpi=80)


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else FIGURES / "twin.png"
    images, table = real_series()
    for name, means in (("full frame", table["full_frame"]), ("half", mean_intensities(images))):
        fit = fit_thickness(means, table["tilt_angle"])
        low, high = fit.interval()
        print(f"{name}: t/L = {fit.ratio:.4f} ({low:.4f} to {high:.4f}), normal at "
              f"{fit.normal_angle:.2f} +- {fit.normal_error:.2f} deg, I0 = {fit.intensity:.2f} +- "
              f"{fit.intensity_error:.2f}; {fit.thickness(395.0):.0f} nm for L = 395 nm, "
              f"{fit.thickness(320.0):.0f} nm for 320 nm")
    twin = make_twin(images, table, PIXEL, 300.0, TwinSettings(shape=(SIDE, SIDE)))
    print(*twin.assumptions, NOT_MODELLED, sep="\n")
    print(f"dose {twin.nominal_dose:.2f} e-/A^2; the noise is that of {twin.implied_dose:.2f}")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_twin(file.with_suffix(".yaml"), twin)
    write_thickness_figure(file.with_name("thickness.png"), twin.thickness)
    start = time.perf_counter()
    simulated = simulate(twin.scene).images.numpy()
    print(f"simulated in {time.perf_counter() - start:.0f} s")
    made = background_spectra(simulated)
    report(twin.spectra, made, mean_intensities(images), mean_intensities(simulated))
    camera = twin.scene.detector
    draw(file, (images, twin.spectra), (simulated, made), table["tilt_angle"].to_numpy(),
         camera.gain / (camera.dqe or 1))
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
