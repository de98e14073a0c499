"""How near each stage comes to what the device can do: its memory's bandwidth and its FFTs.

Both limits are measured in the same run: a copy of a large array, and torch's transforms of the
same size. A stage that reads and writes so many bytes a pixel cannot take less than they do at that
bandwidth; a slice of multislice cannot take less than its two transforms and the passes between
them. "kernels" are those made for a GPU, "torch" is what a CPU takes; each device runs both.

`python experiments/benchmark.py --device gpu` prints the table and writes
experiments/results/NAME.json, with NAME that of the device; so does `--device cpu`.
"""

import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
SIZES = {"cpu": (512, 1024), "gpu": (512, 1024, 2048, 4096)}
SLICES, ATOMS = 6, 200_000
BYTES = {"transmit": 20, "propagate": 16, "transmit's adjoint": 36, "propagate's adjoint": 16}
"""Read and written for each pixel in single precision, once each."""


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median time of a call; of several at a time, so that a GPU's queue is full."""
    from tem_taichi.device import current

    def finish() -> None:
        if current().arch == "gpu":
            import torch
            torch.cuda.synchronize()

    def timed(calls: int) -> float:
        finish()
        begun = time.perf_counter()
        for _ in range(calls):
            work()
        finish()
        return (time.perf_counter() - begun) / calls

    timed(2)  # kernels are compiled, plans made
    calls = max(1, min(50, int(0.02 / timed(1))))
    return statistics.median(timed(calls) for _ in range(repeats))


def limits(sizes: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Bandwidth [bytes/s] of a copy of 256 MB, and seconds of transforms of each size."""
    import torch

    from tem_taichi.device import current

    place = current().torch_device
    source = torch.zeros(1 << 25, device=place)
    target = torch.empty_like(source)
    copied = seconds(lambda: target.copy_(source), repeats)
    found: dict[str, Any] = {"bandwidth": 8 * source.numel() / copied, "fft": {}, "rfft": {}}
    for n in sizes:
        wave = torch.zeros((n, n), dtype=torch.complex64, device=place)
        image = torch.zeros((n, n), device=place)
        half = torch.fft.rfft2(image)
        found["fft"][n] = seconds(lambda wave=wave: torch.fft.fft2(wave, out=wave), repeats)
        found["rfft"][n] = seconds(lambda image=image, half=half: torch.fft.irfft2(
            torch.fft.rfft2(image, out=half), s=image.shape, out=image), repeats)
    return found


def passes(n: int) -> dict[str, Callable[[], Any]]:
    """Each pass between two transforms, by the kernels or the functions now chosen."""
    import torch

    from tem_taichi.device import as_tensor, current
    from tem_taichi.instrument.passes import (
        Slice,
        Wanted,
        Way,
        room_for,
        transmit,
        transmit_adjoint,
    )

    wave, grad, behind = (torch.ones((n, n), dtype=torch.complex64, device=current().torch_device)
                          for _ in range(3))
    potential = torch.rand((n, n), device=wave.device)
    here = Slice(potential, None, as_tensor([1e-3]), as_tensor([0.0]))
    factor = torch.ones(n, dtype=wave.dtype, device=wave.device)
    way, room = Way(factor, factor), room_for(wave)
    wanted = Wanted(torch.zeros_like(potential), None, None, None)
    return {"transmit": lambda: transmit(wave, here, wave, room),
            "propagate": lambda: way.multiply(wave),
            "transmit's adjoint": lambda: transmit_adjoint(behind, here, grad, wanted, room),
            "propagate's adjoint": lambda: way.multiply_adjoint(grad, grad, None)}


def stages(n: int, limit: dict[str, Any]) -> dict[str, tuple[Callable[[], Any], float]]:
    """Whole stages, each with the seconds below which it cannot be."""
    import torch

    from tem_taichi import multislice
    from tem_taichi.device import as_tensor, current
    from tem_taichi.noise.draws import poisson
    from tem_taichi.specimen.potential import peng_table
    from tem_taichi.specimen.splatting import narrow, splat
    from tem_taichi.streams import Key

    place, pixels = current().torch_device, n * n
    slices = torch.rand((SLICES, n, n), device=place)
    leaf = slices.clone().requires_grad_()
    x, y = (n * torch.rand(ATOMS, device=place) for _ in range(2))
    index = torch.randint(SLICES, (ATOMS,), device=place)
    ones, kind = torch.ones(ATOMS, device=place), torch.full((ATOMS,), 6, device=place)
    table, mean = peng_table(), torch.full((n, n), 20.0, device=place)

    def gradient() -> None:
        torch.autograd.grad(multislice(leaf, 1.0, 10.0, 300.0).real.sum(), leaf)

    def at(per_pixel: float) -> float:
        return per_pixel * pixels / limit["bandwidth"]

    forward = SLICES * (2 * limit["fft"][n] + at(BYTES["transmit"] + BYTES["propagate"]))
    back = SLICES * (2 * limit["fft"][n] + at(sum(BYTES.values()) - 16))
    return {
        f"multislice, {SLICES} slices": (
            lambda: multislice(slices, 1.0, 10.0, 300.0), forward),
        f"its gradient, {SLICES} slices, forward included": (gradient, forward + back),
        f"splat of {ATOMS} atoms": (
            lambda: splat(slices, x, y, index, as_tensor(ones), ones, kind, table),
            at(8 * SLICES)),
        f"narrow, {SLICES} slices": (
            lambda: narrow(slices), SLICES * (limit["rfft"][n] + at(12))),
        "Poisson numbers of mean 20": (lambda: poisson(mean, Key(0, "noise")), at(8)),
    }


def measure(arch: str, sizes: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Limits of a device, and every stage beside them."""
    import torch

    from experiments.benchmark import machine
    from tem_taichi.device import init, kernels_for_a_gpu

    init(arch)
    about = machine()
    limit, rows = limits(sizes, repeats), []

    def add(stage: str, pixels: int, by: str, work: Callable[[], Any], least: float) -> None:
        taken = seconds(work, repeats)
        rows.append({"stage": stage, "pixels": pixels, "by": by, "seconds": taken, "limit": least,
                     "fraction": least / taken})

    for n in sizes:
        for by, taken in (("kernels", True), ("torch", False)):
            with kernels_for_a_gpu(taken), torch.no_grad():
                for name, work in passes(n).items():
                    add(name, n, by, work, BYTES[name] * n * n / limit["bandwidth"])
            with kernels_for_a_gpu(taken):
                for name, (work, least) in stages(n, limit).items():
                    if taken or not name.startswith(("narrow", "Poisson")):
                        add(name, n, by, work, least)
    return {"device": about["gpu"] if arch == "gpu" else about["cpu"], "arch": arch,
            "machine": about, "limits": limit, "rows": rows}


def table(report: dict[str, Any]) -> str:
    """The rows as text."""
    bandwidth = report["limits"]["bandwidth"] / 1e9
    lines = [f"{report['device']} ({report['arch']}); a copy moves {bandwidth:.0f} GB/s",
             f"{'stage':48} {'pixels':>6} {'by':>8} {'ms':>9} {'least ms':>9} {'reached':>8}"]
    lines += [f"{row['stage']:48} {row['pixels']:6} {row['by']:>8} {1e3 * row['seconds']:9.3f} "
              f"{1e3 * row['limit']:9.3f} {row['fraction']:8.0%}" for row in report["rows"]]
    return "\n".join(lines)


def write(report: dict[str, Any], folder: Path) -> Path:
    """Keep a report under its device's name."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", report["device"]).strip("-")
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return file


def main(arch: str = "cpu", repeats: int = 15) -> None:
    """Measure, print and keep."""
    report = measure(arch, SIZES[arch], repeats)
    print(table(report))
    print(f"kept in {write(report, RESULTS)}")


if __name__ == "__main__":
    main()
