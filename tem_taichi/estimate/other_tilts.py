"""What the other images of a tilt series tell of each: predictions that know nothing of its noise.

Images are dealt out to folds. Those of a fold are predicted by a specimen that the images of all
other folds show, never by one of their own. It is `inverse.posterior`'s: a slab whose spectrum is
that of the images, CTF and all, less their noise's; then the same once more, of a specimen that
has its contrast where the first one had it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.noise_law import Law
from tem_taichi.estimate.tilt_images import Series, in_order
from tem_taichi.inverse.posterior import Views, deviations, posterior_mean
from tem_taichi.noise import curves
from tem_taichi.noise.detector import noise_power_spectrum

_PAD = 8
"""Pixels beside the images into which filters may reach."""
_ITERATIONS, _ROUNDS = 9, 2
"""Of conjugate gradients; and how often the specimen is estimated anew, with its contrast where
the last one had it."""
_RING = 2.0
"""Rings over which spectra are averaged, standard deviation."""


@dataclass(frozen=True, eq=False)
class Noise:
    """Of binned images."""

    laws: Sequence[Law]
    """Of the images as they were recorded."""
    electrons: Sequence[float]
    """Mean of each in a pixel."""
    size: int = 1
    """Pixels that are averaged along either side."""

    def some(self, which: Sequence[int]) -> "Noise":
        """Of some of the images."""
        return replace(self, laws=[self.laws[n] for n in which],
                       electrons=[self.electrons[n] for n in which])

    def power(self, shape: tuple[int, int]) -> Tensor:
        """Relative to the images' means, of each coefficient of the rfft2 of binned images.

        Args:
            shape: (ny, nx) of the binned images.

        Returns:
            (n, ny, nx // 2 + 1); of white noise the variance of a pixel.
        """
        w = curves.radial_frequency(*shape) / self.size
        return torch.stack([
            noise_power_spectrum(w, law.detector, dose=1, pixel_size=1)
            / as_tensor(law.detector.gain)**2 / electrons / self.size**2
            for law, electrons in zip(self.laws, self.electrons, strict=True)])


class NoisePower(Protocol):
    """What predictions ask of the noise."""

    def some(self, which: Sequence[int]) -> "NoisePower":
        """Of some of the images."""

    def power(self, shape: tuple[int, int]) -> Tensor:
        """Of each coefficient of the rfft2 of (ny, nx), relative to the images' means."""


def predictions(series: Series, noise: NoisePower, folds: int, kept: Kept,
                step: Callable[[], None] = lambda: None) -> Tensor:
    """Every image as the images of other folds predict it.

    Args:
        series: images, `tomography.contrast`, and how they see the specimen.
        noise: of the images.
        folds: number of them: every so many-th image in the order of the tilts is in one.
        kept: what an interrupted run has found.
        step: called after each fold.

    Returns:
        The same shape as the images, relative to their mean.
    """
    out = torch.zeros_like(series.images)
    order = in_order(series)
    for number in range(folds):
        own = sorted(order[number::folds])
        others = sorted(set(order) - set(own))
        out[own] = kept.picture(f"fold {number} of {folds}", out[own],
                                partial(predicted, series, noise, others, own))
        step()
    return out


def predicted(series: Series, noise: NoisePower, others: Sequence[int], own: Sequence[int]
              ) -> Tensor:
    """Some images as others predict them.

    Args:
        series: of all of them.
        noise: of all of them.
        others: numbers of those that are looked at.
        own: numbers of those that are predicted.

    Returns:
        (own, ny, nx), relative to their mean.
    """
    shown, loud = series.some(others), noise.some(others)
    waves = torch.fft.rfft2(shown.images) / loud.power(shown.rays.shape).sqrt()
    whitened = torch.fft.irfft2(waves, s=shown.images.shape[-2:])
    amplitude = _amplitude(shown, loud.power(shown.rays.shape))
    views = _views(shown, amplitude, loud)
    field = posterior_mean(whitened, views, iterations=_ITERATIONS)
    for _ in range(_ROUNDS):
        field = posterior_mean(whitened, views, deviations(field), field, _ITERATIONS)
    hidden = _views(series.some(own), amplitude)
    return hidden.seen(field)


def full_size(known: Tensor, shape: tuple[int, int], size: int) -> Tensor:
    """A binned image in the pixels that it was binned from.

    Args:
        known: (ny // size, nx // size).
        shape: ny and nx.
        size: pixels that were averaged along either side.
    """
    ny, nx = shape
    whole = (ny // size * size, nx // size * size)
    fine = torch.nn.functional.interpolate(known[None, None], size=whole, mode="bicubic",
                                           align_corners=False)
    return torch.nn.functional.pad(fine, (0, nx - whole[1], 0, ny - whole[0]), "replicate")[0, 0]


def _amplitude(series: Series, noise: Tensor) -> Tensor:
    """Of what a slab of independent numbers of variance 1 needs to have the images' power.

    In each ring of frequencies 0, 1, 2, ... of the longer side.
    """
    rays = series.rays
    n, ny, nx = series.images.shape
    power = torch.fft.rfft2(series.images).abs().square() / (ny * nx)
    # Tilted by t the beam's way is longer by 1 / cos(t), and so is the signal's power.
    upright = rays.rotations[:, 2, 2].abs().to(power)[:, None, None]
    ring = (curves.radial_frequency(ny, nx) * max(ny, nx) + 0.5).long().flatten()
    # Each as an unbiased estimate of the same power, weighted as their noise permits.
    weight = 1 / noise
    ring_of_all = ring.repeat(n)
    sums = [torch.bincount(ring_of_all, values.double().flatten())
            for values in (weight * (power - noise) * upright, weight)]
    for values in sums:
        values[0] = 0  # the mean of an image, relative to which it is
    offsets = torch.arange(-8, 9, device=ring.device)
    kernel = torch.exp(-offsets.double()**2 / (2 * _RING**2))[None, None]
    signal, number = (torch.nn.functional.conv1d(values[None, None], kernel, padding=8)[0, 0]
                      for values in sums)
    depth = rays.grid[0] * rays.voxel
    return (signal / number.clamp(min=1e-30)).clamp(min=0).div(depth * rays.voxel).sqrt().to(power)


def _views(series: Series, amplitude: Tensor, noise: NoisePower | None = None) -> Views:
    """Of images wider by `_PAD`, whose noise is white; None = without noise, as they are."""
    ny, nx = series.rays.shape
    wide = (ny + 2 * _PAD, nx + 2 * _PAD)
    place = curves.radial_frequency(*wide) * max(ny, nx)
    low = place.long().clamp(max=len(amplitude) - 2)
    part = (place - low).clamp(max=1)
    rings = (1 - part) * amplitude[low] + part * amplitude[low + 1]
    return Views(replace(series.rays, shape=wide), rings[None] if noise is None
                 else rings / noise.power(wide).sqrt(), _PAD)
