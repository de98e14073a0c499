"""Which of several fits of a series' beads is right, where they were followed in other ways.

Beads that are few can be followed wrongly from end to end, so that the fit ends in a minimum that
no error bar by its curvature knows of. Fits from several starts are compared by their probability;
one that is nearly as probable as the best adds what it differs by to the best one's error bars.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from tem_taichi.estimate.bead_alignment import BeadAlignment
from tem_taichi.estimate.bead_tracks import translation, views_of

Array = NDArray[np.float64]

_NATS = 10.0
"""Of logarithms of probabilities that say nothing: finds' errors are not independent."""
_OTHER = 3.0
"""Error bars beyond which another way of following the beads is told of."""


def joined(fits: Sequence[BeadAlignment], scores: Sequence[float]) -> BeadAlignment:
    """The most probable, with error bars that know of the others.

    Args:
        fits: of the same series and kinds, one at least.
        scores: logarithms of their probabilities.
    """
    best, *others = (fits[n] for n in np.argsort(-np.asarray(scores), kind="stable"))
    worse = np.sort(scores)[-2::-1] - max(scores)
    names = [name.removesuffix("_error") for name in best.tilts if name.endswith("_error")]
    alone = {name: best.tilts[f"{name}_error"].to_numpy(float) for name in names}
    table, information = best.tilts.copy(), best.information
    shown = table["beads"].to_numpy() > 1
    doubts = []
    for other, by in zip(others, worse, strict=True):
        share = float(np.exp(by / _NATS))
        off = _off(best, other, names)
        for name in names:
            table[f"{name}_error"] = np.hypot(table[f"{name}_error"], share**0.5 * off[name])
        ways = torch.as_tensor(np.concatenate([
            off[name][:1] if name == "axis_angle" else off[name] for name in names]))
        pull = information @ ways
        information = information - torch.outer(pull, pull) / (1 / share + ways @ pull)
        far = {name: share**0.5 * np.abs(off[name] / alone[name])[shown].max(initial=0.0)
               for name in names}
        if max(far.values()) > _OTHER:
            axis = (f"the axis {off['axis_angle'][0]:+.2f} degrees and " if "axis_angle" in off
                    else "")
            doubts.append(f"Beads can be followed in another way, which is less probable by a "
                          f"factor of exp({-by:.1f}) alone: {axis}shifts up to "
                          f"{max(np.abs(off[name]).max() for name in names[:2]):.0f} A off. The "
                          "error bars include it.")
    return replace(best, tilts=table, information=information,
                   doubts=(*dict.fromkeys(doubts), *best.doubts))


def _off(best: BeadAlignment, other: BeadAlignment, names: Sequence[str]) -> dict[str, Array]:
    """Of the other from the best, but for a move of the whole specimen."""
    off = {name: (other.tilts[name] - best.tilts[name]).to_numpy(float) for name in names}
    if "shift_x" in off:
        steps = np.stack([off["shift_x"], off["shift_y"]], 1)
        off["shift_x"], off["shift_y"] = (steps - translation(views_of(best.tilts), steps)).T
    return off
