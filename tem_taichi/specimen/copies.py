"""Copies of volumes: their projections, added to slices or as images of their own."""

import math
from collections.abc import Sequence

import torch

from tem_taichi.arguments import check_array, check_grid, to_field
from tem_taichi.device import as_tensor, number
from tem_taichi.grid import BAND_LIMIT
from tem_taichi.physics import SCATTERING_TO_POTENTIAL, wavelength
from tem_taichi.specimen.curves import RADIUS
from tem_taichi.specimen.depth import depth_weights
from tem_taichi.specimen.gridding import add, sample
from tem_taichi.specimen.splatting import WIDENING, narrow
from tem_taichi.specimen.view import View
from tem_taichi.specimen.volumes import Volume

_AT_ONCE = 1 << 19
"""Coefficients in work at once: some megabytes, which stay in the cache."""

_FINENESS = 0.6
"""Planes to each side for each slice: waves of apoferritin and gold are then within 8e-4 of those
of their atoms, with slices thinner and thicker than they are."""

_FLAT = 0.01 * math.sqrt(60)
"""For 1 %: depths in a ball are L / sqrt(20) about the mean, and k^2 over a disk 1 / sqrt(3) of the
largest."""

_EDGE = 4
"""Pixels by which patches reach over the edge of the field, where they fade out."""


def n_planes(diameter: float, view: View) -> int:
    """Planes to each side of the central one that slices need; 0 where particles may lie flat.

    They may where there is one slice; else where slices are thicker than the particle, and the
    phase pi lambda k^2 L of its own diameter L is below _FLAT at the end of the band: over a disk
    of frequencies with equal signal, a ball's waves are then off by less than 1 % rms.

    Args:
        diameter: of the particle [A].
        view: its pixels and slices.
    """
    if view.n_slices == 1:
        return 0
    thickness, highest = view.slice_thickness, BAND_LIMIT / 2 / view.pixel_size
    phase = math.pi * number(wavelength(view.voltage)) * highest**2 * diameter
    if diameter <= thickness and phase < _FLAT:
        return 0
    period = slices_of(diameter / 2, thickness)
    return math.ceil(period * min(_FINENESS, 0.4 * thickness / view.pixel_size))


def add_copies(
    layers: Sequence[torch.Tensor],
    volume: Volume,
    rotations: torch.Tensor,
    pixels: torch.Tensor,
    view: View,
    *,
    first_slice: int,
    depth: str,
) -> list[torch.Tensor]:
    """Add copies of a volume to the slices that `narrow` then finishes.

    A particle that `n_planes` lets lie flat is where its centre is; another one is cut by the
    weights with which slices share their scatterers, from planes on both sides of the central one.

    Args:
        layers: one for each channel of the volume, (count, ny, nx) each, added to.
        volume: of the kind.
        rotations: of the copies' coordinates to the image's, (n, 3, 3).
        pixels: column, row and depth of the volume's centre, in pixels, pixels and slices, (n, 3).
        view: its pixels and slices.
        first_slice: number of the first slice of the layers among them.
        depth: see `depth_weights`.

    Returns:
        The layers; differentiable in rotations and pixels.
    """
    count, ny, nx = layers[0].shape
    each_side = n_planes(2 * volume.radius, view)
    windows = _window(nx, layers[0]), _window(ny, layers[0])
    layers = list(layers)
    per_copy = (2 * each_side + 1) * volume.patch**2 * len(volume.names)
    for part in _alike(rotations).split(max(1, _AT_ONCE // per_copy)):
        turned, placed = rotations[part], pixels[part]
        if each_side:
            patches, source, index = _slabs(volume, turned, placed, view.slice_thickness,
                                            each_side, depth)
            index, weight = index.clamp(0, view.n_slices - 1), torch.ones_like(patches[:, 0, 0, 0])
        else:
            patches = projections(volume, turned, placed[:, :2])
            shared, shares = depth_weights(placed[:, 2], view.n_slices, depth)
            index, weight = shared.flatten(), shares.flatten()
            source = torch.arange(len(part), device=index.device).repeat(len(shared))
        here = torch.nonzero((index >= first_slice) & (index < first_slice + count)).flatten()
        source, index, weight = source[here], index[here] - first_slice, weight[here]
        per_patch = len(patches) // len(part)
        corner = (_nearest(placed[:, :2]) - volume.patch // 2)[source // per_patch]
        layers = [add(layer, patches[:, n], weight, source, index, corner, windows)
                  for n, layer in enumerate(layers)]
    return layers


def project(
    volume: Volume, rotations: torch.Tensor, shifts: torch.Tensor, shape: tuple[int, int],
    damping: torch.Tensor | None = None,
) -> torch.Tensor:
    """Projected potential of a particle at many poses, as of particle images.

    Args:
        volume: of the kind; its first channel is taken.
        rotations: of the particle's coordinates to the image's, (n, 3, 3); from RELION's angles
            `rotations.euler_to_matrix`.
        shifts: of the particle's centre from pixel n // 2 towards +x and +y [A], (n, 2).
        shape: (ny, nx) of an image; what does not fit is cut.
        damping: factor of each coefficient of the rfft2, (ny, nx // 2 + 1).

    Returns:
        Images (n, ny, nx) [V A], zero beyond 2/3 of the Nyquist frequency; differentiable in
        rotations and shifts.

    Raises:
        ValueError: for arrays of other shapes.
    """
    rotations, shifts = to_field("rotations", rotations), to_field("shifts", shifts)
    check_array("rotations", rotations, ("n", 3, 3), "1")
    check_array("shifts", shifts, (len(rotations), 2), "A")
    ny, nx = check_grid("shape", shape)
    offset = torch.einsum("nij,j->ni", rotations, volume.centre)[:, :2]
    pixels = (shifts + offset) / volume.pixel_size + as_tensor([nx // 2, ny // 2])
    out = torch.zeros((len(pixels), ny, nx), dtype=volume.spectra.dtype,
                      device=volume.spectra.device)
    windows = _window(nx, out), _window(ny, out)
    numbers = torch.arange(len(pixels), device=out.device)
    for part in numbers.split(max(1, _AT_ONCE // volume.patch**2)):
        patches = projections(volume, rotations[part], pixels[part])[:, 0]
        own = torch.arange(len(part), device=out.device)
        out = add(out, patches, torch.ones_like(pixels[part, 0]), own, part,
                  _nearest(pixels[part]) - volume.patch // 2, windows)
    return narrow(out, SCATTERING_TO_POTENTIAL / volume.pixel_size**2, damping)


def projections(
    volume: Volume, rotations: torch.Tensor, pixels: torch.Tensor
) -> torch.Tensor:
    """Patches of whole copies with pixel P // 2 at the one that is nearest to their centre.

    Args:
        volume: of the kind.
        rotations: (n, 3, 3).
        pixels: column and row of the centre, (n, 2).

    Returns:
        (n, channels, P, P).
    """
    planes = _planes(volume, rotations, pixels, as_tensor([0.0]))[:, :, 0]
    return torch.fft.irfft2(planes, s=(volume.patch, volume.patch))


def _planes(
    volume: Volume, rotations: torch.Tensor, pixels: torch.Tensor, depths: torch.Tensor
) -> torch.Tensor:
    """Planes of the spectra at depths [1 / patch], (n, channels, planes, P, P // 2 + 1)."""
    frames = rotations * as_tensor(volume.samples) / volume.patch
    places = pixels - _nearest(pixels) + volume.patch // 2
    return sample(volume.spectra, frames, places, depths, volume.patch, RADIUS)


def _slabs(
    volume: Volume, rotations: torch.Tensor, pixels: torch.Tensor, slice_thickness: float,
    each_side: int, depth: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches of copies cut by the weights of slices, (n * slices, channels, P, P).

    A weight is a series over a period of whole slices, so many that none has an image of itself
    in the particle. Coefficients of higher frequencies than `n_planes` allows are left out: in
    waves that pass through the slices, whose own along the beam are far below, they cancel.

    Returns:
        Patches, and number of the patch and of its slice.
    """
    pixel = volume.pixel_size
    period = slices_of(volume.radius, slice_thickness)
    j = as_tensor(torch.arange(-each_side, each_side + 1))
    frequency = j / (period * slice_thickness)  # [1/A]
    planes = _planes(volume, rotations, pixels[:, :2], frequency * pixel * volume.patch)
    index, shares = share_series(pixels[:, 2], period, j, depth)
    # The Gaussians were widened along the beam too, which slices are not.
    shares = shares * torch.exp(WIDENING * (frequency * pixel) ** 2)
    n, channels, count, size, _ = planes.shape
    cut = shares[:, None] @ planes.reshape(n, channels, count, -1)
    cut = cut.reshape(n, channels, period, size, -1).transpose(1, 2).flatten(0, 1)
    patches = torch.fft.irfft2(cut, s=(size, size))
    return patches, torch.arange(len(patches), device=index.device), index.flatten()


def slices_reached(
    radius: float, z: torch.Tensor, view: View
) -> tuple[torch.Tensor, torch.Tensor]:
    """First slices that copies are added to by `add_copies`, and those behind the last, (n,).

    Args:
        radius: of the kind's volume [A].
        z: depths of the copies [slices], (n,).
        view: its pixels and slices.
    """
    if n_planes(2 * radius, view):
        period = slices_of(radius, view.slice_thickness)
        first = (z - period / 2).round()
        return first, first + period
    first = (z - 0.5).clamp(0, view.n_slices - 1).floor()
    return first, first + 2


def slices_of(radius: float, slice_thickness: float) -> int:
    """Slices that a particle of a radius [A] may have a part in, wherever it is."""
    return math.ceil(2 * radius / slice_thickness) + 2


def share_series(
    z: torch.Tensor, period: int, j: torch.Tensor, depth: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """`depth_weights` about copies as series sum_j c_j exp(-2 pi i j (z' - z) / period) in z'.

    Args:
        z: depths of the copies [slices], (n,).
        period: slices about them, as many.
        j: numbers of the coefficients, (m,).
        depth: see `depth_weights`.

    Returns:
        Numbers of the slices (n, period), and the coefficients (n, period, m).
    """
    if depth == "nearest":
        z = z.detach()
    first = (z.detach() - period / 2).round().long()
    index = first[:, None] + torch.arange(period, device=z.device)
    # A box, or a triangle of twice its width, about the middle of each slice.
    height = torch.sinc(j / period) ** (2 if depth == "smooth" else 1) / period
    angle = 2 * math.pi / period * j * (index + 0.5 - z[:, None])[..., None]
    return index, torch.polar(height.expand(angle.shape), angle)


def _alike(rotations: torch.Tensor) -> torch.Tensor:
    """Numbers of copies, those seen from near directions together: they take the same planes.

    What one has read of the spectrum is in the cache for the next: a quarter of the time.
    """
    seen_along = rotations[:, 2].detach()
    seen_along = seen_along * torch.where(seen_along[:, 2:] < 0, -1.0, 1.0)
    bands = math.ceil(math.sqrt(len(rotations)) / 2)
    band = (seen_along[:, 2] * bands).long()
    turn = torch.atan2(seen_along[:, 1], seen_along[:, 0]) / (2 * math.pi) + 0.5
    return torch.argsort(band + torch.where(band % 2 == 0, turn, 1 - turn), stable=True)


def _nearest(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels.detach() + 0.5).floor().long()


def _window(n: int, like: torch.Tensor) -> torch.Tensor:
    """What is left of the widened scatterers of a field of n pixels around its edges."""
    at = torch.arange(-_EDGE, n + _EDGE, dtype=like.dtype, device=like.device)
    width = math.sqrt(WIDENING) / math.pi  # of exp(-WIDENING k^2): sigma sqrt(2)
    return 0.5 * (torch.erf((at + 0.5) / width) - torch.erf((at - n + 0.5) / width))


