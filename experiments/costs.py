"""How time and memory grow with atoms, copies, pixels, tilts and cores, and by which powers.

    python experiments/costs.py [--vary atoms copies pixels tilts] [--modes multislice projection]

Each run is a process of its own; finished ones are kept, line by line, in results/costs.jsonl, and
the same command goes on where it was interrupted. costs.json, costs.md and figures/costs.png are
made anew after each.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it is not there

from experiments.panels import WIDTH, letter, save
from experiments.runs import (
    RESULTS,
    add_row,
    in_new_process,
    machine,
    measured,
    median_of,
    rows_of,
)

FIGURE = Path(__file__).parent / "figures" / "costs.png"
MODES = ("multislice", "projection")
VARIED = {
    "atoms": [10_000, 100_000, 1_000_000, 10_000_000],
    "copies": [1, 10, 100, 1000, 5000],
    "pixels": [512, 1024, 2048, 4096],
    "tilts": [1, 3, 11, 31, 61],
}
CORES = (1, 2)
BASE = {"atoms": 0, "copies": 100, "pixels": 1024, "tilts": 1}
"""Apoferritin (atoms = 0) in a field of 512 nm, 100 nm thick."""
SHORT = 20.0
"""Seconds below which a run is repeated."""
POWERS = np.arange(0.05, 3.001, 0.05)


def overrides(case: dict[str, int], mode: str) -> list[str]:
    """Of a case's scene; the field is the same for all numbers of pixels but of those varied."""
    tilts = case["tilts"]
    angles = ("{scheme: listed, angles: [0]}" if tilts == 1 else
              f"{{scheme: linear, minimum: -60, maximum: 60, step: {120 / (tilts - 1)}}}")
    return [
        f"shape=[{case['pixels']},{case['pixels']}]", "pixel_size=5", f"tilts={angles}",
        f"interaction.mode={mode}", "dose=3", "optics.defocus=30000",
        "specimen.ice.granularity=0", "specimen.ice.thickness=1000",
        "specimen.size=[5120,5120]" if case["pixels"] >= 1024 else "specimen.size=[2560,2560]",
        f"specimen.particles.apoferritin.count={case['copies']}"]


def ball(atoms: int) -> Any:
    """What makes a specimen of one ball of carbon atoms as dense as protein."""
    import torch

    from tem_taichi.series.build import ice_of
    from tem_taichi.specimen.atoms import Atoms
    from tem_taichi.specimen.kinds import kind_of
    from tem_taichi.specimen.particles import ParticlesInIce
    from tem_taichi.specimen.poses import Poses

    def make(scene: Any) -> ParticlesInIce:
        rng = np.random.default_rng(0)
        radius = (atoms / 0.05 * 3 / (4 * np.pi)) ** (1 / 3)  # 0.05 heavy atoms in 1 A^3
        points = rng.standard_normal((atoms, 3))
        points *= radius * rng.random((atoms, 1)) ** (1 / 3) / np.linalg.norm(
            points, axis=1, keepdims=True)
        made = Atoms(torch.full((atoms,), 6), torch.as_tensor(points), torch.full((atoms,), 50.0),
                     torch.ones(atoms), torch.zeros(atoms, dtype=torch.bool))
        return ParticlesInIce((kind_of(made, "ball"),), (Poses(np.zeros((1, 3)), np.eye(3)[None]),),
                              ice_of(scene))

    return make


def run(case: dict[str, int], mode: str, cores: int, repeats: int, work: Path,
        more: list[str]) -> dict[str, Any]:
    """A case in new processes, as often as its time allows."""
    runs: list[dict[str, Any]] = []
    while not runs or (len(runs) < repeats and min(r["seconds"] for r in runs) < SHORT):
        runs.append(in_new_process(__file__, {
            "overrides": [*overrides(case, mode), *more], "work": str(work),
            "atoms": case["atoms"]}, cores))
        for left in work.glob("*"):
            left.unlink()
    return median_of(runs)


def fitted(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """c, a and p of c + a x^p, c and a not negative, by least squares of relative errors.

    What does not grow (starting up, the volume of a kind) would hide the power of what does.
    """
    at, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    best = None
    for power in POWERS:
        parts = np.stack([np.ones_like(at), at**power], axis=1) / values[:, None]
        found, left = nnls(parts, np.ones_like(at))
        if best is None or left < best[0]:
            best = (left, found[0], found[1], power)
    assert best is not None
    return float(best[1]), float(best[2]), float(best[3])


def curves(lines: list[dict]) -> list[dict[str, Any]]:
    """Each curve that has three points or more, and its fit."""
    found = []
    for varied in VARIED:
        for mode in MODES:
            for cores in CORES:
                mine = {line["value"]: line for line in lines if (
                    line["varied"], line["mode"], line["cores"]) == (varied, mode, cores)}
                if len(mine) < 3:
                    continue
                at = sorted(mine)
                seconds = [mine[value]["seconds"] for value in at]
                constant, factor, power = fitted(at, seconds)
                found.append({
                    "varied": varied, "mode": mode, "cores": cores, "at": at, "seconds": seconds,
                    "megabytes": [mine[value]["megabytes"] for value in at],
                    "constant": constant, "factor": factor, "exponent": power})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Rows of Markdown: seconds at each value, and the power of what grows."""
    text = []
    for varied, values in VARIED.items():
        text += [f"| {varied} | " + " | ".join(f"{value:,}" for value in values)
                 + " | exponent | of |", "| --- " * (len(values) + 3) + "|"]
        for curve in (curve for curve in found if curve["varied"] == varied):
            spent = dict(zip(curve["at"], curve["seconds"], strict=True))
            text.append(f"| {curve['mode']}, {curve['cores']} core" + "s" * (curve["cores"] > 1)
                        + " | " + " | ".join(f"{spent[value]:.1f} s" if value in spent else ""
                                             for value in values)
                        + f" | {curve['exponent']:.2f} | what exceeds {curve['constant']:.1f} s |")
        text.append("")
    return "\n".join(text)


def plot(found: list[dict[str, Any]], file: Path) -> None:
    """Seconds against what varies, and the fits."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for axes, varied in zip(panels, VARIED, strict=True):
        for curve in (curve for curve in found if curve["varied"] == varied):
            multislice = curve["mode"] == MODES[0]
            colour, style = ("C0" if multislice else "C1"), ("-" if curve["cores"] == 2 else ":")
            axes.loglog(curve["at"], curve["seconds"], "o" if multislice else "s", color=colour,
                        markersize=4, fillstyle="full" if curve["cores"] == 2 else "none")
            line = np.geomspace(curve["at"][0], curve["at"][-1], 100)
            axes.loglog(line, curve["constant"] + curve["factor"] * line ** curve["exponent"],
                        style, color=colour, linewidth=1,
                        label=f"{curve['mode']}, {curve['cores']} core"
                        + "s" * (curve["cores"] > 1) + f": {curve['exponent']:.2f}")
        axes.set_xlabel({"atoms": "atoms of a particle", "copies": "copies", "tilts": "tilts",
                         "pixels": "pixels a side"}[varied], fontsize=8)
        axes.set_ylabel("time [s]", fontsize=8)
        axes.tick_params(which="both", labelsize=7)
        if varied == "pixels":
            axes.set_xticks(VARIED[varied], [f"{value}" for value in VARIED[varied]])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(True, alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=6, title="exponent of what grows", title_fontsize=6)
    letter(panels)
    save(figure, file)


def write(found: list[dict[str, Any]], results: Path, figure: Path) -> str:
    """The curves' numbers, table and figure; the table."""
    results.mkdir(parents=True, exist_ok=True)
    (results / "costs.json").write_text(json.dumps(found, indent=1) + "\n")
    (results / "costs.md").write_text(table(found))
    plot(found, figure)
    return table(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vary", nargs="+", default=list(VARIED), choices=list(VARIED))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--cores", nargs="+", type=int, default=list(CORES), choices=CORES)
    parser.add_argument("--most", type=int, default=10**9, help="largest value of what is varied")
    parser.add_argument("--repeats", type=int, default=3, help=f"of runs below {SHORT:g} s")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder")
    parser.add_argument("--plot", type=Path, default=FIGURE, help="PNG")
    parser.add_argument("--work", type=Path, help="folder for images in work",
                        default=Path(tempfile.gettempdir()) / "tem_taichi_costs")
    parser.add_argument("--set", nargs="*", default=[], dest="more", metavar="KEY=VALUE",
                        help="further overrides")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # one case, in this process
    options = parser.parse_args()
    if options.case:
        case = json.loads(options.case)
        print(json.dumps(measured(case["overrides"], Path(case["work"]),
                                  specimen=ball(case["atoms"]) if case["atoms"] else None)))
        return
    file, failed = options.results / "costs.jsonl", []
    cases = [{"varied": varied, "value": value, "mode": mode, "cores": cores}
             for varied in options.vary for value in VARIED[varied] if value <= options.most
             for mode in options.modes for cores in options.cores]
    for key in cases:
        known = [line for line in rows_of(file) if key.items() <= line.items()]
        if known and not options.again:
            continue
        try:
            result = run({**BASE, key["varied"]: key["value"]}, key["mode"], key["cores"],
                         options.repeats, options.work, options.more)
        except subprocess.CalledProcessError as error:  # it has said why
            failed.append(f"{key} ({error.returncode})")
            continue
        add_row(file, {**key, "more": options.more, "machine": machine(), **result})
        print(f"{key['varied']:>8}{key['value']:12,}  {key['mode']:12}{key['cores']} cores"
              f"{result['seconds']:9.2f} s{result['megabytes']:7.0f} MB", flush=True)
        write(curves(rows_of(file)), options.results, options.plot)
    print(write(curves(rows_of(file)), options.results, options.plot))
    if failed:
        sys.exit(f"these runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
