"""A tilt without most of its noise, by itself or with what the other tilts tell of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from tem_taichi.estimate.denoise import Estimate, Strength, best, choose, gains, parts_that_judge
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.recording import Recording
from tem_taichi.estimate.shrinkage import explained

JOINT = ("spectral", "local")
"""Priors for what is left of an image after the part that others explain; "smooth" is one too."""
_SURE = 2.0
"""Standard errors by which an image must be explained better with the others."""


@dataclass(frozen=True, eq=False)
class Tilt:
    """Both estimates of one image, and which of them predicts better what was held out."""

    alone: Estimate
    joint: Estimate
    is_joint: bool
    recording: Recording
    """Of which the chosen one is an estimate."""
    part: Tensor
    """What the other tilts explain of the image [electrons], of mean 0, (ny, nx)."""

    @property
    def chosen(self) -> Estimate:
        """The better one."""
        return self.joint if self.is_joint else self.alone

    @property
    def from_others(self) -> float:
        """Share of the chosen picture's contrast that other tilts contribute."""
        if not self.is_joint:
            return 0.0
        contrast = self.joint.electrons - self.joint.electrons.mean()
        return float((self.part * contrast).sum() / contrast.square().sum().clamp(min=1e-30))


def denoise_tilt(recording: Recording, known: Tensor, priors: Sequence[str],
                 joint_priors: Sequence[str] = JOINT, given: Strength | None = None,
                 kept: tuple[Kept, Kept] | None = None) -> Tilt:
    """Estimate an image with and without what is known of it from others.

    Both are judged by the same parts of its electrons, which neither has seen.

    Args:
        recording: of the image.
        known: of it from others, in any scale, (ny, nx).
        priors: of `denoise.PRIORS`, for the image by itself.
        joint_priors: for the rest that is left by what others explain.
        given: strength of all of them; None = those that predict best.
        kept: what an interrupted run has found, by itself and with the others.
    """
    single, several = kept or (Kept(), Kept())
    informed = replace(recording, known=known)
    alone = choose([best(name, recording, single, given) for name in priors], recording)
    joint = choose([best(name, informed, several, given) for name in joint_priors], informed)
    better = _is_better((joint, informed, several), (alone, recording, single))
    return Tilt(alone, joint, better, informed if better else recording,
                explained(recording.electrons, known))


_Judged = tuple[Estimate, Recording, Kept]


def _is_better(one: _Judged, other: _Judged) -> bool:
    """Whether an estimate surely explains more of the parts held out than another."""
    found = []
    for of, recording, kept in (one, other):
        parts = parts_that_judge(of.name, recording)
        # As `best` has them.
        found.append(np.array(kept.numbers(f"{of.name} {of.strength}", partial(
            gains, of.name, of.strength, recording, parts))[:len(parts)]))
    fewest = min(map(len, found))  # one of total variation
    difference = found[0][:fewest] - found[1][:fewest]
    error = difference.std(ddof=1) / fewest**0.5 if fewest > 1 else 0.0
    return bool(difference.mean() > _SURE * error)
