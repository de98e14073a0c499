"""The alignment of a simulated tilt series found again from 20 A and 1 degree beside it.

    python -m experiments.alignment FILE.npz [--specimen cell] [--seed 0] [--finest 40]

The series is that of `experiments.cell_series`, made if the file is not there. Its shifts get
random errors of 20 A, its axis one of 1 degree. The row that is printed has what is left of them,
root mean square but for a move of the whole specimen, beside the error bars stated.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from experiments.cell_series import SPECIMENS, THICKNESS, cell_series
from tem_taichi.device import init
from tem_taichi.estimate.alignment import aligned
from tem_taichi.estimate.shared_images import Views
from tem_taichi.estimate.tomogram_fit import noise_of
from tem_taichi.inverse.tomography import contrast
from tem_taichi.rotations import tilt_rotation

SHIFT, AXIS = 20.0, 1.0
"""Errors that the start is given [A], [deg]."""


def apart(found: pd.DataFrame, truth: pd.DataFrame) -> np.ndarray:
    """Differences of shifts but for a move of the specimen, (n, 2) [A]."""
    ways = np.stack([tilt_rotation(float(tilt), float(axis)).cpu().numpy()[:2] for tilt, axis in
                     zip(truth["tilt_angle"], truth["axis_angle"], strict=True)]).reshape(-1, 3)
    by = (found[["shift_x", "shift_y"]].to_numpy() - truth[["shift_x", "shift_y"]].to_numpy())
    return np.asarray(by.ravel() - ways @ np.linalg.lstsq(ways, by.ravel(), rcond=None)[0]
                      ).reshape(-1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--specimen", choices=[*SPECIMENS], default="cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finest", type=float, default=40.0)
    given = parser.parse_args()
    series = cell_series(given.file, given.specimen, given.seed)
    init("cpu", "float32")
    images = contrast(torch.as_tensor(series.images.astype(np.float32)))
    start, generator = series.tilts.copy(), np.random.default_rng(given.seed)
    start[["shift_x", "shift_y"]] += generator.normal(0, SHIFT, (len(start), 2))
    start["axis_angle"] += AXIS
    begun = time.process_time()
    found = aligned(Views(images, torch.ones_like(images), noise_of(images).square(),
                          series.pixel_size, THICKNESS), start, ("shifts", "axis"), SHIFT,
                    given.finest)
    seconds = time.process_time() - begun
    left = np.sqrt((apart(found.tilts, series.tilts)**2).mean(0))
    bars = np.sqrt((found.tilts[["shift_x_error", "shift_y_error"]].to_numpy()**2).mean(0))
    axis = (found.tilts["axis_angle"] - series.tilts["axis_angle"]).iloc[0]
    print("| specimen, seed | across A (bar) | along A (bar) | axis deg (bar) | doubts | CPU s |\n"
          + 6 * "| --- " + "|")
    print(f"| {given.specimen} {given.seed} | {left[0]:.1f} ({bars[0]:.1f}) | {left[1]:.1f} "
          f"({bars[1]:.1f}) | {axis:+.3f} ({found.tilts['axis_angle_error'].iloc[0]:.3f}) | "
          f"{len(found.doubts)} | {seconds:.0f} |")
    for doubt in found.doubts:
        print(doubt)


if __name__ == "__main__":
    main()
