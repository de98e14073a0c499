"""Methods of tomography on the same phantom, the same images and by the same measures.

A method is a function from a `Case` to a `Found`; METHODS is the table to which it is added, and
that is all. Each runs in a process of its own, for its time and its peak memory.

    python -m experiments.tomography [--size 96] [--methods wbp sirt ...] [--json bench.json]

The phantom is of balls and shells of 1 to 5 V in a slab of a third of the side, drawn at half the
voxel of 8 A; its 41 images (-60 to 60 degrees, 3 um underfocus, 300 kV) are those of a phase object
with the lens's own slope of defocus, at 3 e-/A^2 each on an ideal counting camera, binned to the
voxel. One image of 8 is shown to no method: "gain" is by how many nats an image of these is more
probable by the method's tomogram than by an even image, scale and level of each being free.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tem_taichi.device import init
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.tilt_images import Grid, Series, held_out, series_of
from tem_taichi.estimate.tomogram import back_projected, iterated
from tem_taichi.estimate.tomogram_fit import Lens, exposures_of, fitted
from tem_taichi.experiment import Experiment, images
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.projection import Projection
from tem_taichi.inverse.measures import affine_rmse, correlation, resolution, shell_correlation
from tem_taichi.inverse.shells import measured_region
from tem_taichi.inverse.tomography import Sirt
from tem_taichi.noise.camera import Camera
from tem_taichi.specimen.field import voxels
from tem_taichi.specimen.rays import project

VOXEL, DOSE, DEFOCUS, EVERY = 8.0, 3.0, 30000.0, 8
ANGLES = np.linspace(-60, 60, 41)
LENS = Lens(300.0, 2.7, 0.07)
STRENGTHS, STOPS = (0.0, 0.3, 1.0, 3.0, 10.0), 30
"""Of SIRT-TV stopped by the truth: in typical differences of voxels after an iteration, and
iterations."""


@dataclass(frozen=True)
class Case:
    """What every method is given."""

    shown: Series
    """Images and the grid, but for those held out."""
    shown_tilts: pd.DataFrame
    hidden: Series
    hidden_tilts: pd.DataFrame
    truth: Tensor
    """Potential [V], for the measures and what is stopped by them."""


@dataclass(frozen=True)
class Found:
    """What a method gives."""

    volume: Tensor
    images: Tensor
    """Of the tilts held out, in any scale."""


def nothing(done: int, of: int) -> None:
    """No progress."""


def integrals(case: Case, volume: Tensor) -> Found:
    """With projections alone."""
    return Found(volume, -project(volume, case.hidden.rays))


def wbp(case: Case) -> Found:
    return integrals(case, back_projected(case.shown, 2.5 * VOXEL).volume)


def sirt(case: Case) -> Found:
    return integrals(case, iterated(case.shown, 100, 0.0, False, EVERY, nothing, Kept()).volume)


def sirt_tv(case: Case) -> Found:
    return integrals(case, iterated(case.shown, 100, None, False, EVERY, nothing, Kept()).volume)


def sirt_tv_by_truth(case: Case) -> Found:
    """The iteration and the strength nearest to the truth, which no method can know."""
    first = Sirt(case.shown.images, case.shown.rays, levels=True)
    first.step()
    typical = 1.4826 * float(first.volume.diff(dim=2).abs().median())
    best, volume = -1.0, first.volume
    for strength in STRENGTHS:
        run = Sirt(case.shown.images, case.shown.rays, tv=strength * typical, levels=True)
        for _ in range(STOPS):
            run.step()
            like = float(correlation(run.volume, case.truth))
            if like > best:
                best, volume = like, run.volume.clone()
    return integrals(case, volume)


def gradient(case: Case) -> Found:
    found = fitted(case.shown, exposures_of(case.shown, case.shown_tilts, LENS), LENS, 20, None,
                   False, EVERY, nothing, Kept())
    shape = case.hidden.rays.shape
    instrument = Projection(shape, shape, VOXEL, LENS.voltage, LENS.amplitude_contrast)
    specimen = voxels(found.volume, VOXEL)
    with torch.no_grad():
        seen = [instrument.intensity(specimen, exposure)
                for exposure in exposures_of(case.hidden, case.hidden_tilts, LENS)]
    return Found(found.volume, torch.stack(seen))


METHODS: dict[str, Callable[[Case], Found]] = {
    "wbp": wbp, "sirt": sirt, "sirt_tv": sirt_tv, "sirt_tv, stopped by the truth": sirt_tv_by_truth,
    "gradient": gradient}


def phantom(size: int) -> Tensor:
    """Balls and shells [V] at half the voxel, (2 size / 3, 2 size, 2 size)."""
    rng = np.random.default_rng(0)
    shape = (2 * (size // 3), 2 * size, 2 * size)
    volume = np.zeros(shape, np.float32)
    for number in range(size**3 // 6000):
        radius = rng.uniform(3, 14)
        middle = np.array([rng.uniform(radius, n - radius) for n in shape])
        low = np.maximum((middle - radius).astype(int), 0)
        box = tuple(slice(a, int(b) + 1) for a, b in zip(low, middle + radius, strict=True))
        z, y, x = np.ogrid[box]
        far = np.sqrt((z - middle[0])**2 + (y - middle[1])**2 + (x - middle[2])**2)
        inside = (far < radius) & ((far > radius - 3) if number % 3 == 0 else True)
        volume[box] = np.where(inside, rng.uniform(1, 5), volume[box])
    return torch.from_numpy(volume)


def case_of(size: int) -> Case:
    """The phantom and its images."""
    fine = phantom(size)
    half = VOXEL / 2
    shape = (2 * size, 2 * size)
    optics = Optics(defocus=DEFOCUS, spherical_aberration=LENS.spherical_aberration)
    exposures = [Exposure(optics, float(angle), dose=DOSE, stream=n)
                 for n, angle in enumerate(ANGLES)]
    instrument = Projection(shape, shape, half, LENS.voltage, LENS.amplitude_contrast)
    taken = images(Experiment(voxels(fine, half), instrument, Camera(half), exposures), 0)
    stack = np.stack([image.counts.numpy() for image in taken])
    tilts = pd.DataFrame({"tilt_angle": ANGLES, "axis_angle": 0.0, "defocus": DEFOCUS})
    whole = series_of(stack, tilts, half, Grid(size // 3 * VOXEL, 2))
    shown, hidden = held_out(whole, EVERY)
    truth = fine
    for axis in range(3):
        # About every other sample, the middle n // 2 among them: 1/4, 1/2, 1/4.
        around = (truth.roll(1, axis) + 2 * truth + truth.roll(-1, axis)) / 4
        truth = around.index_select(axis, torch.arange(0, truth.shape[axis], 2))
    return Case(whole.some(shown), tilts.iloc[shown], whole.some(hidden), tilts.iloc[hidden], truth)


def gain(case: Case, predicted: Tensor) -> float:
    """Nats an image of those held out."""
    total = 0.0
    for image, seen in zip(case.hidden.images, predicted, strict=True):
        # Relative to the mean, of a Poisson law with the mean's variance.
        variance = 1 / (DOSE * VOXEL**2)
        one, other = image - image.mean(), seen - seen.mean()
        slope = (one * other).sum() / other.square().sum().clamp(min=1e-30)
        total += float((one.square().sum() - (one - slope * other).square().sum()) / 2 / variance)
    return total / len(predicted)


def measured(method: str, size: int) -> dict:
    """A row of the table."""
    init("cpu", "float32")
    case = case_of(size)
    begun, processor = time.perf_counter(), time.process_time()
    found = METHODS[method](case)
    row = {"method": method, "seconds": time.perf_counter() - begun,
           "cpu_seconds": time.process_time() - processor,
           "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}
    region = measured_region(case.truth.shape, float(ANGLES.min()), float(ANGLES.max()))
    row["correlation"] = float(correlation(found.volume, case.truth))
    row["rmse_V"] = float(affine_rmse(found.volume, case.truth))
    for name, part in (("inside", region), ("wedge", ~region)):
        shells = shell_correlation(found.volume, case.truth, VOXEL, part)
        row[f"fsc_{name}"] = float(shells.correlation.mean())
        row[f"resolution_{name}_A"] = resolution(shells, 0.5)
    row["gain"] = gain(case, found.images)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="a multiple of 12")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    print("| method | correlation | RMSE V | mean FSC inside, in the wedge | FSC 0.5 A | gain | "
          "CPU s | peak MB |\n" + 8 * "| --- " + "|")
    for method in arguments.methods:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            row = pool.submit(measured, method, arguments.size).result()
        rows.append(row)
        print(f"| {method} | {row['correlation']:.3f} | {row['rmse_V']:.3f} | "
              f"{row['fsc_inside']:.3f}, {row['fsc_wedge']:.3f} | "
              f"{row['resolution_inside_A']:.0f} | {row['gain']:.0f} | "
              f"{row['cpu_seconds']:.0f} | {row['peak_MB']:.0f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
