"""Speed, memory and accuracy of the forward model, beside abTEM where that is installed.

Apoferritin (4V1W, 32,736 heavy atoms) on 512^2 pixels in 16 slices of 10 A, 300 kV, 1 um under
focus, Cs 2.7 mm. The programs take turns in one process, so that a machine that slows down slows
them all; first images and peak memory are those of fresh processes with empty kernel caches.
"FFTs" is a floor: the same transforms in bare torch. abTEM has no B-factors: it runs at B = 0.

Run `python experiments/benchmark.py` where tem_taichi is installed, or, from a bare checkout,
`python -m experiments.benchmark`. `pip install abtem==1.0.11` for the comparison.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module, metadata, util
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import gemmi
import numpy as np
import psutil
from scipy import constants

from tem_taichi.files.pdb import find_structure

# torch, Taichi and abTEM are imported where they are used, so that a fresh process of one program
# loads nothing of the other, nor starts at its parent's peak memory, as children do on Linux.

PIXELS, SLICES, DEPTH = 512, 16, 10.0  # of a slice [A]
VOLTAGE, DEFOCUS, SPHERICAL_ABERRATION = 300.0, 1e4, 2.7  # [kV], [A], [mm]
CASES = {  # pixel size [A], and whether atoms have the B-factors of the file
    "B = 0": (1.0, False), "B of the file": (1.0, True), "0.5 A pixels, B of the file": (0.5, True)}
MODULES = {"abTEM": ("abtem", "ase"), "tem_taichi": (
    "tem_taichi.specimen.atoms", "tem_taichi.specimen.potential",
    "tem_taichi.instrument.multislice", "tem_taichi.instrument.optics")}
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "DASK_NUM_WORKERS", "TI_CPU_MAX_NUM_THREADS")
STAGES, WARM_UP = ("potential", "multislice", "image", "whole"), 3
BUSY = 0.1  # of the machine's cores that others may take for a ratio to be given


class Program(NamedTuple):
    """What is timed and compared."""

    stages: tuple[Callable[[Any], Any], ...]  # each of what the stage before gave
    atoms: tuple[Any, ...] = ()  # numbers, B-factors [A^2], positions from the corner [A]
    projected: Callable[[Any], Any] | None = None  # of the slices, their sum, numpy [y, x]
    factor: Callable[[gemmi.Element, Any], Any] | None = None  # [A] at |k|^2 [1/A^2]


def tem_taichi_program(pixel_size: float, b_scale: float, arch: str) -> Program:
    """The program measured."""
    from tem_taichi.device import init
    from tem_taichi.instrument.multislice import multislice
    from tem_taichi.instrument.optics import form_image
    from tem_taichi.specimen.atoms import read_structure
    from tem_taichi.specimen.potential import slice_potential

    init(arch)
    atoms = read_structure("4v1w", hydrogens="file").centred()
    atoms.b_factors.mul_(b_scale)
    return Program((
        lambda _: slice_potential(atoms, (PIXELS, PIXELS), pixel_size, DEPTH, SLICES * DEPTH),
        lambda slices: multislice(slices, pixel_size, DEPTH, VOLTAGE),
        lambda wave: form_image(wave, pixel_size, VOLTAGE, defocus=DEFOCUS,
                                spherical_aberration=SPHERICAL_ABERRATION)),
        (atoms.numbers.cpu().numpy(), atoms.b_factors.double().cpu().numpy(),
         atoms.positions.double().cpu().numpy() + PIXELS // 2 * pixel_size),
        lambda slices: slices.sum(0).cpu().numpy(), lambda element, squared: np.exp(
            np.multiply.outer(squared, np.array(element.c4322.b) / -4)) @ element.c4322.a)


def abtem_program(pixel_size: float, *_: Any) -> Program:
    """Stages of abTEM at its defaults, on the CPU, without B-factors, which it lacks."""
    import abtem
    import ase

    file = gemmi.FlatStructure(gemmi.read_structure(str(find_structure("4v1w"))))
    cell = np.array([PIXELS * pixel_size, PIXELS * pixel_size, SLICES * DEPTH])
    centre = (file.pos.min(axis=0) + file.pos.max(axis=0)) / 2
    atoms = ase.Atoms(np.array(file.elements), file.pos - centre + cell / 2, cell=cell, pbc=True)
    plane_wave = abtem.PlaneWave(energy=VOLTAGE * 1e3, device="cpu")
    ctf = abtem.CTF(energy=VOLTAGE * 1e3, defocus=DEFOCUS, Cs=SPHERICAL_ABERRATION * 1e7)
    lobato = abtem.parametrizations.LobatoParametrization()
    return Program((
        lambda _: abtem.Potential(
            atoms, gpts=PIXELS, slice_thickness=DEPTH, parametrization="lobato",
            projection="infinite", device="cpu").build().compute(progress_bar=False),
        lambda slices: plane_wave.multislice(slices).compute(progress_bar=False),
        lambda wave: wave.apply_ctf(ctf).intensity().compute(progress_bar=False)),
        (atoms.numbers, np.zeros(len(atoms)), atoms.positions),
        lambda slices: slices.array.sum(0).T,
        lambda element, squared: lobato.scattering_factor(element.name)(squared))


def fft_floor(arch: str) -> Program:
    """The FFTs of each stage and nothing else: 16 real pairs, 16 complex pairs, one pair."""
    import torch

    slices = torch.rand(SLICES, PIXELS, PIXELS, device="cuda" if arch == "gpu" else "cpu")
    wave = torch.polar(slices[0], slices[1])

    def complex_pair(_: Any = None) -> None:
        torch.fft.ifft2(torch.fft.fft2(wave, out=wave), out=wave)

    return Program((
        lambda _: [torch.fft.irfft2(torch.fft.rfft2(image), s=image.shape, out=image)
                   for image in slices],
        lambda _: [complex_pair() for _pair in range(SLICES)], complex_pair))


def potential_error(program: Program, pixel_size: float) -> float:
    """Relative L2 error of a program's projected potential inside 2/3 Nyquist.

    Against h^2 / (2 pi m0 e) sum_j f_j(k) exp(-B_j k^2 / 4 - 2 pi i k r_j) in float64, where the
    sum over an element is a matrix product: terms are functions of k_y times functions of k_x.
    """
    index = np.arange(-(PIXELS // 3), PIXELS // 3 + 1)
    ky, kx = index / (PIXELS * pixel_size), index[index >= 0] / (PIXELS * pixel_size)
    squared = ky[:, None] ** 2 + kx**2
    numbers, b_factors, positions = program.atoms
    exact = np.zeros(squared.shape, complex)
    for number in np.unique(numbers).tolist():
        here = numbers == number
        along_x, along_y = (
            np.exp(-2j * np.pi * k * positions[here, axis, None]
                   - b_factors[here, None] / 4 * k**2) for axis, k in ((0, kx), (1, ky)))
        exact += program.factor(gemmi.Element(number), squared) * (along_y.T @ along_x)
    exact *= constants.h**2 / (2 * np.pi * constants.m_e * constants.e) * 1e20
    projected = program.projected(program.stages[0](None)).astype(float)
    difference = np.fft.rfft2(projected)[index][:, :len(kx)] * pixel_size**2 - exact
    weight = np.where(kx > 0, 2, 1) * (squared <= (1 / (3 * pixel_size)) ** 2)  # 2: for -kx too
    return np.sqrt((weight * abs(difference) ** 2).sum() / (weight * abs(exact) ** 2).sum())


def timed(program: Program) -> list[float]:
    """Seconds of each stage and of all together; a GPU, where one is in use, has finished then."""
    clock, result = [time.perf_counter()], None
    for stage in program.stages:
        result = stage(result)
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            sys.modules["torch"].cuda.synchronize()
        clock.append(time.perf_counter())
    return [*np.diff(clock), clock[-1] - clock[0]]


def others(before: tuple[float, float, float] | None = None) -> Any:
    """What to measure from; or since then, the part of all cores that other programs took."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # in user already
    now = (sum(times) - guests - idle, time.process_time(), time.perf_counter())
    if before is None:
        return now
    busy, own, passed = (end - start for end, start in zip(now, before, strict=True))
    return max(busy - own, 0.0) / passed / (os.cpu_count() or 1)


def compare(programs: dict[str, Program], repeats: int) -> dict[str, dict[str, dict]]:
    """By stage and program: seconds, median, and our time over it (of medians, range of pairs).

    No ratio where other programs took more than BUSY of the machine meanwhile.
    """
    runs: dict[str, list] = {name: [] for name in programs}
    begun = others()
    for repeat in range(WARM_UP + repeats):
        for name in list(programs)[::1 if repeat % 2 else -1]:
            runs[name].append(timed(programs[name]))
    result: dict[str, dict[str, dict]] = {stage: {} for stage in STAGES}
    busy = others(begun) > BUSY
    for name in programs:
        for i, stage in enumerate(STAGES):
            ours, theirs = (np.array([run[i] for run in runs[which][WARM_UP:]])
                            for which in ("tem_taichi", name))
            result[stage][name] = {
                "seconds": theirs.tolist(), "median": np.median(theirs)} | ({} if busy else {
                "ratio": np.median(ours) / np.median(theirs),
                "least": (ours / theirs).min(), "greatest": (ours / theirs).max()})
    return result


PROGRAMS = {"tem_taichi": tem_taichi_program, "abTEM": abtem_program}


def first_image(name: str, arch: str, folder: str, begun: float) -> dict[str, float]:
    """Seconds since a process was begun, with kernel caches in a folder, and peak memory [MB]."""
    os.environ.update(TI_OFFLINE_CACHE_FILE_PATH=folder, NUMBA_CACHE_DIR=folder)
    for module in MODULES[name]:
        import_module(module)
    imported = time.time()
    program = PROGRAMS[name](1.0, 0.0, arch)
    ready = time.time()
    image, usage = timed(program)[-1], resource.getrusage(resource.RUSAGE_SELF)
    unit = 1e-6 if sys.platform == "darwin" else 1024e-6  # macOS counts bytes, others KiB
    return {"imports": imported - begun, "start and reading": ready - imported,
            "first image": image, "peak MB": usage.ru_maxrss * unit}


def fresh(name: str, arch: str) -> dict[str, float]:
    """`first_image` of a new process with empty kernel caches."""
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            result = pool.submit(first_image, name, arch, folder, time.time()).result()
        if name == "tem_taichi" and not os.listdir(folder):
            raise RuntimeError("Taichi kept its kernels elsewhere than in the empty folder")
    return result


def machine() -> dict[str, Any]:
    """Where and with what the numbers are measured."""
    import torch

    from tem_taichi.versions import versions

    info = Path("/proc/cpuinfo")
    model = re.search("model name\\s*: (.*)", info.read_text() if info.exists() else "")
    abtem = metadata.version("abtem") if util.find_spec("abtem") else "not installed, left out"
    return {"cpu": model[1] if model else os.uname().machine, "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "versions": versions() | {"abtem": abtem}}


def show(report: dict[str, Any]) -> None:
    """Print what was measured as tables."""
    print(*(f"{key}: {value}" for key, value in report["machine"].items()), sep="\n")
    for name, runs in report["fresh processes"].items():
        print(f"\n{name} in fresh processes [s]:", *(
            f"{key} {np.median([run[key] for run in runs]):.4g}" for key in runs[0]), sep="  ")
    for case, result in report["cases"].items():
        print(f"\n{case} [ms]; our time over theirs (least to greatest pair)")
        for stage, rows in result["times"].items():
            print(f"{stage:12}", *(f"{name} {1e3 * row['median']:6.1f}  " + (
                "{ratio:.2f} ({least:.2f} to {greatest:.2f})  ".format(**row) if "ratio" in row
                else "no ratio: the machine was busy  ") * (name != "tem_taichi")
                for name, row in rows.items()))
        print(f"{'error':12}", *(f"{n} {e:.1e}  " for n, e in result["error"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--repeats", type=int, default=15, help="measurements of each stage (default 15)")
    add("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    add("--arch", choices=("cpu", "gpu"), default="cpu", help="where tem_taichi runs")
    add("--fresh", type=int, default=3, help="fresh processes a program (default 3; 0 skips them)")
    add("--growth", action="store_true",
        help="also the gradient over 16 to 160 slices, 1e3 to 1e6 atoms, 256 to 2048 pixels")
    add("--json", type=Path, metavar="FILE", help="write everything to this file as well")
    add("--device", choices=("cpu", "gpu"),
        help="instead: how near stages come to this device's limits, kept in experiments/results")
    options = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, str(options.threads)))
    if options.device:
        sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it is not there
        import_module("experiments.benchmark_limits").main(options.device, options.repeats)
        return
    names = [name for name in PROGRAMS if util.find_spec(name.lower())]
    load, report = os.getloadavg(), {"cases": {}, "fresh processes": {
        name: [fresh(name, options.arch) for _ in range(options.fresh)]
        for name in names if options.fresh}}
    for case, (pixel_size, b_scale) in CASES.items():
        programs = {name: PROGRAMS[name](pixel_size, b_scale, options.arch) for name in names}
        report["cases"][case] = {
            "error": {name: potential_error(programs[name], pixel_size) for name in names},
            "times": compare(programs | {"FFTs": fft_floor(options.arch)}, options.repeats)}
    show(report := report | {"machine": machine() | {"load before": load, "arch": options.arch}})
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    print("\ngradient of all positions and the defocus, forward included", flush=True)
    gradients = Path(__file__).with_name("benchmark_gradients.py")
    quick = [] if options.growth else ["--quick"]
    subprocess.run([sys.executable, gradients, *quick], check=True)


if __name__ == "__main__":
    main()
