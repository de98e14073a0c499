"""Kinds of particles as volumes: the spectrum of all their scatterers on a grid, made once.

A volume holds the same widened Gaussians that `splatting.splat` adds for each scatterer, so that
its projections, added to the same slices, are finished by the same `narrow`. A copy's projection
is a central plane of the spectrum: its cost knows the size of the particle in pixels, not the
number of its scatterers.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import next_fast_len

from tem_taichi.arguments import no_gradient
from tem_taichi.device import as_tensor, current
from tem_taichi.grid import check_pixel_size
from tem_taichi.recompute import tensors_in
from tem_taichi.specimen.curves import looked_up, scattering_curves
from tem_taichi.specimen.gridding import SAMPLING, SPREADING, spread
from tem_taichi.specimen.kinds import VACUUM, Kind, Solvent, parts_of
from tem_taichi.specimen.potential import Gaussians
from tem_taichi.specimen.splatting import WIDENING, reach

PADDING = 2
"""How often a volume fits into the box of its spectrum, for which SAMPLING is made."""

FINER = 1.5
"""How much finer the grid is on which scatterers are spread, for which SPREADING is made."""

_NUMBERS = 2**31
"""More than a kernel can count in an array."""


@dataclass(frozen=True)
class Volume:
    """Spectra of a kind of particle at one pixel size."""

    spectra: torch.Tensor
    """Of each channel, (channels, nz, ny, nx, 2), with x >= 0 and a rim for the interpolation; of
    what `splatting.splat` would add to slices of this pixel size."""
    names: tuple[str, ...]
    """Fields of `Kind` that the channels are."""
    samples: tuple[int, int, int]
    """Of the box along x, y and z whose transform the spectra are."""
    centre: torch.Tensor
    """Of the box in the coordinates of the kind [A], (3,)."""
    radius: float
    """Of the sphere about that centre that holds all scatterers [A]."""
    patch: int
    """Side of a copy's projection [pixel], even."""
    pixel_size: float
    """[A]"""

    def __post_init__(self) -> None:
        no_gradient("spectra", self.spectra, "particles drawn as atoms have one in their tensors")


@dataclass(frozen=True)
class Box:
    """How large a kind's volume is at a pixel size."""

    centre: torch.Tensor
    """Middle of the scatterers [A], (3,)."""
    radius: float
    """Of the sphere about it that holds them [A]."""
    voxels: tuple[int, int, int]
    """Along x, y and z."""
    patch: int
    """Side of a projection [pixel], even."""

    @property
    def bytes(self) -> float:
        """Memory of the spectrum of one channel in single precision."""
        return 4.0 * PADDING**3 * math.prod(self.voxels)


def box_of(kind: Kind, pixel_size: float) -> Box:
    """How large the volume of a kind is.

    Args:
        kind: of particle.
        pixel_size: [A].
    """
    positions = kind.positions.detach()
    low, high = positions.amin(0), positions.amax(0)
    centre = (low + high) / 2
    radius = float(torch.linalg.vector_norm(positions - centre, dim=1).max())
    # As far as the stencils of `splat` reach, and the taps that spread them.
    tail = max([SPREADING.width // 2] + [
        reach(part.table, part.kind, part.broadening, pixel_size)
        for part in (kind.group, kind.displaced, kind.absorbing) if part is not None])
    x, y, z = (_even(float(side) / pixel_size + 2 * tail + 2) for side in high - low)
    return Box(centre, radius, (x, y, z), _even(2 * (radius / pixel_size + tail) + 2))


def box_for(kind: Kind, pixel_size: float) -> Box:
    """`box_of`, kept with the kind."""
    return kind.once(("box", pixel_size), lambda: box_of(kind, pixel_size))


def _even(n: float) -> int:
    """The least even number of small factors that is not below n."""
    return 2 * next_fast_len(math.ceil(n / 2))


@torch.no_grad()
def volume_of(
    kind: Kind, pixel_size: float, names: tuple[str, ...] = ("group",),
    solvent: Solvent = VACUUM,
) -> Volume:
    """The volume of a kind, which has no gradient in the kind's own tensors.

    Args:
        kind: of particle.
        pixel_size: of the slices [A].
        names: fields of the kind, such as group and displaced; all that it has of them.
        solvent: what of the displaced one is part of the others.

    Raises:
        ValueError: if a gradient is asked for in the kind's own tensors, or the pixel size is not
            positive, or so small that the spectra would have 2^31 numbers or more.
    """
    pixel_size = check_pixel_size(pixel_size)
    for tensor in tensors_in(kind):
        no_gradient("kind", tensor, "a volume has none in it; draw it as atoms")
    box = box_for(kind, pixel_size)
    names = tuple(name for name in names if parts_of(kind, name, solvent))
    numbers = len(names) * math.prod(
        PADDING * n + 2 * SAMPLING.width + 2 for n in box.voxels)  # rims, and a little more
    if numbers >= _NUMBERS:
        raise ValueError(f"pixel_size={pixel_size:g}: as a volume {kind.name!r} has spectra of "
                         f"{numbers:,} numbers, must be less than {_NUMBERS:,}: make it larger, "
                         "or draw the kind as atoms")
    # Each part by curves of its own: the same whether what is displaced is one or not.
    found = [padded_spectrum(sum(
        (made_real(part, kind.positions, box, pixel_size)
         for part in parts_of(kind, name, solvent)), torch.zeros(())))
        for name in names]
    x, y, z = (PADDING * n for n in box.voxels)
    spectra = torch.stack(found) if len(found) > 1 else found[0][None]
    return Volume(spectra, names, samples=(x, y, z), centre=box.centre,
                  radius=box.radius, patch=box.patch, pixel_size=pixel_size)


def volume_for(
    kind: Kind, pixel_size: float, names: Sequence[str], solvent: Solvent = VACUUM
) -> Volume:
    """`volume_of`, kept with the kind."""
    names = tuple(names)
    return kind.once(("volume", pixel_size, names, solvent, current()),
                     lambda: volume_of(kind, pixel_size, names, solvent))


def made_real(
    group: Gaussians, positions: torch.Tensor, box: Box, pixel_size: float
) -> torch.Tensor:
    """Widened Gaussians of scatterers on a grid (nz, ny, nx)."""
    fine = [_even(FINER * n) for n in box.voxels]
    steps = as_tensor([f / (n * pixel_size) for f, n in zip(fine, box.voxels, strict=True)])
    places = (positions - box.centre) * steps + as_tensor(fine) // 2
    amounts, (curves,) = scattering_curves([[group]], pixel_size)
    nx, ny, nz = box.voxels
    kz, ky, kx = (_frequencies(n, places, half) for n, half in ((nz, False), (ny, False),
                                                                (nx, True)))
    squared = kz[:, None, None]**2 + ky[:, None]**2 + kx**2
    total = torch.zeros_like(squared, dtype=current().complex_dtype)
    for volume, curve in zip(spread(places, amounts.T, (fine[2], fine[1], fine[0])), curves,
                             strict=True):
        spectrum = _cropped(_cropped(torch.fft.rfftn(volume)[..., :nx // 2 + 1], 1, ny), 0, nz)
        total += spectrum * looked_up(curve, squared)
    total *= torch.exp(-WIDENING * squared)
    for axis, (k, n, f) in enumerate(zip((kz, ky, kx), (nz, ny, nx), fine[::-1], strict=True)):
        spreading = SPREADING.transform(k.cpu().numpy() * n / f)
        total /= as_tensor(spreading).reshape([-1 if i == axis else 1 for i in range(3)])
    # The middle is at n // 2 of both grids: half of the box, a sign of each frequency, stays.
    return torch.fft.irfftn(total, s=(nz, ny, nx))


def _cropped(spectrum: torch.Tensor, axis: int, n: int) -> torch.Tensor:
    """The n lowest frequencies of an axis."""
    half = n // 2
    return torch.cat([spectrum.narrow(axis, 0, half),
                      spectrum.narrow(axis, spectrum.shape[axis] - half, half)], dim=axis)


def _frequencies(n: int, like: torch.Tensor, half: bool) -> torch.Tensor:
    make = torch.fft.rfftfreq if half else torch.fft.fftfreq
    return make(n, dtype=like.dtype, device=like.device)


def padded_spectrum(volume: torch.Tensor) -> torch.Tensor:
    """Transform of a volume in a box of twice its sides, to be sampled by `gridding.sample`.

    Args:
        volume: (nz, ny, nx), even, its middle at n // 2.

    Returns:
        Real and imaginary part (nz', ny', nx', 2) at x from -rim, y and z from -n' // 2; divided
        by the transform of the sampling kernel.
    """
    rim = SAMPLING.width // 2 + 1
    for axis, n in enumerate(volume.shape):
        at = (np.arange(n) - n // 2) / (PADDING * n)
        volume = volume / as_tensor(SAMPLING.transform(at)).reshape(
            [-1 if i == axis else 1 for i in range(3)])
    shape = [PADDING * n for n in volume.shape]
    # The middle goes to index 0, from where transforms count.
    rolled = volume.new_zeros((volume.shape[0], volume.shape[1], shape[2]))
    half = volume.shape[2] // 2
    rolled[..., :half], rolled[..., -half:] = volume[..., half:], volume[..., :half]
    spectrum = torch.fft.rfft(rolled, dim=2)
    del rolled
    for axis in (1, 0):
        spectrum = _transformed(spectrum, axis, shape[axis])
    nz, ny, nx = shape
    z, y = (torch.arange(-n // 2 - rim, n // 2 + rim, device=volume.device) % n for n in (nz, ny))
    before = SAMPLING.width // 2 - 1
    x = torch.arange(-before, nx // 2 + rim + 1, device=volume.device)
    out = torch.empty((len(z), len(y), len(x)), dtype=spectrum.dtype, device=volume.device)
    inside = slice(before, before + nx // 2 + 1)
    out[:, :, inside] = spectrum[z[:, None], y[None, :]]
    for column in itertools.chain(range(before), range(inside.stop, len(x))):
        # F(-k) = conj(F(k)), and F has the period of the box's samples.
        mirror = int(-x[column]) % nx
        out[:, :, column] = spectrum[(-z)[:, None] % nz, (-y)[None, :] % ny, mirror].conj()
    return torch.view_as_real(out)


def _transformed(spectrum: torch.Tensor, axis: int, n: int) -> torch.Tensor:
    """Transform along an axis, whose middle is at n // 2, in n samples."""
    half = spectrum.shape[axis] // 2
    wide = list(spectrum.shape)
    wide[axis] = n
    padded = spectrum.new_zeros(wide)
    padded.narrow(axis, 0, half).copy_(spectrum.narrow(axis, half, half))
    padded.narrow(axis, n - half, half).copy_(spectrum.narrow(axis, 0, half))
    return torch.fft.fft(padded, dim=axis)
