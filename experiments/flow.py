"""A learned law of noise beside Gauss's and Poisson's, on noises whose laws are known.

    python -m experiments.flow [--pairs 20000] [--seeds 3] [--zuko]

Pairs of a clean value and a count teach each law, and as many others judge: divergences at eight
levels of the clean value, and how far quantiles are off. `true` is the noise itself, by draws of
its own: what chance alone leaves. `--zuko` adds that package's spline flow, where it is installed,
for the first seed.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.runs import RESULTS
from tem_taichi.device import init
from tem_taichi.estimate.noise_laws import Distance, Distribution, distance, gauss, learn, poisson
from tem_taichi.noise.flow import Flow

FIGURE = RESULTS.parent / "figures" / "flow.png"
Noise = Callable[[np.ndarray, np.random.Generator], np.ndarray]
NOISES: dict[str, Noise] = {
    "Gauss": lambda clean, rng: clean + 4 * rng.standard_normal(clean.shape),
    "Poisson": lambda clean, rng: rng.poisson(clean).astype(float),
    "detector": lambda clean, rng: 2 * rng.gamma(np.maximum(
        rng.poisson(clean / 2), 1e-9)) + rng.standard_normal(clean.shape),
    "skewed": lambda clean, rng: clean + 3 * (rng.gamma(0.5 + clean / 12) - 0.5 - clean / 12)
    + 0.5 * rng.standard_normal(clean.shape),
    "long tails": lambda clean, rng: clean + (1 + clean / 20) * rng.standard_t(3, clean.shape),
}
"""Counts of clean values from 5 to 60; those of `detector` are electrons of random charge behind a
reading noise."""


def pairs(name: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clean values and counts."""
    rng = np.random.default_rng([seed, *name.encode()])
    clean = rng.uniform(5, 60, count)
    return torch.as_tensor(clean).float(), torch.as_tensor(NOISES[name](clean, rng)).float()


def by_draws(name: str, clean: Tensor, noisy: Tensor) -> Distance:
    """The noise against itself: more draws at each level, as a law of steps."""
    def law(counts: Tensor, at: Tensor) -> Tensor:
        rng = np.random.default_rng(99)
        flat = at.reshape(at.shape[0], -1) if at.ndim == 2 else at[:, None]
        drawn = np.sort(NOISES[name](flat[:, :1].double().numpy().repeat(1000, 1), rng), axis=1)
        wanted = counts.reshape(flat.shape).double().numpy()
        ranks = np.stack([(np.searchsorted(row, x, "left") + np.searchsorted(row, x, "right")) / 2
                          for row, x in zip(drawn, wanted, strict=True)])
        return torch.as_tensor(ranks / 1000).reshape(counts.shape)

    return distance(law, clean, noisy)


def zuko_law(clean: Tensor, noisy: Tensor, steps: int) -> Distribution:
    """A neural spline flow of that package, as deep and taught as long."""
    import zuko

    torch.manual_seed(0)
    unit, middle, span = float((noisy - clean).std()), float(clean.mean()), float(clean.std())
    flow = zuko.flows.NSF(1, 1, transforms=2, hidden_features=(16,))
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.01)
    for _ in range(steps):
        rows = torch.randint(len(clean), (8192,))
        known, left = (clean[rows, None] - middle) / span, (noisy - clean)[rows, None] / unit
        loss = -flow(known).log_prob(left).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def law(counts: Tensor, at: Tensor) -> Tensor:
        with torch.no_grad():
            made = flow(((at.float() - middle) / span).reshape(-1, 1)).transform(
                ((counts - at).float() / unit).reshape(-1, 1))
        return torch.special.ndtr(made).reshape(counts.shape)

    return law


def rows_of(name: str, count: int, seed: int, zuko: bool) -> dict[str, tuple[Distance, float]]:
    """Each law's distance and the CPU seconds that it took to learn."""
    clean, noisy = pairs(name, count, seed)
    other, seen = pairs(name, count, seed + 1000)
    laws: dict[str, Callable[[], Distribution]] = {
        "flow": lambda: _plain(learn(clean, noisy, seed=seed)),
        "Gauss": lambda: gauss(clean, noisy).distribution,
        "Poisson": lambda: poisson(clean, noisy).distribution}
    if zuko and seed == 0:
        laws["zuko"] = lambda: zuko_law(clean, noisy, 600)
    found = {}
    for law, make in laws.items():
        begun = time.process_time()
        made = make()
        spent = time.process_time() - begun
        found[law] = (distance(made, other, seen), spent)
    found["true"] = (by_draws(name, other, seen), 0.0)
    return found


def _plain(flow: Flow) -> Distribution:
    def law(counts: Tensor, clean: Tensor) -> Tensor:
        with torch.no_grad():
            return flow.distribution(counts, clean)

    return law


def figure(count: int) -> None:
    """Densities at three levels."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(NOISES), 3, figsize=(9, 2.1 * len(NOISES)))
    for row, name in zip(axes, NOISES, strict=True):
        clean, noisy = pairs(name, count, 0)
        laws: dict[str, Any] = {
            "flow": _plain(learn(clean, noisy)), "Gauss": gauss(clean, noisy).distribution,
            "Poisson": poisson(clean, noisy).distribution}
        for place, level in zip(row, (10.0, 30.0, 55.0), strict=True):
            drawn = NOISES[name](np.full(200000, level), np.random.default_rng(5))
            low, high = np.quantile(drawn, [0.002, 0.998])
            edges = np.linspace(low, high, 61)
            middles, wide = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
            place.fill_between(middles, np.histogram(drawn, edges)[0] / len(drawn) / wide,
                               step="mid", color="0.8")
            for law, colour in (("flow", "C0"), ("Gauss", "C1"), ("Poisson", "C2")):
                at = torch.as_tensor(edges).float()
                below = laws[law](at, torch.full_like(at, level)).numpy()
                place.plot(middles, np.diff(below) / wide, colour, label=law, lw=1.2)
            place.set_title(f"{name} noise of {level:g}", fontsize=9)
            place.tick_params(labelsize=7)
    axes[0, 0].legend(fontsize=7, frameon=False)
    figure.supxlabel("counts", fontsize=9)
    figure.supylabel("density", fontsize=9)
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--zuko", action="store_true")
    given = parser.parse_args()
    init("cpu", "float32")
    lines = ["| noise | law | Jensen-Shannon, bit | 1 - Bhattacharyya | quantiles off by | CPU s |",
             "| --- | --- | --- | --- | --- | --- |"]
    for name in NOISES:
        seeds = [rows_of(name, given.pairs, seed, given.zuko) for seed in range(given.seeds)]
        for law in seeds[0]:
            values = np.array([(one.jensen_shannon, 1 - one.bhattacharyya, one.coverage)
                               for one, _ in (seed[law] for seed in seeds if law in seed)])
            cells = " | ".join(f"{mean:.4f} ± {spread:.4f}" for mean, spread in zip(
                values.mean(0), values.std(0), strict=True))
            spent = np.mean([seed[law][1] for seed in seeds if law in seed])
            lines.append(f"| {name} | {law} | {cells} | {spent:.1f} |")
            print(lines[-1], flush=True)
    (RESULTS / "flow.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    figure(given.pairs)


if __name__ == "__main__":
    main()
