"""Likelihood of a power spectrum with Thon rings, and its maximum.

The power at frequency k is P(k) = B(|k|) + E(|k|) CTF(k)^2, the background plus the specimen's
structure through the lens. It is written P = M (1 - c cos 2 chi), with M = B + E / 2 the smooth
mean and c = E / (2 M) the contrast of the rings, which hardly depend on each other; log M and
atanh c are cubic splines in |k|. An average of n periodograms follows a gamma distribution of n
degrees (Whittle's likelihood for n = 1), log p = -n (log P + I / P); its maximum does not depend
on n, which therefore need not be known. What drift and cameras add along one direction is part of
log M too: k and k^2 times cos and sin of twice the azimuth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate import scoring
from tem_taichi.instrument.optics import round_phase
from tem_taichi.physics import wavelength

_TABLE = 2048  # points at which the splines are tabulated
_PIECE = 0.045  # of the mean's spline [1/A]: wider than most rings
_CONTRAST_PIECES = 5
_LEAST = 1e-3  # information of a parameter, for splines where nothing depends on them
_CONVERGED = 1e-4  # gain in log-likelihood of one periodogram; rounding of its sum is 3e-5
UNIT = 1000.0
"""Of defocus [A], so that all parameters are of order 1."""


@dataclass(frozen=True)
class Lens:
    """What the rings depend on besides the defocus."""

    wavelength: float
    """[A]"""
    spherical_aberration: float
    """[A]"""
    lag: float
    """Phase of the amplitude contrast, asin Q [rad]."""


def make_lens(voltage: float, spherical_aberration: float, amplitude_contrast: float) -> Lens:
    """From voltage [kV], Cs [mm] and Q; ValueError if one is out of range."""
    if not 0 <= amplitude_contrast < 1:
        raise ValueError(f"amplitude_contrast={amplitude_contrast}: must be within [0, 1)")
    if not 0 <= spherical_aberration < math.inf:
        raise ValueError(f"spherical_aberration={spherical_aberration}: must be zero or positive "
                         "[mm]")
    return Lens(wavelength(voltage), spherical_aberration * 1e7, math.asin(amplitude_contrast))


@dataclass(frozen=True)
class Elements:
    """Elements of a spectrum, or averages of several."""

    power: Tensor
    """(n,)"""
    k: Tensor
    """[1/A], (n,)"""
    cosine: Tensor
    """Of twice the azimuth, from +x towards +y, (n,)."""
    sine: Tensor
    """The same, (n,)."""
    weight: Tensor
    """How many elements each stands for, (n,)."""


@dataclass(frozen=True)
class Rings:
    """Parameters of the model."""

    mean: Tensor
    """Of log M: splines, then the four terms of direction, (m + 4,)."""
    contrast: Tensor
    """Spline of atanh c, (q,)."""
    lens: Tensor
    """Mean defocus, (U - V) / 2 times cos and sin of twice the angle [1000 A], phase shift [rad],
    and spherical aberration beyond the lens's [mm], (5,)."""


@dataclass(frozen=True)
class Basis:
    """Splines over a range of frequency."""

    lowest: float
    highest: float
    mean: Tensor
    """(table, m)"""
    contrast: Tensor
    """(table, q)"""

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest frequency [1/A]."""
        return self.lowest, self.highest

    def at(self, elements: Elements) -> tuple[Tensor, Tensor]:
        """Columns of log M (n, m + 4) and atanh c (n, q), beyond the range as at its ends."""
        place = ((elements.k - self.lowest) / (self.highest - self.lowest)).clamp(0, 1)
        index = (place * (_TABLE - 1)).round().long()
        direction = torch.stack([elements.cosine * place, elements.sine * place,
                                 elements.cosine * place**2, elements.sine * place**2], dim=1)
        return torch.cat([self.mean[index], direction], dim=1), self.contrast[index]


def make_basis(lowest: float, highest: float, finer: int = 1) -> Basis:
    """Splines from the lowest to the highest frequency [1/A], of the mean with finer pieces."""
    pieces = finer * max(3, round((highest - lowest) / _PIECE))
    return Basis(lowest, highest, _splines(pieces), _splines(_CONTRAST_PIECES))


def phase(elements: Elements, values: Tensor, lens: Lens) -> Tensor:
    """Chi - asin Q [rad] of each element, as `optics.aberration_phase` has it."""
    squared = elements.k**2
    defocus = UNIT * (values[0] + values[1] * elements.cosine + values[2] * elements.sine)
    chi = round_phase(squared, defocus, lens.spherical_aberration + values[4] * 1e7,
                      lens.wavelength)
    return chi - values[3] - lens.lag


def curves(elements: Elements, rings: Rings, basis: Basis) -> tuple[Tensor, Tensor]:
    """Mean M and contrast c at each element."""
    mean, contrast = basis.at(elements)
    return (mean @ rings.mean).exp(), torch.tanh(contrast @ rings.contrast)


def relative_power(elements: Elements, rings: Rings, lens: Lens, basis: Basis) -> Tensor:
    """P / M at each element."""
    contrast = torch.tanh(basis.at(elements)[1] @ rings.contrast)
    return 1 - contrast * torch.cos(2 * phase(elements, rings.lens, lens))


def log_likelihood(elements: Elements, rings: Rings, lens: Lens,
                   columns: tuple[Tensor, Tensor]) -> Tensor:
    """-sum of log P + I / P, of one periodogram; differentiable in the parameters.

    Args:
        elements: of the spectrum.
        rings: parameters.
        lens: its constants.
        columns: of the splines, `basis.at(elements)`.
    """
    contrast = torch.tanh(columns[1] @ rings.contrast)
    relative = 1 - contrast * torch.cos(2 * phase(elements, rings.lens, lens))
    mean = columns[0] @ rings.mean
    terms = elements.weight * (mean + relative.log() + elements.power / (mean.exp() * relative))
    return -terms.sum(dtype=torch.float64)  # differences of 1 in 1e5 matter


def maximise(elements: Elements, rings: Rings, lens: Lens, basis: Basis,
             free: Sequence[int] = (), contrast: bool = True,
             steps: int = 20) -> tuple[Rings, float]:
    """Most likely parameters, by damped Fisher scoring.

    Args:
        elements: of the spectrum.
        rings: where to start.
        lens: its constants.
        basis: splines.
        free: which of the lens's parameters to fit.
        contrast: whether to fit the contrast.
        steps: most steps.

    Returns:
        Parameters and their log-likelihood.
    """
    columns = basis.at(elements)

    def parts(at: Rings) -> tuple[Tensor, Tensor]:
        derivative, power = _derivative(elements, at, lens, columns, free, contrast)
        return (_information(derivative, elements.weight),
                (derivative.T @ (elements.weight * (elements.power / power - 1))).double())

    def moved(at: Rings, here: tuple[Tensor, Tensor], damping: float) -> Rings:
        # In units of each parameter's own information: weak ones move from the first step on.
        information = here[0] + damping * torch.diag(here[0].diagonal())
        return _moved(at, torch.linalg.solve(information, here[1]), free, contrast)

    return scoring.climb(rings, lambda at: float(log_likelihood(elements, at, lens, columns)),
                         parts, moved, _CONVERGED, steps)


def covariance(elements: Elements, rings: Rings, lens: Lens, basis: Basis, free: Sequence[int],
               inside: Tensor) -> tuple[Tensor, float]:
    """Of the lens's parameters, with the noise's correlation between neighbours.

    Windows, overlaps and padding correlate neighbouring elements, as does what the model misses;
    the covariances within two elements are measured on the residuals.

    Args:
        elements: of the spectrum, all of weight 1.
        rings: the most likely parameters.
        lens: its constants.
        basis: splines.
        free: which of the lens's parameters were fitted.
        inside: bool (ny, nx), where the elements are in the spectrum, in this order.

    Returns:
        Covariance (5, 5) in A, rad and mm, and the noise's variance times the number of
        elements that share it.
    """
    derivative, power = _derivative(elements, rings, lens, basis.at(elements), free, True)
    information = _information(derivative, elements.weight)
    split = len(information) - len(free)
    onto = torch.linalg.solve(information[:split, :split], information[:split, split:])
    # What the splines can't imitate of the effect of the lens's parameters.
    effect = derivative[:, split:] - derivative[:, :split] @ onto.to(derivative.dtype)
    maps = effect.new_zeros(1 + len(free), *inside.shape)
    maps[:, inside] = torch.cat([(elements.power / power - 1)[:, None], effect], dim=1).T
    total, middle = 0.0, torch.zeros(len(free), len(free), dtype=torch.float64)
    for dy, dx in ((y, x) for y in range(3) for x in range(-2, 3) if y > 0 or x >= 0):
        other = maps.roll((dy, dx), (1, 2)).flatten(start_dim=1)
        products = (maps.flatten(start_dim=1) @ other.T).double().cpu()
        noise = float(products[0, 0]) / len(elements.power)
        both = products[1:, 1:] + products[1:, 1:].T
        total += noise * (1 if dy == dx == 0 else 2)
        middle += noise * both * (0.5 if dy == dx == 0 else 1)
        if dy == dx == 0:
            variance, inverse = noise, torch.linalg.inv(both / 2)
    sandwich = inverse @ middle @ inverse
    scale = torch.tensor([UNIT, UNIT, UNIT, 1.0, 1.0], dtype=torch.float64)
    full = torch.zeros(5, 5, dtype=torch.float64)
    chosen = torch.tensor(list(free))
    full[chosen[:, None], chosen] = sandwich
    return full * scale[:, None] * scale, max(total, variance)


def standard_errors(elements: Elements, rings: Rings, lens: Lens, basis: Basis,
                    free: Sequence[int], noise: float) -> Tensor:
    """Of the lens's parameters [A, A, A, rad, mm], (5,), for a noise that `covariance` found."""
    derivative, _ = _derivative(elements, rings, lens, basis.at(elements), free, True)
    inverse = torch.linalg.inv(_information(derivative, elements.weight)).diagonal()
    errors = torch.zeros(5, dtype=torch.float64, device=inverse.device)
    errors[list(free)] = (noise * inverse[-len(free):].clamp(min=0)).sqrt()
    return errors.cpu() * torch.tensor([UNIT, UNIT, UNIT, 1.0, 1.0], dtype=torch.float64)


def start(basis: Basis, defocus: float = 0.0, cosine: float = 0.0, sine: float = 0.0,
          phase_shift: float = 0.0, contrast: float = 0.0) -> Rings:
    """Parameters of a mean of 1 and one contrast at every k; lengths in A, phase in rad."""
    lens = as_tensor([defocus / UNIT, cosine / UNIT, sine / UNIT, phase_shift, 0.0])
    return Rings(as_tensor([0.0] * (basis.mean.shape[1] + 4)),
                 as_tensor([math.atanh(contrast)] * basis.contrast.shape[1]), lens)


def in_angstrom(values: Tensor) -> list[float]:
    """Mean defocus and the two parts of half the astigmatism [A], and the phase shift [rad]."""
    mean, cosine, sine, phase_shift, _ = values.tolist()
    return [UNIT * mean, UNIT * cosine, UNIT * sine, phase_shift]


def spline_columns(place: Tensor, pieces: int) -> Tensor:
    """Cubic splines of equal pieces at places within [0, 1], (n, pieces + 3)."""
    return _splines(pieces)[(place * (_TABLE - 1)).round().long()]


def _splines(pieces: int) -> Tensor:
    return as_tensor(_design(pieces))


@cache
def _design(pieces: int) -> np.ndarray:
    knots = [0.0] * 3 + [i / pieces for i in range(pieces + 1)] + [1.0] * 3
    places = torch.linspace(0, 1, _TABLE, dtype=torch.float64).numpy()
    return BSpline.design_matrix(places, knots, 3).toarray()


def _derivative(elements: Elements, rings: Rings, lens: Lens, columns: tuple[Tensor, Tensor],
                free: Sequence[int], with_contrast: bool) -> tuple[Tensor, Tensor]:
    """Of log P in the free parameters, (n, parameters), and P itself."""
    parts = [columns[0]]
    contrast = torch.tanh(columns[1] @ rings.contrast)
    twice = 2 * phase(elements, rings.lens, lens)
    relative = 1 - contrast * torch.cos(twice)
    if with_contrast:
        parts.append((-(1 - contrast**2) * torch.cos(twice) / relative)[:, None] * columns[1])
    if free:
        by_phase = 2 * contrast * torch.sin(twice) / relative
        squared = elements.k**2
        by_defocus = -math.pi * lens.wavelength * UNIT * squared * by_phase
        by_spherical = math.pi / 2 * lens.wavelength**3 * 1e7 * squared**2 * by_phase
        every = (by_defocus, by_defocus * elements.cosine, by_defocus * elements.sine, -by_phase,
                 by_spherical)
        parts.append(torch.stack([every[i] for i in free], dim=1))
    return torch.cat(parts, dim=1), (columns[0] @ rings.mean).exp() * relative


def _information(derivative: Tensor, weight: Tensor) -> Tensor:
    """Expected Hessian of minus the log-likelihood, in double precision."""
    information = (derivative.T @ (weight[:, None] * derivative)).double()
    return information + _LEAST * torch.eye(len(information), dtype=torch.float64,
                                            device=derivative.device)


def _moved(rings: Rings, step: Tensor, free: Sequence[int], with_contrast: bool) -> Rings:
    step = step.to(rings.mean.dtype)
    count = len(rings.mean)
    mean, contrast, lens = rings.mean + step[:count], rings.contrast, rings.lens.clone()
    if with_contrast:
        contrast = (contrast + step[count:count + len(contrast)]).clamp(-2, 2)
    if free:
        lens[list(free)] += step[-len(free):]
    return Rings(mean, contrast, lens)
