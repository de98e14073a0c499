"""Which estimate of a picture predicts what it has not seen: priors, baselines, their strengths.

Every method is fitted to all parts of a recording but one, and judged by the likelihood of that
one; what predicts best is applied to the whole recording. No truth and no eye is asked.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tem_taichi.estimate import baselines
from tem_taichi.estimate.edge_prior import fit_edges, picture_of
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.noise_law import blurred
from tem_taichi.estimate.recording import Recording
from tem_taichi.estimate.score_fit import fit_samples
from tem_taichi.estimate.shrinkage import (
    explained,
    gaussian,
    local,
    sharpened,
    smooth,
    spectral,
)

PRIORS = ("smooth", "spectral", "local", "total_variation")
"""The more an estimate adapts to an image the later."""
OTHERS = ("average", "gaussian", "wiener", "nonlocal_means", "wavelets", "topaz", "surrogate",
          "corrected")
"""Beside which a prior is shown: no prior, what everybody does, and a published recipe."""
CHANCE = 3.0
"""Differences of gains that prove nothing: up to odds of twenty to one [nat]."""
_JUDGED = 512
"""Pixels a side at most, in the middle, in which estimates are judged."""
_SLOW = {"total_variation", "nonlocal_means", "wavelets", "topaz"}
"""Judged by one part, fitted to what is judged alone."""
_WIDTHS = (0.0, 2.0, 4.0)
"""Of spectra [coefficients]; 0 = rings."""

Strength = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A picture, by one method."""

    name: str
    strength: Strength
    """Numbers of the method, see `strengths`."""
    electrons: Tensor
    """Of all exposures, blurred as the camera does, (ny, nx)."""
    gain: float | None
    """Log-likelihood of a part that was held out beyond that of an image without contrast; None =
    not known, of what has lost its scale."""
    seconds: float
    steps: int = 0
    """Of "total_variation", after which it explained best what was held out."""
    tried: Mapping[Strength, float] = field(default_factory=dict)
    """That gain by strength."""


def strengths(name: str, recording: Recording) -> list[Strength]:
    """Those from which the data choose.

    Args:
        name: of a method. Of "gaussian" the width [pixel]; of "smooth" the deviation between
            neighbours and of "total_variation" the scale of gradients, relative to the mean; of
            "spectral" the width over which spectra are averaged; of "local" the window [pixel] and
            that width for its first estimate; of "nonlocal_means" and "wavelets" in deviations of
            the noise.
        recording: of the picture.
    """
    deviation = float(recording.electrons.mean()) ** -0.5
    side = min(recording.electrons.shape)
    by_name: dict[str, list[Strength]] = {
        "gaussian": [(0.4 * 1.3**n,) for n in range(16)],
        "smooth": [(deviation * 2.0**n / 64,) for n in range(9)],
        "spectral": [(width,) for width in (*_WIDTHS, 1.0)],
        "local": [(float(window), width) for window in (16, 32, 64) if 2 * window <= side
                  for width in _WIDTHS],
        "total_variation": [(deviation * factor,) for factor in (0.5, 1.0, 2.0)],
        "nonlocal_means": [(0.4,), (0.6,), (0.8,), (1.0,)],
        "wavelets": [(0.8,), (1.0,), (1.3,), (1.7,)]}
    return by_name.get(name, [()])


def estimate(name: str, strength: Strength, electrons: Tensor, recording: Recording,
             keep: bool = True) -> Tensor:
    """A picture by a method that is no iterative fit.

    Of a recording of which something is known this is what that explains of the electrons, and the
    method's estimate of the rest.

    Args:
        name: of the method.
        strength: of it.
        electrons: recorded, all of the recording's or those of some parts, (ny, nx).
        recording: whose law it has.
        keep: whether the camera's blur stays, where the method can divide it out.
    """
    law = recording.law
    if recording.known is not None:
        part = explained(electrons, recording.known)
        rest = estimate(name, strength, electrons - part, replace(recording, known=None), keep)
        return rest + (part if keep else sharpened(part, law))
    if name == "average":
        return electrons
    if name == "wiener":
        return spectral(electrons, law, 0.0, keep)
    if name == "local":
        pilot = spectral(electrons, law, strength[1])
        return local(electrons, law, int(strength[0]), pilot, keep)
    if name == "topaz":
        return baselines.topaz(electrons)
    if name in ("nonlocal_means", "wavelets"):
        method = (baselines.nonlocal_means if name == "nonlocal_means" else baselines.wavelets)
        return method(electrons, law, strength[0])
    shrink = {"gaussian": gaussian, "smooth": smooth, "spectral": spectral}[name]
    return shrink(electrons, law, strength[0], keep)


def judged(recording: Recording) -> tuple[slice, slice]:
    """The middle of an image, in which estimates are judged."""
    starts = [max(0, (n - _JUDGED) // 2) for n in recording.electrons.shape]
    return slice(starts[0], starts[0] + _JUDGED), slice(starts[1], starts[1] + _JUDGED)


def cropped(recording: Recording, where: tuple[slice, slice]) -> Recording:
    """A part of the field."""
    return replace(recording, electrons=recording.electrons[where],
                   parts=recording.parts[(slice(None), *where)])


def gains(name: str, strength: Strength, recording: Recording, folds: Sequence[int]
          ) -> list[float]:
    """Log-likelihood of parts held out, beyond that of an image without contrast.

    Args:
        name: of a method that is no fit of samples.
        strength: of it.
        recording: of the picture.
        folds: numbers of the parts.

    Returns:
        Of each part; followed, of "total_variation", by the steps after which it is the best.
    """
    where = judged(recording)
    middle = cropped(recording, where)
    found, steps = [], []
    for part in folds:
        flat = middle.misfit(part, torch.full_like(middle.electrons,
                                                   float(middle.without(part).mean())))
        if name == "total_variation":
            start = torch.full_like(middle.electrons, float(middle.electrons.mean()))
            fit = fit_edges(middle, strength[0], start, held_out=part)
            found.append(flat - min(fit.held_out))
            steps.append(float(fit.held_out.index(min(fit.held_out))))
        elif name in _SLOW:
            found.append(flat - middle.misfit(part, estimate(name, strength, middle.without(part),
                                                             recording)))
        else:
            seen = estimate(name, strength, recording.without(part), recording)[where]
            found.append(flat - middle.misfit(part, seen))
    return found + steps


def best(name: str, recording: Recording, kept: Kept | None = None,
         given: Strength | None = None, report: Callable[[], None] = lambda: None) -> Estimate:
    """A picture by the strength of a method that predicts best.

    Args:
        name: of a method that is no fit of samples.
        recording: of the picture.
        kept: what an interrupted run has found.
        given: the strength, where the data are not to choose.
        report: called after each strength.
    """
    kept, begun = kept or Kept(), time.perf_counter()
    folds = parts_that_judge(name, recording)
    tried: dict[Strength, float] = {}
    steps: dict[Strength, float] = {}
    for strength in [given] if given else strengths(name, recording):
        numbers = kept.numbers(f"{name} {strength}", partial(gains, name, strength, recording,
                                                             folds))
        tried[strength] = sum(numbers[:len(folds)]) / len(folds)
        steps[strength] = sum(numbers[len(folds):])
        report()
    chosen = max(tried, key=tried.__getitem__)
    picture = kept.picture(f"{name} {chosen} electrons", recording.electrons,
                           lambda: whole(name, chosen, recording, int(steps[chosen])))
    return Estimate(name, chosen, picture, tried[chosen], time.perf_counter() - begun,
                    steps=int(steps[chosen]), tried=tried)


def whole(name: str, strength: Strength, recording: Recording, steps: int = 0,
          keep: bool = True) -> Tensor:
    """A picture by one strength from all electrons.

    Args:
        name: of a method that is no fit of samples.
        strength: of it.
        recording: of the picture.
        steps: of "total_variation": where what was held out was explained best.
        keep: whether the camera's blur stays.
    """
    if name != "total_variation":
        return estimate(name, strength, recording.electrons, recording, keep)
    start = torch.full_like(recording.electrons, float(recording.electrons.mean()))
    picture = start if steps < 1 else picture_of(
        fit_edges(recording, strength[0], start, steps=steps), recording)
    return blurred(picture, recording.law) if keep else picture


def sampled(name: str, counts: Tensor, recording: Recording, kept: Kept | None = None,
            **settings: Any) -> Estimate:
    """A picture by `score_fit`: "surrogate", as published, or "corrected".

    The published one has no scale: it is given the mean of the recording.

    Args:
        name: which.
        counts: (n, ny, nx) exposures.
        recording: of the same.
        kept: what an interrupted run has found.
        settings: of `fit_samples`.
    """
    begun = time.perf_counter()

    def found() -> Tensor:
        picture = fit_samples(counts, recording.law.detector, corrected=name == "corrected",
                              **settings)
        seen = blurred(picture * (len(counts) if name == "corrected" else 1), recording.law)
        return seen if name == "corrected" else seen * (recording.electrons.mean() / seen.mean())

    picture = (kept or Kept()).picture(f"{name} {settings}", recording.electrons, found)
    return Estimate(name, (), picture, None, time.perf_counter() - begun)


def choose(estimates: Sequence[Estimate], recording: Recording) -> Estimate:
    """The prior that predicts best what was held out.

    Of filters that differ by `CHANCE` alone it is the one that adapts most to the image. Where
    nothing is seen the least contrast would be taken for the best otherwise, since it errs least.

    Total variation, whose strength is found by a single part, must be surely better there than the
    best of the others, and then in the mean over all parts that judged that one.
    """
    ranked = sorted((one for one in estimates if one.gain is not None),
                    key=lambda one: -float(one.gain or 0))
    fast = [one for one in ranked if one.name not in _SLOW]
    slow = [one for one in ranked if one.name in _SLOW]
    if not fast:
        return slow[0]
    most = float(fast[0].gain or 0)
    filtered = max((one for one in fast if float(one.gain or 0) >= most - CHANCE),
                   key=lambda one: PRIORS.index(one.name))
    if not slow:
        return filtered
    same, = gains(fast[0].name, fast[0].strength, recording, [0])
    first = float(slow[0].gain or 0)
    if first <= same + CHANCE:
        return filtered
    others = _judges(recording)[1:]
    found = gains(slow[0].name, slow[0].strength, recording, others)[:len(others)]
    return slow[0] if (first + sum(found)) / (1 + len(others)) > most + CHANCE else filtered


def _judges(recording: Recording) -> list[int]:
    """Parts that judge: in large images few tell as much as many in small ones."""
    most = 4 if recording.electrons.numel() <= 2 * 256**2 else 2
    return list(range(min(len(recording.parts), most)))


def parts_that_judge(name: str, recording: Recording) -> list[int]:
    """Numbers of the parts that judge a method.

    Args:
        name: of the method that they judge.
        recording: whose parts they are.
    """
    return [0] if name in _SLOW else _judges(recording)
