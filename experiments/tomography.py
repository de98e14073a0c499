"""Methods of tomography, and the tilt series on which `experiments.bench` compares them.

A method is a function from a `Case` to a `Found`; METHODS is the table to which it is added, and
that is all. One image of 8 is shown to no method.

balls: of 1 to 5 V, and shells, in a slab of a third of the side, drawn at half the voxel of 8 A; 41
images (-60 to 60 degrees, 3 um underfocus, 300 kV) are those of a phase object with the lens's own
slope of defocus, at 3 e-/A^2 each on an ideal counting camera, binned to the voxel. Others are
those of `experiments.cell_series`, binned by 2: "cell" is what methods were developed on.

    python -m experiments.tomography FOLDER    # draws what `experiments.bench --series FOLDER` kept
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.cell_series import THICKNESS, cell_series
from experiments.panels import WIDTH, letter, save, small
from tem_taichi.device import as_tensor
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.micrographs import Micrographs
from tem_taichi.estimate.octree_fit import Settings
from tem_taichi.estimate.octree_fit import fitted as octree_fitted
from tem_taichi.estimate.octree_tree import Growth, on_tree, tree_of, volume_of
from tem_taichi.estimate.stem_fit import Plan
from tem_taichi.estimate.stem_fit import fitted as learned
from tem_taichi.estimate.tilt_images import Grid, Series, held_out, series_of
from tem_taichi.estimate.tomogram import back_projected, iterated
from tem_taichi.estimate.tomogram_fit import exposures_of, fitted, model_of
from tem_taichi.estimate.tomogram_model import Lens, Model
from tem_taichi.experiment import Experiment, images
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.projection import Projection
from tem_taichi.inverse.measures import correlation, shell_correlation
from tem_taichi.inverse.shells import measured_region
from tem_taichi.inverse.tomography import Sirt
from tem_taichi.noise.camera import Camera
from tem_taichi.specimen.field import voxels
from tem_taichi.specimen.rays import project

FIGURE = Path(__file__).parent / "figures" / "tomography.png"
DRAWN = "filaments, not developed on"
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
    variance: Tensor
    """Of the noise of the images held out, relative to their means squared, (n,)."""


@dataclass(frozen=True)
class Found:
    """What a method gives."""

    volume: Tensor
    images: Tensor
    """Of the tilts held out, in any scale."""


def nothing(done: int, of: int) -> None:
    """No progress."""


def integrals(case: Case, whole: Tensor) -> Found:
    """With projections alone, of a volume with its margin."""
    return Found(case.hidden.field(whole), -project(whole, case.hidden.rays))


def wbp(case: Case) -> Found:
    return integrals(case, back_projected(case.shown, 2.5 * VOXEL).whole)


def sirt(case: Case) -> Found:
    return integrals(case, iterated(case.shown, 100, 0.0, False, EVERY, nothing, Kept()).whole)


def sirt_tv(case: Case, iterations: int = 100) -> Found:
    return integrals(case, iterated(case.shown, iterations, None, False, EVERY, nothing,
                                    Kept()).whole)


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
            like = float(correlation(case.hidden.field(run.volume), case.truth))
            if like > best:
                best, volume = like, run.volume.clone()
    return integrals(case, volume)


def measured_truth(case: Case) -> Found:
    """All that the tilts can measure, without noise, and nothing in the wedge."""
    inside = measured_region(case.truth.shape, float(ANGLES.min()), float(ANGLES.max()))
    volume = torch.fft.irfftn(torch.fft.rfftn(case.truth.float()) * inside, s=case.truth.shape)
    nz, ny, nx = case.hidden.rays.grid
    whole = torch.zeros(nz, ny, nx)
    # The middle n // 2 of one on that of the other.
    starts = [n // 2 - m // 2 for n, m in zip(whole.shape, volume.shape, strict=True)]
    whole[tuple(slice(a, a + m) for a, m in zip(starts, volume.shape, strict=True))] = volume
    hidden = exposures_of(case.hidden, case.hidden_tilts, LENS)
    return Found(volume, torch.stack(Model(case.hidden, hidden, LENS).images(whole)))


def gradient(case: Case, rounds: int = 50) -> Found:
    """The potential by the microscope's own model."""
    exposures = exposures_of(case.shown, case.shown_tilts, LENS)
    found = fitted(case.shown, exposures, LENS, rounds, None, False, EVERY, nothing, Kept())
    hidden = exposures_of(case.hidden, case.hidden_tilts, LENS)
    seen = Model(case.hidden, hidden, LENS).images(found.whole)
    return Found(found.volume, torch.stack(seen))


def octree(case: Case, rounds: int = 50) -> Found:
    """The same above the surroundings' on a tree of small grids, with 0.6 of the finest leaves."""
    exposures = exposures_of(case.shown, case.shown_tilts, LENS)

    def imaging(of: Series, which: Sequence[int]) -> Model:
        return model_of(of, which, exposures, case.shown.rays.pixel, LENS)

    grid = case.shown.rays.grid
    growth = Growth(5 if min(grid) < 32 else 9, 2, 8**8, 1, updates=1)
    finest = len(tree_of(case.shown, replace(growth, start=2)).leaves)
    settings = Settings(replace(growth, leaves=int(0.6 * finest)), 50, rounds=rounds, every=EVERY,
                        unit=5.0)
    found = octree_fitted(case.shown, imaging, settings, nothing, Kept())
    # Images see the whole tree, which reaches beyond the grid and its margin.
    tree = found.field.tree
    hidden = exposures_of(case.hidden, case.hidden_tilts, LENS)
    seen = Model(on_tree(case.hidden, tree), hidden, LENS).images(
        volume_of(found.field, tree.shape))
    return Found(case.hidden.field(volume_of(found.field, grid)), torch.stack(seen))


def joint(case: Case, plan: Plan) -> Found:
    """The potential above the surroundings', beside a law of noise that is learned with it."""
    def images(of: Series, tilts: pd.DataFrame) -> Micrographs:
        return Micrographs(of, exposures_of(of, tilts, LENS), LENS)

    shown = images(case.shown, case.shown_tilts)
    whole = learned(shown, replace(plan, unit=5.0), EVERY, nothing, Kept()).volume
    with torch.no_grad():
        seen = images(case.hidden, case.hidden_tilts).expected(whole)
    return Found(case.hidden.field(whole), seen)


METHODS: dict[str, Callable[[Case], Found]] = {
    "measured part of the truth": measured_truth,
    "wbp": wbp, "sirt": sirt, "sirt_tv": sirt_tv, "sirt_tv, stopped by the truth": sirt_tv_by_truth,
    "gradient": gradient, "octree": octree,
    "network": partial(joint, plan=Plan("implicit", "l2", tv=None)),
    "positive voxels": partial(joint, plan=Plan("voxels", "l2", tv=None)),
    "positive voxels, flow": partial(joint, plan=Plan("voxels", "flow", tv=None))}


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


def balls(size: int = 48) -> Case:
    """The phantom of balls and its images.

    Args:
        size: voxels along a side, a multiple of 12.
    """
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
    truth = fine
    for axis in range(3):
        # About every other sample, the middle n // 2 among them: 1/4, 1/2, 1/4.
        around = (truth.roll(1, axis) + 2 * truth + truth.roll(-1, axis)) / 4
        truth = around.index_select(axis, torch.arange(0, truth.shape[axis], 2))
    return _case(whole, tilts, truth, 4 * stack.mean((1, 2)))


def simulated(specimen: str, seed: int, folder: Path | None, size: int = 192) -> Case:
    """A series of `experiments.cell_series`, binned by 2.

    Args:
        specimen: of `cell_series.SPECIMENS`.
        seed: of places, ice and counts.
        folder: where series are kept; None = nowhere.
        size: pixels along a side, before they are binned.
    """
    file = None if folder is None else folder / f"{specimen}_{seed}_{size}.npz"
    found = cell_series(file, specimen, seed, size)
    whole = series_of(found.images, found.tilts, found.pixel_size,
                      Grid(THICKNESS, 2, margin=size * found.pixel_size / 4))
    # Every other frequency's half: the middle n // 2 stays where it is.
    waves = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(torch.from_numpy(found.truth))))
    for axis, n in enumerate(found.truth.shape):
        waves = waves.narrow(axis, n // 2 - n // 4, n // 2)
    truth = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(waves))).real / 8
    return _case(whole, found.tilts, truth.contiguous(), 4 * found.images.mean((1, 2)))


def _case(whole: Series, tilts: pd.DataFrame, truth: Tensor, electrons: np.ndarray) -> Case:
    """Of all images, with so many electrons a pixel."""
    shown, hidden = held_out(whole, EVERY)
    return Case(whole.some(shown), tilts.iloc[shown], whole.some(hidden), tilts.iloc[hidden], truth,
                1 / as_tensor(electrons[hidden]))


CASES: dict[str, Callable[[Path | None], Case]] = {
    "balls": lambda folder: balls(),
    "cell": lambda folder: simulated("cell", 0, folder),
    "filaments, not developed on": lambda folder: simulated("filaments", 1, folder),
    "beads, not developed on": lambda folder: simulated("beads", 2, folder)}


def gain(case: Case, predicted: Tensor) -> float:
    """By how many nats an image held out is more probable than by an even one.

    Args:
        case: its images.
        predicted: of them, (n, ny, nx); scale and level of each are free.
    """
    total = 0.0
    for image, seen, variance in zip(case.hidden.images, predicted, case.variance, strict=True):
        one, other = image - image.mean(), seen - seen.mean()
        slope = (one * other).sum() / other.square().sum().clamp(min=1e-30)
        left = (one - slope * other).square().sum()
        # Images are contrast, less where seen is more.
        total += float((one.square().sum() - left) / 2 / variance)
    return total / len(predicted)


def kept_as(phantom: str, method: str) -> str:
    """Name of the file of a tomogram, in the folder of the series."""
    return f"{phantom} {method}.npy".replace(" ", "_").replace(",", "")


def figure(folder: Path) -> Figure:
    """Slices of truth and tomograms, from above and from the side, and shell correlations."""
    case = CASES[DRAWN](folder)
    voxel = case.hidden.rays.voxel
    files = {name: folder / kept_as(DRAWN, name) for name, method in METHODS.items()
             if method is not measured_truth}
    found = {name: torch.from_numpy(np.load(file)) for name, file in files.items()
             if file.is_file()}
    shown = {"truth": case.truth, **{name: one for name, one in found.items() if name != "sirt"}}
    made = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    rows = made.subfigures(2, 1, height_ratios=[1.7, 1])
    axes = rows[0].subplots(2, len(shown), height_ratios=[1, 1.3], squeeze=False)
    for column, (name, volume) in zip(axes.T, shown.items(), strict=True):
        nz, ny, _ = volume.shape
        for ax, plane in zip(column, (volume[nz // 2], volume[:, ny // 2]), strict=True):
            low, high = np.percentile(plane.numpy(), (0.5, 99.7))
            ax.imshow(plane, cmap="gray_r", vmin=low, vmax=high, origin="lower")
            ax.set_axis_off()
        column[0].set_title(name.replace(", ", ",\n"), fontsize=6)
    region = measured_region(case.truth.shape, float(ANGLES.min()), float(ANGLES.max()))
    curves = rows[1].subplots(1, 2, sharey=True)
    for ax, part, where in zip(curves, (region, ~region), ("measured", "in the wedge"),
                               strict=True):
        for name, volume in found.items():
            shells = shell_correlation(volume, case.truth, voxel, part)
            ax.plot(shells.frequency, shells.correlation, label=name, linewidth=1)
        ax.set(xlabel="frequency [1/Å]", title=where, ylim=(-0.1, 1))
        ax.grid(alpha=0.3)
        small(ax)
    curves[0].set_ylabel("shell correlation with the truth")
    curves[0].legend(fontsize=6, loc="lower left")
    letter([axes[0, 0], axes[1, 0], *curves])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    save(figure(parser.parse_args().folder), FIGURE)


if __name__ == "__main__":
    main()
