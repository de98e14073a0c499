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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tem_taichi.device import number
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.noise_laws import learn
from tem_taichi.estimate.ray_task import RayTask
from tem_taichi.estimate.stem_task import RATES, Task
from tem_taichi.estimate.stem_task import Along as Along
from tem_taichi.estimate.stem_task import Images as Images
from tem_taichi.estimate.stem_task import Plan as Plan
from tem_taichi.estimate.stem_task import Recorded as Recorded
from tem_taichi.estimate.stem_task import network_of as network_of
from tem_taichi.estimate.stem_task import unit_of as unit_of
from tem_taichi.estimate.tomogram import Step
from tem_taichi.instrument.stem import STEM
from tem_taichi.inverse.minimise import Fit, Optimiser, Values, minimise_parts
from tem_taichi.noise.flow import Flow, Layers
from tem_taichi.specimen.implicit import Implicit

_CONE = 0.03
"""Relative change of the beam's convergence in a first step."""
_AGAIN = 20
"""Steps until the rate is whole again where a law of noise begins: Adam's first ones, before its
means are known, go as far for each number whatever its slope."""
_RATIO, _MOST = 3.0, 100.0
"""Of strengths of the total variation that are tried one after another, from 1 on, and the largest;
one over it is the least."""


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
    task = Task(images, plan) if plan.along is None else RayTask(images, plan, plan.along)
    flow = plan.loss == "flow"
    first = plan.warm if flow else plan.passes
    values, steps, curve = task.start, 0, tuple[float, ...]()
    if first:
        found = _solve(task, "l2" if flow else plan.loss, values, range(first), shown, held, step,
                       kept, "warm")
        values, steps, curve = found.values, found.steps, found.held_out
    if flow:
        for turn in range(max(1, plan.turns)):
            values = {name: value for name, value in values.items() if name not in Layers._fields}
            task.flow = _taught(task, values, shown)
            if not plan.turns and plan.law_rate > 0:
                values = {**values, **task.flow.layers._asdict()}
            each = max(1, plan.passes // max(1, plan.turns))
            begin = first + turn * each
            found = _solve(task, "flow", values, range(begin, begin + each), shown, held, step,
                           kept, f"joint {turn}")
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


def _solve(task: Task, loss: str, values: Values, passes: range, shown: Sequence[int],
           held: Sequence[int], step: Step, kept: Kept, name: str) -> Fit:
    """Values by some of all passes through the images shown.

    The rate falls by one cosine over all: were it to rise again for a law of noise, what has been
    found would be left before the law could tell.
    """
    plan = task.plan
    rate = plan.rate or RATES[plan.specimen]
    parts = task.parts(shown, False)
    each = math.ceil(len(parts) / task.batch)
    total, before = len(passes) * each, passes.start * each
    whole = each * (plan.passes + (plan.warm if plan.loss == "flow" else 0))
    how = Optimiser("adam", total, rate=rate, betas=(0.9, 0.99), batch=task.batch,
                    seed=plan.seed, patience=plan.patience, tolerance=1e-6,
                    schedule=lambda n: (min(1.0, n / _AGAIN) if before else 1.0) * 0.5 * (
                        1 + math.cos(math.pi * (before + n - 1) / (whole + 1))))
    scales = {part: plan.law_rate for part in Layers._fields if part in values}
    if "cone" in values:  # which may not run ahead of the density that tells it
        scales["cone"] = _CONE / rate
    return minimise_parts(
        task.terms(loss, shown), values, list(parts), list(task.parts(held, True)), optimiser=how,
        judge=task.judge(loss), progress=lambda done, *_: step(done, total), scales=scales,
        state_file=kept.state(f"stem {name}"))


def _taught(task: Task, values: Values, shown: Sequence[int]) -> Flow:
    """The law of what a density leaves of the images shown; its mean stays the clean image."""
    with torch.no_grad():
        clean, counts = task.pairs(values, shown)
    return learn(clean, counts, made=task.flow.layers, steps=task.plan.law_steps,
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


