"""Radial curves of a detector: five parameters or a table over spatial frequency.

Frequencies w are in cycles/pixel throughout: 0.5 is Nyquist along an axis, and the corners of
a two-dimensional transform reach 0.707.

A *curve* is one of

- None, which is 1 at every frequency;
- one number, the same at every frequency;
- five numbers (a, b, c, alpha, beta), see `mtf_parametric`;
- a table (frequencies, values), two equally long rows, see `interpolate`.

Any number in it may be a tensor, and then carries gradients.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import starfile
import torch
from torch import Tensor

from tem_taichi.arguments import check_number, to_field
from tem_taichi.device import as_tensor, current
from tem_taichi.grid import squared_frequencies

Scalar: TypeAlias = float | Tensor
Curve: TypeAlias = Scalar | list[Any] | tuple[Any, ...] | np.ndarray | None


_LARGEST = 1e12
"""More electrons, or counts of one, than any image holds."""


def radial_frequency(ny: int, nx: int) -> Tensor:
    """Frequency |w| of each element of `torch.fft.rfft2` of an image (ny, nx).

    Args:
        ny: rows of the image.
        nx: its columns.

    Returns:
        Tensor (ny, nx // 2 + 1) [cycles/pixel], unshifted order, from 0 to at most 0.708.
    """
    return squared_frequencies((ny, nx), half=True).sqrt()


def mtf_parametric(w: Tensor, a: Scalar, b: Scalar, c: Scalar, alpha: Scalar,
                   beta: Scalar) -> Tensor:
    """Modulation transfer function [a/(1+alpha w^2) + b/(1+beta w^2) + c] / (a+b+c).

    The form of TEM-simulator (Rullgard et al. 2011). It is 1 at w = 0, so that it keeps the
    number of electrons; only the ratios of a, b and c matter.

    Args:
        w: frequency [cycles/pixel], any shape.
        a: weight of the first term, of either sign.
        b: weight of the second term, of either sign.
        c: weight that does not fall off with frequency, of either sign; a + b + c > 0.
        alpha: width of the first term in real space, squared [pixel^2], >= 0.
        beta: the same of the second term [pixel^2], >= 0.
    """
    # As what is lost from 1: then nothing at w = 0 depends on the parameters, and the many
    # electrons of the mean leave no rounding error in their gradients.
    first, second = alpha * w * w, beta * w * w
    return 1 - (a * first / (1 + first) + b * second / (1 + second)) / (a + b + c)


def interpolate(w: Tensor, frequencies: Tensor, values: Tensor) -> Tensor:
    """Linear interpolation of a table; outside it, the value at the nearer end.

    Measured tables stop between 0.492 and 0.508 cycles/pixel, so that the last value also
    fills the corners of a two-dimensional transform.

    Args:
        w: where to evaluate [cycles/pixel], any shape.
        frequencies: (n,) [cycles/pixel], strictly increasing.
        values: (n,); the result is differentiable in them.
    """
    above = torch.searchsorted(frequencies.detach(), w.detach().contiguous())
    above = above.clamp(1, len(frequencies) - 1)
    left, right = frequencies[above - 1], frequencies[above]
    fraction = ((w - left) / (right - left)).clamp(0, 1)
    return torch.lerp(values[above - 1], values[above], fraction)


def over_image(curve: Curve, ny: int, nx: int) -> Tensor:
    """Value of a curve at each element of `torch.fft.rfft2` of an image (ny, nx).

    Those of the last few curves without a gradient are kept: every image of a series needs them.

    Args:
        curve: see the module's text.
        ny: rows of the image.
        nx: its columns.

    Returns:
        Tensor (ny, nx // 2 + 1), which is not to be changed.
    """
    if curve is None or is_scalar(curve) or requires_grad(curve):
        return evaluate(curve, radial_frequency(ny, nx))
    plain = numbers(curve)
    device = current()
    return _over_image(plain.shape, plain.tobytes(), ny, nx, device.dtype, device.torch_device)


@lru_cache(maxsize=4)
def _over_image(shape: tuple[int, ...], content: bytes, ny: int, nx: int,
                _dtype: torch.dtype, _device: torch.device) -> Tensor:
    """As `over_image`, by the numbers themselves and what they are turned into."""
    with torch.inference_mode(False):
        return evaluate(np.frombuffer(content).reshape(shape).copy(), radial_frequency(ny, nx))


def smoothness_penalty(frequencies: Any, values: Any, slope_change: float = 2.0) -> Tensor:
    """Negative log-density of a smooth table: add it to the misfit of a table that is fitted.

    The prior is a straight line whose slope wanders at random, by `slope_change` from 0 to Nyquist
    on the average (an integrated Wiener process, whose most probable curve through noisy data is
    the cubic smoothing spline; Wahba 1978). Its density of the slopes s_i between neighbours is

        1/2 sum_i (s_i - s_(i-1))^2 / (slope_change^2 / 0.5 * (w_(i+1) - w_(i-1)) / 2),

    which for fine tables tends to the integral of the squared second derivative, however many
    points there are. A straight line costs nothing.

    Args:
        frequencies: (n,) [cycles/pixel], strictly increasing, n >= 2.
        values: (n,) of an MTF or DQE, tensors with gradients.
        slope_change: how much the slope changes over 0.5 cycles/pixel [pixel], > 0; that of
            measured cameras by 1 to 4.

    Returns:
        Scalar >= 0, up to a constant; differentiable in the values and the frequencies.

    Raises:
        ValueError: as `check_table` for lengths and frequencies; for a slope_change that is not
            positive.
    """
    check_number("slope_change", slope_change, "pixel", above=0.0)
    w, f = to_field("frequencies", frequencies), to_field("values", values)
    check_table("table", (w, torch.zeros_like(f)))
    slopes = (f[1:] - f[:-1]) / (w[1:] - w[:-1])
    variance = slope_change**2 / 0.5 * (w[2:] - w[:-2]) / 2
    return ((slopes[1:] - slopes[:-1]) ** 2 / variance).sum() / 2


def evaluate(curve: Curve, w: Tensor) -> Tensor:
    """Value of a curve at the frequencies w [cycles/pixel]; same shape as w."""
    if curve is None:
        return torch.ones_like(w)
    if is_scalar(curve):
        return as_tensor(curve).expand_as(w)
    rows = _tensor(curve)
    return mtf_parametric(w, *rows) if len(rows) == 5 else interpolate(w, rows[0], rows[1])


def is_scalar(curve: Curve) -> bool:
    """Whether a curve is a single number."""
    return isinstance(curve, (int, float)) or getattr(curve, "ndim", None) == 0


def count_rows(curve: Curve) -> int:
    """Number of items in a curve that has any: 5 for parameters, 2 for a table; else 0."""
    if is_scalar(curve) or not isinstance(curve, (list, tuple, np.ndarray, Tensor)):
        return 0
    return len(curve)


def requires_grad(curve: Any) -> bool:
    """Whether any number of a curve carries a gradient."""
    if isinstance(curve, (list, tuple)):
        return any(requires_grad(item) for item in curve)
    return isinstance(curve, Tensor) and curve.requires_grad


def check_positive(name: str, value: Any, unit: str) -> None:
    """Check that a number, or every one of several, is finite and positive.

    Raises:
        ValueError: if it is not.
    """
    check_number(name, value, unit, above=0.0, high=_LARGEST, batch=True)


def check_parameters(name: str, parameters: Curve) -> None:
    """Check the five numbers of `mtf_parametric`.

    Raises:
        ValueError: if one is not finite, alpha or beta is negative, or a + b + c is not positive.
    """
    plain = numbers(parameters)
    if plain.shape != (5,) or not np.isfinite(plain).all():
        raise ValueError(f"{name}={plain.tolist()}: must be five finite numbers "
                         "a, b, c, alpha, beta")
    if (plain[3:] < 0).any():
        raise ValueError(f"{name}={plain.tolist()}: alpha and beta must not be negative [pixel^2]")
    if plain[:3].sum() <= 0:
        raise ValueError(f"{name}={plain.tolist()}: a + b + c must be positive")


def check_table(name: str, table: Any, *, positive: bool = False,
                highest: float = np.inf) -> None:
    """Check a table (frequencies, values).

    Args:
        name: what to call the table in a message.
        table: two rows, frequencies [cycles/pixel] and values.
        positive: whether a value of 0 is refused too.
        highest: the largest value allowed.

    Raises:
        ValueError: if the rows differ in length, have fewer than two points, are not finite, the
            frequencies are negative or do not increase, or a value is out of range.
    """
    frequencies, values = numbers(table[0]), numbers(table[1])
    if frequencies.ndim != 1 or frequencies.shape != values.shape or len(values) < 2:
        raise ValueError(f"{name}: frequencies {frequencies.shape} and values {values.shape} must "
                         "be two rows of the same length, at least 2")
    if not (np.isfinite(frequencies).all() and np.isfinite(values).all()):
        raise ValueError(f"{name}: frequencies and values must be finite")
    # Compared in single precision, in which two close points may coincide.
    if frequencies[0] < 0 or (np.diff(frequencies.astype(np.float32)) <= 0).any():
        raise ValueError(f"{name}: frequencies must be non-negative and increase [cycles/pixel]")
    if values.min() < 0 or (positive and values.min() == 0) or values.max() > highest:
        lowest = "> 0" if positive else ">= 0"
        upper = f" and <= {highest:g}" if np.isfinite(highest) else ""
        raise ValueError(f"{name}: values run from {values.min():g} to {values.max():g}; "
                         f"must be {lowest}{upper}")


def read_mtf(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a measured curve.

    Either a RELION star file with the columns rlnResolutionInversePixel and rlnMtfValue, or plain
    text of two columns (which also serves for a DQE), frequency [cycles/pixel] and value.

    Returns:
        Frequencies [cycles/pixel] and values, both (n,).

    Raises:
        ValueError: if the file is missing or is neither, or its numbers are no curve.
    """
    try:
        text = Path(path).read_text()
        table = _read_star(path) if "_rln" in text else _read_columns(text)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    # starfile and numpy raise whatever the damage leads to.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: neither a RELION star file with rlnResolutionInversePixel and "
                         f"rlnMtfValue nor two columns of numbers ({reason})") from error
    if len(table) != 2:
        raise ValueError(f"{path}: has {len(table)} columns, must have two")
    check_table(str(path), table)
    return table[0], table[1]


def numbers(value: Any) -> np.ndarray:
    """Plain float64 copy, without gradient, of a number, an array or nested sequences of them."""
    if isinstance(value, Tensor):
        return value.detach().cpu().double().numpy()
    if isinstance(value, (list, tuple)):
        return np.array([numbers(item) for item in value])
    return np.asarray(value, dtype=float)


def _tensor(value: Any) -> Tensor:
    """Like `as_tensor`, but numbers inside a sequence keep their gradients too."""
    if isinstance(value, (list, tuple)):
        return torch.stack([_tensor(item) for item in value])
    return as_tensor(value)


def _read_columns(text: str) -> np.ndarray:
    lines = [line.split() for line in text.splitlines()]
    return np.array([line for line in lines if line and line[0][0] != "#"], dtype=float).T


def _read_star(path: str | Path) -> np.ndarray:
    columns = ["rlnResolutionInversePixel", "rlnMtfValue"]
    for block in starfile.read(path, always_dict=True).values():
        if set(columns) <= set(block):
            return np.array([block[column] for column in columns], dtype=float)
    raise ValueError("no block with both columns")
