"""Time and memory of an octree's gradient as the volume grows, beside those of its parts.

    python -m experiments.octree_size [--sizes 64 128 256 512]

94 images of the size, 320 leaves of 17^3 about the middle, the finest with a sample a voxel; each
size in a process of its own. "Finest grid" is the time to write the leaves to it, some planes at a
time, and the adjoint; the rest is the rays'.
"""

import argparse
import multiprocessing
import resource
import time

import numpy as np
import torch

from experiments.octree_phantom import ANGLES
from experiments.runs import RESULTS
from tem_taichi.device import init
from tem_taichi.estimate.octree_model import Integrals, gradient
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.octree import Octree, uniform
from tem_taichi.specimen.rays import Rays
from tem_taichi.specimen.refinement import Change, changed

TABLE = RESULTS / "octree_size.md"
SAMPLES, LEAVES = 17, 320


def field_of(size: int) -> Octree:
    """Leaves near the middle are split first."""
    depth = int(np.log2(size // (SAMPLES - 1)))
    tree = uniform((1, 1, 1), 1, depth, SAMPLES, 1.0)
    field = Octree(tree, torch.ones(8, SAMPLES, SAMPLES, SAMPLES))
    while True:
        tree = field.tree
        middle = tree.begins + tree.steps[:, None] * (SAMPLES - 1) / 2 - size / 2
        far = np.linalg.norm(middle, axis=1) / tree.steps
        order = [n for n in np.argsort(far) if tree.leaves[n, 0] < depth]
        room = (LEAVES - len(tree.leaves)) // 7
        if not order or room < 1:
            return field
        field = changed(field, Change(tuple(int(n) for n in order[:max(1, room // 3)]), ()))


def measured(size: int) -> dict[str, float]:
    """CPU seconds of a gradient and of its parts, and what it takes beyond images."""
    init("cpu", "float32")
    field = field_of(size)
    tree, grid = field.tree, field.tree.shape
    rotations = torch.stack([tilt_rotation(float(angle)) for angle in ANGLES])
    rays = Rays(rotations, torch.zeros(len(ANGLES), 2), grid, 1.0, (size, size), 1.0)
    images = torch.zeros(len(ANGLES), size, size)
    model = Integrals(images, torch.ones_like(images), rays)
    small = Integrals(images[:1], torch.ones_like(images[:1]), rays.some([47]))
    gradient(small, tree, field.values)  # compiled
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, []
    for _ in range(3 if size < 256 else 1):
        begun = time.process_time()
        gradient(model, tree, field.values)
        times.append(time.process_time() - begun)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    parts = []
    for _ in range(3):
        begun = time.process_time()
        values = field.values.requires_grad_()
        for first in range(0, grid[0], 32):
            planes = Octree(tree, values).planes(first, min(32, grid[0] - first))
            planes.backward(torch.ones_like(planes))
        parts.append(time.process_time() - begun)
    return {"size": size, "leaves": len(tree.leaves), "values_MB": field.values.numel() * 4e-6,
            "grid_MB": np.prod(grid) * 4e-6, "seconds": min(times), "finest": min(parts),
            "MB": after - before}


def exponent(rows: list[dict[str, float]], name: str) -> float:
    """Of the size, by least squares of logarithms."""
    return float(np.polyfit(np.log([row["size"] for row in rows]),
                            np.log([max(row[name], 1e-3) for row in rows]), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    rows = []
    for size in parser.parse_args().sizes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measured, (size,)))
        print(rows[-1], flush=True)
    lines = ["| size | leaves | values MB | a full grid MB | more memory MB | gradient, CPU s | "
             "of it finest grid |", 7 * "| --- " + "|"]
    lines += [f"| {row['size']} | {row['leaves']} | {row['values_MB']:.1f} | "
              f"{row['grid_MB']:.0f} | {row['MB']:.0f} | {row['seconds']:.2f} | "
              f"{row['finest']:.2f} |" for row in rows]
    if len(rows) > 1:
        lines.append("| exponent | | " + " | ".join(f"{exponent(rows, name):.1f}" for name in (
            "values_MB", "grid_MB", "MB", "seconds", "finest")) + " |")
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
