"""Viruses alone and in crowds: time of one tilt and of 61, multislice and projection.

The rows of a table of Nguyen, Liang et al. (see README.md), whose grids and tilts are unknown:
single particles here on 1024^2 pixels of 5 A; crowds of Zika virions, without overlap, in 2048 x
2048 x 300 nm on 2048^2 pixels of 10 A.

    python experiments/table1.py [--rows NAME ...] [--tilts 1 61] [--modes multislice projection]

Each run is a process of its own. Finished ones are kept, line by line, in results/table1.jsonl, and
the same command goes on where it was interrupted; table1.json and table1.md are made anew after
each. PDB ids 5IRE, 2OM3 and 6VXX and the patch of lipids are looked for in ../shared/data/atoms.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it is not there

from experiments.runs import (
    RESULTS,
    STRUCTURES,
    add_row,
    duration,
    in_new_process,
    machine,
    measured,
    median_of,
    rows_of,
)

MODES = ("multislice", "projection")
TILTS = (1, 61)
KEPT = (0.0, 60.0)
"""Tilts whose images of both modes are compared [deg]."""
SHORT = 30.0
"""Seconds below which a run is repeated."""

COMMON = ["dose=3", "optics.defocus=30000", "specimen.ice.granularity=0"]
SINGLE = ["shape=[1024,1024]", "pixel_size=5"]
CROWD = ["specimen=zika", "shape=[2048,2048]", "pixel_size=10", "specimen.size=[20480,20480]",
         "specimen.ice.thickness=3000"]
ONE = "placement: listed, positions: [[0, 0, 0]]"
LIPIDS = STRUCTURES / "dppc_n128.pdb"

ROWS: dict[str, list[str]] = {
    "tmv": [*SINGLE, "specimen=tmv", "specimen.particles.tmv.positions=[[0, 0, 0]]",
            "specimen.particles.tmv.orientations=[[0, 90, 0]]"],
    "zika_unit": [*SINGLE, "specimen=zika", "specimen.particles.zika.assembly=null",
                  f"specimen.particles.zika={{{ONE}}}"],
    "zika": [*SINGLE, "specimen=zika", f"specimen.particles.zika={{{ONE}}}"],
    "coronavirus": [*SINGLE, "specimen=coronavirus", f"specimen.particles.envelope={{{ONE}, "
                    f"lipids: '{LIPIDS}', lipid_area: 64}}"],
    **{f"zika_{count}": [*CROWD, f"specimen.particles.zika.count={count}"]
       for count in (1, 10, 100, 1000, 5000)},
}
SAID = {"tmv": "tobacco mosaic virus, 300 nm", "zika_unit": "Zika, asymmetric unit",
        "zika": "Zika virion", "coronavirus": "SARS-CoV-2-like virion",
        **{f"zika_{n}": f"Zika x {n:,}" for n in (1, 10, 100, 1000, 5000)}}
PUBLISHED = {"tmv": ("45 s", "4 s"), "zika": ("1 min 51", "1 min 46"),
             "coronavirus": ("7 min 25", "6 min 04"), "zika_1": ("1 min 51", "1 min 46"),
             "zika_10": ("2 min 16", "3 min 10"), "zika_100": ("2 min 16", "3 min 48"),
             "zika_1000": ("35 min 27", "6 min 22"), "zika_5000": ("4 h 11", "18 min 09")}
"""TEM-simulator and GPU-TEM, of unknown grids and tilts on other machines."""


def overrides(row: str, mode: str, tilts: int, more: list[str]) -> list[str]:
    """Of the scene of a case."""
    angles = ("{scheme: listed, angles: [0]}" if tilts == 1 else
              f"{{scheme: linear, minimum: -60, maximum: 60, step: {120 / (tilts - 1)}}}")
    return [*COMMON, *ROWS[row], f"tilts={angles}", f"interaction.mode={mode}", *more]


def run(row: str, mode: str, tilts: int, work: Path, repeats: int, more: list[str]) -> dict:
    """A case, as often as its time allows; images to compare stay in the work folder."""
    folder = work / f"{row}_{mode}_{tilts}"
    case = {"overrides": overrides(row, mode, tilts, more), "work": str(folder),
            "keep": KEPT if tilts > 1 else KEPT[:1]}
    runs: list[dict] = []
    while not runs or (len(runs) < repeats and min(r["seconds"] for r in runs) < SHORT):
        runs.append(in_new_process(__file__, case))
        for left in folder.glob("*"):  # the next is to be made anew
            if left.suffix != ".npy" and left.is_file():
                left.unlink()
    return {"row": row, "mode": mode, "tilts": tilts, "more": more, "machine": machine(),
            **median_of(runs)}


def errors(exact_images: Path, images: Path) -> dict[str, float]:
    """Of kept images against others: rms of the difference over that of the contrast, by tilt."""
    found = {}
    for angle in KEPT if images != exact_images else ():
        files = [folder / f"tilt_{angle:g}.npy" for folder in (exact_images, images)]
        if all(file.is_file() for file in files):
            exact, other = (np.load(file).astype(np.float64) for file in files)
            found[f"{angle:g}"] = float((other - exact).std() / exact.std())
    return found


def table(lines: list[dict]) -> str:
    """Rows of Markdown: of each case the last that was run."""
    cases = {(line["row"], line["mode"], line["tilts"]): line for line in lines}
    text = ["| | scatterers | mode | 1 tilt | 61 tilts | structures | peak MB | error, 0 deg | "
            "60 deg | TEM-simulator | GPU-TEM |", "| --- " * 11 + "|"]
    for row in ROWS:
        first = True
        for mode in MODES:
            runs = [cases.get((row, mode, tilts)) for tilts in TILTS]
            if not any(runs):
                continue
            last = next(one for one in reversed(runs) if one)
            error = {k: v for one in runs if one for k, v in one.get("errors", {}).items()}
            published = PUBLISHED.get(row, ("", "")) if first else ("", "")
            times = [duration(one["seconds"]) if one else "" for one in runs]
            text.append(" | ".join([
                f"| {SAID[row] if first else ''}", f"{last['scatterers']:,}", mode,
                *times, duration(last["structures"]), f"{last['megabytes']:.0f}",
                *(f"{error[angle]:.1%}" if angle in error else "" for angle in ("0", "60")),
                *published]) + " |")
            first = False
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW",
                        help=f"of {', '.join(ROWS)}")
    parser.add_argument("--tilts", nargs="+", type=int, default=list(TILTS))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--repeats", type=int, default=3, help=f"of runs below {SHORT:g} s")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder")
    parser.add_argument("--work", type=Path, help="folder for images",
                        default=Path(tempfile.gettempdir()) / "tem_taichi_table1")
    parser.add_argument("--against", type=Path, help="other such folder, with whose multislice "
                        "images these are compared; by default with those of this run")
    parser.add_argument("--set", nargs="*", default=[], dest="more", metavar="KEY=VALUE",
                        help="further overrides, such as compute.arch=gpu")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # one case, in this process
    options = parser.parse_args()
    if options.case:
        case: dict[str, Any] = json.loads(options.case)
        print(json.dumps(measured(case["overrides"], Path(case["work"]), case["keep"])))
        return
    file = options.results / "table1.jsonl"
    failed: list[str] = []
    for row in options.rows:
        for tilts in options.tilts:
            for mode in options.modes:
                done = [line for line in rows_of(file) if (
                    line["row"], line["mode"], line["tilts"], line["more"]) == (
                    row, mode, tilts, options.more)]
                if done and not options.again:
                    continue
                try:
                    line = run(row, mode, tilts, options.work, options.repeats, options.more)
                except subprocess.CalledProcessError as error:  # it has said why
                    failed.append(f"{row} {mode} {tilts} ({error.returncode})")
                    continue
                exact = (options.against or options.work) / f"{row}_multislice_{tilts}"
                add_row(file, {**line, "errors": errors(
                    exact, options.work / f"{row}_{mode}_{tilts}")})
                print(f"{SAID[row]:32}{mode:12}{tilts:3} tilts {line['seconds']:9.1f} s"
                      f"{line['megabytes']:7.0f} MB", flush=True)
                lines = rows_of(file)
                (options.results / "table1.json").write_text(json.dumps(lines, indent=1) + "\n")
                (options.results / "table1.md").write_text(table(lines))
    print(table(rows_of(file)))
    if failed:
        sys.exit(f"these runs failed: {', '.join(failed)}")

if __name__ == "__main__":
    main()
