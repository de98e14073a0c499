"""A real tilt series (EMPIAR-10499) and its simulated twin, and how far they agree.

Run from the checkout, with the real series in ../shared/data/tilt:
`python -m experiments.twin [FILE.png]`. It takes about six minutes on one thread and 1.2 GB, and
also writes the scene, figures/twin.yaml, for `python -m tem_taichi.simulate`.
"""

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tem_taichi.estimate.background import BackgroundSpectra, background_spectra
from tem_taichi.estimate.crowd_fit import held_out
from tem_taichi.estimate.thickness_figure import thickness_figure
from tem_taichi.estimate.thickness_fit import fit_thickness, mean_intensities
from tem_taichi.estimate.twin import NOT_MODELLED, TwinSettings, make_twin, twin_text
from tem_taichi.files.mrc import read_image_stack
from tem_taichi.series.simulate import simulate

FIGURES = Path(__file__).parent / "figures"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "tilt"
PIXEL, SHAPE = 10.0, (192, 320)
SHOWN = -60.01, -30.01, -0.01, 29.98, 59.98
BAND, BANDS = (1 / 200, 1 / 25), 7  # [1/A], and parts of it


def real_series() -> tuple[np.ndarray, pd.DataFrame]:
    table = np.loadtxt(DATA / "empiar10499_00254.tsv")
    images, _ = read_image_stack(DATA / "empiar10499_00254_y0-310.mrc")
    return images, pd.DataFrame({
        "tilt_angle": table[:, 0], "prior_dose": table[:, 1], "defocus": 1e4 * table[:, 2],
        "axis_angle": table[:, 3], "full_frame": table[:, 6]})


def rings_in_band(spectra: BackgroundSpectra) -> np.ndarray:
    k = spectra.w / PIXEL
    return np.flatnonzero((k >= BAND[0]) & (k <= BAND[1]))


def banded(power: np.ndarray, spectra: BackgroundSpectra) -> tuple[np.ndarray, np.ndarray]:
    """Power in bands of rings, and the relative sampling error of the spectra's, (n, bands) each.

    The error is by the scatter of the tiles: that of their Fourier coefficients, and what parts
    of a specimen differ by.
    """
    parts = np.array_split(rings_in_band(spectra), BANDS)

    def means(rings: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return np.stack([np.average(rings[:, part], axis=1, weights=weight[part])
                         for part in parts], axis=1)

    tiles = [means(each, weight)
             for each, weight in zip(spectra.tiles, spectra.weight, strict=True)]
    error = [each.std(axis=0, ddof=1) / each.mean(axis=0) / len(each)**0.5 for each in tiles]
    return np.concatenate([means(row[None], weight) for row, weight in zip(
        power, spectra.weight, strict=True)]), np.array(error)


def compare(name: str, real: BackgroundSpectra, power: np.ndarray,
            other: BackgroundSpectra | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Print how far a power is from the real one; factors and their sampling errors.

    Args:
        name: of what is compared.
        real: spectra of the background.
        power: over mean, to compare with it.
        other: spectra that the power is of; None = it has no sampling error.
    """
    measured, error = banded(real.ratio, real)
    against, more = banded(power, other) if other else (banded(power, real)[0], 0.0)
    factor, error = against / measured, np.hypot(error, more)
    away = np.abs(np.log(factor))
    tilt, band = np.unravel_index(away.argmax(), away.shape)
    chance = np.abs(np.random.default_rng(0).normal(size=(1000, *error.shape)) * error)
    misfit = max((away**2).mean() - (error**2).mean(), 0.0) ** 0.5
    rings = rings_in_band(real)
    single = np.abs(np.log(power / real.ratio)[:, rings]) < np.log(1.3)
    print(f"{name}, {len(away)} tilts x {BANDS} bands of background:\n"
          f"  largest factor over tilts and bands: {np.exp(away.max()):.2f} +- "
          f"{np.exp(away.max()) * error[tilt, band]:.2f} (image {tilt}, band {band}); by chance "
          f"alone {np.exp(np.median(chance.max(axis=(1, 2)))):.2f}\n"
          f"  sampling error {100 * error.min():.1f} to {100 * error.max():.1f} %, rms deviation "
          f"{100 * (away**2).mean()**0.5:.1f} %, of it misfit {100 * misfit:.1f} %\n"
          f"  mean over tilts, band by band: {np.exp(np.log(factor).mean(axis=0)).round(2)}; "
          f"{100 * single.mean():.1f} % of single rings of single tilts within 1.3")
    return factor, error


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
         twin: tuple[np.ndarray, BackgroundSpectra], angles: np.ndarray, quantum: float,
         factor: np.ndarray, error: np.ndarray) -> None:
    (images, measured), (simulated, made) = real, twin
    figure = Figure(figsize=(15, 9), layout="constrained")
    grid = figure.add_gridspec(3, 20, height_ratios=(1, 1, 2))
    middle = [slice(n // 2 - side // 2, n // 2 - side // 2 + side)
              for n, side in zip(images.shape[1:], SHAPE, strict=True)]
    for column, angle in enumerate(SHOWN):
        at = int(np.abs(angles - angle).argmin())
        pair = images[at][middle[0], middle[1]], simulated[at]
        low, high = np.percentile(pair[0], [0.5, 99.5])
        for row, image in enumerate(pair):
            axes = figure.add_subplot(grid[row, 4 * column:4 * column + 4])
            axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
            axes.set(xticks=[], yticks=[], title=f"{('real', 'twin')[row]} {round(angle)}°")
    panels = [figure.add_subplot(grid[2, part]) for part in (
        slice(0, 6), slice(6, 9), slice(9, 12), slice(12, 15), slice(15, 20))]
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
    for limit in (1 / 1.3, 1, 1.3):
        panels[4].axhline(limit, color="0.4", linestyle=":")
    for number, column in enumerate(factor.T):
        panels[4].errorbar(angles, column, column * error[:, number], fmt=".", markersize=3,
                           linewidth=0.5, color=colormaps["viridis"](number / (BANDS - 1)))
    panels[4].set(xlabel="tilt [deg]", ylim=(0.7, 1.43),
                  title="power of background, twin / real,\nlowest (dark) to highest band")
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
    twin = make_twin(images, table, PIXEL, 300.0, TwinSettings(shape=SHAPE))
    print(*twin.warnings, *twin.assumptions, NOT_MODELLED, sep="\n")
    print(f"dose {twin.nominal_dose:.2f} e-/A^2; the noise is that of {twin.implied_dose:.2f}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".yaml").write_text(twin_text(twin), encoding="utf-8")
    thickness_figure(twin.thickness).savefig(file.with_name("thickness.png"))
    start = time.perf_counter()
    simulated = simulate(twin.scene).images.numpy()
    print(f"simulated in {time.perf_counter() - start:.0f} s")
    made = background_spectra(simulated)
    away = mean_intensities(simulated) / mean_intensities(images) - 1
    print(f"means: twin / real - 1 at most {100 * np.abs(away).max():.2f} %, "
          f"rms {100 * np.sqrt((away**2).mean()):.2f} %")
    real = twin.spectra
    factor, error = compare("the twin", real, made.ratio, made)
    compare("what the fit expects", real, twin.crowd.model)
    compare("the same, fitted to every other tilt and compared with the rest", real, held_out(
        real, twin.sights, twin.lens, twin.crowd.masses))
    camera = twin.scene.detector
    draw(file, (images, twin.spectra), (simulated, made), table["tilt_angle"].to_numpy(),
         camera.gain / (camera.dqe or 1), factor, error)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
