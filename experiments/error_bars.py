"""Do error bars hold what they promise? Small fits through multislice, with noise of their own.

python -m experiments.error_bars [fits]

A particle of 150 atoms lies off the middle of the ice; its image is one tilt of a counting
camera's. A defocus, the particle's orientation, its place along x and y and the thickness of the
ice are fitted to it from a start some error bars away, and given error bars. (Its z is not: one
image of one particle cannot tell it from the defocus and from x.) The table says how often the
truth is within 1.96 of them, and how large the errors are in error bars (1, within a tenth).
"""

import sys

import numpy as np
import torch

import tem_taichi as tt
from tem_taichi.device import as_tensor
from tem_taichi.experiment import Experiment, images
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.tem import TEM
from tem_taichi.inverse.fisher import error_bars
from tem_taichi.inverse.minimise import Optimiser, Values
from tem_taichi.inverse.problem import Problem, fit
from tem_taichi.inverse.scales import natural_scales
from tem_taichi.noise.camera import Camera
from tem_taichi.rotations import rotation_from_vector
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.kinds import kind_of
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.specimen.poses import Poses

PIXELS, PIXEL, DOSE, TILT, DEPTH = 32, 2.0, 300.0, 25.0, 60.0
TRUTH = {"defocus": 6000.0, "rotation_vector": [0.4, -0.3, 0.2], "positions": [-25.0, -5.0],
         "thickness": 200.0}


def atoms(count: int = 150, seed: int = 1) -> Atoms:
    """A lump without symmetry, of the composition of sulphur, so that few pixels show it well."""
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(4 * count, 3)) * [8.0, 6.0, 4.5]
    places = places[places[:, 0] > -6][:count]
    return Atoms(np.full(count, 16), places, np.full(count, 80.0), np.ones(count),
                 np.zeros(count, dtype=bool))


def problem_of(seed: int, shape: int = PIXELS) -> Problem:
    """Counts of the truth with noise of a seed, and a start beside it."""
    kind = kind_of(atoms())
    instrument = TEM((shape, shape), (shape * 3 // 2, shape * 3 // 2), PIXEL, 300.0, None, 40.0,
                     depth="smooth")

    def build(values: Values) -> Experiment:
        turned = rotation_from_vector(values["rotation_vector"])
        ice = Ice(values["thickness"], 4.48, 3000.0)
        specimen = ParticlesInIce(
            (kind,), (Poses(torch.cat([values["positions"], as_tensor([DEPTH])])[None],
                            turned[None]),), ice)
        exposure = Exposure(Optics(defocus=values["defocus"]), TILT, dose=DOSE)
        return Experiment(specimen, instrument, Camera(PIXEL), [exposure])

    truth = {name: as_tensor(value) for name, value in TRUTH.items()}
    with torch.no_grad():
        counts = torch.stack([image.counts for image in images(build(truth), seed)])
    scales = natural_scales(truth, 4 * PIXEL, radius=15.0) | {"thickness": 100.0}
    rng = np.random.default_rng(seed)
    start = {name: value + scales[name] * 0.3 * as_tensor(rng.standard_normal(value.shape))
             for name, value in truth.items()}
    return Problem(start, build, counts, scales=scales)


def deviations(seed: int, shape: int = PIXELS) -> np.ndarray:
    """Errors of one fit in its error bars: defocus, three turns, x, y, thickness."""
    problem = problem_of(seed, shape)
    found = fit(problem, Optimiser(steps=60, tolerance=1e-10))
    bars = error_bars(problem, found.values)
    return np.concatenate([
        ((found.values[name].cpu() - torch.as_tensor(truth, dtype=torch.float64))
         / bars[name].cpu()).numpy().ravel() for name, truth in TRUTH.items()])


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    tt.init("cpu", "float64")
    found = np.array([deviations(seed) for seed in range(count)])
    names = ["defocus", "turn x", "turn y", "turn z", "x", "y", "thickness"]
    print(f"{count} fits, {PIXELS} x {PIXELS} pixels of {PIXEL:g} A, {DOSE:g} e-/A^2")
    print("| | within 1.96 error bars | standard deviation of error / error bar | mean |")
    print("| --- | --- | --- | --- |")
    for name, column in zip(names, found.T, strict=True):
        print(f"| {name} | {np.mean(np.abs(column) < 1.96):.0%} | {column.std():.2f} | "
              f"{column.mean():+.2f} |")
    print(f"| all | {np.mean(np.abs(found) < 1.96):.1%} | {found.std():.2f} | |")


if __name__ == "__main__":
    main()
