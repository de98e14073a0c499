"""A tomogram from its images, end to end, over the size of its grid: seconds, memory and stages.

    python -m experiments.tomography_size [--sizes 64 128 256] [--methods sirt sirt_tv gradient]

N^3 voxels of 10 A from 41 images of N^2 pixels, -60 to 60 degrees: balls of 1 to 5 V in a cylinder
that every image sees as a whole, as phase objects 3 um under focus, 3 e-/A^2 an image. A run is
`recipe=reconstruct` as it stands, which chooses its strength and when to stop, in a process of its
own: reading, writing and drawing are in its time. Rows are kept in results/tomography_size.jsonl;
the table, results/tomography_size.md, is made anew after each. Stages are those of one process.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
import torch

from experiments.runs import RESULTS, add_row, machine, rows_of
from tem_taichi.device import init
from tem_taichi.estimate.tilt_images import Grid, Series, series_of
from tem_taichi.estimate.tomogram_fit import exposures_of, model_of, rounds_of
from tem_taichi.estimate.tomogram_model import Lens
from tem_taichi.experiment import Experiment, images
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.projection import Projection
from tem_taichi.inverse.measures import correlation
from tem_taichi.inverse.tomography import Sirt
from tem_taichi.noise.camera import Camera
from tem_taichi.specimen.field import voxels
from tem_taichi.specimen.rays import back_project, project

LINES = RESULTS / "tomography_size.jsonl"
VOXEL, DOSE, DEFOCUS = 10.0, 3.0, 30000.0
ANGLES = np.linspace(-60, 60, 41)
METHODS = ("wbp", "sirt", "sirt_tv", "gradient")
STAGES = ("floor: the grid read, the images written", "projection", "adjoint", "iteration of sirt",
          "iteration of sirt_tv", "step of gradient")


def phantom(size: int) -> torch.Tensor:
    """Balls of 4 to 14 voxels [V], as many a volume at every size."""
    rng = np.random.default_rng(0)
    volume = np.zeros((size,) * 3, np.float32)
    for _ in range(size**3 // 42000):
        radius = rng.uniform(4, min(14, size / 6))
        turn, far = rng.uniform(0, 2 * np.pi), (size / 2 - radius - 2) * rng.uniform(0, 1)**0.5
        middle = size // 2 + np.array([far * np.sin(turn), 0.0, far * np.cos(turn)])
        middle[1] = rng.uniform(radius + 1, size - radius - 1)
        low = np.maximum((middle - radius).astype(int), 0)
        box = tuple(slice(a, int(b) + 2) for a, b in zip(low, middle + radius, strict=True))
        z, y, x = np.ogrid[box]
        inside = (z - middle[0])**2 + (y - middle[1])**2 + (x - middle[2])**2 < radius**2
        volume[box] = np.where(inside, rng.uniform(1, 5), volume[box])
    return torch.from_numpy(volume)


def taken(size: int) -> np.ndarray:
    """Images of the phantom [e-]."""
    exposures = [Exposure(Optics(defocus=DEFOCUS), float(angle), dose=DOSE, stream=n)
                 for n, angle in enumerate(ANGLES)]
    instrument = Projection((size, size), (size, size), VOXEL)
    seen = images(Experiment(voxels(phantom(size), VOXEL), instrument, Camera(VOXEL), exposures), 0)
    return np.stack([image.counts.numpy() for image in seen])


def tilts() -> pd.DataFrame:
    return pd.DataFrame({"tilt_angle": ANGLES, "axis_angle": 0.0, "defocus": DEFOCUS})


def write(size: int, folder: Path) -> None:
    """Images and their table, S.mrc and S.csv."""
    with mrcfile.new(folder / "S.mrc") as file:
        file.set_data(taken(size).astype(np.float32))
        file.voxel_size = VOXEL
    tilts().to_csv(folder / "S.csv", index=False)


def end_to_end(size: int, method: str, folder: Path) -> dict[str, Any]:
    """A row: the recipe on what was written, in a process of its own."""
    words = [f"input={folder / 'S.mrc'}", f"angles={folder / 'S.csv'}", f"method={method}",
             f"thickness={size * VOXEL}", "margin=0", f"output={folder / method}"]
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "tem_taichi.fit", "recipe=reconstruct", *words],
                             stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"recipe=reconstruct {' '.join(words)}: ended with {status}")
    told = json.loads((folder / method / "results.json").read_text())
    return {"size": size, "name": method, "seconds": seconds,
            "cpu_seconds": used.ru_utime + used.ru_stime, "MB": used.ru_maxrss / 1024,
            "iterations": told.get("iterations", 0), **machine()}


def like(size: int, output: Path) -> float:
    """Correlation of the tomogram that a run wrote with the phantom."""
    found = torch.from_numpy(mrcfile.read(output / "tomogram.mrc").copy())
    return float(correlation(found, phantom(size)))


def elsewhere(do: Callable[..., Any], *given: object) -> Any:
    """What a function returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, init, ("cpu", "float32")) as pool:
        return pool.apply(do, given)


def stages(size: int, folder: Path) -> list[dict[str, Any]]:
    """Rows of what runs are made of, and of the least that memory takes for a projection."""
    stack = mrcfile.read(folder / "S.mrc")
    series = series_of(stack, tilts(), VOXEL, Grid(size * VOXEL))
    volume = torch.zeros((size,) * 3).transpose(1, 2)
    count = (size**3 + stack.size) // 2
    source, target = torch.rand(count), torch.empty(count)
    even = Sirt(series.images, series.rays, weights=series.weights, tv=1e-6, levels=True)
    parts: dict[str, Callable[[], object]] = {
        STAGES[0]: lambda: target.copy_(source),
        STAGES[1]: lambda: project(volume, series.rays),
        STAGES[2]: lambda: back_project(series.images, series.rays),
        STAGES[3]: Sirt(series.images, series.rays, weights=series.weights, levels=True).step,
        STAGES[4]: even.step}
    rows = []
    for name, run in parts.items():
        run()  # compiles
        rows.append({"size": size, "name": name, **_of(run), **machine()})
    rows.append({"size": size, "name": STAGES[5], **_step(series), **machine()})
    return rows


def _of(run: Callable[[], object]) -> dict[str, float]:
    clock, used = time.perf_counter(), time.process_time()
    run()
    return {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - used}


def _step(series: Series) -> dict[str, float]:
    """Of a step of the fit, of those of the first round; looking for the metric compiles."""
    lens = Lens()
    model = model_of(series, range(len(ANGLES)), exposures_of(series, tilts(), lens), VOXEL, lens)
    run = rounds_of(model, 4.0, False)
    used = _of(run.step)
    return {name: value / run.steps for name, value in used.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: seconds and processor's seconds by size, and the exponents of growth with N."""
    sizes = sorted({row["size"] for row in rows})
    names = [name for name in (*STAGES, *METHODS) if any(row["name"] == name for row in rows)]
    of = {(row["name"], row["size"]): row for row in rows}
    head = ["", *(f"N = {size}: s (CPU s)" for size in sizes), "CPU s grow as N^",
            "MB", "iterations", "correlation"]
    lines = [head, ["---"] * len(head)]
    for name in names:
        found = [of[name, size] for size in sizes if (name, size) in of]
        last = found[-1]
        grows = "" if len(found) < 2 else "{:.1f}".format(
            np.log(last["cpu_seconds"] / found[-2]["cpu_seconds"])
            / np.log(last["size"] / found[-2]["size"]))
        lines.append([name, *(
            f"{of[name, size]['seconds']:.3g} ({of[name, size]['cpu_seconds']:.3g})"
            if (name, size) in of else "" for size in sizes), grows, *(
                f"{last[key]:{how}}" if key in last else "" for key, how in (
                    ("MB", ".0f"), ("iterations", "d"), ("correlation", ".3f")))])
    told = rows[-1]
    loads = [row["load"] for row in rows]
    said = (f"{told['cpu']}, {told['cores']} cores; load {min(loads):.1f} to {max(loads):.1f}; the "
            "last columns are of the largest grid.")
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{said}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--lines", type=Path, default=LINES, help="whose rows are not made again")
    given = parser.parse_args()
    for size in given.sizes:
        there = {(row["size"], row["name"]) for row in rows_of(given.lines)}
        missing = [name for name in given.methods if (size, name) not in there]
        parts = [name for name in STAGES if (size, name) not in there]
        if not missing and not parts:
            continue
        # In processes of their own: a child's peak of memory begins with its parent's.
        with tempfile.TemporaryDirectory() as folder:
            elsewhere(write, size, Path(folder))
            for row in elsewhere(stages, size, Path(folder)) if parts else ():
                if row["name"] in parts:
                    add_row(given.lines, row)
            for name in missing:
                row = end_to_end(size, name, Path(folder))
                row["correlation"] = elsewhere(like, size, Path(folder) / name)
                add_row(given.lines, row)
        given.lines.with_suffix(".md").write_text(table(rows_of(given.lines)), encoding="utf-8")
    print(table(rows_of(given.lines)))


if __name__ == "__main__":
    main()
