"""Images of phase objects by lenses that stay as they are: what fits look at hundreds of times.

What decides an image but for the object is computed once. `Projection.intensity` gives the same
images, with gradients in all else as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tem_taichi.device import as_tensor, number
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.projection import Projection
from tem_taichi.instrument.tem import TEM
from tem_taichi.instrument.tiles import nodes_of, share_of
from tem_taichi.physics import interaction_constant
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.damage import damping

_MOST = 2**26
"""Numbers that are kept of all images, at most: 0.3 GB."""
_NO_DAMAGE = 1e-6
"""Dose that is none [e-/A^2]."""
_TOGETHER = 2**18
"""Pixels of the images that are made at once, but for one larger image."""


@dataclass(frozen=True, eq=False)
class PhaseImages:
    """Of specimens in one plane, at the defoci that a tilted plane needs."""

    which: slice
    """Of all images."""
    phase: Tensor
    """By the projected potential [rad / (V A)]."""
    decay: Tensor
    """Of the amplitude, by the same [1 / (V A)]."""
    damping: Tensor | None
    """What the dose has left of it, (n, ny, nx // 2 + 1) in the order of rfft2; None = all."""
    transfers: Tensor
    """exp(-i chi) of an image at one of its defoci, (m, ny, nx) in the order of fft2."""
    shares: Tensor
    """Of that in each pixel, (m, ny, nx)."""
    of: Tensor
    """Which image that is, (m,)."""

    def seen(self, projected: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Electrons relative to the beam, (n, ny, nx); and what slopes by them are by the object.

        By hand, which takes half of the time of a graph's passes.

        Args:
            projected: potential [V A], (n, ny, nx).

        Returns:
            Images, and a function from a gradient by them to that by what was projected.
        """
        left = self._left(projected)
        wave = torch.polar(torch.exp(-self.decay * left), self.phase * left)
        fields = torch.fft.ifft2(torch.fft.fft2(wave)[self.of].mul_(self.transfers))
        parts = torch.addcmul(fields.real.square(), fields.imag, fields.imag).mul_(self.shares)
        images = torch.zeros_like(left).index_add_(0, self.of, parts)

        def back(slopes: Tensor) -> Tensor:
            shares = self.shares * slopes[self.of]
            waves = torch.fft.fft2(torch.view_as_complex(
                torch.view_as_real(fields) * shares[..., None]))
            spectrum = torch.zeros_like(wave).index_add_(
                0, self.of, waves.mul_(self.transfers.conj()))
            turned = torch.fft.ifft2(spectrum).conj() * wave
            return self._left(torch.add(turned.real * self.decay, turned.imag * self.phase)
                              .mul_(-2))

        return images, back

    def _left(self, projected: Tensor) -> Tensor:
        """By the dose; its own adjoint."""
        if self.damping is None:
            return projected
        waves = torch.fft.rfft2(projected).mul_(self.damping)
        return torch.fft.irfft2(waves, s=projected.shape[1:])


def seen_as_phases(instrument: TEM, exposures: Sequence[Exposure]) -> list[PhaseImages] | None:
    """All images in groups; None where they are better made one by one.

    That is of a specimen in slices, a source that is not coherent, and fields imaged tile by tile.

    Args:
        instrument: of all.
        exposures: without gradients.
    """
    contrast = instrument.amplitude_contrast
    if not isinstance(instrument, Projection) or instrument.linear or contrast is None:
        return None
    shape, numbers = instrument.wave_shape, 0
    size = max(1, _TOGETHER // (shape[0] * shape[1]))
    sigma = as_tensor(interaction_constant(instrument.voltage))
    absorbed = as_tensor(contrast)
    found = []
    for first in range(0, len(exposures), size):
        group = exposures[first:first + size]
        planes = [_planes(instrument, one) for one in group]
        if any(one is None for one in planes):
            return None
        whole = [one for one in planes if one is not None]
        numbers += 3 * sum(one[0].numel() for one in whole)
        if numbers > _MOST:
            return None
        had = [number(instrument.damage * (one.prior_dose + one.dose / 2)) for one in group]
        left = torch.stack([damping(shape, instrument.wave_pixel, dose, instrument.voltage)
                            for dose in had]) if max(had) > _NO_DAMAGE else None
        found.append(PhaseImages(
            which=slice(first, first + len(group)), phase=sigma * (1 - absorbed**2).sqrt(),
            decay=sigma * absorbed, damping=left, transfers=torch.cat([one for one, _ in whole]),
            shares=torch.cat([share for _, share in whole]),
            of=torch.arange(len(group), device=sigma.device).repeat_interleave(
                torch.tensor([len(one[0]) for one in whole], device=sigma.device))))
    return found


def _planes(instrument: Projection, exposure: Exposure) -> tuple[Tensor, Tensor] | None:
    """Transfers and shares of an image, (m, ny, nx)."""
    lens, shape = exposure.optics, instrument.wave_shape
    foci = instrument.foci(lens, tilt_rotation(exposure.tilt_angle, exposure.axis_angle), shape)
    if any(axis.parts > 1 for axis in foci.axes):
        return None
    y, x = (slope * (torch.arange(n).to(slope) - n // 2)
            for slope, n in zip(foci.slopes, shape, strict=True))
    height = y[:, None] + x
    nodes = nodes_of(height)
    transfers = [instrument.transfer(lens, foci, n) for n in nodes]
    if any(one.rest is not None for one in transfers):
        return None
    shares = [share_of(height, n) for n in nodes] if len(nodes) > 1 else [torch.ones_like(height)]
    return torch.stack([one.wave for one in transfers]), torch.stack(shares)
