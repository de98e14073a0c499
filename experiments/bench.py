"""One table of every method that makes a picture or a tomogram: same phantoms, data and measures.

    python -m experiments.bench [--only WORD] [--truth FILE.npz]

A method adds its row by its name in PICTURES or TOMOGRAMS. Each runs in a process of its own, one
after another, which tells the memory that it takes beyond what the data do.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.denoise import PIXEL, SCENES, camera, recorded, truths
from experiments.runs import RESULTS
from tem_taichi.device import as_tensor
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
from tem_taichi.inverse.tomography import Sirt, contrast, weighted_back_projection
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.rays import Rays, project

TABLE = RESULTS / "bench.md"
DOSE, EXPOSURES = 400, 5  # e-/nm^2 of each picture's exposures
TILTS = np.arange(-60, 61, 3.0)  # deg
VOXEL, TILT_DOSE = 10.0, 3.0  # A, e-/A^2 of each image of the tomogram's series
SIDE = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="rows in whose names this is")
    parser.add_argument("--truth", type=Path, help="where experiments.denoise keeps its images")
    given = parser.parse_args()
    wanted = [(kind, phantom, method) for kind, phantoms, methods in (
        ("picture", SCENES, PICTURES), ("tomogram", ("cell",), TOMOGRAMS))
        for phantom in phantoms for method in methods]
    truths(given.truth)  # simulated once, where they are kept
    rows = []
    for names in wanted:
        if given.only in " ".join(names):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(row, (*names, given.truth)))
            print(json.dumps(rows[-1]))
    if not given.only:
        TABLE.write_text(table(rows), encoding="utf-8")
    print(table(rows))


def row(kind: str, phantom: str, method: str, file: Path | None = None) -> dict[str, Any]:
    """What one method makes of one phantom.

    Args:
        kind: picture or tomogram.
        phantom: its name.
        method: of PICTURES or TOMOGRAMS.
        file: where experiments.denoise keeps its images.
    """
    data = picture_of(truths(file)[phantom], phantom) if kind == "picture" else series_of(cell())
    truth, *seen = data
    before, begun = _megabytes(), time.perf_counter()
    found = (PICTURES if kind == "picture" else TOMOGRAMS)[method](*seen)
    seconds, memory = time.perf_counter() - begun, _megabytes() - before
    size = PIXEL if kind == "picture" else VOXEL
    return {"kind": kind, "phantom": phantom, "method": method, **measures(found, truth, size),
            "seconds": seconds, "MB": memory}


def measures(found: Tensor, truth: Tensor, size: float) -> dict[str, float]:
    """Correlation, errors after the best scale and offset, and shells against the truth.

    Args:
        found: image or volume.
        truth: of the same shape.
        size: of a pixel or voxel [A].
    """
    fitted = affine_fit(found, truth)
    inside = outside = None
    if truth.ndim == 3:
        inside = measured_region(truth.shape, float(TILTS.min()), float(TILTS.max()))
        outside = shell_correlation(found, truth, size, ~inside)
    shells = shell_correlation(found, truth, size, inside)
    told = {"correlation": float(correlation(found, truth)),
            "rmse": float(affine_rmse(found, truth) / truth.std()),
            "ssim": structural_similarity(fitted, truth),
            "psnr": peak_signal_to_noise(fitted, truth),
            "resolution": resolution(shells, 0.5)}
    return told if outside is None else {**told, "wedge": float(
        (outside.correlation * outside.counts).sum() / outside.counts.sum())}


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


def cell() -> Tensor:
    """A vesicle and proteins of 4 to 10 voxels in ice, relative density."""
    z, y, x = torch.meshgrid(*[torch.arange(SIDE).float() - SIDE // 2] * 3, indexing="ij")
    radius = (x**2 + y**2 + z**2).sqrt()
    volume = ((radius - 0.36 * SIDE).abs() < 1.5).float()
    rng = np.random.default_rng(0)
    for _ in range(40):
        place = as_tensor(rng.uniform(-0.42 * SIDE, 0.42 * SIDE, 3))
        size = float(rng.uniform(2, 5))
        near = ((z - place[0])**2 + (y - place[1])**2 + (x - place[2])**2).sqrt()
        volume = torch.maximum(volume, (size - near).clamp(0, 1))
    return volume


def series_of(volume: Tensor) -> tuple[Tensor, Tensor, Rays]:
    """Volume, its images as line integrals of noisy counts, and the rays."""
    rotations = torch.stack([tilt_rotation(float(angle)) for angle in TILTS])
    rays = Rays(rotations, torch.zeros(len(TILTS), 2), tuple(volume.shape), VOXEL,
                tuple(volume.shape[1:]), VOXEL)
    with torch.no_grad():
        through = project(volume, rays)
    electrons = TILT_DOSE * VOXEL**2 * torch.exp(-2e-4 * through)  # 0.2 of a mean free path a um
    counts = np.random.default_rng(1).poisson(electrons.double().numpy())
    return volume, contrast(as_tensor(counts)), rays


def stopped(images: Tensor, rays: Rays, tv: float = 0.0, most: int = 40) -> Tensor:
    """SIRT for as long as every fifth image, held out, is explained better."""
    held = list(range(2, len(images), 5))
    rest = [n for n in range(len(images)) if n not in held]
    run = Sirt(images[rest], rays.some(rest), tv=tv)
    left: list[float] = []
    while len(left) < most and (len(left) < 4 or min(left) in left[-3:]):
        run.step()
        with torch.no_grad():
            seen = project(run.volume, rays.some(held))
        left.append(float((images[held] - seen).square().mean()))
    final = Sirt(images, rays, tv=tv)
    for _ in range(1 + int(np.argmin(left))):
        final.step()
    return final.volume


def _with_variation(images: Tensor, rays: Rays) -> Tensor:
    """SIRT with a total variation of a tenth of its first volume's deviation."""
    first = Sirt(images, rays)
    first.step()
    return stopped(images, rays, tv=0.1 * float(first.volume.std()))


PICTURES: dict[str, Callable[[Tensor, str], Tensor]] = {
    name: partial(_estimated, name) for name in (*PRIORS, *OTHERS) if installed(name)}
TOMOGRAMS: dict[str, Callable[[Tensor, Rays], Tensor]] = {
    "wbp": weighted_back_projection,
    "wbp 40 A": partial(weighted_back_projection, resolution=40.0),
    "sirt": stopped, "sirt_tv": _with_variation}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; errors in deviations of the truth, outside of the wedge the mean correlation."""
    head = ["", "phantom", "method", "correlation", "rmse", "SSIM", "PSNR dB", "0.5 at A",
            "in the wedge", "s", "MB"]
    lines = [head, ["---"] * len(head)]
    for one in rows:
        wedge = f"{one['wedge']:.3f}" if "wedge" in one else ""
        lines.append([one["kind"], one["phantom"], one["method"], f"{one['correlation']:.3f}",
                      f"{one['rmse']:.3f}", f"{one['ssim']:.3f}", f"{one['psnr']:.1f}",
                      f"{one['resolution']:.0f}", wedge, f"{one['seconds']:.1f}",
                      f"{one['MB']:.0f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _megabytes() -> float:
    """Most that this process has had in memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
