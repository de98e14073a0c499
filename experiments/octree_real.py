"""Octrees on two real series: EMPIAR-10499 with gold masked, and a needle by a scanning microscope.

    python -m experiments.octree_real FOLDER [--only needle]   # goes on; draws what is there

Both must be in ../shared. Of the tilt series, commands of the package: WBP, SIRT-TV, voxels and an
octree by the lens's model, beads found and left out; each is a process of its own, for its CPU
time and memory, and each half of the images chooses its own strength. The needle's HAADF images are
taken for thickness and aligned by their mass, which turns about the axis; voxels and octree have
noise that is white and levels that are free, and halves the strength chosen with all images.
"""

import argparse
import gzip
import json
import os
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.panels import WIDTH, letter, save, small
from experiments.runs import RESULTS, STRUCTURES
from tem_taichi.device import as_tensor, init
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.octree_fit import Settings, fitted
from tem_taichi.estimate.octree_model import Integrals
from tem_taichi.estimate.octree_tree import Growth, volume_of
from tem_taichi.estimate.tilt_images import Series, agreement, halves_of
from tem_taichi.estimate.tomogram import back_projected, iterated
from tem_taichi.estimate.tomogram_fit import noise_of
from tem_taichi.estimate.tomogram_model import Explained
from tem_taichi.estimate.volume_figure import slices
from tem_taichi.files.boxes import read_boxes
from tem_taichi.files.mrc import read_volume
from tem_taichi.inverse.boxes import measures_in_boxes
from tem_taichi.inverse.measures import Shells, resolution
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.rays import Rays

DATA = STRUCTURES.parent
FIGURE, TABLE = Path(__file__).parent / "figures" / "octree_real.png", RESULTS / "octree_real.md"
STACK = DATA / "tilt" / "empiar10499_00254_y0-310.mrc"
TILT = (f"recipe=reconstruct input={STACK} angles={DATA}/tilt/empiar10499_00254.tsv "
        "'shifts=[axis_offset_x,axis_offset_y]' 'cut_from=[0,-1600]' thickness=3000 beads=auto "
        "bin=7 margin=1630 halves=true")
METHODS = {"wbp": "method=wbp", "sirt_tv": "method=sirt_tv", "voxels": "method=gradient",
           "octree": "method=gradient specimen=octree samples=9 depth=3 leaves=800"}
BOXES = Path(__file__).with_name("octree_real_boxes.yaml")
"""Of the cell's inside and of ice beside it."""
HEIGHT = -100.0
"""Of the slice that is drawn [A]: the middle of the cell."""
BIN, SIDE = 4, 33.6
"""Pixels a voxel, and their side [A], of the needle."""


def tilt(folder: Path, name: str) -> dict:
    """One command; measures in boxes of the cell and of ice, whose mean is the zero."""
    output = folder / f"tilt_{name}"
    cost = output.with_suffix(".json")
    if not (output / "results.json").is_file():
        words = shlex.split(f"{TILT} {METHODS[name]}")
        process = subprocess.Popen(
            [sys.executable, "-m", "tem_taichi.fit", *words, f"output={output}"])
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{name} failed")
        cost.write_text(json.dumps({"seconds": usage.ru_utime + usage.ru_stime,
                                    "MB": usage.ru_maxrss / 1e3}))
    found = json.loads((output / "results.json").read_text())
    volume = torch.as_tensor(mrcfile.read(output / "tomogram.mrc").astype(np.float32))
    boxes = read_boxes(BOXES, volume.shape, found["voxel_size_A"], found["origin_A"])
    volume -= volume[boxes["ice"]].mean()
    shells = pd.read_csv(output / "fsc.csv")
    half = resolution(Shells(*(torch.tensor(shells[column].to_numpy()) for column in (
        "frequency_per_A", "fsc_corrected", "control"))), 0.5)
    curve = found.get("held_out") or []
    return {"series": "EMPIAR-10499", "method": name, **told(volume, boxes),
            "halves": found["halves_agree_to_A"], "half": half,
            "held_out": min(curve) if curve else None,
            "numbers": found.get("values", volume.numel()), **json.loads(cost.read_text())}


def told(volume: Tensor, boxes: dict) -> dict:
    """CNR of the first box over the second, ENL of both."""
    first, second = boxes
    rows = measures_in_boxes(volume, boxes, [(first, second)])
    return {"cnr": float(rows["cnr"].dropna().iloc[0]), "enl": float(rows["enl"].iloc[0])}


def needle() -> tuple[Series, pd.DataFrame]:
    """Images over their largest value, aligned by their mass, and tilts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = gzip.decompress((DATA / "stem" / "HAADF_needle.mrc.gz").read_bytes())
        # Of 256 x 256 16-bit numbers after 1024 bytes and what the header says beside.
        images = np.frombuffer(data[-77 * 256 * 256 * 2:], "<i2").reshape(77, 256, 256)
    images = images.astype(np.float32) + 32768
    images -= np.median(images[:, :40], axis=(1, 2))[:, None, None]
    angles = np.loadtxt(DATA / "stem" / "HAADF_needle.rawtlt")
    profiles = images.sum(1)
    middle = profiles[38]
    along = []
    for profile in profiles:
        like = np.fft.irfft(np.fft.rfft(profile) * np.fft.rfft(middle).conj())
        along.append((int(np.argmax(like)) + 128) % 256 - 128)
    y = np.arange(256) - 128.0
    shifts = []
    for image, moved in zip(images, along, strict=True):
        part = image[:, 100 + moved:180 + moved].sum(1).clip(0)
        shifts.append((moved, float((part * y).sum() / part.sum())))
    small_images = images.reshape(77, 64, BIN, 64, BIN).mean((2, 4)) / images.max()
    voxel = BIN * SIDE
    # Middles of binned pixels lie beside those before; the mean over the rest is the axis.
    moved = np.array(shifts) * SIDE - 1.5 * SIDE
    rotations = torch.stack([tilt_rotation(float(angle), 90.0) for angle in angles])
    rays = Rays(rotations, as_tensor(moved.astype(np.float32)), (64, 64, 64), voxel, (64, 64),
                voxel)
    stack = as_tensor(small_images)
    return Series(stack, rays, torch.ones_like(stack)), pd.DataFrame(
        {"tilt_angle": angles, "axis_angle": 90.0})


def by_likelihood(growth: Growth, series: Series, strength: float | None
                  ) -> tuple[Tensor, int, float]:
    sigma = noise_of(series.images)[:, None, None]

    def imaging(of: Series, which: list[int]) -> Explained:
        weights = of.weights[which] * (of.rays.pixel / series.rays.pixel / sigma[which])**2
        return Integrals(of.images[which], weights, of.rays.some(which), levels=True)

    unit = 1 / (20 * series.rays.voxel)
    found = fitted(series, imaging, Settings(growth, 50, strength=strength, unit=unit),
                   lambda done, of: None, Kept())
    return volume_of(found.field, series.rays.grid), found.field.values.numel(), found.strength


def nothing(done: int, of: int) -> None:
    """No progress."""


def linear(series: Series, strength: float | None) -> tuple[Tensor, int, float]:
    found = iterated(series, 60, strength, True, 0 if strength else 8, nothing, Kept())
    return found.volume, found.volume.numel(), found.tv


NEEDLE: dict[str, Callable[[Series, float | None], tuple[Tensor, int, float]]] = {
    "wbp": lambda series, _: (back_projected(series, 0.0).volume, 64**3, 0.0),
    "sirt_tv": linear,
    "voxels": lambda series, strength: by_likelihood(Growth(65, 0, 1, 0), series, strength),
    "octree": lambda series, strength: by_likelihood(Growth(9, 3, 250), series, strength)}


def needle_row(folder: Path, name: str) -> dict:
    """A method on all images and on halves."""
    file = folder / f"needle_{name}.json"
    if file.is_file():
        return json.loads(file.read_text())
    init("cpu", "float32")
    series, tilts = needle()
    begun = time.process_time()
    volume, numbers, strength = NEEDLE[name](series, None)
    spent = time.process_time() - begun
    halves = [NEEDLE[name](series.some(rows), strength)[0]
              for rows in halves_of(np.arange(len(tilts)))]
    _, finest = agreement(*halves, series.rays.voxel, tilts)
    np.save(folder / f"needle_{name}.npy", volume.numpy())
    deep = slice(27, 37)
    boxes = {"bright layer": (deep, slice(28, 36), slice(26, 29)),
             "dark layer": (deep, slice(28, 36), slice(10, 18))}
    row = {"series": "needle", "method": name, **told(volume, boxes), "halves": finest,
           "numbers": numbers, "seconds": spent}
    file.write_text(json.dumps(row))
    return row


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = ["| series | method | CNR | ENL | halves agree by 0.143 to A | by 0.5 | held out, left "
             "| numbers | CPU s | MB |", 10 * "| --- " + "|"]
    for row in rows:
        more = [f"{row[name]:{how}}" if row.get(name) else "" for name, how in (
            ("half", ".0f"), ("held_out", ".3f"))]
        spent = [f"{row[name]:.0f}" if row.get(name) else "" for name in ("seconds", "MB")]
        lines.append("| " + " | ".join([
            row["series"], row["method"], f"{row['cnr']:.2f}", f"{row['enl']:.1f}",
            f"{row['halves']:.0f}", *more, str(row["numbers"]), *spent]) + " |")
    return "\n".join(lines) + "\n"


def draw(folder: Path) -> None:
    """Slices of what is there, and shells of halves of the cell."""
    figure = Figure(figsize=(WIDTH, 7.4), layout="constrained")
    upper, middle, lower = figure.subfigures(3, 1, height_ratios=[1.5, 1.5, 2.6])
    cells = upper.subplots(2, 4)
    needles = lower.subplots(2, 4)
    axes = middle.subplots()
    for column, name in enumerate(METHODS):
        output = folder / f"tilt_{name}"
        shown: list[np.ndarray | None] = [None] * 4
        if (output / "results.json").is_file():
            volume, voxel = read_volume(output / "tomogram.mrc")
            planes = slices(volume, voxel, (0, 0, HEIGHT), 120.0)
            shown[0], shown[1] = planes["x, y"], planes["x, z"]
            found = pd.read_csv(output / "fsc.csv")
            axes.plot(found["frequency_per_A"], found["fsc_corrected"], label=name, linewidth=1)
        if (folder / f"needle_{name}.npy").is_file():
            volume = np.load(folder / f"needle_{name}.npy")
            shown[2], shown[3] = volume[32], volume[:, :, 27]
        for ax, plane in zip((*cells[:, column], *needles[:, column]), shown, strict=True):
            ax.set_axis_off()
            if plane is not None:
                low, high = np.percentile(plane, (0.5, 99.5))
                of_cell = ax in cells
                ax.imshow(plane, cmap="gray_r" if of_cell else "gray", vmin=low, vmax=high,
                          origin="lower")
        for ax in (cells[0, column], needles[0, column]):
            ax.set_title(name, fontsize=8)
    axes.axhline(0.143, color="gray", linewidth=0.8)
    axes.set(xlabel="frequency [1/Å]", ylabel="shell correlation of halves")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    small(axes)
    letter([cells[0, 0], cells[1, 0], axes, needles[0, 0], needles[1, 0]])
    save(figure, FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("tilt", "needle"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind, make in (("needle", needle_row), ("tilt", tilt)):
        if given.only in (None, kind):
            for name in METHODS:
                rows.append(make(given.folder, name))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    TABLE.write_text(table(rows), encoding="utf-8")
    draw(given.folder)


if __name__ == "__main__":
    main()
