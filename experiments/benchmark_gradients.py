"""Time and memory of the gradient of all atom positions and the defocus, and how they grow.

"forward" makes an image from the atoms without recording anything, each atom in one slice.
"gradient" is all that it takes to get d(loss)/d(position of each atom, 3 numbers) and
d(loss)/d(defocus) of the squared contrast: the image once more, recorded, with every atom shared by
two slices so that it may move in z, and the way back. Their ratio is gradient over forward.

Every case runs in a process of its own, whose peak memory is measured. `benchmark.py` prints these
rows too; alone they are

    python experiments/benchmark_gradients.py [--json FILE] [--plot FILE.png] [--quick]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

FIGURE = Path(__file__).parent / "figures" / "gradients.png"

BASE = {"pixels": 512, "slices": 16, "atoms": 0}
"""Apoferritin, 32,736 atoms, in 16 slices of 10 A; atoms = 0 stands for it."""

GROWTH = {
    "slices": [16, 40, 80, 160],
    "atoms": [1_000, 10_000, 100_000, 1_000_000],
    "pixels": [256, 512, 1024, 2048],
}


def measure(pixels: int, slices: int, atoms: int, repeats: int) -> dict[str, float]:
    """Run one case in this process: seconds and megabytes."""
    import resource  # noqa: I001 - tem_taichi comes before torch, whose threads would spin else
    from dataclasses import replace

    import tem_taichi as tt
    import numpy as np
    import torch
    from tem_taichi.device import as_tensor, init
    from tem_taichi.instrument.exposure import Exposure
    from tem_taichi.instrument.tem import TEM
    from tem_taichi.specimen.particles import ParticlesInIce, kind_of
    from tem_taichi.specimen.poses import Poses

    device = init()
    model = tt.read_structure("4v1w").centred()
    if atoms:
        rng = np.random.default_rng(0)
        model = model[torch.as_tensor(rng.integers(0, len(model), atoms))]
        box = [pixels * 0.9, pixels * 0.9, 159.0]
        model = replace(model, positions=as_tensor((rng.random((atoms, 3)) - 0.5) * box))
    model = replace(model, b_factors=torch.zeros_like(model.b_factors))
    pose = Poses(np.zeros((1, 3)), np.eye(3)[None])
    instrument = TEM((pixels, pixels), (pixels, pixels), 1.0, 300.0, 0.0,
                     slice_thickness=160.0 / slices)

    def run(gradient: bool) -> None:
        positions = model.positions.clone().requires_grad_(gradient)
        defocus = as_tensor(1e4).requires_grad_(gradient)
        kind = replace(kind_of(replace(model, positions=positions)), displaced=None)
        with torch.set_grad_enabled(gradient):
            wave, distance = instrument.exit_wave(ParticlesInIce((kind,), (pose,)), Exposure())
            image = tt.form_image(wave, 1.0, 300.0, defocus=defocus + distance)
            if gradient:
                ((image - 1) ** 2).sum().backward()
        if device.arch == "gpu":
            torch.cuda.synchronize()

    def timed(gradient: bool) -> float:
        start = time.perf_counter()
        run(gradient)
        return time.perf_counter() - start

    first = timed(True)
    forward, gradient = (float(np.median([timed(g) for _ in range(repeats)]))
                         for g in (False, True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run(True)
    events = profiler.key_averages()
    ffts = sum(e.self_cpu_time_total for e in events if "_fft_" in e.key)
    return {"first": first, "forward": forward, "gradient": gradient, "memory": peak,
            "ffts": ffts * 1e-6 / gradient}


def in_new_process(case: dict[str, int], repeats: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", json.dumps({**case, "repeats": repeats})]
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True,
                         env=os.environ | {"PYTHONPATH": path})
    return json.loads(out.stdout.splitlines()[-1])


def plot(rows: list[dict], file: Path) -> None:
    from matplotlib.figure import Figure

    sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it is not there
    from experiments.panels import WIDTH, letter, save

    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    panels = figure.subplots(2, 3, sharex="col", sharey="row")
    for (above, below), (name, values) in zip(panels.T, GROWTH.items(), strict=True):
        mine = [row for row in rows if row["varied"] == name]
        at = values[:len(mine)]
        above.loglog(at, [r["gradient"] for r in mine], "o-", markersize=4, label="gradient")
        above.loglog(at, [r["forward"] for r in mine], "s--", markersize=4, label="forward")
        below.semilogx(at, [r["memory"] / 1024 for r in mine], "^:", color="C2", markersize=4)
        below.set_xlabel({"slices": "slices", "atoms": "atoms", "pixels": "pixels a side"}[name])
        below.set_xticks(values, [f"{value:,}" for value in values])
        for ax in (above, below):
            ax.minorticks_off()
            ax.grid(True, alpha=0.3)
            ax.tick_params(labelsize=7)
    panels[0, 0].legend(fontsize=7)
    panels[0, 0].set_ylabel("time [s]")
    panels[1, 0].set(ylabel="peak memory [GB]", ylim=(0, None))
    letter(panels.ravel())
    save(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--plot", type=Path, default=FIGURE, help="PNG of the growth")
    parser.add_argument("--quick", action="store_true", help="only the base case")
    parser.add_argument("--repeats", type=int, default=5, help="of each case, after the first")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # one case, in this process
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(**json.loads(options.case))))
        return
    cases = [("slices", 16)] if options.quick else [
        (name, value) for name, values in GROWTH.items() for value in values]
    print(f"{'case':>18}{'forward ms':>12}{'gradient ms':>13}{'ratio':>7}{'FFTs':>6}"
          f"{'MB':>7}{'first s':>9}")
    rows = []
    for name, value in cases:
        row = in_new_process({**BASE, name: value}, options.repeats)
        rows.append({"varied": name, "value": value, **row})
        print(f"{value:>11,} {name:6}{row['forward'] * 1e3:12.0f}{row['gradient'] * 1e3:13.0f}"
              f"{row['gradient'] / row['forward']:7.2f}{row['ffts']:6.0%}{row['memory']:7.0f}"
              f"{row['first']:9.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if not options.quick:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
