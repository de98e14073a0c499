"""Scattering factors of many scatterers as sums of few curves."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from tem_taichi.device import as_tensor
from tem_taichi.specimen.gridding import look_up
from tem_taichi.specimen.potential import Gaussians
from tem_taichi.specimen.splatting import WIDENING

RADIUS = 0.5
"""Frequencies that curves are right at [cycles/pixel]: up to where widened Gaussians have 1 % left,
beyond the band of 1/3, so that patches of particles end where these do."""

_NODES = 48
"""Frequencies at which scattering factors are compared."""

_FACTORS = 1e-4
"""Error of scattering factors relative to the largest value of each."""

_BROADENINGS = 1025
"""Broadenings of each species between which amounts are interpolated."""


def scattering_curves(
    fields: Sequence[Sequence[Gaussians]], pixel_size: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Scattering factors of many as sums of few curves; without a gradient.

    F_j(s) = sum_m amount_jm curve_m(s), s = |k|^2 from 0 to RADIUS^2, by the singular vectors of
    the factors themselves, to _FACTORS of the largest value of each group's.

    Args:
        fields: of each one what the same scatterers add, groups whose sum is F.
        pixel_size: [A].

    Returns:
        Amounts (n, m) for the curves of all fields, and of each its curves (., 4097) at equal
        steps of s.
    """
    found = [_tables(groups, pixel_size) for groups in fields]
    weight = fields[0][0].weight
    amounts = torch.zeros((len(weight), sum(len(curves) for _, curves in found)),
                          dtype=as_tensor(0.0).dtype, device=weight.device)
    column = 0
    for groups, (tables, curves) in zip(fields, found, strict=True):
        for group, (rows, ends, table) in zip(groups, tables, strict=True):
            look_up(amounts, group.kind, group.weight.detach(), group.broadening.detach(), rows,
                    ends, table, column)
        column += len(curves)
    return amounts, [curves for _, curves in found]


def _tables(
    groups: Sequence[Gaussians], pixel_size: float
) -> tuple[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], torch.Tensor]:
    """Of each group what `look_up` is given, and the curves of all (m, 4097)."""
    angle = (torch.arange(_NODES, dtype=torch.float64) + 0.5) * (math.pi / _NODES)
    s = RADIUS**2 / 2 * (1 - torch.cos(angle))  # [1/pixel^2]
    # Beyond the band only what the widening leaves of it counts.
    importance = torch.exp(-WIDENING * (s - 1 / 9).clamp_min(0))
    found = [_factors(group, s / pixel_size**2) for group in groups]
    probe = torch.cat([factors[:, ::_BROADENINGS // 32].flatten(0, 1) for factors, _, _ in found])
    probe = probe / probe.abs().amax(1, keepdim=True).clamp_min(1e-30)
    basis = _singular_vectors(probe * importance)
    tables = [(rows, as_tensor(ends), as_tensor(factors * importance @ basis.T))
              for factors, rows, ends in found]
    fine = torch.linspace(-1, 1, 4097, dtype=torch.float64)
    series = np.polynomial.chebyshev.chebfit(
        2 * s.numpy() / RADIUS**2 - 1, (basis / importance).T.numpy(), _NODES - 1)
    values = np.polynomial.chebyshev.chebval(fine.numpy(), series)
    return tables, as_tensor(values.reshape(len(basis), -1))


def _factors(
    group: Gaussians, squared: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scattering factors at some |k|^2 [1/A^2] and equal steps of broadening.

    Returns:
        Factors (rows, steps, len(squared)) of the species that are there, the row of each kind
        (kinds,), and the least and largest broadening of each row [A^2], (rows, 2).
    """
    kind, broadening = group.kind, group.broadening.detach()
    low, high = (torch.full((len(group.table),), math.inf, dtype=broadening.dtype,
                            device=kind.device).scatter_reduce(0, kind, values, "amin")
                 for values in (broadening, -broadening))
    there = low < math.inf
    table = group.table.double().cpu()[there.cpu()]
    ends = torch.stack([low[there], -high[there]], dim=1).double().cpu()
    between = torch.linspace(0, 1, _BROADENINGS, dtype=torch.float64)
    b = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * between  # [A^2]
    exponents = table[:, 1, None, :] + b[..., None]
    factors = torch.einsum("rg,rbgs->rbs", table[:, 0],
                           torch.exp(-exponents[..., None] * squared))
    return factors, there.cumsum(0) - 1, ends


def _singular_vectors(probe: torch.Tensor) -> torch.Tensor:
    """As few orthonormal rows as sum to every row of an array up to _FACTORS."""
    vectors = torch.linalg.svd(probe, full_matrices=False)[2]
    for m in range(1, len(vectors)):
        left = probe - probe @ vectors[:m].T @ vectors[:m]
        if float(left.abs().max()) < _FACTORS:
            return vectors[:m]
    return vectors


def looked_up(curve: torch.Tensor, squared: torch.Tensor) -> torch.Tensor:
    """Values of a curve of `scattering_curves` at |k|^2 [1/pixel^2]; the last one beyond.

    Args:
        curve: (4097,).
        squared: of any shape.
    """
    at = (squared / RADIUS**2).clamp(0, 1) * (len(curve) - 1)
    index = at.long().clamp(max=len(curve) - 2)
    return torch.lerp(curve[index], curve[index + 1], at - index)
