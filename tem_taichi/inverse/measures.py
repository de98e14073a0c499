"""How alike two images or volumes are, and how much contrast one has: functions of tensors.

Differentiable but for those by scikit-image, `structural_similarity` and `peak_signal_to_noise`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tem_taichi.arguments import check_positive_number


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of all values: 1 for the same up to scale and offset."""
    one, other = one - one.mean(), other - other.mean()
    return (one * other).sum() / (one.norm() * other.norm())


def affine_fit(image: Tensor, truth: Tensor) -> Tensor:
    """The image times the number plus the number that bring it next to the truth.

    For what has no scale of its own, by least squares: what is then left has no part that a change
    of brightness or contrast explains.

    Args:
        image: of any shape; one that is flat becomes the truth's mean.
        truth: of the same shape.

    Raises:
        ValueError: if the shapes differ.
    """
    check_alike(image, truth)
    one, other = image - image.mean(), truth - truth.mean()
    power = one.square().sum()
    # A flat image explains nothing, and its slope has no value.
    slope = (one * other).sum() / torch.where(power > 0, power, 1.0)
    return truth.mean() + slope * one


def affine_rmse(image: Tensor, truth: Tensor) -> Tensor:
    """Root mean square of the truth less `affine_fit`, in the truth's unit."""
    return (affine_fit(image, truth) - truth).square().mean().sqrt()


def structural_similarity(image: Tensor, truth: Tensor) -> float:
    """Mean structural similarity (Wang et al. 2004) in windows of 7 pixels, by scikit-image.

    Args:
        image: (ny, nx) or (nz, ny, nx) of at least 7 a side, in the truth's unit: see `affine_fit`.
        truth: of the same shape, not flat; its range is that of the data.

    Returns:
        1 for the truth itself.

    Raises:
        ValueError: if the shapes differ or are too small, or the truth is flat.
    """
    from skimage.metrics import structural_similarity  # which takes most of a second to load

    spread = _check_range(image, truth)
    if min(truth.shape) < 7:
        raise ValueError(f"truth of shape {tuple(truth.shape)}: must be at least 7 a side")
    one, other = (field.detach().double().cpu().numpy() for field in (image, truth))
    return float(structural_similarity(one, other, data_range=spread))


def peak_signal_to_noise(image: Tensor, truth: Tensor) -> float:
    """10 log10 of the truth's range squared over the mean squared error [dB], by scikit-image.

    Args:
        image: of any shape, in the truth's unit: see `affine_fit`.
        truth: of the same shape, not flat.

    Raises:
        ValueError: if the shapes differ or the truth is flat.
    """
    from skimage.metrics import peak_signal_noise_ratio

    spread = _check_range(image, truth)
    one, other = (field.detach().double().cpu().numpy() for field in (image, truth))
    if (one == other).all():
        return float("inf")  # where scikit-image warns of a division by 0
    return float(peak_signal_noise_ratio(other, one, data_range=spread))


def contrast_to_noise(field: Tensor, feature: Sequence[slice], background: Sequence[slice]
                      ) -> Tensor:
    """Difference of two boxes' means over the root mean of their variances.

    Args:
        field: image or volume.
        feature: a slice of each axis, `(slice(10, 20), slice(5, 15))`.
        background: the same.

    Raises:
        ValueError: if a box holds fewer than two values.
    """
    one, other = _box("feature", field, feature), _box("background", field, background)
    return (one.mean() - other.mean()).abs() / ((one.var() + other.var()) / 2).sqrt()


def equivalent_looks(field: Tensor, box: Sequence[slice]) -> Tensor:
    """Mean squared over variance of a box (ENL): of electrons, how many each pixel tells of.

    Args:
        field: image or volume, in a unit with a zero.
        box: a slice of each axis, of a part that should be flat.

    Raises:
        ValueError: if the box holds fewer than two values.
    """
    inside = _box("box", field, box)
    return inside.mean().square() / inside.var()


class Shells(NamedTuple):
    """Correlation of two fields' Fourier coefficients, shell by shell."""

    frequency: Tensor
    """Mean of each shell [1/A]."""
    correlation: Tensor
    counts: Tensor
    """Coefficients in each shell; a pair of Friedel's mates counts as one."""


def shell_correlation(one: Tensor, other: Tensor, pixel_size: float,
                      region: Tensor | None = None) -> Shells:
    """Fourier shell correlation of two volumes, or ring correlation of two images.

    Shells are one coefficient of the longest side wide and end at Nyquist (Harauz and van Heel
    1986).

    Args:
        one: real, of two or three dimensions.
        other: of the same shape.
        pixel_size: [A].
        region: which coefficients of the `rfftn` count, as of `shells.measured_region`; None = all.
            Shells without any are left out.

    Raises:
        ValueError: if the shapes differ, or no shell is left.
    """
    check_positive_number("pixel_size", pixel_size, "A")
    if one.shape != other.shape or one.ndim not in (2, 3):
        raise ValueError(f"other of shape {tuple(other.shape)}: must be that of one, "
                         f"{tuple(one.shape)}, an image or a volume")
    last = one.shape[-1]
    longest = max(one.shape)
    k = frequencies(one).square().sum(0).sqrt()
    shell = (k * longest + 0.5).floor().long().flatten()
    inside = (k.flatten() <= 0.5) & (shell > 0) & (shell <= longest // 2)
    if region is not None:
        if region.shape != k.shape:
            raise ValueError(f"region of shape {tuple(region.shape)}: must be that of the rfftn, "
                             f"{tuple(k.shape)}")
        inside = inside & region.to(inside).flatten()
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
    there = number > 0
    if not there.any():
        raise ValueError("region: must hold a coefficient of some shell")
    frequency = total(k.flatten()[inside]) / number / pixel_size
    return Shells(frequency[there], (both / power)[there], (number / 2)[there])


def frequencies(field: Tensor) -> Tensor:
    """Of each coefficient of a field's `rfftn`, along each of its axes [cycles/pixel]."""
    axes = [torch.fft.fftfreq(n, device=field.device) for n in field.shape[:-1]]
    last = torch.fft.rfftfreq(field.shape[-1], device=field.device)
    return torch.stack(torch.meshgrid(*axes, last, indexing="ij"))


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


def _box(name: str, field: Tensor, box: Sequence[slice]) -> Tensor:
    """Part of a field of two values at least."""
    inside = field[tuple(box)]
    if len(tuple(box)) != field.ndim or inside.numel() < 2:
        raise ValueError(f"{name}={tuple(box)}: must be a slice of each of {field.ndim} axes that "
                         "holds two values at least")
    return inside


def check_alike(image: Tensor, truth: Tensor, name: str = "image") -> None:
    """ValueError unless two fields have the same shape."""
    if image.shape != truth.shape:
        raise ValueError(f"{name} of shape {tuple(image.shape)}: must be that of what it is "
                         f"compared with, {tuple(truth.shape)}")


def _check_range(image: Tensor, truth: Tensor) -> float:
    """Range of a truth that is not flat."""
    check_alike(image, truth)
    spread = float(truth.max() - truth.min())
    if not spread > 0:
        raise ValueError(f"truth: every value is {float(truth.max()):g}; it must have contrast")
    return spread
