"""The alignment of simulated tilt series found again from 20 A and 1 degree beside it.

    python -m experiments.alignment FOLDER [--series cell:1 filaments:1 beads:0] [--plot FILE.png]

Series are those of `experiments.cell_series`, by specimen and seed, made in the folder if they are
not there. Their shifts get random errors of 20 A, their axis one of 1 degree. The rows that are
printed have what is left of them, root mean square but for a move of the whole specimen, beside the
error bars stated.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from experiments.cell_series import SPECIMENS, THICKNESS, cell_series
from tem_taichi.device import init
from tem_taichi.estimate.alignment import Alignment, aligned
from tem_taichi.estimate.shared_images import Views
from tem_taichi.estimate.tomogram_fit import noise_of
from tem_taichi.inverse.tomography import contrast
from tem_taichi.rotations import tilt_rotation

SHIFT, AXIS = 20.0, 1.0
"""Errors that the start is given [A], [deg]."""
_ERRORS = ["shift_x_error", "shift_y_error"]


def apart(found: pd.DataFrame, truth: pd.DataFrame) -> np.ndarray:
    """Differences of shifts but for a move of the specimen, (n, 2) [A]."""
    ways = np.stack([tilt_rotation(float(tilt), float(axis)).cpu().numpy()[:2] for tilt, axis in
                     zip(truth["tilt_angle"], truth["axis_angle"], strict=True)]).reshape(-1, 3)
    by = (found[["shift_x", "shift_y"]].to_numpy() - truth[["shift_x", "shift_y"]].to_numpy())
    return np.asarray(by.ravel() - ways @ np.linalg.lstsq(ways, by.ravel(), rcond=None)[0]
                      ).reshape(-1, 2)


def found_again(folder: Path, specimen: str, seed: int, finest: float
                ) -> tuple[Alignment, pd.DataFrame, float]:
    """The alignment found, the true table, and CPU seconds."""
    series = cell_series(folder / f"{specimen}{seed}.npz", specimen, seed)
    init("cpu", "float32")
    images = contrast(torch.as_tensor(series.images.astype(np.float32)))
    start, generator = series.tilts.copy(), np.random.default_rng(seed)
    start[["shift_x", "shift_y"]] += generator.normal(0, SHIFT, (len(start), 2))
    start["axis_angle"] += AXIS
    begun = time.process_time()
    found = aligned(Views(images, torch.ones_like(images), noise_of(images).square(),
                          series.pixel_size, THICKNESS), start, ("shifts", "axis"), SHIFT, finest)
    return found, series.tilts, time.process_time() - begun


def row(name: str, found: Alignment, truth: pd.DataFrame, seconds: float) -> str:
    """Of the table."""
    left = apart(found.tilts, truth)
    errors = found.tilts[_ERRORS].to_numpy()
    rms, bars = (np.sqrt((one**2).mean(0)) for one in (left, errors))
    ratio = np.sqrt(((left / errors)**2).mean(0))
    axis = (found.tilts["axis_angle"] - truth["axis_angle"]).iloc[0]
    return (f"| {name} | {rms[0]:.1f} ({bars[0]:.1f}) | {rms[1]:.1f} ({bars[1]:.1f}) | "
            f"{ratio[0]:.1f}, {ratio[1]:.1f} | {axis:+.3f} "
            f"({found.tilts['axis_angle_error'].iloc[0]:.3f}) | {len(found.doubts)} | "
            f"{seconds:.0f} |")


def draw(path: Path, series: dict[str, tuple[Alignment, pd.DataFrame]]) -> None:
    """What is left over the tilt, with the error bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(series), 5), layout="constrained")
    axes = figure.subplots(2, len(series), sharex=True, sharey="row", squeeze=False)
    for column, (name, (found, truth)) in zip(axes.T, series.items(), strict=True):
        left, errors = apart(found.tilts, truth), found.tilts[_ERRORS].to_numpy()
        for n, (part, way) in enumerate(zip(column, ("across", "along"), strict=True)):
            part.errorbar(truth["tilt_angle"], left[:, n], errors[:, n], fmt="o", ms=3, lw=0.8)
            part.axhline(0, color="black", lw=0.6)
            part.set_ylabel(f"{way} the axis [Å]")
        column[0].set_title(name)
        column[1].set_xlabel("tilt [deg]")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--series", nargs="+", default=["cell:1", "filaments:1", "beads:0"],
                        help=f"specimen:seed, of {', '.join(SPECIMENS)}")
    parser.add_argument("--finest", type=float, default=40.0)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    print("| specimen, seed | across A (bar) | along A (bar) | error / bar, across, along "
          "| axis deg (bar) | doubts | CPU s |\n" + 7 * "| --- " + "|")
    drawn = {}
    for name in given.series:
        specimen, seed = name.split(":")
        found, truth, seconds = found_again(given.folder, specimen, int(seed), given.finest)
        print(row(name, found, truth, seconds), *found.doubts, sep="\n", flush=True)
        drawn[name] = (found, truth)
    if given.plot:
        draw(given.plot, drawn)


if __name__ == "__main__":
    main()
