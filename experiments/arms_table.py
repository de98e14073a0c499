"""The table of experiments.arms."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.arms_scores import Runs, counted_of, means, paired
from experiments.picker_scores import measures

Row = dict[str, Any]
HEAD = ("U-Net learned from", "seeds", "recall", "precision", "F1 of finding",
        "of the benchmark's", "F1 of naming, mean", "of the benchmark's",
        "finding, naming of each seed", "threshold told by the tests' labels",
        "spectra differ by", "CPU s a set", "CPU s to calibrate four series")


def table(rows: Sequence[Row], names: Mapping[str, str], draws: int = 1000) -> str:
    """Markdown of all rows.

    Args:
        rows: of arms and seeds.
        names: of the arms, in their order; of benchmark the others' F1 are parts.
        draws: of the bootstrap.
    """
    by = {(row["arm"], row["seed"]): row for row in rows}
    kinds = max(max(one) for one in rows[0]["kinds"])
    last = max(row["seed"] for row in rows) + 1
    lines = [f"| {' | '.join(HEAD)} |", "| --- " * len(HEAD) + "|"]
    missing = []
    for arm, name in names.items():
        missing += [f"{arm} {seed}" for seed in range(last) if (arm, seed) not in by]
        seeds = [seed for seed in range(last) if (arm, seed) in by and ("benchmark", seed) in by]
        if seeds:
            lines.append(_line(name, [by[arm, seed] for seed in seeds],
                               [by["benchmark", seed] for seed in seeds], kinds, draws))
    tests = rows[0]["kinds"]
    lines += ["", f"Each seed has four samples of its own to learn from and {rows[0]['steps']} "
              f"steps; {len(tests)} tomograms of the hidden microscope with "
              f"{sum(map(len, tests))} particles of {kinds} kinds, 96^3 voxels of 10 A. Brackets: "
              "95 % by bootstrap over seeds, tomograms and particles, the same for an arm and the "
              "benchmark, of the same seeds. CPU s a set: images and tomograms of four samples."]
    lines += _over(by, "twin", "matched", names, kinds, draws)
    if missing:
        lines += ["", f"Not there, of arm and seed: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _over(by: Mapping[tuple[str, int], Row], arm: str, other: str, names: Mapping[str, str],
          kinds: int, draws: int) -> list[str]:
    """A sentence on one arm's F1 over another's, of the seeds that both have."""
    seeds = sorted({seed for _, seed in by if (arm, seed) in by and (other, seed) in by})
    if not seeds:
        return []
    runs: dict[str, Runs] = {one: [counted_of(by[one, seed]) for seed in seeds]
                             for one in (arm, other)}
    ends = paired(runs, kinds, other, np.random.default_rng(0), draws)[arm]
    mine, theirs = (means(runs[one], kinds) for one in (arm, other))
    told = [f"{name} {mine[of] / max(theirs[of], 1e-9):.3f} ({ends[f'{of}_ratio'][0]:.3f} to "
            f"{ends[f'{of}_ratio'][1]:.3f})" for name, of in (("finding", "f1"),
                                                              ("naming", "macro"))]
    return ["", f"F1 from {names[arm]} over that from {names[other]}, of {len(seeds)} seeds: "
            f"{', '.join(told)}."]


def _line(name: str, rows: list[Row], benchmark: list[Row], kinds: int, draws: int) -> str:
    counted: Runs = [counted_of(row) for row in rows]
    same: Runs = [counted_of(row) for row in benchmark]
    one, other = means(counted, kinds), means(same, kinds)
    ends = paired({"benchmark": same, "arm": counted}, kinds, "benchmark",
                  np.random.default_rng(0), draws)["arm"]

    def told(of: str, value: float) -> str:
        return f"{value:.3f} ({ends[of][0]:.3f} to {ends[of][1]:.3f})"

    cells = [name, str(len(rows)), f"{one['recall']:.3f}", f"{one['precision']:.3f}"]
    for of in ("f1", "macro"):
        ratio = told(f"{of}_ratio", one[of] / max(other[of], 1e-9))
        cells += [told(of, one[of]), "" if rows == benchmark else ratio]
    each = [measures(run, kinds) for run in map(list, counted)]
    best = [float(np.mean([row["told"][of] for row in rows])) for of in ("f1", "macro")]
    cells += [", ".join(f"{seed['f1']:.3f} {seed['macro']:.3f}" for seed in each),
              f"{best[0]:.3f} {best[1]:.3f}",
              f"{np.mean([row['apart']['spectrum'] for row in rows]):.3f}",
              f"{np.mean([row['set_cpu'] for row in rows]):.0f}",
              f"{rows[0]['fit_cpu']:.0f}" if rows[0]["fit_cpu"] else ""]
    return f"| {' | '.join(cells)} |"
