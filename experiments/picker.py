"""Two judges of a data set: template matching, and a small U-Net that is trained on it.

    python -m tem_taichi.dataset experiments/picker_set.yaml
    python -m experiments.picker picker_set [--other OTHER_SET] [--train 4x400 8x400 8x800]

Both learn from samples for training and are tested on others, of the same set and of another one;
finding and naming are counted as in SHREC 2021. Picks and networks are kept in SET/judges, so that
the command goes on where it ended; table and figure are in results/ and figures/. --only match or
unet.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.feature import peak_local_max

from experiments import matching, unet
from experiments.labelled import Sample, samples
from experiments.picker_scores import (
    Picks,
    Truth,
    count,
    distances,
    intervals,
    measures,
    suppressed,
)
from experiments.runs import RESULTS
from tem_taichi.export.gallery import colour
from tem_taichi.files.io import write_json

FIGURE = Path(__file__).parent / "figures" / "picker.png"
DEGREES, ALIKE = 18.0, 0.85
"""Between rotations, and the correlation from which one template stands for another."""
FINE, COARSE = 96, 64
"""Voxels along a side where templates are matched: small particles and large ones [voxel]."""
LARGE = 9.0
"""Radius from which a particle is a large one [voxel]."""
TAUGHT = 2
"""Samples from which thresholds of template matching are learned."""
FLOOR = 0.2
"""Lowest score of a peak."""
LEAST = 0.1
"""Lowest probability of a peak."""
_EVERY = 0.02
"""Between thresholds that are tried."""


def match(sample: Sample, degrees: float = DEGREES) -> dict[str, Any]:
    """Peaks of each kind's best score: places, kinds, scores; rotations and CPU seconds."""
    begun = time.process_time()
    every = matching.rotations(degrees)
    places, kinds, scores, turns = [], [], [], []
    for number, kind in enumerate(sample.kinds, 1):
        radius = sample.radius[number]
        scene = matching.scene(sample.volume, sample.spread, COARSE if radius > LARGE else FINE)
        ball = (1.2 * radius + 1) / scene.scale
        box = 2 * int(np.ceil(ball)) + 4
        reference = matching.coarser(sample.reference(kind), scene.scale, box)
        seen = matching.turned(matching.evenly(scene, reference), every)
        used = every[matching.different(seen * matching.ball_of(box, ball), ALIKE)]
        best, _ = matching.matched(scene, reference, used, ball)
        peaks = peak_local_max(best.numpy(), min_distance=max(int(radius / scene.scale), 1),
                               threshold_abs=FLOOR, exclude_border=False)
        places.append(peaks * scene.scale)
        kinds.append(np.full(len(peaks), number))
        scores.append(best.numpy()[tuple(peaks.T)])
        turns.append(len(used))
    return {"places": np.concatenate(places), "kinds": np.concatenate(kinds),
            "scores": np.concatenate(scores), "rotations": turns,
            "cpu": time.process_time() - begun}


def chosen(found: dict[str, Any], thresholds: NDArray, radius: NDArray) -> Picks:
    """Peaks above their kinds' thresholds, the surest in relation to theirs first."""
    relative = found["scores"] / thresholds[found["kinds"]]
    above = np.flatnonzero(relative >= 1)
    places, kinds, scores = (found["places"][above], found["kinds"][above], relative[above])
    kept = suppressed(places, kinds, scores, radius)
    return Picks(places[kept], kinds[kept], scores[kept])


def taught(found: Sequence[dict[str, Any]], truths: Sequence[Truth]) -> NDArray:
    """Each kind's threshold of best F1, the others' as they are, in two rounds [from 1]."""
    kinds = len(truths[0].radius) - 1
    thresholds = np.full(kinds + 1, 0.4)
    for _ in range(2):
        for kind in range(1, kinds + 1):
            best = (-1.0, 0.0)
            for value in np.arange(FLOOR, 0.8, _EVERY):
                thresholds[kind] = value
                counted = [count(chosen(one, thresholds, truth.radius), truth)
                           for one, truth in zip(found, truths, strict=True)]
                measured = measures(counted, kinds)
                best = max(best, (measured["f1"] + measured["macro"], value))
            thresholds[kind] = best[1]
    return thresholds


def better(value: Callable[[float], list[Picks]], truths: Sequence[Truth]) -> float:
    """Least probability of a pick that gives the best F1."""
    def f1(least: float) -> float:
        measured = measures([count(one, truth) for one, truth in
                             zip(value(least), truths, strict=True)], len(truths[0].radius) - 1)
        return measured["f1"] + measured["macro"]

    return max((float(least) for least in np.arange(LEAST, 0.95, 0.05)), key=f1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--train", nargs="+", default=["4x400", "8x400", "8x800"])
    parser.add_argument("--test", type=int, default=2)
    parser.add_argument("--more", type=int, default=12, help="on which U-Nets are tested too")
    parser.add_argument("--only", default="match,unet")
    parser.add_argument("--matched", nargs="+", default=["same", "other"],
                        help="in which templates are matched")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = options.folder / "judges"
    kept.mkdir(exist_ok=True)
    nets = [tuple(map(int, one.split("x"))) for one in options.train]
    training = samples(options.folder, "train")[:max(number for number, _ in nets)]
    tests = {"same": samples(options.folder, "validation")[:options.test]}
    if options.other is not None:
        tests["other"] = [*samples(options.other, "train"),
                          *samples(options.other, "validation")][:options.test]
    rows = []
    if "match" in options.only:
        matched = {name: tests[name] for name in options.matched if name in tests}
        rows += judged_matching(training[:TAUGHT], matched, kept)
    if "unet" in options.only:
        more = samples(options.folder, "validation")[:options.more]
        all_tests = tests | ({"more": more} if len(more) > options.test else {})
        for number, steps in nets:
            rows += judged_unet(training[:number], all_tests, steps, kept)
    write_table(rows, training, all_tests if "unet" in options.only else tests)
    draw(tests["same"][0], {row["judge"]: row["picks"][0] for row in rows
                            if row["tested"] == "same"})


def judged_matching(training: list[Sample], tests: dict[str, list[Sample]],
                    kept: Path) -> list[dict[str, Any]]:
    """Rows of template matching, its thresholds taught."""
    found = [remembered(kept, sample) for sample in training]
    thresholds = taught(found, [sample.truth for sample in training])
    rows = []
    for name, tested in tests.items():
        peaks = [remembered(kept, sample) for sample in tested]
        picks = [chosen(one, thresholds, sample.radius)
                 for one, sample in zip(peaks, tested, strict=True)]
        rows.append(row_of("template matching", len(training), name, tested, picks) | {
            "cpu": float(np.mean([one["cpu"] for one in peaks])), "teach": float(
                sum(one["cpu"] for one in found))})
    print(f"rotations {peaks[0]['rotations']}, thresholds {thresholds[1:].round(2)}")
    return rows


def remembered(kept: Path, sample: Sample) -> dict[str, Any]:
    """Peaks of a sample, kept in a file."""
    file = kept / f"{sample.folder.name}.json"
    if not file.is_file():
        found = match(sample)
        write_json(file, {key: value.tolist() if isinstance(value, np.ndarray) else value
                          for key, value in found.items()})
        print(f"{sample.folder.name}: matched in {found['cpu']:.0f} CPU s, "
              f"{found['rotations']} rotations", flush=True)
    found = json.loads(file.read_text())
    return found | {"places": np.array(found["places"]).reshape(-1, 3),
                    "kinds": np.array(found["kinds"], np.int64),
                    "scores": np.array(found["scores"])}


def judged_unet(training: list[Sample], tests: dict[str, list[Sample]], steps: int,
                kept: Path) -> list[dict[str, Any]]:
    """Rows of a network that is trained on so many samples."""
    truths = [sample.truth for sample in training]
    file = kept / f"unet_{len(training)}_{steps}.pt"
    if not file.is_file():
        model, losses, cpu = unet.train([one.volume for one in training], truths, steps)
        torch.save({"model": model.state_dict(), "losses": losses, "cpu": cpu}, file)
        print(f"trained on {len(training)} for {cpu:.0f} CPU s, loss {np.mean(losses[:20]):.2f} "
              f"to {np.mean(losses[-20:]):.2f}", flush=True)
    saved = torch.load(file)
    model = unet.network(len(training[0].kinds))
    model.load_state_dict(saved["model"])
    model.eval()

    def found(tested: Sequence[Sample]) -> list[Picks]:
        return [unet.peaks(unet.probabilities(model, one.volume), LEAST) for one in tested]

    known, radius = found(training[:4]), training[0].radius
    least = better(lambda value: [surer(one, value, radius) for one in known], truths[:4])
    rows = []
    for name, tested in tests.items():
        begun = time.process_time()
        picks = [surer(one, least, radius) for one in found(tested)]
        rows.append(row_of(f"U-Net, {steps} steps", len(training), name, tested, picks) | {
            "cpu": (time.process_time() - begun) / len(tested), "teach": saved["cpu"]})
    return rows


def surer(picks: Picks, least: float, radius: NDArray) -> Picks:
    """Those of a probability of at least so much that no surer one is near."""
    above = picks.scores >= least
    one = Picks(picks.places[above], picks.kinds[above], picks.scores[above])
    kept = suppressed(one.places, one.kinds, one.scores, radius)
    return Picks(one.places[kept], one.kinds[kept], one.scores[kept])


def row_of(judge: str, trained: int, name: str, tested: list[Sample],
           picks: list[Picks]) -> dict[str, Any]:
    """What a judge found in samples."""
    counted = [count(one, sample.truth) for one, sample in zip(picks, tested, strict=True)]
    kinds = len(tested[0].kinds)
    return {"judge": f"{judge}, {trained}", "tested": name, "picks": picks,
            "measures": measures(counted, kinds),
            "intervals": intervals(counted, kinds, np.random.default_rng(0)),
            "each": [round(measures([one], kinds)["f1"], 3) for one in counted],
            "distance": float(np.mean(np.concatenate([one.distances for one in counted])))}


def write_table(rows: list[dict[str, Any]], training: list[Sample],
                tests: dict[str, list[Sample]]) -> None:
    """Write results/picker.md."""
    kinds = training[0].kinds
    lines = ["| judge, samples it learned from | tested on | recall | precision | F1 of finding | "
             "F1 of naming, mean | " + " | ".join(kinds)
             + " | off by, voxels | CPU s to learn | CPU s a tomogram |",
             "| --- " * (9 + len(kinds)) + "|"]
    for row in rows:
        measured, ends = row["measures"], row["intervals"]

        def told(name: str, measured: dict = measured, ends: dict = ends) -> str:
            return f"{measured[name]:.3f} ({ends[name][0]:.3f} to {ends[name][1]:.3f})"

        lines.append(f"| {row['judge']} | {row['tested']} | {measured['recall']:.3f} | "
                     f"{measured['precision']:.3f} | {told('f1')} | {told('macro')} | "
                     + " | ".join(f"{measured[f'f1_{n}']:.3f}"
                                  for n in range(1, len(kinds) + 1))
                     + f" | {row['distance']:.1f} | {row['teach']:.0f} | {row['cpu']:.0f} |")
    lines.append("")
    for name, tested in tests.items():
        lines.append(f"{name}: {len(tested)} samples of "
                     f"{sum(len(one.truth.kinds) for one in tested)} particles, "
                     f"{tested[0].volume.shape[0]}^3 voxels.")
    if "other" in tests:
        found = {name: distances([one.volume for one in training[:2]],
                                 [one.volume for one in tested]) for name, tested in tests.items()}
        lines += [f"Spectra of the {name} set's tomograms differ from those of training by "
                  f"{one['spectrum']:.3f} in log10 of the radial power, values by "
                  f"{one['values']:.3f} deviations." for name, one in found.items()]
    (RESULTS / "picker.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def draw(sample: Sample, picks: dict[str, Picks]) -> None:
    """Picks of each judge over a slab of a tomogram, beside the truth."""
    half, truth = 6, sample.truth
    near_plane = [(np.abs(truth.places[:, 0] - z) <= half).sum() for z in
                  range(len(sample.volume))]
    middle = int(np.clip(np.argmax(near_plane), 2, len(sample.volume) - 3))
    plane = gaussian_filter(sample.volume, 1.0)[middle - 2:middle + 3].mean(axis=0)
    low, high = np.percentile(plane, (1, 99))
    shown = {"tomogram": None, "truth": (truth.places, truth.kinds),
             **{name: (one.places, one.kinds) for name, one in picks.items()}}
    figure = Figure(figsize=(3.2 * len(shown), 3.6), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        axes.imshow(plane, cmap="gray", vmin=low, vmax=high, origin="lower")
        axes.set(xticks=[], yticks=[], title=name)
        if found is None:
            continue
        for number, kind in enumerate(sample.kinds, 1):
            near = (found[1] == number) & (np.abs(found[0][:, 0] - middle) <= half)
            axes.scatter(found[0][near, 2], found[0][near, 1], s=90, facecolors="none",
                         edgecolors=[colour(number)], linewidths=1.5, label=kind)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center",
                  ncols=len(sample.kinds), frameon=False)
    figure.savefig(FIGURE, dpi=80)


if __name__ == "__main__":
    main()
