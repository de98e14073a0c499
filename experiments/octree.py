"""Octrees of small grids against voxels and SIRT on the phantom of Wang et al. (2023).

    python -m experiments.octree [--virion FILE] [--only WORD] [--draw]

Rows are made one after another, each in a process of its own; those that the file of lines has are
not made again; then results/octree.md and figures/octree.png are. --size, --samples, --depth and
--leaves set the paper's sizes for a row of one's own (--method). Phantoms: `octree_phantom`. PSNR
is 20 log10 of the truth's maximum over the root mean square error, in the truth's own scale; CPU
seconds are those of the method, MB what it took at most.
"""

import argparse
import itertools
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.octree_phantom import Case, case_of, psnr
from experiments.panels import WIDTH, letter, save, small
from experiments.runs import RESULTS
from tem_taichi.device import init
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.octree_fit import Grown, Settings, fitted
from tem_taichi.estimate.octree_model import Integrals
from tem_taichi.estimate.octree_prior import Priors, Ratios
from tem_taichi.estimate.octree_published import Schedule, published
from tem_taichi.estimate.octree_tree import Growth, volume_of
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram_model import Explained
from tem_taichi.inverse.measures import structural_similarity
from tem_taichi.inverse.tomography import Sirt
from tem_taichi.specimen.faces import Faces, jump

LINES, TABLE = RESULTS / "octree.jsonl", RESULTS / "octree.md"
FIGURE = Path(__file__).parent / "figures" / "octree.png"
STOPS, STRENGTHS = 300, (0.1, 0.2, 0.3, 0.5, 1.0)
"""Iterations of SIRT, and strengths of the total variation in typical differences, of which the
truth chooses the best."""
CNLC = 1e-3
"""Its stiffness beside that of the total variation."""


@dataclass(frozen=True)
class Row:
    """What is made."""

    study: str
    method: str
    size: int = 64
    seed: int = 1
    noise: float = 0.05
    phantom: str = "shells"
    samples: int = 9
    depth: int = 3
    leaves: int = 320
    strength: float | None = None
    stretched: bool = False

    @property
    def growth(self) -> Growth:
        """Of the tree."""
        return Growth(self.samples, self.depth, self.leaves, min(1, self.depth),
                      stretched=self.stretched)


@dataclass(frozen=True)
class Found:
    """What a method gives."""

    volume: Tensor
    numbers: int
    """That were found."""
    grown: Grown | None = None
    choice: str = ""


def fit(case: Case, settings: Settings) -> Found:
    """By the likelihood."""
    series = Series(case.images, case.rays, torch.ones_like(case.images))

    def imaging(of: Series, which: list[int]) -> Explained:
        weights = of.weights * (of.rays.pixel / case.rays.pixel / case.sigma)**2
        return Integrals(of.images[which], weights[which], of.rays.some(which))

    grown = fitted(series, imaging, settings, lambda done, of: None, Kept())
    volume = volume_of(grown.field, case.rays.grid, case.rays.voxel)
    return Found(volume, grown.field.values.numel(), grown, f"{grown.strength:g}")


def octree(case: Case, row: Row, ratios: Ratios | None = None) -> Found:
    return fit(case, Settings(row.growth, ratios=ratios or Ratios(), strength=row.strength))


def voxel_grid(case: Case, row: Row) -> Found:
    """One leaf as large as the phantom: the same fit of a plain grid."""
    size = case.rays.grid[0] + 1 - case.rays.grid[0] % 2
    return fit(case, Settings(Growth(size, 0, 1, 0), strength=row.strength))


def even(case: Case, row: Row) -> Found:
    """Leaves all of the largest level: nothing is refined."""
    growth = replace(row.growth, start=row.depth, leaves=8**row.depth)
    return fit(case, Settings(growth, strength=row.strength))


def as_published(case: Case, row: Row, priors: Priors | None = None) -> Found:
    """By the paper's optimiser and strengths, eight images a step."""
    top = float(case.images.max())
    series = Series(case.images / top, case.rays, torch.ones_like(case.images))
    schedule = Schedule(batch=8, rate=0.05, priors=priors or Priors())
    grown = published(series, row.growth, schedule, lambda done, of: None, Kept())
    volume = volume_of(grown.field, case.rays.grid, case.rays.voxel) * top
    return Found(volume, grown.field.values.numel(), grown)


def sirt(case: Case, strengths: tuple[float, ...]) -> Found:
    """Positive, with total variation at the strength and the iteration next to the truth."""
    first = Sirt(case.images, case.rays)
    first.step()
    typical = 1.4826 * float(first.volume.diff(dim=2).abs().median())
    best, least, choice = first.volume, np.inf, ""
    for strength in strengths:
        run, here = Sirt(case.images, case.rays, tv=strength * typical, positive=True), np.inf
        for number in range(STOPS):
            run.step()
            wrong = float((run.volume - case.truth).square().mean())
            if wrong > 1.02 * here:
                break
            here = min(here, wrong)
            if wrong < least:
                best, least, choice = run.volume.clone(), wrong, f"{strength:g}, {number + 1}"
    return Found(best, best.numel(), choice=choice)


METHODS: dict[str, Callable[[Case, Row], Found]] = {
    "SIRT, stopped by the truth": lambda case, row: sirt(case, (0.0,)),
    "SIRT-TV, strength and stop by the truth": lambda case, row: sirt(case, STRENGTHS),
    "SIRT-TV, stop by the truth": lambda case, row: sirt(case, (LIKELY,)),
    "voxels": voxel_grid,
    "octree": octree,
    "octree, CNLC": lambda case, row: octree(case, row, Ratios(non_local=CNLC)),
    "octree, strong CNLC": lambda case, row: octree(case, row, Ratios(non_local=30 * CNLC)),
    "octree, no BC": lambda case, row: octree(case, row, Ratios(boundary=0.0)),
    "octree, hardly TV": lambda case, row: octree(case, replace(row, strength=0.02)),
    "uniform octree": even,
    "as published": as_published,
    "as published, no CNLC": lambda case, row: as_published(case, row, Priors(non_local=0.0)),
    "as published, no BC": lambda case, row: as_published(case, row, Priors(boundary=0.0))}
COMPARED = ("SIRT-TV, strength and stop by the truth", "SIRT, stopped by the truth", "voxels",
            "octree")
GIVEN, LIKELY = 0.5, 0.3
"""Strengths that images held out chose of fits without rounds on seed 0 at noise 0.05, and the
truth of SIRT-TV at 64^3 on seeds 1 and 2."""


def rows() -> list[Row]:
    """All, what matters most first."""
    one = Row("methods", "octree")
    made = [replace(one, method=name) for name in COMPARED]
    made += [replace(one, study="priors", method=name, strength=GIVEN) for name in (
        "octree", "octree, no BC", "octree, CNLC", "octree, strong CNLC", "octree, hardly TV",
        "uniform octree")]
    made += [replace(one, study="adaptive", phantom=kind, method=name, strength=GIVEN, **sizes)
             for kind in ("sparse", "crowded") for name, sizes in (
                 ("octree", {"samples": 9, "leaves": 120}),
                 # As many numbers: 64 leaves of 11^3 to 120 of 9^3.
                 ("uniform octree", {"samples": 11, "depth": 2, "leaves": 64, "stretched": True}))]
    # Table 1: as many leaves, of half the samples, at half the size.
    made += [replace(one, study="samples", method=name, samples=g, depth=2, leaves=40,
                     strength=GIVEN, stretched=True)
             for g in (6, 8, 10, 12, 14, 17) for name in ("octree", "octree, CNLC")]
    made += [replace(one, study="samples at noise 0.5", method=name, samples=g, depth=2, leaves=40,
                     strength=GIVEN, stretched=True, noise=0.5)
             for g in (6, 8, 10, 12, 14, 17) for name in ("octree", "octree, CNLC")]
    # Of the published size.
    made += [replace(one, study="samples at noise 0.5, 128^3", method=name, size=128, samples=g,
                     depth=2, leaves=40, strength=GIVEN, stretched=True, noise=0.5)
             for g in (12, 16, 20, 24, 28, 34) for name in ("octree", "octree, CNLC")]
    made += [replace(one, method=name, seed=2) for name in COMPARED]
    made += [replace(one, method="octree", size=128, samples=17)]
    made += [replace(one, study="noise", noise=noise, method=name)
             for noise in (0.5, 0.02, 0.1) for name in ("octree", "voxels", COMPARED[0])]
    made += [replace(one, study="published", method=name) for name in (
        "as published", "as published, no CNLC", "as published, no BC")]
    made += [replace(one, method=name, seed=3) for name in COMPARED]
    made += [replace(one, study="growth", method=name, size=128, samples=17) for name in (
        "voxels", COMPARED[1], "SIRT-TV, stop by the truth")]
    made += [replace(one, study="noise, 128^3", method=name, size=128, samples=17, noise=noise)
             for noise in (0.5, 0.1, 0.02) for name in ("octree", "SIRT-TV, stop by the truth")]
    return made


def measured(row: Row, virion: str | None) -> dict:
    """A method and its measures."""
    init("cpu", "float32")
    case = case_of(row.size, row.noise, row.seed, row.phantom, virion)
    before, begun, clock = _megabytes(), time.process_time(), time.perf_counter()
    found = METHODS[row.method](case, row)
    told = {**asdict(row), "virion": Path(virion).stem if virion else "",
            "cpu_seconds": time.process_time() - begun, "seconds": time.perf_counter() - clock,
            "MB": _megabytes() - before, "psnr": psnr(found.volume, case.truth),
            "ssim": structural_similarity(found.volume, case.truth), "numbers": found.numbers,
            "choice": found.choice}
    if found.grown is not None:
        tree = found.grown.field.tree
        told |= {"steps": found.grown.steps, "leaves_found": len(tree.leaves)}
        if len(tree.leaves) > 1:
            told["jump"] = jump(Faces(tree), found.grown.field.values)
    return told


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(lines: list[dict]) -> str:
    """Markdown."""
    head = ["study", "phantom", "size", "noise", "seed", "method", "G, depth, most leaves",
            "PSNR dB", "SSIM", "numbers", "dB / log2", "jump", "leaves", "strength, stop", "steps",
            "CPU s", "MB"]
    out = [head, ["---"] * len(head)]
    for one in lines:
        tree = f"{one['samples']}, {one['depth']}, {one['leaves']}" if "octree" in one[
            "method"] or "published" in one["method"] else ""
        out.append([one["study"], one["phantom"], one["size"], one["noise"], one["seed"],
                    one["method"], tree, f"{one['psnr']:.2f}", f"{one['ssim']:.3f}",
                    one["numbers"], f"{one['psnr'] / np.log2(one['numbers']):.3f}",
                    f"{one['jump']:.3f}" if "jump" in one else "", one.get("leaves_found", ""),
                    one["choice"], one.get("steps", ""), f"{one['cpu_seconds']:.0f}",
                    f"{one['MB']:.0f}"])
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in out) + "\n"


DRAWN = {"SIRT-TV by the truth": COMPARED[0], "voxels": "voxels", "octree": "octree",
         "without BC": "octree, no BC", "strong CNLC": "octree, strong CNLC"}


def draw(lines: list[dict], virion: str | None) -> Figure:
    """Slices of fits made again, of priors by a strength that is known, and curves of the lines."""
    init("cpu", "float32")
    row = Row("", "", strength=GIVEN)
    case = case_of(row.size, row.noise, row.seed, row.phantom, virion)
    shown = {"truth": case.truth}
    for title, name in DRAWN.items():
        whole = replace(row, strength=None) if name in COMPARED else row
        found = sirt(case, (0.3,)) if name == COMPARED[0] else METHODS[name](case, whole)
        shown[title] = found.volume
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1.8])
    for ax, (title, volume) in zip(upper.subplots(1, len(shown)), shown.items(), strict=True):
        ax.imshow(volume[row.size // 2], cmap="gray_r", vmin=0, vmax=1, origin="lower")
        ax.set_title(title, fontsize=7)
        ax.set_axis_off()
    axes = lower.subplots(1, 2)
    chosen = [one for one in lines if one["study"] == "noise" or (
        one["study"] == "methods" and one["seed"] == 1 and one["size"] == 64)]
    for name in (COMPARED[0], "voxels", "octree"):
        curve = sorted((one["noise"], one["psnr"]) for one in chosen if one["method"] == name)
        if curve:
            axes[0].semilogx(*zip(*curve, strict=True), "o-", markersize=3,
                             label=name.split(",")[0])
    axes[0].set(xlabel="noise, of the largest line integral", ylabel="PSNR [dB]",
                xlim=(0.015, 0.7))
    axes[0].set_xticks([0.02, 0.05, 0.1, 0.5], ["0.02", "0.05", "0.1", "0.5"])
    axes[0].set_xticks([], minor=True)
    for study, name in itertools.product(
            ("samples", "samples at noise 0.5", "samples at noise 0.5, 128^3"),
            ("octree", "octree, CNLC")):
        curve = sorted((one["samples"] * 128 // one["size"], one["psnr"]) for one in lines
                       if one["study"] == study and one["method"] == name)
        if curve:
            axes[1].plot(*zip(*curve, strict=True), "o-", markersize=3,
                         label=name + study.removeprefix("samples"))
    axes[1].set(xlabel="samples along a leaf's side, of 128$^3$", ylabel="PSNR [dB]")
    for ax in axes:
        small(ax)
        ax.legend(fontsize=6)
        ax.grid(alpha=0.3)
    letter(axes)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--virion", help="file of a structure with an assembly")
    parser.add_argument("--only", default="", help="rows in whose study or method this is")
    parser.add_argument("--draw", action="store_true", help="make no rows, table and figure alone")
    parser.add_argument("--method", choices=[*METHODS], help="of one row of one's own")
    for name in ("size", "seed", "samples", "depth", "leaves"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Row, name))
    for name in ("noise", "strength"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Row, name))
    parser.add_argument("--lines", type=Path, default=LINES)
    given = parser.parse_args()
    wanted = rows()
    if given.method:
        wanted = [Row("own", given.method, given.size, given.seed, given.noise, "shells",
                      given.samples, given.depth, given.leaves, given.strength)]
    text = given.lines.read_text("utf-8") if given.lines.is_file() else ""
    done = [json.loads(line) for line in text.splitlines()]
    for row in () if given.draw else wanted:
        what = asdict(row)
        if given.only not in f"{row.study} {row.method}" or any(
                all(one.get(key) == value for key, value in what.items()) for one in done):
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            done.append(pool.apply(measured, (row, given.virion)))
        with given.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(table(done[-1:]).splitlines()[-1], flush=True)
    TABLE.write_text(table(done), encoding="utf-8")
    if not given.method and not given.only:
        save(draw(done, given.virion), FIGURE)


if __name__ == "__main__":
    main()
