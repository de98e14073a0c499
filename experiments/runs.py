"""Timed simulations, each in a process of its own, and their results line by line in a file.

An interruption loses only the case in work, and of that only the image in work.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
STRUCTURES = Path(__file__).parent.parent.parent / "shared" / "data" / "atoms"
"""Looked into for PDB ids before the wwPDB is asked."""


def machine() -> dict[str, Any]:
    """What times depend on."""
    model = platform.processor() or platform.machine()
    if (cpus := Path("/proc/cpuinfo")).is_file():
        names = [line.partition(":")[2].strip() for line in cpus.read_text().splitlines()
                 if line.startswith("model name")]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "cores": cores, "load": round(os.getloadavg()[0], 1)}


def measured(overrides: Sequence[str], work: Path, keep: Sequence[float] = (),
             specimen: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """Simulate a scene in this process.

    Args:
        overrides: of the default scene.
        work: folder where finished images are kept until all are; those that are there count as
            made in the time that they took.
        keep: nominal tilts [deg] whose images without noise are left there.
        specimen: makes it from the scene; None = the scene's own.

    Returns:
        Seconds of all after imports, of structures and placement, and of each stage, CPU seconds,
        peak memory [MB], copies and scatterers.
    """
    import tem_taichi as tt
    from tem_taichi.device import init
    from tem_taichi.series.build import build_specimen

    scene = tt.load_scene(overrides=[*overrides, "force=true"])
    init(scene.compute.arch, scene.compute.dtype)
    work.mkdir(parents=True, exist_ok=True)
    found: list[int] = []
    start, used = time.perf_counter(), time.process_time()
    built = (specimen or build_specimen)(scene)
    structures = time.perf_counter() - start
    series = tt.simulate(scene, lambda done, total: found.append(done), specimen=built,
                         folder=work)
    whole = time.perf_counter() - start
    for angle in keep:
        n = int(np.abs(series.tilt_angles - angle).argmin())
        np.save(work / f"tilt_{angle:g}.npy", series.noise_free[n].numpy())
    stages = {name: spent for name, spent in series.seconds.items() if name != "structures"}
    resumed = found[0] > 0
    return {
        "seconds": structures + sum(stages.values()) if resumed else whole, "resumed": resumed,
        "structures": structures, "stages": stages, "cpu": time.process_time() - used,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "images": len(series.tilt_angles), "scatterers": built.n_scatterers,
        "copies": {kind.name: len(pose.positions)
                   for kind, pose in zip(built.kinds, built.poses, strict=True)}}


def in_new_process(file: str, case: dict[str, Any], cores: int | None = None) -> dict[str, Any]:
    """What a program prints for `--case`, in a process with its own memory and kernels.

    Args:
        file: of the program.
        case: what it is given, as JSON.
        cores: how many it may use; None = all.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])}
    if STRUCTURES.is_dir():
        environment.setdefault("TEM_TAICHI_CACHE", str(STRUCTURES))
    if cores is not None:
        environment["OMP_NUM_THREADS"] = str(cores)

    def confined() -> None:
        if cores is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

    out = subprocess.run([sys.executable, file, "--case", json.dumps(case)], check=True,
                         stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=confined)
    return json.loads(out.stdout.splitlines()[-1])


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Lines that are there already."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def add_row(file: Path, row: dict[str, Any]) -> None:
    """Append a line, wholly or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run whose time is the median of all, with all their times."""
    ordered = sorted(runs, key=lambda run: run["seconds"])
    return {**ordered[(len(ordered) - 1) // 2], "all": [run["seconds"] for run in runs]}


def duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d}" if hours else f"{minutes} min {rest:02d}"


def main() -> None:
    """Nothing to run: see the modules that measure."""
