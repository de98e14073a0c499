"""A volume seen from outside: emission and absorption along parallel rays, with shaded surfaces.

Seen from the front, x is to the right, y up, and z towards the viewer; the volume is turned
right-handedly, first about y, then about x. Light that comes from a depth is what matter there
emits, dimmed by all that lies before it (Max 1995, IEEE TVCG 1, 99).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tem_taichi.arguments import check_number, to_field

_PLANES = 16
"""At a time: what is kept of them stays near the processor."""
_DARK = 12.0
"""Optical depth behind which nothing is seen."""
_LIGHT = (-0.45, 0.55, 0.70)
"""Towards the light, x, y, z of the viewer: from the upper left, and from before."""
_AMBIENT = 0.3
"""Brightness of what is turned away from the light."""
_FLAT = 0.05
"""Gradient, in the range of levels a voxel, at which half of the shading is that of a surface."""
_BRIGHTEST = 2.0
"""In the range of levels: more would only make surfaces of single voxels blocky."""


@dataclass(frozen=True)
class Transfer:
    """What is seen of a value."""

    levels: tuple[float, float]
    """Up to the first nothing is seen, from the second on most; between them in proportion."""
    extinction: float
    """At the second: part of the light that is lost on a short way [1/A]."""


@dataclass(frozen=True)
class View:
    """From where a volume is seen."""

    turn: float = 0.0
    """About y, which is up: by 90 what was in front is at the right [deg]."""
    elevation: float = 0.0
    """About x then, to the right: the eye is so much above [deg]."""

    def matrix(self) -> Tensor:
        """From the volume's x, y, z to the viewer's."""
        c, s, ce, se = (function(math.radians(angle)) for angle in (self.turn, self.elevation)
                        for function in (math.cos, math.sin))
        about_y = torch.tensor([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]], dtype=torch.float64)
        about_x = torch.tensor([[1.0, 0.0, 0.0], [0.0, ce, -se], [0.0, se, ce]],
                               dtype=torch.float64)
        return about_x @ about_y


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture before it has colours, each part (ny, nx), row 0 at the bottom."""

    opacity: Tensor
    """Part of the light from behind that is lost."""
    thin: Tensor
    """Light of a volume whose matter all has the colour of the first level."""
    dense: Tensor
    """What of it is from the colour of the second level."""

    def coloured(self, first: Tensor, second: Tensor, background: Tensor) -> Tensor:
        """Light (ny, nx, 3) with the colours of both levels, and one that shines through."""
        return ((self.thin - self.dense)[..., None] * first + self.dense[..., None] * second
                + (1 - self.opacity)[..., None] * background)


def levels_of(volume: Tensor) -> tuple[float, float]:
    """Levels by the volume itself: above its noise, to its densest thousandth.

    The noise is that of the median's surroundings, by the median of absolute differences.
    """
    flat = volume.detach().flatten()
    some = flat[::max(1, flat.numel() // 4_000_000)].double()  # enough for a thousandth
    middle = some.median()
    spread = 1.4826 * (some - middle).abs().median()
    high = torch.quantile(some, 0.999) if some.numel() < 16_000_000 else some.max()
    low = middle + 2 * spread
    if not high > low:
        low, high = some.min(), some.max()
    return float(low), float(high)


def extinction_for(volume: Tensor, voxel: float, levels: tuple[float, float], opacity: float
                   ) -> float:
    """Extinction with which matter is as opaque as wanted, on its average, seen from the front.

    Args:
        volume: (nz, ny, nx).
        voxel: [A].
        levels: as in `Transfer`.
        opacity: above 0, below 1.

    Returns:
        [1/A].

    Raises:
        ValueError: if nothing of the volume is above the first level.
    """
    matter = _matter(volume.detach(), levels).clamp(0, 1).sum(0).flatten().double() * voxel
    whole = float(matter.sum())
    if not whole > 0:
        raise ValueError(f"levels={list(levels)}: the first must be below some of the volume's "
                         "values")
    low, high = 0.0, -math.log1p(-opacity) * len(matter) / whole
    while _opacity(matter, high) < opacity * whole:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        if _opacity(matter, middle) < opacity * whole:
            low = middle
        else:
            high = middle
    return high


def _opacity(matter: Tensor, extinction: float) -> float:
    return float(-(matter * torch.expm1(-extinction * matter)).sum())


def _matter(volume: Tensor, levels: tuple[float, float]) -> Tensor:
    low, high = levels
    return ((volume - low) / (high - low)).clamp(max=_BRIGHTEST)


def field_of(shape: tuple[int, int, int], elevation: float = 0.0) -> tuple[int, int]:
    """Rows and columns that hold a volume (nz, ny, nx) whatever its turn [pixel]."""
    nz, ny, nx = shape
    around = math.hypot(nz, nx)
    c, s = (abs(function(math.radians(elevation))) for function in (math.cos, math.sin))
    return math.ceil(ny * c + around * s - 1e-9), math.ceil(around - 1e-9)


def rendered(volume: Tensor, voxel: float, transfer: Transfer, view: View | None = None) -> Seen:
    """A volume as it is seen from far.

    Surfaces are where the value rises; the light falls from the upper left and from before.

    Args:
        volume: (nz, ny, nx); beyond it nothing is.
        voxel: [A]; also of the pixels, whose middle n // 2 shows that of the volume.
        transfer: from values to what is seen.
        view: None = from the front.

    Returns:
        Pictures of `field_of`; differentiable in the volume.

    Raises:
        ValueError: if the levels are none, or the voxel is not positive.
    """
    check_number("voxel", voxel, "A", 0.0, above=True)
    low, high = transfer.levels
    if not low < high:
        raise ValueError(f"levels={[low, high]}: the second must be above the first")
    matter = _turned(_matter(to_field("volume", volume), transfer.levels), view or View())
    depth, *field = (n - 2 for n in matter.shape)
    front = matter.new_zeros(field)
    opacity, thin, dense = front, front, front
    for end in range(depth, 0, -_PLANES):
        begin = max(0, end - _PLANES)
        slab = matter[begin:end + 2]
        there = slab[1:-1, 1:-1, 1:-1].clamp(0, 1)
        if not bool((there > 0).any()):
            continue
        depths = there * (transfer.extinction * voxel)
        behind = front + depths.flip(0).cumsum(0).flip(0)
        weight = torch.exp(depths - behind) - torch.exp(-behind)
        lit = weight * _shade(slab)
        opacity, thin = opacity + weight.sum(0), thin + lit.sum(0)
        dense = dense + (lit * there).sum(0)
        front = behind[0]
        if float(front.detach().min()) > _DARK:
            break
    return Seen(opacity, thin, dense)


def _shade(matter: Tensor) -> Tensor:
    """Brightness of the inner voxels by the slope of matter there."""
    inner = slice(1, -1)
    slopes = [(matter[inner, inner, 2:] - matter[inner, inner, :-2]) / 2,
              (matter[inner, 2:, inner] - matter[inner, :-2, inner]) / 2,
              (matter[2:, inner, inner] - matter[:-2, inner, inner]) / 2]
    steep = (slopes[0].square() + slopes[1].square() + slopes[2].square() + 1e-12).sqrt()
    length = math.hypot(*_LIGHT)
    # Outwards is where matter falls; what is even is lit as a surface that looks at the viewer.
    light = [part / length for part in _LIGHT]
    towards = -(slopes[0] * light[0] + slopes[1] * light[1] + slopes[2] * light[2])
    return _AMBIENT + (1 - _AMBIENT) * (towards.clamp(min=0) + _FLAT * light[2]) / (steep + _FLAT)


def _turned(volume: Tensor, view: View) -> Tensor:
    """The volume on the viewer's axes, with a voxel of nothing around its field."""
    nz, ny, nx = volume.shape
    rows, columns = field_of((nz, ny, nx), view.elevation)
    turned = _in_plane(volume.permute(1, 0, 2), view.turn, columns + 2)
    if view.elevation % 360 == 0:
        padded = torch.nn.functional.pad(turned, (0, 0, 1, 1, 1, 1))
        return padded.permute(1, 0, 2)
    around = turned.permute(2, 1, 0)
    return torch.nn.functional.pad(_in_plane(around, -view.elevation, rows + 2), (0, 0, 1, 1)
                                   ).permute(1, 2, 0)


def _in_plane(planes: Tensor, angle: float, columns: int) -> Tensor:
    """Planes (n, rows, columns) turned so that columns take from rows, all by the same angle.

    About the middle n // 2 of both; one call for all planes, whose places are then found once.
    """
    _, nr, nc = planes.shape
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # One more, since the middle of an even number of them is not their half.
    rows = math.ceil(nr * abs(c) + nc * abs(s) - 1e-9) + 1
    options = {"dtype": planes.dtype, "device": planes.device}
    row = (torch.arange(rows, **options) - rows // 2)[:, None]  # type: ignore[call-overload]
    column = torch.arange(columns, **options) - columns // 2  # type: ignore[call-overload]
    places = torch.stack([2 * (c * column - s * row + nc // 2) / nc + (1 / nc - 1),
                          2 * (s * column + c * row + nr // 2) / nr + (1 / nr - 1)], dim=-1)
    return torch.nn.functional.grid_sample(planes.contiguous()[None], places[None],
                                           align_corners=False)[0]
