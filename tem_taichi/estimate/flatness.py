"""What speaks against crops being flat: means that differ, slow power, places that differ.

A camera's noise is the same everywhere. What a specimen, a film's holes or an uneven beam add
varies slowly or from place to place, and would pass for a camera of next to no DQE.
"""

import numpy as np
from scipy.special import polygamma

from tem_taichi.estimate.crops import RingSpectrum, without_plane

_MEANS = 0.1
"""Relative spread of the crops' means that drifts of a beam may cause."""
_SLOW, _REFERENCE = 0.02, (0.04, 0.08)
"""Frequencies [cycles/pixel] whose power is compared."""
_EXCESS = 1.8
"""Ratio of power that no camera has: the widest measured point spread, Falcon 2's, gives 1.6."""
_UNEVEN = 1.8
"""Scatter of the local variance over that of noise; what blurred noise has is about 1."""
_BLOCK = 8
"""Edge of the blocks that are averaged [pixel]."""


def doubts_of_flatness(crops: np.ndarray, rings: RingSpectrum) -> tuple[str, ...]:
    """Reasons not to take crops for a camera's noise, one sentence each.

    Args:
        crops: (n, ny, nx) [counts], sides >= 32.
        rings: their spectrum.
    """
    found = []
    means = crops.mean(axis=(1, 2))
    mean, scatter = float(means.mean()), float(crops.std())
    if mean > scatter and np.ptp(means) > _MEANS * mean:
        found.append(f"The crops' means run from {means.min():.4g} to {means.max():.4g} counts: "
                     "they are no flat fields of one exposure, perhaps a tilt series.")
    excess, error = _slow_power(rings)
    if np.log(excess) - 2 * error > np.log(_EXCESS):
        found.append(f"Slow variations have {excess:.3g} times the power of faster ones, which no "
                     "camera's noise has: the crops show ice, a specimen, holes or an uneven beam; "
                     "the NPS and DQE at low frequency are theirs.")
    uneven, error = _local_scatter(crops)
    if uneven > max(_UNEVEN, 1 + 5 * error):
        found.append("Slow variations differ from place to place within the crops, "
                     f"{uneven:.3g} times as much as noise would: they show a specimen or holes; "
                     "cut flat regions, or have them picked (pick=true).")
    return tuple(found)


def _slow_power(rings: RingSpectrum) -> tuple[float, float]:
    """Power of the slowest rings over that of the next ones, and its relative error."""
    slow = rings.w < max(_SLOW, 1.01 * rings.w[0])
    after = (rings.w > _REFERENCE[0]) & (rings.w < _REFERENCE[1]) & ~slow
    if not after.any():
        return 1.0, 0.0
    ratio = (np.average(rings.power[slow], weights=rings.weight[slow])
             / np.average(rings.power[after], weights=rings.weight[after]))
    return float(ratio), float(np.sqrt(1 / rings.weight[slow].sum()
                                       + 1 / rings.weight[after].sum()))


def _local_scatter(crops: np.ndarray) -> tuple[float, float]:
    """Scatter of the tiles' slow variance over that of noise, and the error of noise's."""
    # What pixels share (gain errors) is no structure of a place.
    n = len(crops)
    noise = (crops - crops.mean(axis=0)) if n >= 3 else crops
    side = min(64, min(crops.shape[1:]) // 2 // _BLOCK * _BLOCK)
    if side < 4 * _BLOCK:
        return 1.0, 0.0
    rows, columns = (size // side for size in crops.shape[1:])
    tiles = noise[:, :rows * side, :columns * side].reshape(
        n, rows, side // _BLOCK, _BLOCK, columns, side // _BLOCK, _BLOCK).mean(axis=(3, 6))
    blocks = without_plane(tiles.transpose(0, 1, 3, 2, 4))
    slow = (blocks**2).sum(axis=(-2, -1)).reshape(n, -1)
    # A dead region counts as a thousandth of the rest, so that its logarithm exists.
    logs = np.log(np.maximum(slow, 1e-3 * np.median(slow) + 1e-300))
    degrees = n * (logs.shape[1] - 1)
    expected = float(polygamma(1, ((side // _BLOCK) ** 2 - 3) / 2))
    ratio = ((logs - logs.mean(axis=1, keepdims=True)) ** 2).sum() / degrees / expected
    return float(ratio), float(np.sqrt(2 / degrees))
