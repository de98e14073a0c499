"""The alignment of simulated tilt series found again from 20 A and 1 degree beside it.

    python -m experiments.alignment FOLDER [--series cell:1 beads:5] [--by auto] [--starts 1]
        [--tilts 0] [--plot FILE.png]

Series are those of `experiments.cell_series`, by specimen and seed, made in the folder if they are
not there. Their shifts get random errors of 20 A, their axis one of 1 degree, their tilts errors of
so many degrees, which are then looked for as well. The rows that are printed have what is left of
them, root mean square but for a move of the whole specimen, beside the error bars stated.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.cell_series import DEFOCUS, SPECIMENS, THICKNESS, cell_series
from tem_taichi.device import init
from tem_taichi.estimate.alignment import Alignment
from tem_taichi.recipes.alignment import BY, refined
from tem_taichi.rotations import tilt_rotation

SHIFT, AXIS = 20.0, 1.0
"""Errors that the start is given [A], [deg]."""
_ERRORS = ["shift_x_error", "shift_y_error"]


@dataclass(frozen=True)
class Settings:
    """Those of recipe=reconstruct that its alignment reads."""

    align: tuple[str, ...]
    align_by: str
    align_to: float
    align_rounds: int
    align_within: float = SHIFT
    thickness: float = THICKNESS
    cut_from: tuple[float, float] = (0.0, 0.0)
    voltage: float = 300.0
    beads: str | None = None
    bead_diameter: float | None = None


def apart(found: pd.DataFrame, truth: pd.DataFrame) -> np.ndarray:
    """Differences of shifts but for a move of the specimen, (n, 2) [A]."""
    ways = np.stack([tilt_rotation(float(tilt), float(axis)).cpu().numpy()[:2] for tilt, axis in
                     zip(truth["tilt_angle"], truth["axis_angle"], strict=True)]).reshape(-1, 3)
    by = (found[["shift_x", "shift_y"]].to_numpy() - truth[["shift_x", "shift_y"]].to_numpy())
    return np.asarray(by.ravel() - ways @ np.linalg.lstsq(ways, by.ravel(), rcond=None)[0]
                      ).reshape(-1, 2)


def found_again(folder: Path, specimen: str, seed: int, start: int, settings: Settings,
                tilts: float = 0.0) -> tuple[Alignment, pd.DataFrame, float]:
    """The alignment found, the true table, and CPU seconds.

    Args:
        folder: of the series.
        specimen: of SPECIMENS.
        seed: of the series, and with start of the errors that it is given.
        start: number of these errors, from 0.
        settings: of the alignment.
        tilts: errors of the tilts [deg].
    """
    series = cell_series(folder / f"{specimen}{seed}.npz", specimen, seed)
    init("cpu", "float32")
    given = series.tilts.copy()
    generator = np.random.default_rng([seed, start] if start else seed)
    given[["shift_x", "shift_y"]] += generator.normal(0, SHIFT, (len(given), 2))
    given["axis_angle"] += AXIS
    given["tilt_angle"] += generator.normal(0, 1, len(given)) * tilts
    begun = time.process_time()
    found = refined(settings, series.images.astype(np.float32), given, series.pixel_size, None,
                    lambda done, of: None)
    return found, series.tilts, time.process_time() - begun


def row(name: str, found: Alignment, truth: pd.DataFrame, seconds: float) -> str:
    """Of the table."""
    left = apart(found.tilts, truth)
    errors = found.tilts[_ERRORS].to_numpy()
    rms, bars = (np.sqrt((one**2).mean(0)) for one in (left, errors))
    ratio = np.sqrt(((left / errors)**2).mean(0))
    axis = (found.tilts["axis_angle"] - truth["axis_angle"]).iloc[0]
    tilts = ""
    if "tilt_angle_error" in found.tilts:
        by, bar = found.tilts["tilt_angle"] - truth["tilt_angle"], found.tilts["tilt_angle_error"]
        by = by - by.mean()
        tilts = (f"{np.sqrt((by**2).mean()):.3f} ({np.sqrt((bar**2).mean()):.3f}; "
                 f"{np.sqrt(((by / bar)**2).mean()):.1f})")
    beads = f"{found.tilts['beads'].median():.0f}" if "beads" in found.tilts else ""
    return (f"| {name} | {beads} | {rms[0]:.2f} ({bars[0]:.2f}) | {rms[1]:.2f} ({bars[1]:.2f}) | "
            f"{np.abs(left).max():.1f} | {ratio[0]:.1f}, {ratio[1]:.1f} | {axis:+.3f} "
            f"({found.tilts['axis_angle_error'].iloc[0]:.3f}) | {tilts} | {len(found.doubts)} | "
            f"{seconds:.0f} |")


def draw(path: Path, series: dict[str, tuple[Alignment, pd.DataFrame]]) -> None:
    """What is left over the tilt, with the error bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(series), 5), layout="constrained")
    axes = figure.subplots(2, len(series), sharex=True, sharey=True, squeeze=False)
    for column, (name, (found, truth)) in zip(axes.T, series.items(), strict=True):
        left, errors = apart(found.tilts, truth), found.tilts[_ERRORS].to_numpy()
        for n, (part, way) in enumerate(zip(column, ("across", "along"), strict=True)):
            part.axhspan(-2, 2, color="0.92")
            part.errorbar(truth["tilt_angle"], left[:, n], errors[:, n], fmt="o", ms=3, lw=0.8)
            part.axhline(0, color="black", lw=0.6)
            part.set_ylabel(f"{way} the axis [Å]" if column is axes.T[0] else "")
        column[0].set_title(name, fontsize=9)
        column[1].set_xlabel("tilt [deg]")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--series", nargs="+", default=["cell:1", "filaments:1", "beads:0"],
                        help=f"specimen:seed, of {', '.join(SPECIMENS)}")
    parser.add_argument("--by", choices=BY, default="auto")
    parser.add_argument("--starts", type=int, default=1, help="errors drawn for each series")
    parser.add_argument("--tilts", type=float, default=0.0, help="errors of the tilts [deg]")
    parser.add_argument("--finest", type=float, default=40.0)
    parser.add_argument("--rounds", type=int, default=2, help="of projection matching")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    kinds = ("shifts", "axis", "tilts") if given.tilts else ("shifts", "axis")
    settings = Settings(kinds, given.by, given.finest, given.rounds)
    print(f"{SHIFT:g} A, {AXIS:g} deg, tilts {given.tilts:g} deg off, by {given.by}, "
          f"{DEFOCUS / 1e4:g} um under focus\n| series | beads an image | across A (bar) "
          "| along A (bar) | worst A | error / bar, across, along | axis deg (bar) "
          "| tilts deg (bar; error / bar) | doubts | CPU s |\n" + 10 * "| --- " + "|")
    drawn = {}
    for name in given.series:
        specimen, seed = name.split(":")
        for start in range(given.starts):
            found, truth, seconds = found_again(given.folder, specimen, int(seed), start, settings,
                                                given.tilts)
            label = name if given.starts == 1 else f"{name}, start {start}"
            print(row(label, found, truth, seconds), *found.doubts, sep="\n", flush=True)
            drawn.setdefault(name, (found, truth))
    if given.plot:
        draw(given.plot, drawn)


if __name__ == "__main__":
    main()
