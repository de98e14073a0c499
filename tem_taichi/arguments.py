"""Arguments of the Python interface: array-likes become tensors, or one line says what is wrong."""

import math
from typing import Any

import numpy as np
import torch

from tem_taichi.checks import LARGE, shown
from tem_taichi.device import as_tensor, current

VOLTAGES = (10.0, 3000.0)
"""[kV]"""


def check_number(
    name: str, value: Any, unit: str, low: float = -LARGE, high: float = LARGE, *,
    above: float | None = None, below: float | None = None, batch: bool = False,
) -> None:
    """Refuse what is not one finite number within a range.

    Args:
        name: of the argument, for the message.
        value: a number, or a tensor or array of one.
        unit: for the message.
        low: least value allowed; high: the largest.
        high: see low.
        above: a bound that is not itself allowed, in place of low; below: in place of high.
        below: see above.
        batch: whether it may also be one of each of b images, shape (b,).

    Raises:
        ValueError: if it is.
    """
    plain = _plain(name, value, f"a number [{unit}]")
    if plain.ndim > batch or plain.size == 0:
        raise ValueError(f"{name} has shape {plain.shape}: must be one number"
                         + (", or one of each image" if batch else "") + f" [{unit}]")
    inside = (plain > above) if above is not None else (plain >= low)
    inside &= (plain < below) if below is not None else (plain <= high)
    if not inside.all():
        least = f"above {above:g}" if above is not None else f"from {low:g}"
        most = f" and below {below:g}" if below is not None else f" up to {high:g}"
        if above == 0 and below is None:
            large = np.isfinite(plain).all() and (plain > high).any()
            least, most = "positive", f",{most}" if large else ""
        raise ValueError(f"{name}={shown(plain.tolist())}: must be {least}{most} [{unit}]")


def check_positive_number(name: str, value: Any, unit: str, batch: bool = False) -> None:
    """ValueError unless the value is a number above 0 and no more than LARGE."""
    check_number(name, value, unit, above=0.0, batch=batch)


def check_voltage(value: Any) -> None:
    """ValueError unless the value is an accelerating voltage in kV."""
    check_number("voltage", value, "kV", *VOLTAGES, batch=True)


def check_amplitude_contrast(value: Any) -> None:
    """ValueError unless the value is within [0, 1)."""
    check_number("amplitude_contrast", value, "1", 0.0, below=1.0, batch=True)


def check_grid(name: str, shape: Any) -> tuple[int, int]:
    """The shape (ny, nx) of a grid as plain whole numbers.

    Raises:
        ValueError: unless it is two whole numbers of at least 1.
    """
    try:
        sizes = tuple(int(n) for n in shape)
        sound = len(sizes) == 2 and min(sizes) >= 1 and sizes == tuple(shape)
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{name}={shape}: must be two whole numbers (ny, nx), at least 1 pixel "
                         "each way")
    return sizes[0], sizes[1]


def check_array(name: str, value: torch.Tensor, shape: tuple[int | str, ...], unit: str) -> None:
    """Refuse a tensor of another shape or with values that are not finite.

    Args:
        name: of the argument, for the message.
        value: the tensor.
        shape: lengths; a name stands for any length.
        unit: for the message.

    Raises:
        ValueError: if it is.
    """
    given = tuple(value.shape)
    if len(given) != len(shape) or any(
            isinstance(n, int) and n != m for n, m in zip(shape, given, strict=True)):
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} of shape {given}: must be ({wanted})")
    if not all_finite(value):
        raise ValueError(f"{name}: must be finite [{unit}]")


def all_finite(value: torch.Tensor) -> bool:
    """Whether no element is infinite or NaN; from the sum, which takes a tenth of the time."""
    value = value.detach()
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def to_tensor(name: str, value: Any) -> torch.Tensor:
    """An array-like as a tensor, which keeps its type, place and gradient if it is one already.

    Raises:
        ValueError: if it holds no numbers.
    """
    if isinstance(value, torch.Tensor):
        return value
    try:
        return torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}={shown(value)}: must be an array of numbers") from error


def to_field(name: str, value: Any, kind: str = "real") -> torch.Tensor:
    """An array-like as a tensor of the device and precision in use.

    Args:
        name: of the argument, for the message.
        value: the array; a tensor keeps its gradient.
        kind: "real"; "complex"; "either", as it is.

    Raises:
        ValueError: if it holds no numbers, some that are not finite, or complex ones for "real".
    """
    out = as_field(name, value, kind)
    if not all_finite(out):
        raise ValueError(f"{name}: must be finite")
    return out


def as_field(name: str, value: Any, kind: str = "real") -> torch.Tensor:
    """`to_field` without a look at the values, which would wait for a GPU.

    Args:
        name: of the argument, for the message.
        value: the array.
        kind: see `to_field`.

    Raises:
        ValueError: if it holds no numbers, or complex ones for "real".
    """
    given = to_tensor(name, value)
    device = current()
    if kind == "real" and given.is_complex():
        raise ValueError(f"{name}: must be real, not complex")
    if kind == "complex" or given.is_complex():
        return given.to(device=device.torch_device, dtype=device.complex_dtype)
    return as_tensor(given)


def no_gradient(name: str, value: Any, why: str) -> None:
    """Refuse a tensor whose gradient would be lost.

    Raises:
        ValueError: if it requires one.
    """
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise ValueError(f"{name}: has no gradient here, since {why}; detach the tensor")


def _plain(name: str, value: Any, wanted: str) -> np.ndarray:
    """A copy in double precision of a number or array, without gradient."""
    if isinstance(value, torch.Tensor) and not value.is_complex():
        return value.detach().cpu().double().numpy()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return np.array(float(value))
        except OverflowError:  # an integer of a thousand digits
            return np.array(math.inf)
    try:
        plain = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        plain = np.array(None)
    if plain.dtype.kind not in "iuf":
        raise ValueError(f"{name}={shown(value)}: must be {wanted}")
    return plain.astype(np.float64)
