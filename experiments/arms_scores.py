"""F1 of several arms on the same tomograms, and of their ratios, with intervals of 95 %."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.picker_scores import Counted, measures

Runs = Sequence[Sequence[Counted]]
"""By seed, then by tomogram; particles of a tomogram are the same in all."""
NAMES = ("f1", "macro")


def counted_of(row: dict[str, Any]) -> list[Counted]:
    """What a row of results/arms.jsonl says of its tests: kinds, found, false."""
    return [Counted(*(np.array(row[key][n], np.int64) for key in ("kinds", "found", "false")),
                    distances=np.zeros(0)) for n in range(len(row["kinds"]))]


def means(runs: Runs, kinds: int) -> dict[str, float]:
    """`measures` of all tomograms, the mean of the seeds."""
    each = [measures(list(run), kinds) for run in runs]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def paired(arms: Mapping[str, Runs], kinds: int, against: str, rng: np.random.Generator,
           draws: int = 1000) -> dict[str, dict[str, tuple[float, float]]]:
    """Bootstrap intervals of each arm's F1, and of its ratio to that of another.

    Seeds, tomograms and particles are drawn with replacement, the same for all arms, so that what
    they share does not widen the ratios; false picks are as many as Poisson has it.

    Args:
        arms: all of as many seeds and the same tomograms.
        kinds: of particles.
        against: the arm whose F1 the others' are divided by.
        rng: of the draws.
        draws: how many.

    Returns:
        For each arm ends of f1, macro, f1_ratio and macro_ratio.
    """
    drawn: dict[str, list[list[float]]] = {name: [] for name in arms}
    first = arms[against]
    for _ in range(draws):
        seeds = rng.integers(len(first), size=len(first))
        tomograms = rng.integers(len(first[0]), size=len(first[0]))
        particles = [rng.integers(len(one.kinds), size=len(one.kinds))
                     for one in (first[0][t] for t in tomograms)]
        values = {}
        for name, runs in arms.items():
            again = {seed: [_again(runs[seed][t], those, rng) for t, those in
                            zip(tomograms, particles, strict=True)] for seed in set(seeds.tolist())}
            values[name] = means([again[seed] for seed in seeds.tolist()], kinds)
        for name, found in values.items():
            drawn[name].append([
                *(found[of] for of in NAMES),
                *(found[of] / max(values[against][of], 1e-9) for of in NAMES)])
    named = (*NAMES, *(f"{of}_ratio" for of in NAMES))
    ends = {name: np.percentile(rows, (2.5, 97.5), axis=0).T for name, rows in drawn.items()}
    return {name: {of: (float(low), float(high)) for of, (low, high) in
                   zip(named, rows, strict=True)} for name, rows in ends.items()}


def _again(one: Counted, particles: NDArray[np.int64], rng: np.random.Generator) -> Counted:
    count = rng.poisson(len(one.false)) if len(one.false) else 0
    false = one.false[rng.integers(max(len(one.false), 1), size=count)] if count else one.false[:0]
    return Counted(one.kinds[particles], one.found_as[particles], false, one.distances)
