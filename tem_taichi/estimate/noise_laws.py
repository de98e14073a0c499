"""Laws of noise learned from pairs of clean and noisy pixels: flow, Gauss, Poisson; side by side.

Pairs are long and short exposures of the same, or images and what a fit explains of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.inverse.minimise import Optimiser, Values, minimise_parts
from tem_taichi.noise.divergence import bhattacharyya, jensen_shannon
from tem_taichi.noise.flow import Flow, Layers, about, layers, learned
from tem_taichi.streams import Key

Distribution = Callable[[Tensor, Tensor], Tensor]
"""Of counts and clean values of the same shape: probability of less than these counts."""


def learn(clean: Tensor, noisy: Tensor, *, made: Layers | None = None, steps: int = 600,
          rate: float = 0.02, batch: int = 8192, pixel_size: float = 1.0, seed: int = 0,
          state_file: Path | None = None) -> Flow:
    """The flow of greatest likelihood of some pairs; one of ten judges when to end.

    Args:
        clean: mean counts, of any shape.
        noisy: counts, the same shape; those that are not finite are left out.
        made: where it begins; None = `layers` as published, four of eight conditioned.
        steps: at most.
        rate: of Adam.
        batch: pairs a step.
        pixel_size: of the flow [A].
        seed: of the order of the pairs.
        state_file: where an interrupted run goes on.

    Raises:
        ValueError: if the shapes differ or there are fewer than 100 pairs.
    """
    if clean.shape != noisy.shape:
        raise ValueError(f"noisy of shape {tuple(noisy.shape)}: must be clean's, "
                         f"{tuple(clean.shape)}")
    there = noisy.isfinite()
    known, seen = clean[there].detach(), noisy[there].detach()
    if len(known) < 100:
        raise ValueError(f"noisy: has {len(known)} pixels that are finite: must have 100 at least")
    order = torch.as_tensor(Key(seed, "batches").generator().permutation(len(known)))
    known, seen = known[order], seen[order]
    start = about(pixel_size, made or layers(seed=seed), seen, known)
    parts = max(10, math.ceil(len(known) / batch))
    places = [slice(len(known) * n // parts, len(known) * (n + 1) // parts) for n in range(parts)]

    def terms(values: Values, which):  # type: ignore[no-untyped-def]
        flow = learned(start, Layers(**values))
        for n in which:
            yield -flow.log_density(seen[places[n]], known[places[n]]).mean() / len(which)

    held = tuple(range(0, parts, 10))
    found = minimise_parts(
        terms, start.layers._asdict(), [n for n in range(parts) if n not in held], held,
        optimiser=Optimiser("adam", steps, rate=rate, batch=1, seed=seed, patience=15,
                            schedule=lambda n: 0.5 * (1 + math.cos(math.pi * n / (steps + 1)))),
        state_file=state_file)
    return learned(start, Layers(**found.values))


@dataclass(frozen=True)
class GaussLaw:
    """One normal law of all residuals."""

    mean: float
    """Of the residuals [counts]."""
    deviation: float
    """[counts]"""

    def distribution(self, counts: Tensor, clean: Tensor) -> Tensor:
        """See `Distribution`."""
        return torch.special.ndtr((counts - clean - self.mean) / self.deviation)


def gauss(clean: Tensor, noisy: Tensor) -> GaussLaw:
    """That of greatest likelihood; arguments of `learn`."""
    left = (noisy - clean)[noisy.isfinite()].double()
    return GaussLaw(float(left.mean()), float(left.std(correction=0)))


@dataclass(frozen=True)
class PoissonLaw:
    """Whole numbers of electrons of a gain, above an offset."""

    gain: float
    """Counts an electron."""
    offset: float
    """Electrons' mean counts are the clean value and this [counts]."""

    def distribution(self, counts: Tensor, clean: Tensor) -> Tensor:
        """See `Distribution`; linear between whole numbers of electrons."""
        mean = ((clean + self.offset) / self.gain).clamp(min=1e-6).cpu().numpy()
        place = ((counts + self.offset) / self.gain).cpu().numpy() + 0.5
        low = np.floor(place)
        part = place - low
        below, above = (stats.poisson.cdf(low - by, mean) for by in (1, 0))
        return as_tensor(np.asarray((1 - part) * below + part * above))


def poisson(clean: Tensor, noisy: Tensor) -> PoissonLaw:
    """Gain and offset of greatest likelihood, by Poisson's law between whole numbers too.

    Arguments of `learn`.
    """
    there = noisy.isfinite()
    known, seen = (field[there].double().cpu().numpy() for field in (clean, noisy))
    variance = float((seen - known).var())
    least = max(-known.min(), -seen.min(), 0.0)

    def misfit(free: np.ndarray) -> float:
        gain, offset = math.exp(free[0]), least + math.exp(free[1])
        mean, drawn = (known + offset) / gain, (seen + offset) / gain
        return float((mean - drawn * np.log(mean) + _log_gamma(drawn + 1)).mean()
                     + math.log(gain))

    span = max(float(known.mean()) + least, variance**0.5)
    found = optimize.minimize(misfit, [math.log(variance / span), math.log(0.01 * span)],
                              method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-9})
    return PoissonLaw(math.exp(found.x[0]), least + math.exp(found.x[1]))


def _log_gamma(x: np.ndarray) -> np.ndarray:
    from scipy.special import gammaln

    return np.asarray(gammaln(x))


@dataclass(frozen=True)
class Distance:
    """How far a law is from pairs."""

    jensen_shannon: float
    """[bit]"""
    bhattacharyya: float
    """Coefficient [1]."""
    coverage: float
    """Largest difference of the part of the pairs below a quantile from what it should be [1]."""


def distance(law: Distribution, clean: Tensor, noisy: Tensor, levels: int = 8, bins: int = 40
             ) -> Distance:
    """A law against pairs that it was not learned from, at some levels of the clean value.

    Divergences are means over levels of as many pairs each, of bins of the residual between its
    least and largest thousandth. Of n pairs a level, chance alone makes the divergence of the right
    law about bins / (8 n log 2).

    Args:
        law: its `distribution`.
        clean: mean counts.
        noisy: counts, the same shape.
        levels: of clean values.
        bins: of residuals.
    """
    there = noisy.isfinite()
    known, seen = clean[there], noisy[there]
    order = torch.argsort(known)
    total: list[tuple[float, float]] = []
    for rows in torch.tensor_split(order, levels):
        here, left = known[rows], (seen - known)[rows]
        ends = torch.quantile(left[:1_000_000], as_tensor([0.001, 0.999]))
        edges = torch.linspace(float(ends[0]), float(ends[1]), bins + 1, dtype=left.dtype)
        inside = (left >= edges[0]) & (left < edges[-1])
        counts = torch.histogram(left[inside].double().cpu(), edges.double().cpu()).hist
        # The law's own probability of each bin: its mean over the clean values of the level.
        some = here[::max(1, len(here) // 200)]
        grid = (some[:, None] + edges).to(known)
        below = law(grid, some[:, None].expand_as(grid)).double()
        masses = below.diff(dim=1).mean(0).clamp(min=0).cpu()
        if not float(masses.sum()) > 0:
            total.append((1.0, 0.0))
            continue
        total.append((float(jensen_shannon(counts, masses)), float(bhattacharyya(counts, masses))))
    ranks = law(seen, known).double().sort().values.cpu()
    should = (torch.arange(len(ranks), dtype=torch.float64) + 0.5) / len(ranks)
    divergence, coefficient = np.mean(total, axis=0)
    return Distance(float(divergence), float(coefficient), float((ranks - should).abs().max()))
