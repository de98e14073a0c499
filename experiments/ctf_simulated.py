"""Defocus and astigmatism of simulated micrographs: how far the fit is from the truth.

Micrographs of 2048^2 pixels of 1.35 A at 300 kV: apoferritin in 30 to 60 nm of granular ice, dose
30 e-/A^2, defocus 0.3 to 4 um, astigmatism 0 to 1000 A at all angles. One line of JSON an image
goes to the file, and what is there already is not computed again.

    python -m experiments.ctf_simulated results.jsonl --count 200
    python -m experiments.ctf_simulated results.jsonl --count 0        # only the table
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import tem_taichi as tt
from tem_taichi.fits.ctf_fit import fit_micrograph


def scene_of(number: int) -> tt.Scene:
    """The scene of one micrograph; its number is the seed."""
    rng = np.random.default_rng(number)
    thickness = rng.uniform(300.0, 600.0)
    return tt.load_scene(None, [
        "shape=[2048,2048]", "pixel_size=1.35", "dose=30", f"seed={number}",
        "tilts={scheme: listed, angles: [0]}", f"specimen.ice.thickness={thickness:.0f}",
        "specimen.particles.apoferritin.count=40", "interaction.slice_thickness=100",
        f"optics.defocus={rng.uniform(3000, 40000):.1f}",
        f"optics.astigmatism={rng.uniform(0, 1000):.1f}",
        f"optics.astigmatism_angle={rng.uniform(0, 180):.2f}"])


def measure(number: int) -> dict:
    """Simulate and fit one micrograph."""
    scene = scene_of(number)
    series = tt.simulate(scene)
    start = time.perf_counter()
    fit = fit_micrograph(series.images[0], 1.35, 300.0, 2.7, series.amplitude_contrast)
    truth = scene.optics
    return {
        "number": number, "seconds": time.perf_counter() - start, "defocus": truth.defocus,
        "astigmatism": truth.astigmatism, "angle": truth.astigmatism_angle,
        "thickness": scene.specimen.ice.thickness,
        "error_u": fit.defocus_u - truth.defocus - truth.astigmatism / 2,
        "error_v": fit.defocus_v - truth.defocus + truth.astigmatism / 2,
        "error_angle": (fit.astigmatism_angle - truth.astigmatism_angle + 90) % 180 - 90,
        "reliable": fit.reliable, "doubts": list(fit.doubts), "resolution": fit.resolution}


def show(rows: list[dict]) -> None:
    """The table."""
    worst = np.array([max(abs(r["error_u"]), abs(r["error_v"])) for r in rows])
    mean = np.array([abs(r["error_u"] + r["error_v"]) / 2 for r in rows])
    failed = worst > 300  # an image of another ring, or of none, is off by more
    flagged = np.array([not r["reliable"] for r in rows])
    print(f"{len(rows)} micrographs; defocus: median error {np.median(mean):.1f} A, 95 % within "
          f"{np.quantile(mean, 0.95):.1f} A; U and V: median {np.median(worst):.1f} A; failures "
          f"(beyond 300 A) {failed.sum()}, of them flagged {(failed & flagged).sum()}; flagged in "
          f"all {flagged.sum()}; {np.median([r['seconds'] for r in rows]):.2f} s a fit")
    for row in sorted(rows, key=lambda r: -max(abs(r["error_u"]), abs(r["error_v"])))[:5]:
        print({key: round(value, 2) if isinstance(value, float) else value
               for key, value in row.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="JSON lines")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1, help="to share the work among processes")
    options = parser.parse_args()
    lines = options.file.read_text().splitlines() if options.file.exists() else []
    done = {json.loads(line)["number"] for line in lines}
    for number in range(options.first, options.count, options.step):
        if number not in done:
            with options.file.open("a") as file:
                file.write(json.dumps(measure(number)) + "\n")
    if options.file.exists():
        show([json.loads(line) for line in options.file.read_text().splitlines()])


if __name__ == "__main__":
    main()
