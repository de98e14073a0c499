"""A specimen 200 nm thick at voxels of 2.5 A: a fit by multislice beside one by projections.

    python -m experiments.thick [--seeds 1 2] [--doses 100 1000 10000] [--plot FILE]

Five balls of 36 A of C, N and O atoms as dense as protein lie in vacuum over 190 nm of depth, near
the middle of the field, so that all 14 tilts (-26 to 26 degrees, 300 kV, 0.4 um under focus) show
each of them. Images are by multislice of the atoms, in slices of 10 A and on pixels of 1.25 A in a
field twice as high as the fit's, with Poisson noise; the fit has voxels of 2.5 A and slices of some
240 A. Each fit chooses the number of its rounds by two of its 12 images, held out at first. Two
tilts are shown to no fit: "gain" is by how many nats an image of these is more probable by the
tomogram than by an even image, scale and level of each being free. The control is two balls within
5 nm. CPU s are those of a fit with its choice. Finished rows are kept in the file and not made
again; those without a number of rounds chose a strength of the total variation instead.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from scipy.spatial import KDTree
from torch import Tensor

from tem_taichi.device import init
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram_fit import Lens, exposures_of, fitted
from tem_taichi.experiment import Experiment, images
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.tem import TEM
from tem_taichi.inverse.measures import correlation, shell_correlation
from tem_taichi.inverse.shells import measured_region
from tem_taichi.inverse.tomography import contrast
from tem_taichi.noise.camera import Camera
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.field import voxels
from tem_taichi.specimen.particles import ParticlesInIce, kind_of
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.rays import Rays

MODELS = ("projection", "multislice")
VOXEL, DEFOCUS, RADIUS = 2.5, 4000.0, 18.0
ANGLES = np.arange(-26.0, 27.0, 4.0)
HIDDEN = (3, 10)
GRIDS = {"thick": ((800, 32, 48), (32, 400)), "thin": ((24, 32, 48), (32, 80))}
"""Of the volume, and of an image."""
DOSES = (10000, 1000, 100)
"""Of all images [e-/A^2]."""
ROUNDS, EVERY = 60, 6
BAND = (1 / 8, 1 / 5.2)
"""Fine details [1/A]."""


def middles(case: str, seed: int) -> np.ndarray:
    """Of the balls [A], (n, 3)."""
    rng = np.random.default_rng((seed, 0))
    if case == "thick":
        depths = np.linspace(-940, 940, 5) + rng.uniform(-25, 25, 5)
        return np.stack([rng.uniform(-35, 35, 5), rng.uniform(-6, 6, 5), depths], axis=1)
    return np.array([(-28.0, 0, 0), (28, 0, 0)]) + rng.uniform(-5, 5, (2, 3))


def atoms_of(case: str, seed: int) -> Atoms:
    """0.055 heavy atoms an A^3 in each ball, none nearer than 1.4 A to another."""
    rng, found = np.random.default_rng((seed, 1)), []
    for middle in middles(case, seed):
        points = rng.uniform(-RADIUS, RADIUS, (16000, 3))
        points = points[np.linalg.norm(points, axis=1) < RADIUS]
        pairs = KDTree(points).query_pairs(1.4, output_type="ndarray")
        points = np.delete(points, np.unique(pairs.max(1)), axis=0)
        count = int(0.055 * 4 / 3 * np.pi * RADIUS**3)
        found.append(points[:count] + middle)
    positions = np.concatenate(found)
    n = len(positions)
    return Atoms(rng.choice([6, 7, 8], n, p=[0.63, 0.17, 0.2]), positions, np.full(n, 30.0),
                 np.ones(n), np.zeros(n, dtype=bool))


def specimen_of(atoms: Atoms, up: float = 0.0) -> ParticlesInIce:
    """The atoms in vacuum."""
    return ParticlesInIce((kind_of(atoms),), (Poses(np.array([[0.0, 0, up]]), np.eye(3)[None]),))


def truth_of(atoms: Atoms, grid: tuple[int, int, int]) -> Tensor:
    """The potential [V] within the voxels' band, from slices of half a voxel."""
    half, shape = VOXEL / 2, (2 * grid[1], 2 * grid[2])
    # A slice's middle is half of it from where it begins
    specimen = specimen_of(atoms, half / 2)
    view = TEM(shape, shape, half, slice_thickness=half, depth="nearest").view(
        specimen, Exposure())
    fine = torch.zeros(2 * grid[0], *shape)
    begin = round(view.entrance / half) + grid[0]
    for n in np.flatnonzero(specimen.filled(view).cpu().numpy()):
        fine[begin + n] = specimen.slices(view, int(n), 1)[0].real / half
    spectrum = torch.fft.rfftn(fine)
    for axis, n in enumerate(grid[:2]):
        spectrum = torch.cat([spectrum.narrow(axis, 0, n // 2),
                              spectrum.narrow(axis, 2 * n - n // 2, n // 2)], dim=axis)
    return torch.fft.irfftn(spectrum[..., :grid[2] // 2 + 1], s=grid) / 8


def images_of(atoms: Atoms, shape: tuple[int, int], dose: float, seed: int) -> Tensor:
    """Counts, (n, ny, nx)."""
    tall = (2 * shape[0], shape[1])
    instrument = TEM(tall, (2 * tall[0], 2 * tall[1]), VOXEL, slice_thickness=10.0, depth="smooth")
    exposures = [Exposure(Optics(defocus=DEFOCUS), float(angle), dose=dose / len(ANGLES), stream=n)
                 for n, angle in enumerate(ANGLES)]
    taken = images(Experiment(specimen_of(atoms), instrument, Camera(VOXEL), exposures), seed)
    rows = slice(shape[0] // 2, shape[0] // 2 + shape[0])
    return torch.stack([image.counts[rows].float() for image in taken])


def fine_details(one: Tensor, other: Tensor) -> float:
    """Mean correlation of measured details within BAND."""
    region = measured_region(tuple(one.shape), ANGLES[0], ANGLES[-1])
    shells = shell_correlation(one, other, VOXEL, region)
    inside = (shells.frequency > BAND[0]) & (shells.frequency < BAND[1])
    return float(shells.correlation[inside].mean())


def around(volume: Tensor, middle: np.ndarray) -> Tensor:
    """A cube of 50 A about a place, as far as the volume reaches."""
    cut = []
    for place, n in zip(middle[::-1], volume.shape, strict=True):
        first = min(max(round(place / VOXEL) + n // 2 - 10, 0), n - 20)
        cut.append(slice(first, first + 20))
    return volume[tuple(cut)]


def gain(volume: Tensor, lens: Lens, counts: Tensor, tilts: pd.DataFrame) -> float:
    """Nats an image of those held out."""
    total, shape = 0.0, (counts.shape[1], counts.shape[2])
    instrument, specimen = lens.instrument(shape, VOXEL), voxels(volume, VOXEL)
    for n in HIDDEN:
        exposure = Exposure(Optics(defocus=DEFOCUS), float(tilts["tilt_angle"].iloc[n]))
        with torch.no_grad():
            seen = instrument.intensity(specimen, exposure)
        one, other = counts[n] - counts[n].mean(), seen - seen.mean()
        slope = (one * other).sum() / other.square().sum().clamp(min=1e-30)
        left = (one.square().sum() - (one - slope * other).square().sum()) / 2
        total += float(left / counts[n].mean())
    return total / len(HIDDEN)


def rows_of(case: str, seed: int, dose: int, done: set) -> list[dict]:
    """What both models find."""
    wanted = [model for model in MODELS if (case, seed, dose, model) not in done]
    if not wanted:
        return []
    grid, shape = GRIDS[case]
    atoms = atoms_of(case, seed)
    truth, counts = truth_of(atoms, grid), images_of(atoms, shape, dose, seed)
    tilts = pd.DataFrame({"tilt_angle": ANGLES, "axis_angle": 0.0, "defocus": DEFOCUS})
    shown = [n for n in range(len(ANGLES)) if n not in HIDDEN]
    rays = Rays(torch.stack([tilt_rotation(float(angle)) for angle in ANGLES[shown]]),
                torch.zeros(len(shown), 2), grid, VOXEL, shape, VOXEL)
    series = Series(contrast(counts[shown]), rays, torch.ones_like(counts[shown]), (0, 0))
    rows = []
    for model in wanted:
        lens = Lens(model=model)
        begun, processor = time.perf_counter(), time.process_time()
        found = fitted(series, exposures_of(series, tilts.iloc[shown], lens), lens, ROUNDS, None,
                       False, EVERY, lambda done, of: None, Kept())
        volume = found.volume
        row = {"case": case, "seed": seed, "dose": dose, "model": model,
               "seconds": time.perf_counter() - begun, "cpu": time.process_time() - processor,
               "tv": found.tv, "rounds": found.iterations}
        row["fsc"] = fine_details(volume, truth)
        row["correlation"] = float(correlation(volume, truth))
        row["gain"] = gain(volume, lens, counts, tilts)
        row["balls"] = [(float(middle[2]), fine_details(around(volume, middle),
                                                        around(truth, middle)))
                        for middle in middles(case, seed)]
        shells = shell_correlation(volume, truth, VOXEL, measured_region(
            grid, ANGLES[0], ANGLES[-1]))
        row["shells"] = [[round(float(value), 4) for value in one] for one in (
            shells.frequency, shells.correlation)]
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """In Markdown."""
    lines = ["| specimen | e-/A^2 | seed | model | FSC 8 to 5.2 A | of balls by depth [A] | "
             "correlation | gain [nats an image] | total variation [1/V] | rounds | CPU s |\n"
             + 11 * "| --- " + "|"]
    for row in sorted(rows, key=lambda row: (row["case"], row["dose"], row["seed"])):
        balls = ", ".join(f"{fsc:.2f} ({z:.0f})" for z, fsc in row["balls"])
        lines.append(f"| {row['case']} | {row['dose']} | {row['seed']} | {row['model']} | "
                     f"{row['fsc']:.3f} | {balls} | {row['correlation']:.3f} | {row['gain']:.0f} | "
                     f"{row['tv']:.2g} | {row.get('rounds', '')} | {row['cpu']:.0f} |")
    return "\n".join(lines)


def plot(rows: list[dict], file: Path) -> None:
    """Correlation by shells and by depth."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    styles = {100: (":", "^"), 1000: ("--", "s"), 10000: ("-", "o")}
    for dose in sorted({row["dose"] for row in rows}, reverse=True):
        line, marker = styles[dose]
        for model, colour in (("projection", "C1"), ("multislice", "C0")):
            of = [row for row in rows if (row["case"], row["dose"], row["model"]) == (
                "thick", dose, model)]
            if of:
                frequency, fsc = np.mean([row["shells"] for row in of], axis=0)
                # As many shells as lie within one of a ball's own
                panels[0].plot(frequency[10:-10], np.convolve(fsc, np.ones(21) / 21, "valid"),
                               color=colour, linestyle=line)
                panels[1].plot(*zip(*(ball for row in of for ball in row["balls"]), strict=True),
                               color=colour, marker=marker, linestyle="none", markersize=5,
                               label=f"{model}, {dose} e$^-$/Å$^2$")
    panels[0].set(xlabel="spatial frequency [1/Å]", ylabel="FSC with the truth", ylim=(-0.05, 1))
    panels[1].set(xlabel="depth of a ball [Å]", ylabel="its FSC from 8 to 5.2 Å", ylim=(-0.2, 1))
    figure.legend(*panels[1].get_legend_handles_labels(), fontsize=7, ncols=3,
                  loc="outside upper center")
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--doses", nargs="+", type=int, choices=DOSES, default=DOSES)
    parser.add_argument("--cases", nargs="+", choices=[*GRIDS], default=[*GRIDS])
    parser.add_argument("--results", type=Path, default=Path("experiments/results/thick.jsonl"))
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    init("cpu", "float32")
    rows = ([json.loads(line) for line in arguments.results.read_text().splitlines()]
            if arguments.results.exists() else [])
    done = {(row["case"], row["seed"], row["dose"], row["model"]) for row in rows}
    for case in arguments.cases:
        for dose in arguments.doses:
            for seed in arguments.seeds:
                for row in rows_of(case, seed, dose, done):
                    rows.append(row)
                    with arguments.results.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(table([row]).splitlines()[-1], flush=True)
    arguments.results.with_suffix(".md").write_text(
        "# A thick specimen by multislice and by projections\n\nBy `python -m experiments.thick`. "
        f"{__doc__.split(chr(10) * 2)[2].strip()}\n\n{table(rows)}\n")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
