"""How alike two images or volumes are: functions of tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

from tem_taichi.arguments import check_positive_number


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of all values: 1 for the same up to scale and offset."""
    one, other = one - one.mean(), other - other.mean()
    return (one * other).sum() / (one.norm() * other.norm())


class Shells(NamedTuple):
    """Correlation of two fields' Fourier coefficients, shell by shell."""

    frequency: Tensor
    """Mean of each shell [1/A]."""
    correlation: Tensor
    counts: Tensor
    """Coefficients in each shell; a pair of Friedel's mates counts as one."""


def shell_correlation(one: Tensor, other: Tensor, pixel_size: float) -> Shells:
    """Fourier shell correlation of two volumes, or ring correlation of two images.

    Shells are one coefficient of the longest side wide and end at Nyquist (Harauz and van Heel
    1986).

    Args:
        one: real, of two or three dimensions.
        other: of the same shape.
        pixel_size: [A].

    Raises:
        ValueError: if the shapes differ.
    """
    check_positive_number("pixel_size", pixel_size, "A")
    if one.shape != other.shape or one.ndim not in (2, 3):
        raise ValueError(f"other of shape {tuple(other.shape)}: must be that of one, "
                         f"{tuple(one.shape)}, an image or a volume")
    *rows, last = one.shape
    longest = max(one.shape)
    axes = [torch.fft.fftfreq(n, device=one.device) for n in rows]
    grids = torch.meshgrid(*axes, torch.fft.rfftfreq(last, device=one.device), indexing="ij")
    k = torch.stack(grids).square().sum(0).sqrt()
    shell = (k * longest + 0.5).floor().long().flatten()
    inside = (k.flatten() <= 0.5) & (shell > 0) & (shell <= longest // 2)
    shell = shell[inside] - 1
    # Of the last axis only half is there: what has its mate in the other half stands for both.
    twice = torch.full((last // 2 + 1,), 2.0, dtype=torch.float64, device=one.device)
    twice[0] = 1
    if last % 2 == 0:
        twice[-1] = 1
    weight = twice.expand(k.shape).flatten()[inside]
    f, g = (torch.fft.rfftn(field.double()).flatten()[inside] for field in (one, other))

    def total(values: Tensor) -> Tensor:
        return torch.zeros(longest // 2, dtype=torch.float64,
                           device=one.device).index_add_(0, shell, weight * values.double())

    both = total((f * g.conj()).real)
    power = (total(f.abs().square()) * total(g.abs().square())).sqrt()
    number = total(torch.ones_like(shell))
    return Shells(total(k.flatten()[inside]) / number / pixel_size, both / power, number / 2)


def resolution(shells: Shells, threshold: float = 0.143) -> float:
    """Where the correlation first falls below a threshold, linear between shells [A].

    That of the last shell if it never does (Rosenthal and Henderson 2003 for 0.143, of halves).
    """
    below = torch.nonzero(~(shells.correlation >= threshold)).flatten()
    if len(below) == 0:
        return 1 / float(shells.frequency[-1])
    n = int(below[0])
    if n == 0:
        return 1 / float(shells.frequency[0])
    high, low = float(shells.correlation[n - 1]), float(shells.correlation[n])
    part = (high - threshold) / (high - low)
    k = shells.frequency[n - 1] + part * (shells.frequency[n] - shells.frequency[n - 1])
    return 1 / float(k)
