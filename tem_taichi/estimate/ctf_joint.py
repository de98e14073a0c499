"""Likelihood of the rings of all images of a tilt series, and its maximum.

Image t has a defocus D_t at its centre, a smooth mean M_t(k) and a strength a_t of its own; the
astigmatism, the phase shift, the curve s(k) of the rings' contrast and the camera's noise N(k) are
shared. A strip at the height h, relative to the centre, has the rings of `ctf_model` with the
defocus D_t + h and

    log P = log M_t(k) + log N(k) + log(1 - c cos 2 chi),
    atanh c = a_t s(k) blur(k) sinc(lambda k^2 T / cos),

the last factor that of what lies through the thickness T: each height along the beam has rings of
its own, lambda k^2 turns per A. N may bend as often as the rings, from which it is told by strips
of other heights. Log a_t and log T have normal priors, D_t that of `ctf_prior`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate import ctf_model
from tem_taichi.estimate.ctf_model import UNIT, Basis, Elements, Lens, Rings
from tem_taichi.estimate.ctf_search import SECTORS

STRENGTH = 0.5
"""Deviation of log a_t: doses and damage differ by no more."""
THICKNESS = 1000.0, 0.8
"""[A], and the deviation of its logarithm."""
NOISE = 0.05
"""Deviation of the splines of log N."""
NOISE_PIECES = 16
"""Of the splines of log N."""
STATED = 3
"""Parameters that the user states."""
_LEAST = 1e-3  # information of a parameter
_LARGEST = 2.0  # atanh c


@dataclass(frozen=True)
class Spectra:
    """Cells of all strips of one image, of which elements are those of spectra over their mean."""

    cells: Elements
    """(n,)"""
    height: Tensor
    """By which a cell's defocus is larger than that of the centre [A], (n,)."""
    blur: Tensor
    """Part of the rings' contrast that the heights within a tile leave, (n,)."""
    path: float
    """Of the beam through the specimen, in units of its thickness: 1 / cos of the tilt."""
    sector: Tensor
    """Number of the cell's direction, (n,)."""
    k: Tensor
    """Of the rings [1/A], (n,): of what the window averages over, mostly strong frequencies."""


@dataclass(frozen=True)
class Joint:
    """Parameters; those of an image first, in the order in which they are fitted."""

    mean: Tensor
    """Of log M_t, (images, m + 4)."""
    strength: Tensor
    """Log a_t, (images,)."""
    defocus: Tensor
    """D_t [1000 A], (images,), double."""
    contrast: Tensor
    """Of s(k), (q,)."""
    noise: Tensor
    """Of log N(k), (f,)."""
    lens: Tensor
    """Half the astigmatism times cos and sin of twice its angle [1000 A], phase shift [rad], log of
    the thickness [A], (4,)."""

    def rings(self, image: int) -> Rings:
        """The lens of an image as `ctf_model` has it."""
        own = torch.cat([self.defocus[image:image + 1].to(self.lens), self.lens[:3],
                         self.lens.new_zeros(1)])
        return Rings(self.mean[image], self.contrast, own)


def begin(images: int, basis: Basis, defocus: Tensor, lens: Sequence[float],
          contrast: float) -> Joint:
    """Parameters of flat means and one contrast.

    Args:
        images: of the series.
        basis: splines.
        defocus: of each image [1000 A].
        lens: half the astigmatism times cos and sin of twice its angle [A], phase shift [rad].
        contrast: of the rings.
    """
    shared = as_tensor([lens[0] / UNIT, lens[1] / UNIT, lens[2], 0.0])
    shared[3] = torch.log(as_tensor(THICKNESS[0]))
    return Joint(as_tensor(torch.zeros(images, basis.mean.shape[1] + 4)),
                 as_tensor(torch.zeros(images)), defocus.double().cpu(),
                 as_tensor([contrast] * basis.contrast.shape[1]),
                 as_tensor([0.0] * (NOISE_PIECES + 3)), shared)


def noise_columns(k: Tensor, basis: Basis) -> Tensor:
    """Splines of log N at frequencies [1/A], (n, f)."""
    place = ((k - basis.lowest) / (basis.highest - basis.lowest)).clamp(0, 1)
    return ctf_model.spline_columns(place, NOISE_PIECES).to(k.dtype)


def log_likelihood(one: Spectra, joint: Joint, image: int, lens: Lens, basis: Basis) -> Tensor:
    """Of one image's cells, as independent elements of one periodogram; differentiable."""
    columns = basis.at(one.cells)
    contrast, twice, _ = _rings(one, joint, image, lens, columns[1])
    relative = 1 - contrast * torch.cos(twice)
    mean = columns[0] @ joint.mean[image] + noise_columns(one.cells.k, basis) @ joint.noise
    terms = one.cells.weight * (mean + relative.log() + one.cells.power / (mean.exp() * relative))
    return -terms.sum(dtype=torch.float64)


def likelihoods(one: Spectra, joint: Joint, image: int, lens: Lens, basis: Basis,
                defoci: Sequence[float]) -> Tensor:
    """`log_likelihood` of an image at other defoci, with its smooth mean fitted anew at each.

    With the mean of the fit, a defocus whose rings are too dark at some frequency would be blamed
    for the missing power as well, by tens of thousands where the rings are strong.

    Args:
        one: its cells.
        joint: parameters.
        image: its number.
        lens: constants.
        basis: splines.
        defoci: of the image [A], (d,).

    Returns:
        One for each, (d,).
    """
    cells = one.cells
    columns, rings = basis.at(cells)
    noise = (noise_columns(cells.k, basis) @ joint.noise).exp()
    inverse = torch.linalg.inv((columns.T @ (cells.weight[:, None] * columns)).double() + _LEAST
                               * torch.eye(columns.shape[1], dtype=torch.float64)).to(columns)
    found = []
    for defocus in defoci:
        moved = replace(joint, defocus=torch.full_like(joint.defocus, defocus / UNIT))
        contrast, twice, _ = _rings(one, moved, image, lens, rings)
        relative = 1 - contrast * torch.cos(twice)
        over = cells.power / (noise * relative)
        mean = columns @ joint.mean[image]
        # The best factor of all, then scoring about it.
        mean = mean + ((cells.weight * over / mean.exp()).sum() / cells.weight.sum()).log()
        tried = []
        for _ in range(3):
            ratio = over / mean.exp()
            tried.append(-(cells.weight * (mean + (noise * relative).log() + ratio)).sum(
                dtype=torch.float64))
            mean = mean + columns @ (inverse @ (columns.T @ (cells.weight * (ratio - 1))))
        found.append(max(tried))
    return torch.stack(found)


@dataclass(frozen=True)
class Equations:
    """Of one image: its own parameters (mean, strength), its defocus, then the shared ones."""

    information: Tensor
    """Expected Hessian of minus the log-likelihood, (p, p)."""
    score: Tensor
    """Derivative of the log-likelihood, (p,)."""
    by_sector: Tensor
    """Part of each direction in it, without priors, (sectors, p)."""
    own: int
    """Number of the image's own parameters."""


def _rings(one: Spectra, joint: Joint, image: int, lens: Lens,
           columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Contrast c, phase 2 chi and the derivative of the logarithm of atanh c by log T."""
    turns = lens.wavelength * one.k**2 * one.path * joint.lens[3].exp()
    sinc = torch.sinc(turns)
    shape = joint.strength[image].exp() * (columns @ joint.contrast) * one.blur
    contrast = torch.tanh((shape * sinc).clamp(-_LARGEST, _LARGEST))
    own = joint.rings(image).lens
    # A strip's height adds to the defocus.
    twice = 2 * (ctf_model.phase(replace(one.cells, k=one.k), own, lens)
                 - torch.pi * lens.wavelength * one.height * one.k**2)
    return contrast, twice, shape * (torch.cos(torch.pi * turns) - sinc)


def equations(one: Spectra, joint: Joint, image: int, lens: Lens, basis: Basis, noise: float,
              free: Sequence[int], stated: bool = False) -> Equations:
    """Score and information of one image, with the prior of its strength.

    Args:
        one: its cells.
        joint: parameters.
        image: its number.
        lens: constants.
        basis: splines.
        noise: variance of the power over its model, times the elements that share it.
        free: which of the shared lens's parameters are fitted.
        stated: whether what the user states is among the parameters.
    """
    cells = one.cells
    columns, bends = basis.at(cells), noise_columns(cells.k, basis)
    contrast, twice, by_log = _rings(one, joint, image, lens, columns[1])
    relative = 1 - contrast * torch.cos(twice)
    steep = -(1 - contrast**2) * torch.cos(twice) / relative  # of log P in atanh c
    damping = one.blur * torch.sinc(lens.wavelength * one.k**2 * one.path
                                    * joint.lens[3].exp())
    scale = joint.strength[image].exp() * damping
    by_phase = 2 * contrast * torch.sin(twice) / relative
    by_defocus = -torch.pi * lens.wavelength * UNIT * one.k**2 * by_phase
    every = (by_defocus * cells.cosine, by_defocus * cells.sine, -by_phase, steep * by_log)
    derivative = torch.cat([
        columns[0], (steep * torch.atanh(contrast))[:, None], by_defocus[:, None],
        (steep * scale)[:, None] * columns[1], bends, torch.stack([every[i] for i in free], dim=1),
        *([torch.stack([by_defocus * one.height / UNIT, -by_phase, torch.pi / 2 * lens.wavelength**3
                        * 1e7 * one.k**4 * by_phase], dim=1)] if stated else [])], dim=1)
    power = (columns[0] @ joint.mean[image] + bends @ joint.noise).exp() * relative
    residual = cells.weight * (cells.power / power - 1)
    information = (derivative.T @ (cells.weight[:, None] * derivative)).double().cpu() / noise
    by_sector = derivative.new_zeros(SECTORS, derivative.shape[1]).index_add(
        0, one.sector, residual[:, None] * derivative).double().cpu() / noise
    score, own = by_sector.sum(dim=0), columns[0].shape[1] + 1
    strength = own - 1
    information = information + _LEAST * torch.eye(len(information), dtype=torch.float64)
    information[strength, strength] += STRENGTH**-2
    score[strength] -= float(joint.strength[image]) / STRENGTH**2
    return Equations(information, score, by_sector, own)


def shared_prior(joint: Joint, free: Sequence[int],
                 stated: bool = False) -> tuple[Tensor, Tensor]:
    """Information and score of the prior of the shared parameters.

    Args:
        joint: parameters.
        free: which of the shared lens's parameters are fitted.
        stated: whether what the user states is among the parameters.
    """
    first, last = len(joint.contrast), len(joint.contrast) + len(joint.noise)
    information, score = (torch.zeros(last + len(free) + STATED * stated, dtype=torch.float64)
                          for _ in range(2))
    information[first:last] = NOISE**-2
    score[first:last] = -joint.noise.double().cpu() / NOISE**2
    if 3 in free:
        place = last + list(free).index(3)
        middle = torch.log(torch.tensor(THICKNESS[0], dtype=torch.float64))
        information[place] = THICKNESS[1]**-2
        score[place] = float(middle - joint.lens[3].double().cpu()) / THICKNESS[1]**2
    return information, score
