"""A real tilt series from its images to pictures of a tomogram, by the commands of the package.

    python -m experiments.real_tomogram FOLDER        # goes on with what is not there; then draws

EMPIAR-10499 (Mycoplasma pneumoniae with gold), 41 tilts of 3 e-/A^2, 10 A/pixel, half of the frame,
aligned by others; it must be in ../shared. Each command is a process of its own, for its CPU time
and peak memory.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import mrcfile
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from experiments.panels import WIDTH, letter, save, small
from experiments.runs import RESULTS, STRUCTURES
from tem_taichi.estimate.volume_figure import greatest, panel, slices
from tem_taichi.files.mrc import read_volume

FIGURE = Path(__file__).parent / "figures" / "real_tomogram.png"
TABLE = RESULTS / "real_tomogram.md"
DATA = STRUCTURES.parent / "tilt"
STACK = DATA / "empiar10499_00254_y0-310.mrc"
SERIES = (f"recipe=reconstruct input={STACK} angles={DATA}/empiar10499_00254.tsv "
          "'shifts=[axis_offset_x,axis_offset_y]' 'cut_from=[0,-1600]' thickness=3000")
"""The frame's middle is 160 pixels above that of the images."""
COMMANDS = {
    "wbp": f"{SERIES} method=wbp bin=5",
    "wbp of halves": f"{SERIES} method=wbp bin=2 halves=true",
    "sirt": f"{SERIES} method=sirt bin=4 margin=1630",
    "sirt_tv": f"{SERIES} method=sirt_tv bin=5 iterations=20 tv=5e-7",
    "gradient": f"{SERIES} method=gradient bin=4 margin=1630",
    "gradient of halves": f"{SERIES} method=gradient bin=4 margin=1630 halves=true beads=auto",
    "denoise": f"recipe=denoise input={STACK} image=21",
    "look": "recipe=look input={folder}/sirt_tv/tomogram.mrc beside={folder}/wbp/tomogram.mrc "
            "background=1000 size=800 frames=36"}
HEIGHT = -100.0
"""Of the slices [A]: the middle of the cell."""


def folder_of(folder: Path, name: str) -> Path:
    return folder / name.replace(" ", "_")


def do(name: str, folder: Path) -> None:
    """Run a command whose results are not there, and keep its CPU seconds and memory."""
    output = folder_of(folder, name)
    if (output / "results.json").is_file():
        return
    words = shlex.split(COMMANDS[name].format(folder=folder))
    process = subprocess.Popen([sys.executable, "-m", "tem_taichi.fit", *words, f"output={output}"])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{name} failed")
    output.with_suffix(".json").write_text(json.dumps({
        "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_MB": usage.ru_maxrss / 1e3}))


def results(folder: Path, name: str) -> dict[str, Any]:
    """What a command wrote, and what it took."""
    output = folder_of(folder, name)
    return {file.name: json.loads(file.read_text()) for file in (
        output / "results.json", output.with_suffix(".json"))}


def table(folder: Path) -> str:
    """A row a command."""
    lines = ["| command | voxel A | iterations | of images held out left | halves agree to A | "
             "CPU s | peak MB |", 7 * "| --- " + "|"]
    for name in COMMANDS:
        found, cost = results(folder, name).values()
        curve = found.get("held_out") or []
        lines.append("| " + " | ".join([
            name, f"{found['voxel_size_A']:.0f}" if "voxel_size_A" in found else "10",
            str(found.get("iterations", "-")), f"{min(curve):.3f}" if curve else "-",
            f"{found['halves_agree_to_A']:.0f}" if "halves_agree_to_A" in found else "-",
            f"{cost['cpu_seconds']:.0f}", f"{cost['peak_MB']:.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def draw(folder: Path) -> None:
    """Images, slices, greatest values, rendering, shells."""
    figure = Figure(figsize=(WIDTH, 8.4), layout="constrained")
    axes = figure.subplots(5, 2, height_ratios=(1, 1, 1, 1, 1.1))
    with mrcfile.open(STACK, permissive=True) as file:
        images(axes[0, 0], "untilted image, 3 e$^-$/Å$^2$", file.data[20].astype(float), 10.0)
    images(axes[0, 1], "denoised", mrcfile.read(folder_of(folder, "denoise") / "denoised.mrc")
           .squeeze(), 10.0)
    sections: dict[str, tuple[dict[str, NDArray], dict[str, NDArray], float]] = {}
    for name in ("wbp", "sirt_tv", "gradient"):
        volume, voxel = read_volume(folder_of(folder, name) / "tomogram.mrc")
        sections[name] = slices(volume, voxel, (0, 0, HEIGHT), 120.0), greatest(volume), voxel
    for title, place, name, kind, axes_of in (
            ("back-projection, slice", axes[1, 0], "wbp", 0, "x, y"),
            ("SIRT-TV, slice", axes[1, 1], "sirt_tv", 0, "x, y"),
            ("fit with the lens, slice", axes[2, 0], "gradient", 0, "x, y"),
            ("SIRT-TV, slice along the beam", axes[2, 1], "sirt_tv", 0, "x, z"),
            ("SIRT-TV, greatest along the beam", axes[3, 0], "sirt_tv", 1, "x, y")):
        planes = sections[name][0] if kind == 0 else sections[name][1]
        images(place, title, planes[axes_of], sections[name][2], "gray_r")
    axes[3, 1].imshow(Image.open(folder_of(folder, "look") / "rendering.png"))
    axes[3, 1].set_title("SIRT-TV, rendered", fontsize=8)
    axes[3, 1].axis("off")
    shells(axes[4, 0], folder)
    stops(axes[4, 1], folder)
    letter(axes.flat)
    save(figure, FIGURE)


def images(axes: Axes, title: str, image: NDArray, pixel: float, colours: str = "gray") -> None:
    panel(axes, image, pixel, colours)
    axes.set_title(title, fontsize=8)
    small(axes)


def shells(axes: Axes, folder: Path) -> None:
    """Halves of two methods, and their controls."""
    for name, colour in (("wbp", "C0"), ("gradient", "C1")):
        found = pd.read_csv(folder_of(folder, f"{name} of halves") / "fsc.csv")
        for column, label, line in (("fsc_corrected", f"{name}, halves", "-"),
                                    ("control", f"{name}, random phases", ":")):
            axes.plot(found["frequency_per_A"], found[column], line, color=colour, label=label)
    axes.axhline(0.143, color="gray", lw=0.8)
    axes.set(xlabel="frequency [1/Å]", ylabel="shell correlation")
    axes.legend(fontsize=7)
    small(axes)


def stops(axes: Axes, folder: Path) -> None:
    """What is left of images held out after each iteration."""
    for name in ("sirt", "sirt_tv"):
        found = results(folder, name)["results.json"]
        curve = found["held_out"][1:]
        axes.plot(range(1, len(curve) + 1), curve,
                  label=f"{name}, {found['voxel_size_A']:.0f} Å voxels")
    axes.set(xlabel="iteration", ylabel="held out, left")
    axes.legend(fontsize=7)
    small(axes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS:
        do(name, folder)
    TABLE.write_text(table(folder))
    print(f"wrote {TABLE}")
    draw(folder)


if __name__ == "__main__":
    main()
