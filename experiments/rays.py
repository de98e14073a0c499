"""Projection of a grid and its adjoint: beside astra's CPU projectors, and the floor of memory.

41 tilts from -60 to 60 degrees of N^3 voxels, single precision, single axis; the programs take
turns in one process. astra (`pip install astra-toolbox==2.5.0`, GPLv3, optional) projects slice by
slice; "sparse" is the matrix of its linear projector, made once, times all slices (by torch). The
floor is the time to read the grid and write the images once, at the speed of a copy. An iteration
of SIRT is beside astra's in the same way, and 20 of them are compared voxel by voxel (of N + 1
voxels along a side, whose middle is a voxel for both).

    python -m experiments.rays [--sizes 64 128 256] [--rounds 3] [--results FILE]

The table is results/rays.md unless another file is given.
"""

import argparse
import time
from collections.abc import Callable
from importlib import util
from pathlib import Path

import numpy as np
import torch

from experiments.runs import RESULTS, machine
from tem_taichi.device import init
from tem_taichi.inverse.tomography import Sirt
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


def sirt(size: int) -> tuple[dict[str, tuple[Callable, Callable]], float]:
    """An iteration of either program, twice, and how far 20 of a plane differ, of the greatest.

    Args:
        size: voxels along a side, less one.
    """
    size, tall = size + 1, size // 8
    rotations = torch.stack([tilt_rotation(float(tilt), 0.0) for tilt in TILTS])
    rays = Rays(rotations, torch.zeros(len(TILTS), 2), (size, tall, size), 1.0, (tall, size), 1.0)
    z, y, x = (torch.arange(n) - n // 2 for n in rays.grid)
    phantom = torch.zeros(rays.grid)
    rng = np.random.default_rng(0)
    for _ in range(30):
        at, radius = rng.uniform(-0.3, 0.3, 3) * rays.grid, rng.uniform(0.02, 0.08) * size
        far = (x - at[2])**2 + (y[:, None] - at[1])**2 + (z[:, None, None] - at[0])**2
        phantom += torch.exp(-far / (2 * radius**2))
    images = project(phantom, rays)
    run = Sirt(images, rays)
    if util.find_spec("astra") is None:
        return {"an iteration of SIRT": (run.step, run.step)}, float("nan")
    import astra

    geometry = astra.create_vol_geom(size, size)
    detector = astra.create_proj_geom("parallel", 1.0, size, np.deg2rad(TILTS))
    lines = images[:, tall // 2].numpy()
    volume = astra.data2d.create("-vol", geometry, 0)
    config = astra.astra_dict("SIRT") | {
        "ProjectorId": astra.create_projector("linear", detector, geometry),
        "ProjectionDataId": astra.data2d.create("-sino", detector, lines),
        "ReconstructionDataId": volume}
    algorithm = astra.algorithm.create(config)
    for _ in range(20):
        run.step()
    astra.algorithm.run(algorithm, 20)
    theirs = astra.data2d.get(volume)[::-1]  # its rows begin at the top
    apart = float(np.abs(run.volume[:, tall // 2].numpy() - theirs).max() / theirs.max())

    def again() -> None:
        astra.algorithm.run(algorithm, SLICES)

    return {"an iteration of SIRT": (run.step, run.step),
            "astra's, slice by slice": (again, again)}, apart


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


def measured(programs: dict[str, tuple[Callable, Callable]], rounds: int, slices: int
             ) -> dict[str, np.ndarray]:
    """Medians of the rounds: of projection and adjoint, on the clock and of the processor [s].

    Args:
        programs: that take turns.
        rounds: after a first one, which compiles.
        slices: for which those that say so are taken by the time of SLICES.
    """
    times: dict = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, pair in programs.items():
            taken = [seconds(run) for run in pair]
            if turn:
                times[name].append(taken)
    return {name: np.median(taken, axis=0) * (
        slices / SLICES if "slice by slice" in name else 1) for name, taken in times.items()}


def table(sizes: list[int], rounds: int) -> str:
    """Markdown."""
    lines = ["| N | | projection s (CPU s) | adjoint s (CPU s) | CPU ns a sample, both | of the "
             "floor |", "| --- | --- | --- | --- | --- | --- |"]
    said = []
    for size in sizes:
        samples = len(TILTS) * size**3 / 1e9
        found = measured({**ours(size), **astras(size), "floor: memory": floor(size)}, rounds, size)
        least = found["floor: memory"][:, 1].sum()
        for name, (forward, back) in found.items():
            lines.append(f"| {size} | {name} | {forward[0]:.3g} ({forward[1]:.3g}) | {back[0]:.3g} "
                         f"({back[1]:.3g}) | {(forward + back)[1] / 2 / samples:.2g} | "
                         f"{(forward + back)[1] / least:.0f} |")
        programs, apart = sirt(size)
        tall = size // 8
        for name, (one, other) in measured(programs, rounds, tall).items():
            clock, used = (one + other) / 2
            lines.append(f"| {size + 1} | {name}, {tall} slices | {clock:.3g} ({used:.3g}) | | "
                         f"{used / 2 / (len(TILTS) * (size + 1)**2 * tall / 1e9):.2g} | |")
        said.append(f"{size + 1}: {100 * apart:.2g} %")
    told = machine()
    return "\n".join(lines) + (
        f"\n\n20 iterations of SIRT differ from astra's, of the greatest voxel, by "
        f"{', '.join(said)}.\n{told['cpu']}, {told['cores']} cores, load {told['load']}; medians "
        f"of {rounds} rounds, turn by turn.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS / "rays.md")
    given = parser.parse_args()
    init("cpu", "float32")
    found = table(given.sizes, given.rounds)
    given.results.write_text(found, encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()
