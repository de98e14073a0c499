"""Denoising beside baselines and oracles over dose and number of exposures, on two scenes.

    python -m experiments.denoise [results.jsonl] [--seeds N] [--doses 100,700] [--exposures 1,10]
        [--sampled N] [--seconds N] [--truth FILE.npz] [--show]

Cells that the file has are not computed again, so that an interrupted run goes on; --show makes
table and figure of those that are there. --sampled says for how many seeds the published recipe
and its corrected estimator are run, which take longer than all else.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import tem_taichi as tt
from experiments.panels import WIDTH, letter, save
from experiments.runs import RESULTS, STRUCTURES
from tem_taichi.device import as_tensor
from tem_taichi.estimate.denoise import PRIORS, Estimate, best, choose, sampled
from tem_taichi.estimate.denoise_error import error_map
from tem_taichi.estimate.noise_law import blurred, transfer
from tem_taichi.estimate.recording import Recording, record
from tem_taichi.estimate.shrinkage import gaussian
from tem_taichi.files.io import read_images
from tem_taichi.inverse.measures import affine_rmse, correlation
from tem_taichi.noise.detector import Detector, detect
from tem_taichi.series.camera import detector_of_name

FIGURE = Path(__file__).parent / "figures" / "denoise.png"
REAL = STRUCTURES.parent / "tilt" / "empiar10499_00254_y0-310.mrc"
"""A tilt series; its 21st image is drawn."""
LINES, TABLE = RESULTS / "denoise.jsonl", RESULTS / "denoise.md"
DOSES = (100, 200, 300, 500, 700, 1000, 1500, 2000)  # e-/nm^2 an exposure
EXPOSURES = (1, 2, 5, 10, 25, 50)
PIXEL = 4.0  # A
SCENES = {
    "TMV": ["specimen=tmv", "specimen.ice.granularity=0", "specimen.size=[1000.0,1000.0]"],
    "crowd": ["specimen=crowded"]}
"""Rods in continuous ice, as published, and a crowd in granular ice."""
NAMES = {"average": "average", "surrogate": "surrogate as published", "corrected": "corrected",
         "gaussian": "Gaussian, held out", "oracle_gaussian": "Gaussian, by the truth",
         "wiener": "Wiener", "oracle_wiener": "Wiener, by the truth", "default": "default"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", nargs="?", type=Path, default=LINES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sampled", type=int, default=1)
    parser.add_argument("--doses", default=",".join(map(str, DOSES)))
    parser.add_argument("--exposures", default=",".join(map(str, EXPOSURES)))
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--truth", type=Path, help="where to keep the simulated images")
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    begun = time.monotonic()
    done = {(row["scene"], row["dose"], row["exposures"], row["seed"]): row
            for row in read(given.file)}
    cells = [(seed, name, int(dose), int(count)) for seed in range(given.seeds)
             for dose in given.doses.split(",") for count in given.exposures.split(",")
             for name in SCENES]
    missing = [cell for cell in cells if (*cell[1:], cell[0]) not in done]
    if missing and not given.show:
        images = truths(given.truth)
        for seed, name, dose, count in missing:
            if time.monotonic() - begun > given.seconds:
                break
            row = cell(images[name], camera(name), name, dose, count, seed, seed < given.sampled)
            with open(given.file, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    rows = read(given.file)
    there = {(row["seed"], row["scene"], row["dose"], row["exposures"]) for row in rows}
    print(f"{len(there & {*cells})} of {len(cells)} cells")
    if given.show:
        TABLE.write_text(table(rows), encoding="utf-8")
        save(figure(rows, truths(given.truth)), FIGURE)
        print(table(rows))


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] \
        if file.is_file() else []


def camera(scene: str) -> Detector:
    """As published, Poisson noise that the MTF blurs; and a counting camera."""
    return Detector("integrating", 1.0, (0.7, 0.2, 0.1, 10.0, 40.0)) if scene == "TMV" else \
        detector_of_name("k3_300kv")


def truths(file: Path | None) -> dict[str, Tensor]:
    """Electrons on each pixel of the scenes relative to the beam, without noise or camera."""
    if file is not None and file.is_file():
        with np.load(file) as found:
            return {name: torch.as_tensor(found[name]) for name in SCENES}
    if STRUCTURES.is_dir():
        os.environ.setdefault("TEM_TAICHI_CACHE", str(STRUCTURES))
    images = {}
    for name, words in SCENES.items():
        series = tt.simulate(tt.load_scene(overrides=[
            *words, "shape=[256,256]", f"pixel_size={PIXEL}", "optics.defocus=20000", "dose=1",
            "tilts={scheme: listed, angles: [0]}", "detector=ideal", "force=true"]))
        images[name] = series.noise_free[0].float() / PIXEL**2
    if file is not None:
        np.savez(file, **{name: image.numpy() for name, image in images.items()})
    return images


def cell(truth: Tensor, detector: Detector, scene: str, dose: float, exposures: int, seed: int,
         with_samples: bool) -> dict[str, Any]:
    """Correlation with the truth, as the camera blurs it, of what each method makes of one draw."""
    counts = recorded(truth, detector, dose, exposures, seed)
    recording = record(counts, detector, seed=seed)
    target = blurred(truth * (dose / 100 * exposures * PIXEL**2), recording.law)
    priors = [best(name, recording) for name in PRIORS]
    chosen = choose(priors, recording)
    others = [best(name, recording) for name in ("average", "gaussian", "wiener")]
    if with_samples:
        others += [sampled(name, counts, recording, seed=seed)
                   for name in ("surrogate", "corrected")]
    pictures = {"default": chosen.electrons, **{one.name: one.electrons for one in others},
                **{f"prior {one.name}": one.electrons for one in priors},
                "oracle_gaussian": oracle_gaussian(recording, target),
                "oracle_wiener": oracle_wiener(recording, target)}
    return {"scene": scene, "dose": dose, "exposures": exposures, "seed": seed,
            "prior": chosen.name, "strength": chosen.strength,
            "mean": float(chosen.electrons.mean() / target.mean()),
            "correlation": {name: float(correlation(one, target))
                            for name, one in pictures.items()},
            "rmse": {name: float(affine_rmse(one, target) / target.mean())
                     for name, one in pictures.items()},
            "seconds": sum(one.seconds for one in priors)}


def recorded(truth: Tensor, detector: Detector, dose: float, exposures: int, seed: int) -> Tensor:
    """Counts (n, ny, nx) of exposures of so many electrons a square nanometre."""
    return detect(truth.expand(exposures, -1, -1), pixel_size=PIXEL, dose=dose / 100,
                  detector=detector, seed=seed)


def oracle_gaussian(recording: Recording, truth: Tensor) -> Tensor:
    """Blurred by the width that is best for the truth."""
    widths = 0.3 * 1.12 ** np.arange(40)
    return max((gaussian(recording.electrons, recording.law, float(width)) for width in widths),
               key=lambda one: float(correlation(one, truth)))


def oracle_wiener(recording: Recording, truth: Tensor) -> Tensor:
    """Shrunk by the truth's own power on each ring."""
    ny, nx = truth.shape
    noise = transfer(recording.law, (ny, nx))[1] * truth.mean()
    power = torch.fft.rfft2(truth - truth.mean()).abs().square() / truth.numel()
    w = torch.hypot(torch.fft.fftfreq(ny)[:, None], torch.fft.rfftfreq(nx))
    ring = (w * nx + 0.5).long()
    weight = torch.full((nx // 2 + 1,), 2.0)
    weight[0] = weight[-1] = 1
    number, total = (torch.bincount(ring.flatten(), of.flatten())
                     for of in (weight.expand(ring.shape), weight * power))
    signal = (total / number)[ring].to(power)
    waves = torch.fft.rfft2(recording.electrons - recording.electrons.mean())
    return torch.fft.irfft2(waves * signal / (signal + noise), s=(ny, nx)) + truth.mean()


def closed(row: dict[str, Any]) -> float:
    """Share of the way from one oracle to the other that the default goes."""
    found = row["correlation"]
    return (found["default"] - found["oracle_gaussian"]) / (
        found["oracle_wiener"] - found["oracle_gaussian"])


def table(rows: list[dict[str, Any]]) -> str:
    """Medians over seeds of the correlation with the truth, in Markdown."""
    head = ["scene", "e-/nm^2", "exposures", "seeds", *NAMES.values(), "gap closed", "mean counts"]
    lines = [head, ["---"] * len(head)]
    keys = sorted({(row["scene"], row["dose"] * row["exposures"], row["dose"], row["exposures"])
                   for row in rows})
    for scene, _, dose, count in keys:
        same = [row for row in rows
                if (row["scene"], row["dose"], row["exposures"]) == (scene, dose, count)]
        values = [[row["correlation"][name] for row in same if name in row["correlation"]]
                  for name in NAMES]
        lines.append([scene, f"{dose:g}", f"{count}", f"{len(same)}",
                      *(f"{np.median(of):.3f}" if of else "" for of in values),
                      f"{np.median([closed(row) for row in same]):.1f}",
                      f"{max(abs(row['mean'] - 1) for row in same):.2%}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + verdict(rows)


def verdict(rows: list[dict[str, Any]]) -> str:
    """How often what was aimed for is so."""
    high = [row["correlation"] for row in rows if row["dose"] * row["exposures"] >= 2000]
    low = [row["correlation"] for row in rows if row["dose"] * row["exposures"] < 2000]
    beaten = {name: sum(one["default"] > one[name] for one in high if name in one)
              for name in ("average", "surrogate", "oracle_gaussian")}
    of = {name: sum(name in one for one in high) for name in beaten}
    worse = sum(one["default"] < one["gaussian"] for one in low)
    return ("From 2000 e-/nm^2 in all the default beats " + ", ".join(
        f"the {NAMES[name]} in {beaten[name]} of {of[name]}" for name in beaten)
        + f" cells; below, it is worse than the Gaussian of held-out width in {worse} of {len(low)}"
        f". Mean counts are off by at most {max(abs(row['mean'] - 1) for row in rows):.2%} of those"
        " of the truth.\n")


def figure(rows: list[dict[str, Any]], images: dict[str, Tensor]) -> Figure:
    """Correlation over total dose, pictures at 2000 e-/nm^2, and a tilt of a real series."""
    made = Figure(figsize=(WIDTH, 6.6), layout="constrained")
    axes = made.subplot_mosaic([["a", "a", "b", "b"], ["c", "d", "e", "f"], ["g", "h", "i", "j"],
                                ["k", "l", "m", "n"]], height_ratios=[1.5, 1, 1, 0.55])
    styles = {"average": ":", "surrogate": "x", "gaussian": "--", "oracle_gaussian": "-.",
              "oracle_wiener": "-", "default": "o-"}
    for ax, scene in zip((axes["a"], axes["b"]), SCENES, strict=True):
        for name, style in styles.items():
            found: dict[float, list[float]] = {}
            for row in rows:
                if row["scene"] == scene and name in row["correlation"]:
                    found.setdefault(row["dose"] * row["exposures"], []).append(
                        row["correlation"][name])
            doses = sorted(found)
            ax.plot(doses, [np.median(found[dose]) for dose in doses], style, label=NAMES[name],
                    markersize=3, linewidth=1)
        ax.set(xscale="log", xlabel="total dose [e-/nm$^2$]", ylabel="correlation with the truth",
               ylim=(0, 1), title=scene)
        ax.grid(alpha=0.3)
    made.legend(*axes["a"].get_legend_handles_labels(), loc="outside upper center", ncols=3,
                fontsize=7, frameon=False)
    for places, scene in (("cdef", "TMV"), ("ghij", "crowd")):
        counts = recorded(images[scene], camera(scene), 400, 5, 0)
        recording = record(counts, camera(scene))
        draw(axes, places, {"truth": blurred(images[scene], recording.law),
                            **pictures(recording)[0]})
    if REAL.is_file():
        recording = record(as_tensor(read_images(REAL)[0][20:21]))
        shown, chosen = pictures(recording)
        error = error_map(chosen, recording).values
        draw(axes, "klmn", {**shown, "standard error": error})
    letter([axes[name] for name in "abcgk"])
    return made


def pictures(recording: Recording) -> tuple[dict[str, Tensor], Estimate]:
    """The average, the Gaussian of held-out width and the default; and the default's estimate."""
    chosen = choose([best(name, recording) for name in PRIORS], recording)
    return {"average": recording.electrons,
            "Gaussian, held out": best("gaussian", recording).electrons,
            f"default: {chosen.name}": chosen.electrons}, chosen


def draw(axes: dict[str, Axes], places: str, shown: dict[str, Tensor]) -> None:
    for place, (name, image) in zip(places, shown.items(), strict=True):
        low, high = np.percentile(image.numpy(), (0.5, 99.5))
        axes[place].imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
        axes[place].set_title(name, fontsize=7)
        axes[place].set_axis_off()


if __name__ == "__main__":
    main()
