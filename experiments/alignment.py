"""The alignment of simulated tilt series found again from 20 A and 1 degree beside it.

    python -m experiments.alignment FOLDER [--series cell:1 beads:5 beads:11:144] [--by auto]
        [--starts 1] [--tilts 0] [--refine 2] [--plot FILE.png]

Series are those of `experiments.cell_series`, by specimen, seed and pixels along a side (192), made
in the folder if they are not there. Their shifts get random errors of 20 A, their axis one of 1
degree, their tilts errors of so many degrees, which are then looked for as well. The rows that are
printed have what is left of them, root mean square but for a move of the whole specimen, beside the
error bars stated; with --refine also what is left once a volume was fitted beside the shifts, with
voxels of so many pixels; error bars are still those before. What was found is kept in the folder,
and not looked for again while it is there.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.cell_series import DEFOCUS, SPECIMENS, THICKNESS, cell_series
from tem_taichi.device import init
from tem_taichi.estimate.shift_fit import fitted_shifts
from tem_taichi.estimate.tilt_images import Grid, series_of
from tem_taichi.estimate.tomogram_model import Lens
from tem_taichi.recipes.alignment import BY, SURE, refined
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


@dataclass(frozen=True, eq=False)
class Result:
    """Of one series."""

    found: pd.DataFrame
    given: pd.DataFrame
    truth: pd.DataFrame
    doubts: list[str]
    seconds: float
    """Of one core."""


def found_again(folder: Path, name: str, start: int, settings: Settings, tilts: float = 0.0
                ) -> Result:
    """The alignment found from beside the truth.

    Args:
        folder: of the series.
        name: specimen:seed or specimen:seed:size; the seed is, with start, that of the errors.
        start: number of these errors, from 0.
        settings: of the alignment.
        tilts: errors of the tilts [deg].
    """
    specimen, word, *size = name.split(":")
    seed, stem = int(word), "_".join([f"{specimen}{word}", *size])
    series = cell_series(folder / f"{stem}.npz", specimen, seed, *map(int, size))
    init("cpu", "float32")
    given = series.tilts.copy()
    generator = np.random.default_rng([seed, start] if start else seed)
    given[["shift_x", "shift_y"]] += generator.normal(0, SHIFT, (len(given), 2))
    given["axis_angle"] += AXIS
    given["tilt_angle"] += generator.normal(0, 1, len(given)) * tilts
    kept = folder / f"{stem}_{start}_{settings.align_by}_{'_'.join(settings.align)}.json"
    if not kept.is_file():
        begun = time.process_time()
        found = refined(settings, series.images.astype(np.float32), given, series.pixel_size, None,
                        lambda done, of: None)
        kept.write_text(json.dumps({
            "tilts": found.tilts.to_dict("list"), "doubts": found.doubts,
            "seconds": time.process_time() - begun}), encoding="utf-8")
    said = json.loads(kept.read_text(encoding="utf-8"))
    return Result(pd.DataFrame(said["tilts"]), given, series.tilts, said["doubts"],
                  said["seconds"])


def refined_beside(folder: Path, name: str, start: int, settings: Settings, before: Result,
                   size: int) -> Result:
    """The shifts after a fit of both them and a volume.

    Args:
        folder: of the series.
        name: of `found_again`.
        start: of `found_again`.
        settings: of the alignment.
        before: of `found_again`.
        size: pixels along a voxel.
    """
    specimen, word, *many = name.split(":")
    stem = "_".join([f"{specimen}{word}", *many])
    kept = folder / f"{stem}_{start}_{settings.align_by}_refined_{size}.json"
    if not kept.is_file():
        series = cell_series(folder / f"{stem}.npz", specimen, int(word), *map(int, many))
        init("cpu", "float32")
        begun, high = time.process_time(), np.pi / 3
        width = series.images.shape[2] * series.pixel_size
        made = series_of(series.images.astype(np.float32), before.found, series.pixel_size, Grid(
            THICKNESS, size, margin=THICKNESS / 2 * np.tan(high) + width / 2))
        found = fitted_shifts(made, before.found, Lens(), SHIFT)
        kept.write_text(json.dumps({
            "tilts": found.tilts.to_dict("list"), "doubts": found.doubts,
            "seconds": time.process_time() - begun}), encoding="utf-8")
    said = json.loads(kept.read_text(encoding="utf-8"))
    return Result(pd.DataFrame(said["tilts"]), before.found, before.truth, said["doubts"],
                  said["seconds"])


def row(name: str, result: Result) -> str:
    """Of the table."""
    table, truth = result.found, result.truth
    left, errors = apart(table, truth), table[_ERRORS].to_numpy()
    rms, bars = (np.sqrt((one**2).mean(0)) for one in (left, errors))
    ratio = np.sqrt(((left / errors)**2).mean(0))
    axis = (table["axis_angle"] - truth["axis_angle"]).iloc[0]
    tilts = ""
    if "tilt_angle_error" in table:
        by, bar = table["tilt_angle"] - truth["tilt_angle"], table["tilt_angle_error"]
        by = by - by.mean()
        tilts = (f"{np.sqrt((by**2).mean()):.3f} ({np.sqrt((bar**2).mean()):.3f}; "
                 f"{np.sqrt(((by / bar)**2).mean()):.1f})")
    beads = f"{table['beads'].median():.0f}" if "beads" in table else ""
    # Images that are told of well, and how far they are off.
    sure = (errors < SURE).all(1)
    told = f"{sure.sum()}: {np.sqrt((left[sure]**2).mean()):.2f}" if sure.any() else "0"
    return (f"| {name} | {beads} | {rms[0]:.2f} ({bars[0]:.2f}) | {rms[1]:.2f} ({bars[1]:.2f}) | "
            f"{np.abs(left).max():.1f} | {told} | {ratio[0]:.1f}, {ratio[1]:.1f} | {axis:+.3f} "
            f"({table['axis_angle_error'].iloc[0]:.3f}) | {tilts} | {len(result.doubts)} | "
            f"{result.seconds:.0f} |")


def draw(path: Path, results: dict[str, Result]) -> None:
    """What was given over the tilt, and what is left, with the error bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 1.7 * len(results), 6.5), layout="constrained")
    axes = figure.subplots(3, len(results), sharex=True, sharey="row", squeeze=False)
    for column, (name, result) in zip(axes.T, results.items(), strict=True):
        tilts = result.truth["tilt_angle"]
        column[0].plot(tilts, apart(result.given, result.truth), "o", ms=3)
        column[0].set_title(name, fontsize=9)
        left, errors = apart(result.found, result.truth), result.found[_ERRORS].to_numpy()
        sure = (errors < SURE).all(1)
        for n, part in enumerate(column[1:]):
            part.axhspan(-2, 2, color="0.92")
            for mine, colour in ((sure, f"C{n}"), (~sure, "0.6")):
                part.errorbar(tilts[mine], left[mine, n], errors[mine, n], fmt="o", ms=3, lw=0.8,
                              color=colour)
            part.set_ylim(-8, 8)
        for part in column:
            part.axhline(0, color="black", lw=0.6)
        column[2].set_xlabel("tilt [deg]")
    for part, name in zip(axes[:, 0], ("as given", "left across the axis", "left along the axis"),
                          strict=True):
        part.set_ylabel(f"{name} [Å]")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--series", nargs="+", default=["cell:1", "filaments:1", "beads:0"],
                        help=f"specimen:seed or specimen:seed:size, of {', '.join(SPECIMENS)}")
    parser.add_argument("--by", choices=BY, default="auto")
    parser.add_argument("--starts", type=int, default=1, help="errors drawn for each series")
    parser.add_argument("--tilts", type=float, default=0.0, help="errors of the tilts [deg]")
    parser.add_argument("--finest", type=float, default=40.0)
    parser.add_argument("--rounds", type=int, default=2, help="of projection matching")
    parser.add_argument("--refine", type=int, default=0, help="pixels a voxel; 0 = not")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    kinds = ("shifts", "axis", "tilts") if given.tilts else ("shifts", "axis")
    settings = Settings(kinds, given.by, given.finest, given.rounds)
    print(f"{SHIFT:g} A, {AXIS:g} deg, tilts {given.tilts:g} deg off, by {given.by}, "
          f"{DEFOCUS / 1e4:g} um under focus\n| series | beads an image | across A (bar) "
          f"| along A (bar) | worst A | images of bars below {SURE:g} A: rms A "
          "| error / bar, across, along | axis deg (bar) "
          "| tilts deg (bar; error / bar) | doubts | CPU s |\n" + 11 * "| --- " + "|")
    drawn: dict[str, Result] = {}
    for name in given.series:
        for start in range(given.starts):
            result = found_again(given.folder, name, start, settings, given.tilts)
            label = name if given.starts == 1 else f"{name}, start {start}"
            print(row(label, result), *result.doubts, sep="\n", flush=True)
            if given.refine:
                result = refined_beside(given.folder, name, start, settings, result, given.refine)
                print(row(f"{label}, refined", result), *result.doubts, sep="\n", flush=True)
            drawn.setdefault(name, result)
    if given.plot:
        draw(given.plot, drawn)


if __name__ == "__main__":
    main()
