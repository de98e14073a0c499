"""Projection of a grid and its adjoint: beside astra's CPU projectors, and the floor of memory.

41 tilts from -60 to 60 degrees of N^3 voxels, single precision, single axis; the programs take
turns in one process. astra (`pip install astra-toolbox==2.5.0`, GPLv3, optional) projects slice by
slice; "sparse" is the matrix of its linear projector, made once, times all slices (by torch). The
floor is the time to read the grid and write the images once, at the speed of a copy.

    python -m experiments.rays [--sizes 64 128 256] [--rounds 3] [--json rays.json]
"""

import argparse
import json
import time
from collections.abc import Callable
from importlib import util
from pathlib import Path

import numpy as np
import torch

from tem_taichi.device import init
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.rays import Rays, back_project, project

TILTS = np.linspace(-60, 60, 41)
CASES = {"axis upright": (0.0, 0.0), "shifted 1/3 voxel along it": (0.0, 1 / 3),
         "axis at 4.3 degrees": (-4.3, 1 / 3)}
"""Tilt axis [deg] and shift along y [voxel]."""
SLICES = 2
"""That astra projects one by one; its time is then taken for all."""


def rays_of(size: int, axis: float, shift: float) -> Rays:
    rotations = torch.stack([tilt_rotation(float(tilt), axis) for tilt in TILTS])
    shifts = torch.tensor([0.0, shift]).expand(len(TILTS), 2)
    return Rays(rotations, shifts, (size, size, size), 1.0, (size, size), 1.0)


def ours(size: int) -> dict[str, tuple[Callable, Callable]]:
    """Projection and adjoint of each case."""
    volume = torch.rand(size, size, size).transpose(1, 2)  # lines along y follow one another
    images = torch.rand(len(TILTS), size, size)
    found = {}
    for name, (axis, shift) in CASES.items():
        rays = rays_of(size, axis, shift)
        found[name] = (lambda rays=rays: project(volume, rays),
                       lambda rays=rays: back_project(images, rays))
    return found


def astras(size: int) -> dict[str, tuple[Callable, Callable]]:
    """Projection and adjoint by astra's linear projector, and by its matrix."""
    if util.find_spec("astra") is None:
        return {}
    import astra

    geometry = astra.create_vol_geom(size, size)
    detector = astra.create_proj_geom("parallel", 1.0, size, np.deg2rad(TILTS))
    projector = astra.create_projector("linear", detector, geometry)
    plane = np.random.default_rng(0).random((size, size), dtype=np.float32)
    lines = np.random.default_rng(0).random((len(TILTS), size), dtype=np.float32)

    def slices(create: Callable, values: np.ndarray) -> Callable:
        def run() -> None:
            for _ in range(SLICES):
                number, _ = create(values, projector)
                astra.data2d.delete(number)
        return run

    matrix = astra.matrix.get(astra.projector.matrix(projector)).tocsr()
    pair = []
    for one in (matrix, matrix.T.tocsr()):
        sparse = torch.sparse_csr_tensor(
            torch.from_numpy(one.indptr).long(), torch.from_numpy(one.indices).long(),
            torch.from_numpy(one.data.astype(np.float32)), one.shape)
        columns = torch.rand(one.shape[1], size)
        pair.append(lambda sparse=sparse, columns=columns: sparse @ columns)
    return {"astra, slice by slice": (slices(astra.create_sino, plane),
                                      slices(astra.create_backprojection, lines)),
            "astra's matrix, sparse": (pair[0], pair[1])}


def floor(size: int) -> tuple[Callable, Callable]:
    """A copy of as many bytes as are read and written."""
    count = (size**3 + len(TILTS) * size**2) // 2
    source, target = torch.rand(count), torch.empty(count)
    return (lambda: target.copy_(source),) * 2


def seconds(run: Callable) -> tuple[float, float]:
    """On the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - processor


def measured(size: int, rounds: int) -> list[dict]:
    """Medians of the rounds [s]."""
    programs = {**ours(size), **astras(size), "floor: memory": floor(size)}
    times: dict = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, pair in programs.items():
            taken = [seconds(run) for run in pair]
            if turn:  # the first compiles
                times[name].append(taken)
    rows = []
    for name, taken in times.items():
        factor = size / SLICES if "slice by slice" in name else 1
        forward, back = factor * np.median(taken, axis=0)
        rows.append({"size": size, "program": name, "projection_s": forward[0],
                     "projection_cpu_s": forward[1], "adjoint_s": back[0],
                     "adjoint_cpu_s": back[1],
                     "ns_per_sample": 1e9 * forward[1] / len(TILTS) / size**3})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    init("cpu", "float32")
    rows = [row for size in arguments.sizes for row in measured(size, arguments.rounds)]
    print("| N | | projection s (CPU s) | adjoint s (CPU s) | CPU ns a sample |\n"
          "| --- | --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['size']} | {row['program']} | {row['projection_s']:.3g} "
              f"({row['projection_cpu_s']:.3g}) | {row['adjoint_s']:.3g} "
              f"({row['adjoint_cpu_s']:.3g}) | {row['ns_per_sample']:.2g} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
