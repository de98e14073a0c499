"""Images of a large wave tile by tile, at defoci that differ across the field.

What scatters at a frequency k travels wavelength defocus k in the image: a few pixels, where
these are large. So each tile is imaged by itself, with a margin as wide as that, at the few defoci
that it needs; a full image at each defocus of the field would cost many times more.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tem_taichi.device import number, present
from tem_taichi.instrument.coherence import Transfer
from tem_taichi.instrument.optics import Optics, defocus_per_energy
from tem_taichi.physics import Value, wavelength

_LENGTHS = (96, 128, 192, 256, 384, 512, 768, 1024)
"""Of tiles with their margins [pixel]."""

_TAPER, _SPARE = 8, 16
"""Pixels at a tile's edge in which what scatters falls to nothing, lest it wrap around, and pixels
of the margin beyond what electrons travel, these included: with waves that fill their band the
image differs by 5e-4 of its contrast (rms)."""

_CACHED = 2**19
"""Pixels of a tile beyond which a pixel costs twice as much."""

_FRAME, _PLANE = 1.0, 4.0
"""What a pixel of a tile costs, and that of each image of it."""


@dataclass(frozen=True)
class Axis:
    """How an axis is cut into tiles."""

    pixels: int
    """Of the whole axis, which is periodic."""
    parts: int
    length: int
    """Of a tile with its margins [pixel]."""
    margin: int
    """On either side of a tile [pixel]; 0 where there is but one."""

    @property
    def ends(self) -> list[tuple[int, int]]:
        """First pixel of each part and that after its last."""
        bounds = [round(n * self.pixels / self.parts) for n in range(self.parts + 1)]
        return list(itertools.pairwise(bounds))

    def window(self, like: torch.Tensor) -> torch.Tensor:
        """1, falling to 0 at both ends of a tile, (length,)."""
        if not self.margin:
            return torch.ones(self.length).to(like)
        place = torch.arange(self.length) + 0.5
        near = torch.minimum(place, self.length - place) / _TAPER
        return torch.sin(near.clamp(max=1) * math.pi / 2).square().to(like)


def margin_of(lens: Optics, voltage: Value, pixel_size: float, depth: float) -> float:
    """How far from where it scatters an electron may arrive [pixel]; infinite if anywhere.

    Args:
        lens: its defocus is that of the field's middle.
        voltage: [kV].
        pixel_size: [A]; what scatters beyond its Nyquist frequency is not in the wave.
        depth: by how much the defocus may differ from that [A].
    """
    if lens.aperture is not None or present(lens.phase_shift):
        return math.inf  # a sharp edge, be it about k = 0, spreads everything
    k, wave = 0.5 / pixel_size, number(wavelength(voltage))
    angle = wave * k
    spherical = number(lens.spherical_aberration) * 1e7
    spread = 3 * number(lens.energy_spread * defocus_per_energy(
        voltage, lens.chromatic_aberration))
    defocus = (abs(number(lens.defocus)) + depth + abs(number(lens.astigmatism)) / 2 + spread)
    tilt = 1e-3 * math.hypot(number(lens.beam_tilt_x), number(lens.beam_tilt_y))
    source = 3e-3 * number(lens.convergence)
    # Slopes of chi / (2 pi), term by term.
    travelled = ((angle + source) * defocus
                 + spherical * angle**2 * (angle + 3 * (source + tilt))
                 + angle**2 * (abs(number(lens.coma)) + abs(number(lens.trefoil))))
    return travelled / pixel_size


def background_is_steady(
    lens: Optics, voltage: Value, pixel_size: float, depth: float, step: float
) -> bool:
    """Whether electrons that do not interfere are as many at neighbouring defoci, to 2 %.

    Args:
        lens: as in `margin_of`, and so are the next three.
        voltage: [kV].
        pixel_size: [A].
        depth: [A].
        step: from one defocus to the next [A].
    """
    q, angle = math.pi / pixel_size, 1e-3 * number(lens.convergence)
    return angle**2 / 2 * q**2 * (abs(number(lens.defocus)) + depth) * step < 0.02


def cut(shape: tuple[int, int], steep: tuple[float, float], margin: float) -> tuple[Axis, Axis]:
    """The cheapest tiles of a field, along y and x; the whole field if nothing is cheaper.

    Args:
        shape: (ny, nx).
        steep: of the field's defocus along y and x, in steps between images a pixel.
        margin: of `margin_of` [pixel].
    """
    def ways(pixels: int) -> list[Axis]:
        wide = math.ceil(margin) + _SPARE if margin < pixels else pixels
        return [Axis(pixels, 1, pixels, 0), *(
            Axis(pixels, math.ceil(pixels / (length - 2 * wide)), length, wide)
            for length in _LENGTHS if 2 * wide + 8 < length < pixels)]

    def cost(axes: tuple[Axis, ...]) -> float:
        pixels = math.prod(axis.length for axis in axes)
        planes = 1 + sum(math.ceil(slope > 0) / 2 + slope * axis.pixels / axis.parts
                         for slope, axis in zip(map(abs, steep), axes, strict=True))
        once = pixels * (_FRAME + _PLANE * planes) * (1 if pixels <= _CACHED else 2)
        return once * math.prod(axis.parts for axis in axes)

    along_y, along_x = min(itertools.product(*map(ways, shape)), key=cost)
    return along_y, along_x


def image_in_tiles(
    wave: torch.Tensor, axes: tuple[Axis, Axis], slopes: tuple[torch.Tensor, torch.Tensor],
    transfer: Callable[[int], Transfer], steady: bool = False,
) -> torch.Tensor:
    """Image of a wave whose defocus changes linearly across the field.

    Each pixel is interpolated between images at the two steps of defocus about its own.

    Args:
        wave: complex (ny, nx).
        axes: of `cut`, along y and x.
        slopes: of the defocus along y and x from the centre n // 2, in steps a pixel, shape ();
            differentiable.
        transfer: of a tile with its margins at a number of steps from the centre's defocus.
        steady: whether one image of what does not interfere is enough for a tile.

    Returns:
        Intensity (ny, nx), differentiable in wave, slopes and what the transfers are made from.
    """
    along_y, along_x = axes
    window = along_y.window(wave.real)[:, None] * along_x.window(wave.real)
    known: dict[int, Transfer] = {}
    rows = []
    for y0, y1 in along_y.ends:
        row = []
        for x0, x1 in along_x.ends:
            tile = wave
            if (along_y.margin, along_x.margin) != (0, 0):
                tile = _around(_around(wave, along_y, y0, 0), along_x, x0, 1)
                mean = tile.mean()
                tile = (tile - mean) * window + mean
            height = [slope * (torch.arange(first, last).to(slope) - axis.pixels // 2)
                      for slope, axis, first, last in zip(
                          slopes, axes, (y0, x0), (y1, x1), strict=True)]
            inner = (slice(along_y.margin, along_y.margin + y1 - y0),
                     slice(along_x.margin, along_x.margin + x1 - x0))
            row.append(_between(torch.fft.fft2(tile), height[0][:, None] + height[1], inner,
                                transfer, known, steady))
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


def nodes_of(height: torch.Tensor) -> range:
    """Steps of defocus between whose images pixels at these heights are interpolated."""
    ends = [float(bound) for bound in torch.aminmax(height.detach())]
    # Rounding of a height of a whole step asks for no other.
    first, last = math.floor(ends[0] + 1e-4), math.ceil(ends[1] - 1e-4)
    return range(first, max(first, last) + 1)


def share_of(height: torch.Tensor, n: int) -> torch.Tensor:
    """Of the image at a step in pixels at these heights, where there are several."""
    return (1 - (height - n).abs()).clamp(min=0)


def _around(wave: torch.Tensor, axis: Axis, first: int, dim: int) -> torch.Tensor:
    """A part of an axis with its margins, periodic."""
    if not axis.margin:
        return wave
    index = torch.arange(first - axis.margin, first - axis.margin + axis.length,
                         device=wave.device).remainder(axis.pixels)
    return wave.index_select(dim, index)


def _between(
    spectrum: torch.Tensor, height: torch.Tensor, inner: tuple[slice, slice],
    transfer: Callable[[int], Transfer], known: dict[int, Transfer], steady: bool,
) -> torch.Tensor:
    """Part of a tile, each pixel between images at the steps about its height (m, n)."""
    nodes = nodes_of(height)
    first = nodes[0]

    def at(n: int) -> Transfer:
        if n not in known:
            known[n] = transfer(n)
        return known[n]

    def seen(n: int) -> torch.Tensor:
        return (at(n).coherent if steady else at(n).image)(spectrum)[inner]

    once = at(nodes[len(nodes) // 2]).background(spectrum) if steady else None
    image = torch.zeros_like(height) if once is None else once[inner]
    if len(nodes) > 1:
        for n in nodes:
            image = image + seen(n) * share_of(height, n)
        return image
    image = image + seen(first)
    if height.requires_grad:  # its slope is the mean of those to both sides
        image = image + (height - first) * (seen(first + 1) - seen(first - 1)) / 2
    return image
