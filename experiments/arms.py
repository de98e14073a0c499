"""Which simulated data a picker learns best from, for a microscope that nobody has told of.

    TEM_TAICHI_CACHE=../shared/data/atoms python -m experiments.arms FOLDER [--seeds 3] [--arms ...]

A hidden microscope (arms_hidden.yaml) plays the real one. Small U-Nets learn from labelled
tomograms of the same particles as six arms show them, and find and name particles in tomograms of
the hidden microscope: recorded by itself, the benchmark; by its twin, calibrated by recipe=twin;
in its style, recipe=style; with noise of its spectrum; with its white noise; without noise. All but
the benchmark know of it unlabelled series alone, which nothing else uses. FOLDER keeps what is
done; rows are in results/arms.jsonl, the table in results/arms.md. --table makes it from the rows.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from experiments import arms_sets, unet
from experiments.arms_figure import draw
from experiments.arms_scores import counted_of
from experiments.arms_sets import Content, Stack
from experiments.arms_table import table
from experiments.picker import LEAST, better, surer
from experiments.picker_scores import Picks, Truth, count, distances, measures
from experiments.runs import RESULTS, add_row, machine, rows_of
from tem_taichi.files.io import write_json
from tem_taichi.files.mrc import read_image_stack
from tem_taichi.scene.dataset import scene_of
from tem_taichi.scene.load import load_scene
from tem_taichi.scene.settings import Scene

ARMS = {"benchmark": "the hidden microscope itself", "twin": "calibrated twin",
        "bare": "twin without its gold",
        "style": "style (FakET)", "matched": "noise of its spectrum", "white": "white Gaussian",
        "clean": "no noise"}
SIMULATED = ("benchmark", "twin", "bare")
"""Arms whose images are simulated with all that is known; others begin with clean ones."""
TRAINED, TESTED, TESTS_FROM = 4, 6, 500
STEPS, PATCH = 500, 32


@dataclass(frozen=True)
class Sample:
    """A tomogram of an arm, as its U-Net sees it."""

    volume: Stack
    truth: Truth
    image: Stack
    """Of the least tilt."""
    cpu: float
    """Seconds of images and tomogram, without labels and what the unlabelled series took."""


def series_of(folder: Path, number: int) -> Path:
    """Folder of an unlabelled series with its twin; costs.json has CPU seconds of both."""
    place = folder / f"series_{number}"
    if not (place / "costs.json").is_file():
        recorded = arms_sets.wide_series(place, number)
        _, fitted = arms_sets.calibrated(place)
        write_json(place / "costs.json", {"recorded": recorded, "calibrated": fitted})
    return place


def twin_for(folder: Path, number: int) -> Scene:
    """The twin of the series of a number, or of the next one whose recipe finds that it runs."""
    places = [series_of(folder, (number + n) % TRAINED) for n in range(TRAINED)]
    for place in places:
        said = json.loads((place / "twin" / "results.json").read_text())["warnings"]
        if not any("does not run" in line for line in said):
            return load_scene(place / "twin" / "twin.yaml")
    raise ValueError(f"{folder}: no series has a twin that runs")


def fitted_in(folder: Path, arm: str) -> float:
    """CPU seconds that it took to calibrate an arm, by all series."""
    costs = [json.loads((series_of(folder, n) / "costs.json").read_text()) for n in range(TRAINED)]
    return sum(one["calibrated"] for one in costs) if arm in ("twin", "bare") else 0.0


def made(folder: Path, arm: str, one: Content, clean: tuple[Stack, pd.DataFrame] | None
         ) -> tuple[Stack, pd.DataFrame]:
    """Images of a content as an arm shows it."""
    if arm == "benchmark":
        images, _, tilts = arms_sets.recorded(one.seen(scene_of(arms_sets.hidden(), one.number)))
        return images, tilts
    if arm == "clean" and clean is not None:
        return clean
    place = series_of(folder, one.number % TRAINED)
    if arm in ("twin", "bare"):
        twin = arms_sets.twin_of(one, twin_for(folder, one.number), gold=arm == "twin")
        images, _, tilts = arms_sets.recorded(twin)
        return images, tilts
    assert clean is not None
    if arm == "matched":
        real, _ = read_image_stack(place / "tilt_series.mrc")
        angles = pd.read_csv(place / "stated.csv")["tilt_angle"].to_numpy()
        return arms_sets.matched(*clean, real, angles, np.random.default_rng(one.number)), clean[1]
    return arms_sets.in_style(*clean, place, one.number, int(arm == "style")), clean[1]


def samples_of(folder: Path, arms: Sequence[str], number: int) -> dict[str, Sample]:
    """A content as arms show it, kept in files."""
    files = {arm: folder / arm / f"{number}.npz" for arm in arms}
    if not all(file.is_file() for file in files.values()):
        begun = time.process_time()
        one = arms_sets.content(number)
        clean, shared = None, 0.0
        if set(arms) - set(SIMULATED):
            simulated = time.process_time()
            _, images, tilts = arms_sets.recorded(one.plain)
            clean, shared = (images, tilts), time.process_time() - simulated
        for arm, file in files.items():
            if not file.is_file():
                series_of(folder, number % TRAINED)  # before the clock of the sample
                _keep(file, arm, one, shared, lambda arm=arm: made(folder, arm, one, clean))
        print(f"sample {number}: {time.process_time() - begun:.0f} CPU s", flush=True)
    return {arm: _kept(file) for arm, file in files.items()}


def _keep(file: Path, arm: str, one: Content, shared: float,
          make: Callable[[], tuple[Stack, pd.DataFrame]]) -> None:
    begun = time.process_time()
    images, tilts = make()
    middle = int(np.abs(tilts["tilt_angle"].to_numpy()).argmin())
    volume = arms_sets.tomogram(images, tilts)
    cpu = time.process_time() - begun + (0.0 if arm in SIMULATED else shared)
    truth = one.truth
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npz")
    np.savez(part, volume=volume.astype(np.float32), image=images[middle], cpu=cpu,
             places=truth.places, kinds=truth.kinds, instances=truth.instances.astype(np.int16),
             radius=truth.radius)
    part.replace(file)


def _kept(file: Path) -> Sample:
    with np.load(file) as kept:
        truth = Truth(kept["places"], kept["kinds"], kept["instances"].astype(np.int32),
                      kept["radius"])
        return Sample(kept["volume"], truth, kept["image"], float(kept["cpu"]))


def judged(training: list[Sample], tests: list[Sample], seed: int, steps: int
           ) -> dict[str, Any]:
    """What a U-Net finds in tests that has learned from samples.

    Returns:
        least, the probability from which a peak counts, chosen on what it has learned from; what
        each particle was found as and kinds of false picks of each test; the best measures that
        another least, chosen by the tests' labels, would have given; CPU seconds to learn.
    """
    truths, radius = [one.truth for one in training], training[0].truth.radius
    model, losses, cpu = unet.train([one.volume for one in training], truths, steps, seed, PATCH)

    def found(some: list[Sample]) -> list[Picks]:
        return [unet.peaks(unet.probabilities(model, one.volume), LEAST) for one in some]

    def at(peaks: list[Picks], least: float) -> list[Picks]:
        return [surer(one, least, radius) for one in peaks]

    known, seen = found(training), found(tests)
    wanted = [one.truth for one in tests]
    least = better(lambda value: at(known, value), truths)
    told = better(lambda value: at(seen, value), wanted)
    counted, best = ([count(one, truth) for one, truth in zip(at(seen, value), wanted, strict=True)]
                     for value in (least, told))
    return {"least": least, "found": [one.found_as.tolist() for one in counted],
            "false": [one.false.tolist() for one in counted],
            "kinds": [one.kinds.tolist() for one in counted],
            "told": {"least": told, **measures(best, len(radius) - 1)},
            "losses": [float(np.mean(losses[:20])), float(np.mean(losses[-20:]))], "learn_cpu": cpu}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--tests", type=int, default=TESTED)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--results", type=Path, default=RESULTS / "arms.jsonl")
    parser.add_argument("--table", action="store_true", help="from the rows alone")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="monai")
    if not chosen.table:
        run(folder, chosen.seeds, chosen.arms, chosen.tests, chosen.steps, chosen.results)
        draw({arm: _kept(folder / arm / "0.npz") for arm in ARMS
              if (folder / arm / "0.npz").is_file()}, ARMS)
    text = table(rows_of(chosen.results), ARMS)
    chosen.results.with_suffix(".md").write_text(text)
    print(text)


def run(folder: Path, seeds: int, arms: Sequence[str], tests: int, steps: int, results: Path
        ) -> None:
    """Every arm of every seed that has no row yet; all arms of a seed, then the next one.

    Samples of a seed are made at once for these and the arms that begin with clean images.
    """
    done = {(row["arm"], row["seed"], row["steps"]) for row in rows_of(results)}
    tested = [samples_of(folder, ["benchmark"], TESTS_FROM + n)["benchmark"] for n in range(tests)]
    for seed in range(seeds):
        left = [arm for arm in arms if (arm, seed, steps) not in done]
        if not left:
            continue
        shown = [arm for arm in ARMS if arm in arms or arm not in SIMULATED]
        made = [samples_of(folder, shown, seed * TRAINED + n) for n in range(TRAINED)]
        for arm in left:
            training = [one[arm] for one in made]
            row = judged(training, tested, seed, steps)
            apart = distances([one.volume for one in training], [one.volume for one in tested])
            add_row(results, {"arm": arm, "seed": seed, "steps": steps, **row,
                              "set_cpu": sum(one.cpu for one in training),
                              "fit_cpu": fitted_in(folder, arm),
                              "apart": apart, **machine()})
            found = measures(counted_of(row), len(training[0].truth.radius) - 1)
            print(arm, seed, f"F1 {found['f1']:.3f} naming {found['macro']:.3f}, told "
                  f"{row['told']['f1']:.3f} {row['told']['macro']:.3f}, least {row['least']:.2f}, "
                  f"loss {row['losses'][1]:.2f}, {row['learn_cpu']:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
