"""What a style costs, beside the simulation whose place it takes, and what it looks like.

    TEM_TAICHI_CACHE=../shared/data/atoms python -m experiments.style FOLDER [--size 1024] [--real]

Simulates the crowd of picker_scene.yaml in a field as wide as SHREC 2021's, 61 tilts, and gives its
clean images the looks of others by recipe=style: of EMPIAR-10499 with --real, or else of its own
noisy ones. CPU seconds, clock and peak memory of both are in FOLDER/rows.jsonl.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from experiments.runs import STRUCTURES, add_row, machine, rows_of

HERE = Path(__file__).parent
REAL = STRUCTURES.parent / "tilt" / "empiar10499_00254_y0-310.mrc"
OF_ONE = 128
"""Pixels a side of picker_scene.yaml's field."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--real", action="store_true")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    scene = yaml.safe_load((HERE / "picker_scene.yaml").read_text("utf-8"))
    scene["shape"] = [chosen.size, chosen.size]
    scene["tilts"]["step"] = 2
    for particle in scene["specimen"]["particles"].values():
        particle["count"] = round(particle["count"] * (chosen.size / OF_ONE)**2)
    (folder / "scene.yaml").write_text(yaml.safe_dump(scene), "utf-8")
    series = folder / "series"
    style, angles = series / "tilt_series.mrc", series / "tilt_series.rawtlt"
    if chosen.real:
        style, angles = REAL, REAL.with_name("empiar10499_00254.tsv")
    end = "_real" if chosen.real else ""
    styled = ["tem_taichi.fit", "recipe=style", f"input={series}/tilt_series_noise_free.mrc",
              f"angles={series}/tilt_series.rawtlt", f"style={style}", f"style_angles={angles}"]
    commands = {
        "simulation": ["tem_taichi.simulate", f"{folder}/scene.yaml", f"output={series}"],
        f"white{end}": [*styled, "steps=0", f"output={folder}/white{end}"],
        f"style{end}": [*styled, f"output={folder}/style{end}"]}
    done = {row["step"] for row in rows_of(folder / "rows.jsonl")}
    for step, words in commands.items():
        if step not in done:
            add_row(folder / "rows.jsonl", {"step": step, "size": chosen.size, **machine(),
                                            **measured(words)})
    for row in rows_of(folder / "rows.jsonl"):
        print(json.dumps(row))


def measured(words: list[str]) -> dict[str, Any]:
    """CPU seconds, seconds of the clock and peak memory [GB] of a command."""
    begun = time.monotonic()
    run = subprocess.Popen([sys.executable, "-m", *words])
    _, status, used = os.wait4(run.pid, 0)
    if status:
        raise SystemExit(f"{words[0]} ended with {status}")
    return {"cpu_s": round(used.ru_utime + used.ru_stime, 1),
            "clock_s": round(time.monotonic() - begun, 1),
            "memory_gb": round(used.ru_maxrss / 2**20, 2)}


if __name__ == "__main__":
    main()
