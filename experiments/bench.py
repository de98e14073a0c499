"""One table of every method that makes a picture or a tomogram: same phantoms, data and measures.

    python -m experiments.bench [--only WORD] [--truth FILE.npz] [--series FOLDER] [--lines FILE]

A method adds its row by its name in PICTURES or `experiments.tomography.METHODS`. Each runs in a
process of its own, one after another, which tells the memory that it takes beyond what the data
do. Rows that the file of lines has are not made again.
"""

import argparse
import ctypes
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from experiments.denoise import PIXEL, SCENES, camera, read, recorded, truths
from experiments.runs import RESULTS
from experiments.tomography import ANGLES, CASES, METHODS, gain, kept_as
from tem_taichi.device import init
from tem_taichi.estimate.baselines import installed
from tem_taichi.estimate.denoise import OTHERS, PRIORS, best, sampled
from tem_taichi.estimate.noise_law import blurred
from tem_taichi.estimate.recording import record
from tem_taichi.inverse.measures import (
    affine_fit,
    affine_rmse,
    correlation,
    peak_signal_to_noise,
    resolution,
    shell_correlation,
    structural_similarity,
)
from tem_taichi.inverse.shells import measured_region

TABLE, LINES = RESULTS / "bench.md", RESULTS / "bench.jsonl"
DOSE, EXPOSURES = 400, 5  # e-/nm^2 of each picture's exposures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="rows in whose names this is")
    parser.add_argument("--truth", type=Path, help="where experiments.denoise keeps its images")
    parser.add_argument("--series", type=Path, help="folder of series by experiments.cell_series")
    parser.add_argument("--lines", type=Path, default=LINES)
    given = parser.parse_args()
    wanted = [(kind, phantom, method) for kind, phantoms, methods in (
        ("picture", SCENES, PICTURES), ("tomogram", CASES, METHODS))
        for phantom in phantoms for method in methods]
    rows = {(one["kind"], one["phantom"], one["method"]): one for one in read(given.lines)}
    missing = [names for names in wanted if given.only in " ".join(names) and names not in rows]
    if any(kind == "picture" for kind, _, _ in missing):
        truths(given.truth)  # simulated once, where they are kept
    for names in missing:
        with multiprocessing.get_context("spawn").Pool(1, init, ("cpu", "float32")) as pool:
            rows[names] = pool.apply(row, (*names, given.truth, given.series))
        with open(given.lines, "a", encoding="utf-8") as file:
            file.write(json.dumps(rows[names]) + "\n")
    text = table([rows[names] for names in wanted if names in rows])
    TABLE.write_text(text, encoding="utf-8")
    print(text)


def row(kind: str, phantom: str, method: str, file: Path | None = None,
        folder: Path | None = None) -> dict[str, Any]:
    """What one method makes of one phantom.

    Args:
        kind: picture or tomogram.
        phantom: its name.
        method: of PICTURES or METHODS.
        file: where experiments.denoise keeps its images.
        folder: where series of experiments.cell_series are kept, and tomograms go.
    """
    if kind == "picture":
        truth, *seen = picture_of(truths(file)[phantom], phantom)
        found, spent = timed(partial(PICTURES[method], *seen))
        told = measures(found, truth, PIXEL)
    else:
        case = CASES[phantom](folder)
        made, spent = timed(partial(METHODS[method], case))
        if folder is not None:
            np.save(folder / kept_as(phantom, method), made.volume.numpy())
        told = {**measures(made.volume, case.truth, case.hidden.rays.voxel),
                "gain": gain(case, made.images)}
    return {"kind": kind, "phantom": phantom, "method": method, **told, **spent}


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a function gives, and its seconds, CPU seconds and MB beyond what was there.

    Args:
        run: without arguments.
    """
    before, begun, used = _megabytes(anew=True), time.perf_counter(), time.process_time()
    found = run()
    return found, {"seconds": time.perf_counter() - begun,
                   "cpu_seconds": time.process_time() - used, "MB": _megabytes() - before}


def measures(found: Tensor, truth: Tensor, size: float) -> dict[str, float]:
    """Correlation, errors after the best scale and offset, and shells against the truth.

    Args:
        found: image or volume.
        truth: of the same shape.
        size: of a pixel or voxel [A].
    """
    fitted = affine_fit(found, truth)
    inside, more = None, {}
    if truth.ndim == 3:
        inside = measured_region(truth.shape, float(ANGLES.min()), float(ANGLES.max()))
        more = {name: float(shell_correlation(found, truth, size, part).correlation.mean())
                for name, part in (("inside", inside), ("wedge", ~inside))}
    shells = shell_correlation(found, truth, size, inside)
    return {"correlation": float(correlation(found, truth)),
            "rmse": float(affine_rmse(found, truth) / truth.std()),
            "ssim": structural_similarity(fitted, truth),
            "psnr": peak_signal_to_noise(fitted, truth),
            "resolution": resolution(shells, 0.5), **more}


def picture_of(truth: Tensor, scene: str) -> tuple[Tensor, Tensor, str]:
    """Electrons that the camera sees on average, counts of the exposures, and the scene."""
    counts = recorded(truth, camera(scene), DOSE, EXPOSURES, 0)
    law = record(counts, camera(scene)).law
    return blurred(truth * (DOSE / 100 * EXPOSURES * PIXEL**2), law), counts, scene


def _estimated(method: str, counts: Tensor, scene: str) -> Tensor:
    recording = record(counts, camera(scene))
    if method in ("surrogate", "corrected"):
        return sampled(method, counts, recording).electrons
    return best(method, recording).electrons


PICTURES: dict[str, Callable[[Tensor, str], Tensor]] = {
    name: partial(_estimated, name) for name in (*PRIORS, *OTHERS) if installed(name)}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; errors in deviations of the truth, mean shell correlation in and out of the wedge.

    The gain is that in nats of an image held out over an even one.
    """
    head = ["", "phantom", "method", "correlation", "rmse", "SSIM", "PSNR dB", "0.5 at A",
            "FSC inside", "in the wedge", "gain", "CPU s", "MB"]
    lines = [head, ["---"] * len(head)]
    for one in rows:
        volume = [f"{one[name]:{how}}" if name in one else "" for name, how in (
            ("inside", ".3f"), ("wedge", ".3f"), ("gain", ".0f"))]
        lines.append([one["kind"], one["phantom"], one["method"], f"{one['correlation']:.3f}",
                      f"{one['rmse']:.3f}", f"{one['ssim']:.3f}", f"{one['psnr']:.1f}",
                      f"{one['resolution']:.0f}", *volume,
                      f"{one.get('cpu_seconds', one['seconds']):.1f}",
                      f"{one['MB']:.0f}" if "MB" in one else ""])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _megabytes(anew: bool = False) -> float:
    """Most that this process has had in memory, so far or since it was asked to begin anew.

    Where the system cannot forget what was before (all but Linux), that may hide what a run takes.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if anew:
        ctypes.CDLL(None).malloc_trim(0)  # what the data's making has freed
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return float(peak.split()[1]) / 1024


if __name__ == "__main__":
    main()
