"""Time and memory of a step of networks fitted to scanned images, by whole grids and by rays.

    python -m experiments.stem_steps [--most 1000]

One step of least squares and its gradient, after one that compiles, each case in a process of its
own; memory is what it takes beyond images and start. Nine images of the grid's size.
"""

import argparse
import multiprocessing

import torch

from experiments.bench import timed
from experiments.runs import RESULTS
from tem_taichi.device import init
from tem_taichi.estimate.ray_task import RayTask
from tem_taichi.estimate.stem_task import Images, Plan, Task, network_of
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.stem import STEM
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.ray_points import Along
from tem_taichi.specimen.rays import Rays

TABLE = RESULTS / "stem_steps.md"
VOXEL, ANGLES = 10.0, range(-60, 61, 15)
CASES: tuple[tuple[str, int, Along | None], ...] = (
    ("small", 24, None), ("small", 48, None), ("small", 96, None),
    ("small", 24, Along(1024)), ("small", 96, Along(1024)), ("small", 1000, Along(1024)),
    ("published", 24, None), ("published", 24, Along(64)), ("published", 1000, Along(64)))
"""Network, voxels along a side, and rays and their points; None = the grid."""


def measured(name: str, size: int, along: Along | None) -> dict[str, float]:
    """Seconds, CPU seconds and MB of a step."""
    rays = Rays(torch.stack([tilt_rotation(float(a)) for a in ANGLES]),
                torch.zeros(len(ANGLES), 2), (size,) * 3, VOXEL, (size, size), VOXEL)
    counts = 80 + 5 * torch.randn(len(ANGLES), size, size)
    images = Images(counts, rays, [Exposure(tilt_angle=float(a), dose=1.0) for a in ANGLES],
                    STEM((size, size), VOXEL))
    plan = Plan("implicit", "l2", network_of(name, rays.grid, 64), bounded=name == "published",
                along=along)
    task = Task(images, plan) if along is None else RayTask(images, plan, along)
    part = task.parts(range(len(ANGLES)), False)[:task.batch]
    values = {key: one.requires_grad_() for key, one in task.start.items()}

    def step() -> None:
        loss, = task.terms("l2", range(len(ANGLES)))(values, part)
        torch.autograd.grad(loss, list(values.values()))

    step()
    return timed(step)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=1000, help="largest side")
    most = parser.parse_args().most
    text = ("| network | voxels | a step sees | points | seconds | CPU s | MB |\n"
            + "| --- " * 7 + "|\n")
    for name, size, along in CASES:
        if size > most:
            continue
        with multiprocessing.get_context("spawn").Pool(1, init, ("cpu", "float32")) as pool:
            found = pool.apply(measured, (name, size, along))
        sees = "8 images of the grid" if along is None else f"{along.rays} rays"
        points = size**3 if along is None else along.rays * (2 * along.coarse + along.fine)
        text += (f"| {name} | {size}^3 | {sees} | {points} | {found['seconds']:.2f} | "
                 f"{found['cpu_seconds']:.2f} | {found['MB']:.0f} |\n")
        print(text.splitlines()[-1], flush=True)
    TABLE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
