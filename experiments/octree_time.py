"""What methods of tomography reach in the same CPU time: SIRT-TV, voxels and octree.

    python -m experiments.octree_time [--virion FILE] [--most 80]

On the phantom of `octree_phantom` (64^3, noise 0.05, seed 1) and on "balls" of `experiments.bench`.
Each method has at most 5, 10, 20 ... iterations for each strength that it tries, until a run takes
longer than --most; times are of the whole run, with the choice of the strength by images held out.
Kernels are compiled before. Of each budget the longest run within it counts.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from experiments import octree, tomography
from experiments.octree_phantom import Case, case_of, psnr
from experiments.runs import RESULTS
from tem_taichi.device import init
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.octree_fit import Settings
from tem_taichi.estimate.octree_tree import Growth
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.estimate.tomogram import iterated
from tem_taichi.inverse.measures import affine_fit, peak_signal_to_noise

TABLE = RESULTS / "octree_time.md"
BUDGETS = (5, 10, 20, 40, 80)
"""CPU seconds."""
FIRST, LIKE = 2, 1.05
"""Iterations of the first run; a run that is no longer than that one before has come to its end."""


def linear(case: Case, iterations: int) -> Tensor:
    series = Series(case.images, case.rays, torch.ones_like(case.images))
    return iterated(series, iterations, None, True, 8, tomography.nothing, Kept()).volume


PHANTOM: dict[str, Callable[[Case, int], Tensor]] = {
    "SIRT-TV": linear,
    "voxels": lambda case, rounds: octree.fit(
        case, Settings(Growth(case.rays.grid[0] + 1, 0, 1, 0), rounds=rounds)).volume,
    "octree": lambda case, rounds: octree.fit(case, Settings(octree.Row("", "").growth,
                                                             rounds=rounds)).volume}
BALLS: dict[str, Callable[[tomography.Case, int], tomography.Found]] = {
    "SIRT-TV": tomography.sirt_tv, "voxels": tomography.gradient, "octree": tomography.octree}


def run_of(phantom: str, method: str, virion: str | None) -> Callable[[int], tuple[float, float]]:
    """Of a number of iterations: CPU seconds, and PSNR [dB]."""
    if phantom == "shells":
        made = case_of(64, 0.05, 1, "shells", virion)

        def found(steps: int) -> Tensor:
            return PHANTOM[method](made, steps)

        def judged(volume: Tensor) -> float:
            return psnr(volume, made.truth)
    else:
        case = tomography.balls()

        def found(steps: int) -> Tensor:
            return BALLS[method](case, steps).volume

        def judged(volume: Tensor) -> float:
            return peak_signal_to_noise(affine_fit(volume, case.truth), case.truth)

    def run(steps: int) -> tuple[float, float]:
        begun = time.process_time()
        volume = found(steps)
        return time.process_time() - begun, judged(volume)

    return run


def curve(phantom: str, method: str, virion: str | None, most: float
          ) -> list[tuple[int, float, float]]:
    """Iterations, CPU seconds and PSNR of runs that are ever longer."""
    init("cpu", "float32")
    run = run_of(phantom, method, virion)
    run(1)
    made: list[tuple[int, float, float]] = []
    for steps in _doubled():
        made.append((steps, *run(steps)))
        spent = made[-1][1]
        print(phantom, method, *made[-1], flush=True)
        if spent > most or (len(made) > 1 and spent < LIKE * made[-2][1]):
            return made
    return made


def _doubled() -> Iterator[int]:
    steps = FIRST
    while True:
        yield steps
        steps *= 2


def table(curves: dict[tuple[str, str], list[tuple[int, float, float]]], most: float) -> str:
    """Markdown, of budgets that longer runs were tried for."""
    budgets = [budget for budget in BUDGETS if budget <= most]
    lines = ["| phantom | method | " + " | ".join(f"{budget} CPU s" for budget in budgets)
             + " | all runs: iterations, CPU s, dB |", (len(budgets) + 3) * "| --- " + "|"]
    for (phantom, method), made in curves.items():
        within = [max((one for one in made if one[1] <= budget), default=None)
                  for budget in budgets]
        lines.append(f"| {phantom} | {method} | " + " | ".join(
            "" if one is None else f"{one[2]:.2f}" for one in within) + " | " + "; ".join(
            f"{steps}, {spent:.1f}, {value:.2f}" for steps, spent, value in made) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--virion", help="file of a structure with an assembly")
    parser.add_argument("--most", type=float, default=BUDGETS[-1])
    given = parser.parse_args()
    curves = {}
    for phantom, methods in (("shells", PHANTOM), ("balls", BALLS)):
        for method in methods:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                curves[phantom, method] = pool.apply(
                    curve, (phantom, method, given.virion, given.most))
            TABLE.write_text(table(curves, given.most), encoding="utf-8")
    print(table(curves, given.most))


if __name__ == "__main__":
    main()
