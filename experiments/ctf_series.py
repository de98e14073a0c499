"""CTF of simulated tilt series, all images in one fit and one by one, against the truth.

41 images of 1024^2 pixels of 5 A, -60 to 60 degrees, of granular ice alone or with apoferritin,
with damage, the default camera and Poisson noise: CASES. `python -m experiments.ctf_series FOLDER`
keeps the images there, so that an interrupted run goes on, adds a line a series to
results/ctf_series.jsonl where there is none yet, and prints the table. The picture of each series
is beside its images.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.runs import RESULTS, STRUCTURES
from tem_taichi import load_scene, simulate
from tem_taichi.estimate.ctf_series import SeriesFit, fit_series
from tem_taichi.estimate.ctf_series_figure import write_series_figure
from tem_taichi.estimate.ctf_tilt import fit_tilted_micrograph

FILE = RESULTS / "ctf_series.jsonl"
SIDE, PIXEL_SIZE, VOLTAGE, CS = 1024, 5.0, 300.0, 2.7
CONTRAST = 0.0  # the grains of simulated ice absorb nothing
ALONE = 8  # every eighth image is fitted by itself
WITHIN = 2.0  # standard errors, of one number; 95 %
WITHIN_PAIR = 2.45  # of the length of a vector whose two parts have that error; 95 %


class Case(NamedTuple):
    """Of one series; lengths [A], angles [deg], the dose of all images [e-/A^2]."""

    seed: int
    defocus: float
    astigmatism: float
    angle: float
    axis: float
    thickness: float
    dose: float
    change: float = 0.0
    """Deviation of the images' defoci."""
    copies: int = 0
    """Of apoferritin."""


CASES = (
    Case(11, 20000, 0, 0, 0, 1500, 100),
    Case(12, 32000, 1000, 20, 85, 2000, 140),
    Case(13, 38000, 300, 130, -30, 2500, 120, change=150),
    Case(14, 45000, 700, 75, 45, 1000, 80, copies=60),
    Case(15, 50000, 500, 160, -70, 3000, 160),
    Case(16, 27000, 150, 100, 10, 1200, 120, change=100, copies=60),
    Case(17, 23000, 800, 50, -85, 2000, 120, change=50),
    Case(18, 30000, 400, 5, 120, 2000, 100),
    Case(19, 41000, 250, 95, 30, 2000, 140))


def series_of(case: Case, folder: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """Images and tilts of a series, simulated once."""
    images, table = (folder / f"series{case.seed}{end}" for end in (".npy", ".csv"))
    if not images.is_file():
        copies = (f"specimen.particles.apoferritin.count={case.copies}" if case.copies else
                  "specimen.particles={}")
        found = simulate(load_scene(None, [
            f"shape=[{SIDE},{SIDE}]", f"pixel_size={PIXEL_SIZE}", f"dose={case.dose / 41}",
            f"seed={case.seed}", f"specimen.ice.thickness={case.thickness}", copies,
            f"optics.defocus={case.defocus}", f"optics.astigmatism={case.astigmatism}",
            f"optics.astigmatism_angle={case.angle}", f"tilts.axis_angle={case.axis}",
            f"tilts.errors.defocus={case.change}", "tilts.minimum=-60", "tilts.maximum=60",
            "tilts.step=3"]))
        found.tilts.to_csv(table, index=False)
        part = images.with_suffix(".part.npy")
        np.save(part, found.images.numpy().astype(np.float32))
        part.rename(images)
    return np.load(images), pd.read_csv(table)


def row_of(case: Case, images: np.ndarray, table: pd.DataFrame, picture: Path) -> dict[str, Any]:
    """What both ways find."""
    tilts = [(angle, case.axis) for angle in table["nominal_angle"]]
    truth = table[["defocus_u", "defocus_v"]].mean(axis=1).to_numpy()
    start = time.process_time()
    fit = fit_series(images, PIXEL_SIZE, tilts, VOLTAGE, CS, CONTRAST)
    seconds = time.process_time() - start
    write_series_figure(picture, fit, [angle for angle, _ in tilts])
    some = range(ALONE // 2, len(images), ALONE)
    alone = [fit_tilted_micrograph(images[n], PIXEL_SIZE, tilts[n], VOLTAGE, CS, CONTRAST)
             for n in some]
    return case._asdict() | _found(case, fit, truth) | {
        "seconds": seconds,
        "alone_off": [one.defocus - truth[n] for one, n in zip(alone, some, strict=True)],
        "alone_reliable": [one.reliable for one in alone]}


def _found(case: Case, fit: SeriesFit, truth: np.ndarray) -> dict[str, Any]:
    away = (fit.defocus - truth) / fit.errors
    vector = fit.astigmatism * np.exp(2j * np.radians(fit.astigmatism_angle))
    return {
        "true": truth.mean(), "off": fit.mean - truth.mean(), "error": fit.mean_error,
        "images_off": float(np.sqrt(np.mean((fit.defocus - truth)**2))),
        "images_error": float(np.median(fit.errors)),
        "images_within": int((np.abs(away) < WITHIN).sum()), "images": len(truth),
        "change_found": fit.free, "drift_found": fit.smooth, "astigmatism_found": fit.astigmatism,
        "angle_found": fit.astigmatism_angle, "astigmatism_error": fit.astigmatism_error,
        "astigmatism_off": abs(vector - case.astigmatism * np.exp(2j * np.radians(case.angle))),
        "heights": fit.stated.slope, "phase": fit.stated.phase, "spherical": fit.stated.spherical,
        "by_contrast": fit.stated.by_contrast, "hand_gain": fit.hand_gain, "doubts": fit.doubts}


def table_of(rows: list[dict[str, Any]]) -> str:
    """Markdown, and how often the errors cover."""
    names = ("defocus", "astigmatism, angle", "axis", "ice", "e-/A^2", "copies", "off by", "said",
             "z", "single images off by", "said", "within 2", "astigmatism off by", "said",
             "heights", "doubted", "one by one, off by", "not doubted", "CPU s")
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for row in rows:
        change = f" +- {row['change']:.0f}" if row["change"] else ""
        lines.append(
            f"| {row['defocus']:.0f}{change} | {row['astigmatism']:.0f}, {row['angle']:.0f} | "
            f"{row['axis']:.0f} | {row['thickness']:.0f} | {row['dose']:.0f} | {row['copies']} | "
            f"{row['off']:+.0f} | {row['error']:.0f} | {row['off'] / row['error']:+.1f} | "
            f"{row['images_off']:.0f} | {row['images_error']:.0f} | {row['images_within']} of "
            f"{row['images']} | {row['astigmatism_off']:.0f} | {row['astigmatism_error']:.0f} | "
            f"{row['heights'][0]:.2f} +- {row['heights'][1]:.2f} | "
            f"{'yes' if row['doubts'] else 'no'} | "
            f"{', '.join(f'{one:+.0f}' for one in row['alone_off'])} | "
            f"{sum(row['alone_reliable'])} of {len(row['alone_reliable'])} | "
            f"{row['seconds']:.0f} |")
    scores = np.array([row["off"] / row["error"] for row in rows])
    pairs = np.array([row["astigmatism_off"] / row["astigmatism_error"] for row in rows])
    return "\n".join([*lines, "", (
        f"Mean defocus: {(abs(scores) < WITHIN).sum()} of {len(rows)} within {WITHIN:g} errors, "
        f"root mean square of z {np.sqrt(np.mean(scores**2)):.2f}; of single images "
        f"{sum(row['images_within'] for row in rows)} of {sum(row['images'] for row in rows)}; "
        f"astigmatism: {(pairs < WITHIN_PAIR).sum()} of {len(rows)} within {WITHIN_PAIR:g}, "
        f"{np.sqrt(np.mean(pairs**2) / 2):.2f}.")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[case.seed for case in CASES])
    parser.add_argument("--only-simulate", action="store_true",
                        help="leave the fits to a later run")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if STRUCTURES.is_dir():
        os.environ.setdefault("TEM_TAICHI_CACHE", str(STRUCTURES))
    rows = {row["seed"]: row for row in map(
        json.loads, FILE.read_text().splitlines() if FILE.is_file() else [])}
    for case in CASES:
        if case.seed not in options.seeds or case.seed in rows:
            continue
        images, table = series_of(case, options.folder)
        if not options.only_simulate:
            rows[case.seed] = row_of(case, images, table,
                                     options.folder / f"series{case.seed}.png")
            with FILE.open("a") as out:
                out.write(json.dumps(rows[case.seed]) + "\n")
    print(table_of([rows[seed] for seed in sorted(rows)]))


if __name__ == "__main__":
    main()
