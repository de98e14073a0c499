"""Search for the defoci of a tilt series, and the refinement of the best candidates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tem_taichi.estimate import ctf_joint, ctf_prior, ctf_search, ctf_solve
from tem_taichi.estimate.ctf_cut import Image, cells_of
from tem_taichi.estimate.ctf_joint import Joint, Spectra
from tem_taichi.estimate.ctf_model import UNIT, Basis, Lens
from tem_taichi.estimate.ctf_search import CtfSearch

_WIDTHS = (300.0, 1000.0, 3000.0)  # of the defoci, in the search [A]
_CANDIDATES = 2  # of one defocus for all images
_ROUNDS = 4  # of the widths and the noise


@dataclass(frozen=True)
class Found:
    """The most likely fit for one sense of the tilts."""

    series: list[Spectra]
    """Cells of the images."""
    joint: Joint
    """Parameters."""
    noise: float
    """Variance of the power over its model, times the elements that share it."""
    likelihood: float
    """Logarithm of that of one periodogram."""
    value: float
    """Log-likelihood over the noise, averaged over what the defoci may be."""
    widths: tuple[float, float]
    """Of the defoci, as `ctf_prior` has them [A]."""
    lead: float
    """Of the value over that of the best other defocus."""


@dataclass(frozen=True)
class Start:
    """Where a refinement begins."""

    defoci: Tensor
    """[A], (images,)."""
    lens: tuple[float, float, float]
    """Half the astigmatism times cos and sin of twice its angle [A], phase shift [rad]."""
    contrast: float
    """Of the rings."""
    width: float
    """By which defoci may differ [A]."""


def best_fit(cut: Sequence[Image], angles: Sequence[float], hand: int, lens: Lens, basis: Basis,
             search: CtfSearch) -> Found:
    """Search all images, and refine the best candidates.

    Args:
        cut: the images.
        angles: their tilts [deg].
        hand: 1, or -1 for the opposite tilts.
        lens: constants.
        basis: splines.
        search: where to look.
    """
    series = [cells_of(one, hand, lens) for one in cut]
    noise = (sum(float((one.cells.weight * (one.cells.power - 1)**2).sum()) for one in series)
             / sum(len(one.sector) for one in series))
    step = ctf_search.defocus_step(basis.highest, lens)
    phases = torch.as_tensor(search.phases, dtype=torch.float64)
    turn = torch.polar(torch.ones_like(phases), -2 * phases).to(torch.complex64)
    sums, weights = [], []
    for one in cut:
        grid, rings, weight = ctf_search.ring_sums(
            [(strip.sectors, hand * strip.height) for strip in one.strips], lens, search.defocus,
            search.astigmatisms, step)
        sums.append(rings)
        weights.append(weight)
    found: list[Found] = []
    tried: list[Start] = []
    for start in _starts(sums, weights, grid, turn.to(rings.device), noise, search):
        # Others that begin within half a step would end alike.
        if any(start.lens == one.lens and float((start.defoci - one.defoci).abs().max()) < step / 2
               for one in tried):
            continue
        tried.append(start)
        found.append(refine(series, angles, start, noise, lens, basis, search))
    values = _values(found)
    top = max(range(len(found)), key=lambda n: values[n])
    best = found[top].joint.defocus.mean()
    rivals = [value for one, value in zip(found, values, strict=True) if abs(float(
        one.joint.defocus.mean() - best)) * UNIT > _apart(lens, basis)]
    return replace(found[top], lead=values[top] - max(rivals, default=-math.inf))


def challenged(found: Found, defocus: float, angles: Sequence[float], lens: Lens, basis: Basis,
               search: CtfSearch) -> Found:
    """The same fit, with its lead over one that begins at another defocus.

    Args:
        found: the fit.
        defocus: mean of the images' [A].
        angles: their tilts [deg].
        lens: constants.
        basis: splines.
        search: what is fitted.
    """
    own = found.joint
    cosine, sine, phase = (float(part) for part in own.lens[:3])
    contrast = float(own.contrast.abs().mean().clamp(0.01, 0.5))
    start = Start(own.defocus * UNIT - float(own.defocus.mean()) * UNIT + defocus,
                  (UNIT * cosine, UNIT * sine, phase), contrast, _WIDTHS[0])
    rival = refine(found.series, angles, start, found.noise, lens, basis, search)
    if abs(float(rival.joint.defocus.mean() - own.defocus.mean())) * UNIT < _apart(lens, basis):
        return found  # it led to the same
    best, other = _values([found, rival])
    return replace(found, lead=min(found.lead, best - other))


def _values(found: Sequence[Found]) -> list[float]:
    """Of fits, with one noise for all: that of the best, which is the least."""
    least = min(one.noise for one in found)
    return [one.value + one.likelihood * (1 / least - 1 / one.noise) for one in found]


def _apart(lens: Lens, basis: Basis) -> float:
    """Difference of two defoci [A] that are not the same: a quarter of a ring."""
    return 1 / basis.highest**2 / lens.wavelength / 4


def _starts(sums: Sequence[Tensor], weights: Sequence[Tensor], grid: Tensor, turn: Tensor,
            noise: float, search: CtfSearch) -> list[Start]:
    """Candidates: of one defocus for all images, and of defoci that differ by some width."""
    def gains(rings: Tensor, weight: Tensor) -> Tensor:
        """Log-likelihood (astigmatisms and phases, defoci)."""
        parts = (rings[:, None] * turn[:, None, None]).real.clamp(min=0)
        return (parts**2 / weight).sum(dim=-1).flatten(end_dim=1) / noise

    single = [gains(*pair) for pair in zip(sums, weights, strict=True)]
    together = gains(torch.stack(list(sums)).sum(dim=0), torch.stack(list(weights)).sum(dim=0))
    ranked = [(_WIDTHS[0], together)]
    for width in _WIDTHS:
        kernel = torch.softmax(-(grid[:, None] - grid)**2 / (2 * width**2), dim=0)
        total = torch.zeros_like(together)
        for one in single:
            most = one.max(dim=1, keepdim=True).values
            total += ((one - most).exp() @ kernel).clamp(min=1e-30).log() + most
        ranked.append((width, total))
    starts = []
    most = together.max(dim=0).values
    for width, total in ranked:
        best, choice = total.max(dim=0)
        for _ in range(_CANDIDATES if total is together else 1):
            top = int(best.argmax())
            if not math.isfinite(float(best[top])):
                break
            row = int(choice[top])
            middle = grid[top]
            chance = torch.stack([torch.softmax(
                one[row] - (grid - middle)**2 / (2 * width**2), dim=0) for one in single])
            contrast = 2 * math.sqrt(max(float(most[top]), 0.0) * noise / float(
                torch.stack(list(weights)).sum()))
            pair = search.astigmatisms[row // len(turn)]
            starts.append(Start((chance * grid).sum(dim=1), (
                *pair, search.phases[row % len(turn)]), min(max(contrast, 0.01), 0.5), width))
            best[max(0, top - 8):top + 9] = -math.inf
    return starts


def refine(series: list[Spectra], angles: Sequence[float], start: Start, noise: float, lens: Lens,
           basis: Basis, search: CtfSearch) -> Found:
    """Maximum, with the noise and the widths of the defoci that follow from it.

    Args:
        series: cells of the images.
        angles: their tilts [deg].
        start: where to begin.
        noise: to begin with.
        lens: constants.
        basis: splines.
        search: what is fitted.
    """
    joint = ctf_joint.begin(len(series), basis, start.defoci / UNIT, start.lens, start.contrast)
    free = free_of(search)
    widths = (start.width, 0.0)
    for turn in range(_ROUNDS):
        precision, log_determinant = ctf_prior.precision(angles, *widths)
        joint, value = ctf_solve.maximise(series, joint, lens, basis, precision, noise, free,
                                          steps=10)
        near = ctf_solve.normal(series, joint, lens, basis, noise, free)
        ratio = ctf_solve.noise_ratio(near, len(series))
        information, score = ctf_solve.reduced(near, len(series))
        value += (log_determinant - float(torch.logdet(information + precision))) / 2
        new = ctf_prior.widths(angles, information / ratio, score / ratio, joint.defocus)
        if turn == _ROUNDS - 1 or (new == widths and abs(ratio - 1) < 0.05):
            break
        noise, widths = noise * ratio, new
    likelihood = sum(float(ctf_joint.log_likelihood(one, joint, t, lens, basis))
                     for t, one in enumerate(series))
    return Found(series=series, joint=joint, noise=noise, likelihood=likelihood, value=value,
                 widths=widths, lead=math.inf)


def free_of(search: CtfSearch) -> tuple[int, ...]:
    """Of the shared lens's parameters, which are fitted.

    Args:
        search: that knows.
    """
    return (*((0, 1) if search.known is None else ()), *((2,) if search.phase_shift else ()), 3)


