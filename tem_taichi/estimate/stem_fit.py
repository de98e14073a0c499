"""A density that explains scanned images, by voxels or by a network, beside a law of noise.

Images are those of `instrument.stem` and of the density's line integrals, or other ones that tell
what they expect of a grid of voxels (`micrographs`); what is minimised is the
mean squared or absolute difference in units of the noise, or minus the log of the probability by a
flow that is learned at the same time (Kniesel et al. 2022). The density is positive; its prior is
total variation, or what a network can say. Images held out tell when to stop.

A specimen that explains the noise and a law that explains the specimen are two ends of one freedom.
Here the law's mean is the clean image by construction (`noise.flow`), it begins after some passes
of least squares, and its rate beside the specimen's is a setting; or specimen and law are found in
turns.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from tem_taichi.checks import check, one_of, whole
from tem_taichi.device import as_tensor, number
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.noise_laws import learn
from tem_taichi.estimate.tomogram import Step
from tem_taichi.estimate.tomogram_fit import noise_of
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.stem import STEM
from tem_taichi.inverse.minimise import Fit, Optimiser, Values, minimise_parts
from tem_taichi.inverse.priors import total_variation
from tem_taichi.noise.flow import Flow, Layers, layers, learned
from tem_taichi.specimen.implicit import PUBLISHED, Implicit, Shape, small, start
from tem_taichi.specimen.rays import Rays, project

_CONE = 0.03
"""Relative change of the beam's convergence in a first step."""
LOSSES = ("l2", "l1", "flow")
_CORNER = 0.01
"""Differences of voxels, in units, that cost their square rather than themselves."""
_RATIO, _MOST = 3.0, 100.0
"""Of strengths of the total variation that are tried one after another, from 1 on, and the largest;
one over it is the least."""
_RATES = {"voxels": 0.2, "implicit": 0.003}
"""Length of a first step of what is learned. With 0.01 networks end where they explain less of the
images held out, and in other places for other first weights."""


class Recorded(Protocol):
    """Images, and what is expected of them."""

    @property
    def counts(self) -> Tensor:
        """(n, ny, nx); not finite = left out."""

    @property
    def rays(self) -> Rays:
        """How they see the grid of voxels."""

    @property
    def exposures(self) -> Sequence[Exposure]:
        """Whose tilts are their order."""

    def some(self, which: Sequence[int]) -> Self:
        """Some of them."""

    def expected(self, volume: Tensor) -> Tensor:
        """Mean counts of what a grid holds, (n, ny, nx); differentiable."""


@dataclass(frozen=True, eq=False)
class Images:
    """Recorded images, and how they were taken; `Recorded`."""

    counts: Tensor
    """(n, ny, nx); not finite = left out."""
    rays: Rays
    """How they see the grid of voxels."""
    exposures: Sequence[Exposure]
    """Tilts, shifts, defoci and doses; dose pixel^2 are the counts of the whole beam."""
    instrument: STEM

    def some(self, which: Sequence[int]) -> "Images":
        """Some of them."""
        rows = list(which)
        return replace(self, counts=self.counts[rows], rays=self.rays.some(rows),
                       exposures=[self.exposures[n] for n in rows])

    def expected(self, volume: Tensor, instrument: STEM | None = None) -> Tensor:
        """Mean counts of a density [1/A] on the grid, (n, ny, nx); differentiable."""
        return self.seen(project(volume, self.rays), instrument)

    def seen(self, parts: Tensor, instrument: STEM | None = None) -> Tensor:
        """Mean counts of line integrals, (n, ny, nx); differentiable."""
        stem = instrument or self.instrument
        passed = torch.exp(-parts)
        area = self.rays.pixel**2
        return torch.stack([stem.recorded(one, exposure) * (as_tensor(exposure.dose) * area)
                            for one, exposure in zip(passed, self.exposures, strict=True)])


@dataclass(frozen=True)
class Plan:
    """How a density is found."""

    specimen: str = "implicit"
    """voxels, or implicit: a network."""
    loss: str = "flow"
    """Of LOSSES."""
    network: Shape | None = None
    """None = `implicit.small` of the grid's longest side."""
    tv: float | None = 0.0
    """Strength of the total variation: what a difference of neighbours by the unit costs [1]; None
    = that which explains the images held out best."""
    passes: int = 60
    """Through all images, at most."""
    batch: int = 8
    """Images a step."""
    rate: float | None = None
    """Of Adam, which falls to 0 by a cosine; None = 0.003 of a network, 0.2 of voxels."""
    warm: int = 20
    """Passes of least squares before a law of noise is learned too."""
    law: tuple[int, int, int] = (4, 4, 16)
    """Layers of the flow that do not know the clean value, that do, and features of the latter."""
    law_steps: int = 300
    """Of the law alone, from what the density leaves of the images, each time that it begins."""
    law_rate: float = 0.5
    """Rate of the law's numbers over that of the specimen's; 0 = the law stays as it is."""
    turns: int = 0
    """How often specimen and law are found by turns instead; 0 = both at once."""
    bounded: bool = False
    """Of implicit: sigmoids from 0 to `unit` rather than softpluses."""
    unit: float | None = None
    """Of the density [1/A], which other images than scanned ones need; None = what takes the
    darkest ray's part along half of the grid."""
    free_cone: bool = False
    """Whether the beam's convergence is found too, from the instrument's on."""
    patience: int = 8
    """Passes without a better explanation of what is held out, after which a fit ends."""
    seed: int = 0
    """Of the network's first weights and of the order of images."""

    def __post_init__(self) -> None:
        one_of("specimen", self.specimen, tuple(_RATES))
        one_of("loss", self.loss, LOSSES)
        for name, least in (("passes", 1), ("batch", 1), ("warm", 0), ("turns", 0),
                            ("patience", 1), ("law_steps", 1)):
            whole(name, getattr(self, name), least, 10**6)
        check(self.tv is None or self.tv >= 0, "tv", self.tv, "at least 0")
        check(self.law_rate >= 0, "law_rate", self.law_rate, "at least 0")


@dataclass(frozen=True, eq=False)
class Found:
    """What was found."""

    volume: Tensor
    """[1/A], (nz, ny, nx)."""
    flow: Flow | None
    """Of loss=flow; in counts, for a pixel of 1 A."""
    network: Implicit | None
    """Of specimen=implicit."""
    steps: int
    held_out: tuple[float, ...] = ()
    """Mean loss of a pixel of the images held out after each pass, of the last loss."""
    tv: float = 0.0
    """Strength of the total variation."""
    cone: float = 0.0
    """Convergence of the beam [mrad]."""


def network_of(name: str, grid: tuple[int, int, int], width: int) -> Shape:
    """A network by its name: small, for a grid's voxels, or published.

    Args:
        name: small or published.
        grid: voxels (nz, ny, nx).
        width: features of a layer of the small one.
    """
    return PUBLISHED if name == "published" else small(max(grid), width)


def unit_of(images: Images) -> float:
    """A density that takes as much along half of the grid as the rays of most matter lose [1/A]."""
    rays, stem = images.rays, images.instrument
    doses = as_tensor([number(one.dose) for one in images.exposures])[:, None, None]
    part = images.counts / (doses * rays.pixel**2) - number(stem.offset)
    part = part[part.isfinite()]
    left = torch.quantile(part[:: max(1, len(part) // 100_000)],
                          0.01 if stem.signal == "bright" else 0.99)
    passed = float(left) if stem.signal == "bright" else 1 - float(left)
    lost = -math.log(min(max(passed, 1e-3), 1 - 1e-4))
    return lost / (rays.voxel * min(rays.grid[0], rays.grid[2], rays.grid[1]) / 2)


class _Task:
    """Images, and what explains them by named numbers."""

    def __init__(self, images: Recorded, plan: Plan) -> None:
        self.images, self.plan = images, plan
        scanned = images if isinstance(images, Images) else None
        if plan.unit is None and scanned is None:
            raise ValueError("unit=None: must be given of images that are not scanned")
        self.unit = plan.unit or (1.0 if scanned is None else unit_of(scanned))
        rays, counts = images.rays, images.counts
        self.network: Implicit | None = None
        if plan.specimen == "implicit":
            size = tuple(rays.voxel * n for n in reversed(rays.grid))
            self.network = start(plan.network or small(max(rays.grid)),
                                 (size[0], size[1], size[2]), self.unit, plan.bounded, plan.seed)
            self.start: Values = self.network.values()
        else:
            # Softplus of -3 is 0.05: next to nothing, and it still moves.
            self.start = {"voxels": as_tensor(torch.full(rays.grid, -3.0))}
        if plan.free_cone:
            cone = 0.0 if scanned is None else number(scanned.instrument.convergence)
            check(cone > 0, "convergence", cone, "above 0 [mrad], where it is to be found")
            self.start["cone"] = as_tensor(math.log(cone))
        filled = torch.where(counts.isfinite(), counts, torch.nanmedian(counts))
        self.sigma = max(float(noise_of(filled).median()), 1e-6 * float(filled.abs().max()), 1e-30)
        some = filled.flatten()[:: max(1, filled.numel() // 100_000)]
        low, high = (float(torch.quantile(some, q)) for q in (0.001, 0.999))
        made = layers(plan.law[0], plan.law[1], plan.law[2], seed=plan.seed)
        self.flow = Flow(1.0, made, self.sigma, low, max(high, low + self.sigma))

    def volume(self, values: Values) -> Tensor:
        """Density on the grid [1/A]."""
        if self.network is not None:
            return self.network.with_values(values).grid(self.images.rays.grid,
                                                         self.images.rays.voxel)
        return self.unit * torch.nn.functional.softplus(values["voxels"])

    def told(self, values: Values) -> Recorded:
        """The images, with what is found of their instrument."""
        images = self.images
        if "cone" not in values:
            return images
        assert isinstance(images, Images)
        return replace(images, instrument=replace(images.instrument,
                                                  convergence=values["cone"].exp()))

    def misfit(self, loss: str, values: Values, which: Sequence[int], volume: Tensor) -> Tensor:
        """Of some images, summed over pixels."""
        images = self.told(values).some(which)
        clean = images.expected(volume)
        if loss == "flow":
            return -self.law(values).log_density(images.counts, clean).sum()
        left = torch.where(images.counts.isfinite(), images.counts - clean, 0.0) / self.sigma
        return left.abs().sum() if loss == "l1" else left.square().sum() / 2

    def law(self, values: Values) -> Flow:
        """The flow at some values."""
        given = {name: values[name] for name in Layers._fields if name in values}
        return learned(self.flow, Layers(**given)) if given else self.flow

    def solve(self, loss: str, values: Values, passes: int, shown: Sequence[int],
              held: Sequence[int], step: Step, kept: Kept, name: str) -> Fit:
        """Values by some passes through the images shown."""
        plan, pixels = self.plan, self.images.counts[0].numel()
        rate = plan.rate or _RATES[plan.specimen]
        total = passes * math.ceil(len(shown) / plan.batch)

        def terms(now: Values, which: Sequence[int]) -> Iterator[Tensor]:
            volume = self.volume(now)
            found = self.misfit(loss, now, which, volume) / (pixels * len(which))
            if plan.tv:
                scale = pixels * len(shown)
                found = found + total_variation(volume / self.unit, 1 / plan.tv, _CORNER) / scale
            yield found

        def judge(now: Values, which: Sequence[int]) -> Iterator[Tensor]:
            yield self.misfit(loss, now, which, self.volume(now)) / (pixels * len(which))

        how = Optimiser("adam", total, rate=rate, betas=(0.9, 0.99), batch=plan.batch,
                        seed=plan.seed, patience=plan.patience, tolerance=1e-6,
                        schedule=lambda n: 0.5 * (1 + math.cos(math.pi * (n - 1) / (total + 1))))
        scales = {part: plan.law_rate for part in Layers._fields if part in values}
        if "cone" in values:  # which may not run ahead of the density that tells it
            scales["cone"] = _CONE / rate
        return minimise_parts(terms, values, list(shown), list(held), optimiser=how, judge=judge,
                              progress=lambda done, *_: step(done, total), scales=scales,
                              state_file=kept.state(f"stem {name}"))


def fitted(images: Recorded, plan: Plan, every: int, step: Step, kept: Kept) -> Found:
    """The density that explains images best.

    Args:
        images: recorded.
        plan: how.
        every: one image of so many, in the order of their tilts, is held out and tells when to
            stop; 0 = none.
        step: called after each step with the number of steps and how many there will be.
        kept: from where an interrupted run goes on.

    Raises:
        ValueError: if images held out are none or all.
    """
    shown, held = split(images, every)
    if plan.tv is None:
        if not held:
            raise ValueError("tv=null: needs held_out, by which the strength is chosen")
        return _by_strength(lambda tv: fitted(images, replace(plan, tv=tv), every, step, Kept(
            kept.folder, f"{kept.about} tv {tv}")))
    task = _Task(images, plan)
    flow = plan.loss == "flow"
    passes = plan.warm if flow else plan.passes
    values, steps, curve = task.start, 0, tuple[float, ...]()
    if passes:
        found = task.solve("l2" if flow else plan.loss, values, passes, shown, held, step, kept,
                           "warm")
        values, steps, curve = found.values, found.steps, found.held_out
    if flow:
        for turn in range(max(1, plan.turns)):
            values = {name: value for name, value in values.items() if name not in Layers._fields}
            task.flow = _taught(task, values, shown)
            if not plan.turns and plan.law_rate > 0:
                values = {**values, **task.flow.layers._asdict()}
            each = max(1, plan.passes // max(1, plan.turns))
            found = task.solve("flow", values, each, shown, held, step, kept, f"joint {turn}")
            values, steps, curve = found.values, steps + found.steps, found.held_out
    with torch.no_grad():
        volume = task.volume(values)
        told = task.told(values)
        cone = number(told.instrument.convergence) if isinstance(told, Images) else 0.0
    network = None if task.network is None else task.network.with_values(values)
    return Found(volume=volume, flow=task.law(values) if flow else None, network=network,
                 steps=steps, held_out=curve, tv=plan.tv, cone=cone)


def _by_strength(fit: Callable[[float], Found]) -> Found:
    """That of the strength of the total variation which explains images held out best.

    Stronger ones are tried while they explain more, or else weaker ones.
    """
    best = fit(1.0)
    for ratio in (_RATIO, 1 / _RATIO):
        while 1 / _MOST < best.tv * ratio < _MOST:
            other = fit(best.tv * ratio)
            if min(other.held_out) >= min(best.held_out):
                break
            best = other
        if best.tv > 1:
            break
    return best


def _taught(task: _Task, values: Values, shown: Sequence[int]) -> Flow:
    """The law of what a density leaves of the images shown; its mean stays the clean image."""
    with torch.no_grad():
        images = task.told(values).some(shown)
        clean = images.expected(task.volume(values))
    return learn(clean, images.counts, made=task.flow.layers, steps=task.plan.law_steps,
                 seed=task.plan.seed)


def split(images: Recorded, every: int) -> tuple[list[int], list[int]]:
    """Numbers of the images that are shown and of those held out.

    Raises:
        ValueError: if there are none on either side.
    """
    if not every:
        return list(range(len(images.counts))), []
    order = np.argsort([number(one.tilt_angle) for one in images.exposures], kind="stable")
    held = sorted(int(n) for n in order[every // 2::every])
    rest = [n for n in range(len(order)) if n not in held]
    if not held or not rest:
        raise ValueError(f"held_out={every}: must leave some of the {len(order)} images on either "
                         "side")
    return rest, held


def explained(images: Images, volume: Tensor, shown: Sequence[int], held: Sequence[int],
              instrument: STEM | None = None, steps: int = 300) -> dict[str, float]:
    """How a density explains images that it was not made from, whatever it was made by.

    The law of noise, a flow, is learned from what it leaves of the images shown; where it explains
    their noise too, that law is narrow, and images held out are improbable.

    Args:
        images: all.
        volume: density [1/A] on their grid.
        shown: numbers of the images that it was made from.
        held: numbers of others.
        instrument: what was found of it; None = the images' own.
        steps: of the law.

    Returns:
        nll, minus the log of the probability density of a held-out pixel [nat]; rms, of what is
        left there, and shown_rms [counts].
    """
    with torch.no_grad():
        clean = images.expected(volume, instrument)
    flow = learn(clean[list(shown)], images.counts[list(shown)], steps=steps)
    hidden, seen = images.counts[list(held)], clean[list(held)]
    with torch.no_grad():
        there = hidden.isfinite()
        nll = -flow.log_density(hidden, seen)[there].mean()

    def rms(rows: Sequence[int]) -> float:
        left = images.counts[list(rows)] - clean[list(rows)]
        return float(left[left.isfinite()].square().mean().sqrt())

    return {"nll": float(nll), "rms": rms(held), "shown_rms": rms(shown)}


