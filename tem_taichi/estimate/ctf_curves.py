"""Averages of a spectrum along lines of equal phase, and what they say of a fit."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tem_taichi.estimate import ctf_model
from tem_taichi.estimate.ctf_model import Basis, Elements, Lens, Rings
from tem_taichi.instrument.optics import round_phase

_FOLLOWED = 0.5  # correlation of rings and model below which they part
_LEAST = 4  # points to each side over which it is taken


@dataclass(frozen=True)
class CtfCurves:
    """Averages along lines of equal phase, over the frequency that the mean defocus gives it.

    All are relative to the fitted mean M(k) between background and peaks.
    """

    frequency: np.ndarray
    """[1/A], (n,)"""
    data: np.ndarray
    """Measured power, (n,)."""
    model: np.ndarray
    """Fitted power, (n,)."""
    background: np.ndarray
    """Fitted power where the CTF is zero, (n,)."""
    correlation: np.ndarray
    """Of data and model over about one ring, (n,)."""
    error: np.ndarray
    """Standard error of the data, (n,)."""


def equal_phase_curves(elements: Elements, rings: Rings, lens: Lens, basis: Basis,
                       width: float, noise: float) -> CtfCurves:
    """Average a spectrum over points of equal phase chi, in rings of a width [1/A].

    `noise` is the variance of power over model, times the elements that share their noise.
    """
    mean, contrast = ctf_model.curves(elements, rings, basis)
    model = ctf_model.relative_power(elements, rings, lens, basis)
    same = _equivalent(elements, rings, lens)
    index = ((same - basis.lowest) / width).round().long().clamp(min=0)

    def averaged(values: Tensor) -> Tensor:
        total = values.new_zeros(int(index.max()) + 1).index_add(0, index, elements.weight * values)
        return total[kept] / count[kept]

    count = same.new_zeros(int(index.max()) + 1).index_add(0, index, elements.weight)
    kept = count > 8
    k, data, fitted, background = (x.double().cpu().numpy() for x in (
        averaged(same), averaged(elements.power / mean), averaged(model), averaged(1 - contrast)))
    window = np.maximum(half_period(k, rings, lens), _LEAST * width)
    return CtfCurves(frequency=k, data=data, model=fitted, background=background,
                     correlation=_correlation(k, data, fitted, window),
                     error=np.sqrt(noise / count[kept].double().cpu().numpy()))


def resolution(curves: CtfCurves) -> float:
    """Where the correlation first stays below 0.5 [A]; inf if it never was above."""
    followed = curves.correlation > _FOLLOWED
    if not followed.any():
        return math.inf
    first = int(followed.argmax())
    if curves.frequency[first] > 0.5 * curves.frequency[-1]:
        return math.inf
    lost = np.flatnonzero(~followed[first:])
    last = first + int(lost[0]) - 1 if len(lost) else len(followed) - 1
    return float(1 / curves.frequency[last])


def explained(curves: CtfCurves, resolution: float) -> float:
    """Part of the variance of the data up to a resolution [A], without its noise, explained."""
    seen = curves.frequency <= 1 / resolution
    if seen.sum() < 2:
        return 0.0
    noise = float(np.mean(curves.error[seen] ** 2))
    left = max(float(np.var((curves.data - curves.model)[seen])) - noise, 0.0)
    return 1 - left / max(float(np.var(curves.data[seen])) - noise, noise, 1e-30)


def half_period(k: np.ndarray, rings: Rings, lens: Lens) -> np.ndarray:
    """Distance [1/A] from a ring to the next dark one at the frequencies k, mean defocus."""
    slope = 2 * math.pi * lens.wavelength * k * np.abs(
        lens.spherical_aberration * lens.wavelength**2 * k**2 - _defocus(rings))
    return math.pi / 2 / np.maximum(slope, 1.0)


def half_rings(k: np.ndarray, rings: Rings, lens: Lens) -> float:
    """Number of half periods between the lowest and highest of the frequencies k."""
    chi = round_phase(k**2, _defocus(rings), lens.spherical_aberration, lens.wavelength)
    return float(np.ptp(chi) / (math.pi / 2)) if len(chi) else 0.0


def equal_phase(q: Tensor, defocus: Tensor, other: Tensor, lens: Lens) -> Tensor:
    """Where another defocus has the rings that one defocus has at |k|^2 = q.

    Cs lambda^2 q^2 / 2 - D q is equal for both; of the roots the one that is q for equal defoci.

    Args:
        q: [1/A^2], any shape.
        defocus: D at q [A].
        other: the other one [A].
        lens: constants.

    Returns:
        |k|^2 [1/A^2]; of no meaning where `other` is not positive or never has that phase.
    """
    half = lens.spherical_aberration * lens.wavelength**2 / 2
    phase = (defocus - half * q) * q
    # In this form no digits cancel, and Cs may be zero.
    return 2 * phase / (other + (other**2 - 4 * half * phase).clamp(min=0).sqrt())


def _defocus(rings: Rings) -> float:
    return ctf_model.in_angstrom(rings.lens)[0]


def _equivalent(elements: Elements, rings: Rings, lens: Lens) -> Tensor:
    """Frequency at which the mean defocus has the phase of each element [1/A]."""
    mean, cosine, sine, _ = ctf_model.in_angstrom(rings.lens)
    q = elements.k**2
    same = equal_phase(q, mean + cosine * elements.cosine + sine * elements.sine,
                       torch.full_like(q, mean), lens)
    # Beyond the extremum of chi k is kept.
    turned = mean - lens.spherical_aberration * lens.wavelength**2 * q < 0.2 * mean
    return torch.where(turned, q, same.clamp(min=0)).sqrt()


def _correlation(k: np.ndarray, data: np.ndarray, model: np.ndarray,
                 window: np.ndarray) -> np.ndarray:
    """Correlation coefficient of two curves within k +- window of each point."""
    near = (np.abs(k - k[:, None]) <= window[:, None]).astype(np.float64)
    near /= near.sum(axis=1, keepdims=True)
    x, y = near @ data, near @ model
    xx, yy, xy = near @ data**2 - x**2, near @ model**2 - y**2, near @ (data * model) - x * y
    return xy / np.sqrt(np.maximum(xx * yy, 1e-30))
