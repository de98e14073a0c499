"""Images of a volume by the microscope's own model, and how well they explain those of a series."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from tem_taichi.device import as_tensor, number
from tem_taichi.estimate.phase_images import seen_as_phases
from tem_taichi.estimate.tilt_images import Series
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.projection import Projection
from tem_taichi.instrument.tem import TEM
from tem_taichi.noise.looks import noise_of
from tem_taichi.physics import wavelength
from tem_taichi.specimen.damage import damping
from tem_taichi.specimen.depth import highest_frequency, thickest
from tem_taichi.specimen.field import voxels
from tem_taichi.specimen.rays import Rays, back_project, project
from tem_taichi.specimen.view import Attenuation, Specimen, View

MODELS = ("projection", "multislice")

_NO_DOSE = 1e-9
"""That does no damage [e-/A^2]: what an image itself does is in the dose before it."""


@dataclass(frozen=True)
class Lens:
    """What the images have in common."""

    voltage: float = 300.0
    """[kV]"""
    spherical_aberration: float = 2.7
    """[mm]"""
    amplitude_contrast: float = 0.07
    """[1]"""
    model: str = "projection"
    """Of MODELS."""
    slice_thickness: float | None = None
    """Of multislice [A]; None = `thickest`."""
    damage: float = 1.0
    """By the dose before and during each image, where it is known: 1 = as measured, 0 = none."""

    def slices(self, voxel: float) -> float:
        """How thick slices are at a size of voxels [A]."""
        return self.slice_thickness or thickest("smooth", highest_frequency(voxel), self.voltage)

    def depth_of_focus(self, voxel: float) -> float:
        """Of details of two voxels [A]: half of it away, their contrast is turned round."""
        return 2 * (2 * voxel)**2 / float(wavelength(self.voltage))

    def instrument(self, shape: tuple[int, int], voxel: float) -> TEM:
        """What makes the images of a grid.

        Args:
            shape: of an image (ny, nx), in voxels.
            voxel: [A].
        """
        if self.model == "projection":
            return Projection(shape, shape, voxel, self.voltage, self.amplitude_contrast)
        return TEM(shape, shape, voxel, self.voltage, self.amplitude_contrast, self.slices(voxel))


@dataclass(frozen=True, eq=False)
class Layer:
    """A specimen that has been projected; a `Specimen` in one plane."""

    values: Tensor
    """[V A], (ny, nx)."""

    def depth_range(self, view: View) -> tuple[float, float]:
        """One plane."""
        return 0.0, 0.0

    def slices(self, view: View, first: int, count: int) -> Tensor:
        """The plane."""
        return self.values[None]

    def attenuation(self, view: View) -> Attenuation | None:
        """Nothing beside what the layer absorbs."""
        return None


@dataclass(frozen=True, eq=False)
class Damaged:
    """What a view's exposure has left of another `Specimen`."""

    specimen: Specimen

    def depth_range(self, view: View) -> tuple[float, float]:
        """The other's."""
        return self.specimen.depth_range(view)

    def slices(self, view: View, first: int, count: int) -> Tensor:
        """The other's, damped."""
        layers = self.specimen.slices(view, first, count)
        if not number(view.exposure) > 0:
            return layers
        left = damping(view.shape, view.pixel_size, view.exposure, view.voltage)
        return torch.fft.irfft2(torch.fft.rfft2(layers) * left, s=view.shape)

    def attenuation(self, view: View) -> Attenuation | None:
        """The other's."""
        return self.specimen.attenuation(view)


class Explained(Protocol):
    """Images, and what line integrals explain of them."""

    @property
    def rays(self) -> Rays:
        """How images see the finest grid."""

    def explained(self, parts: Tensor) -> tuple[float, Tensor]:
        """Minus the log of the images' probability, and its slopes by line integrals.

        Args:
            parts: of each image (n, ny, nx), in the field's unit times A.
        """


class Model:
    """Images of a volume, and how well they explain those of a series."""

    def __init__(self, series: Series, exposures: Sequence[Exposure], lens: Lens,
                 room: tuple[int, int] = (0, 0)) -> None:
        """Of a series.

        Args:
            series: images and the grid.
            exposures: of `exposures_of`, one for each image.
            lens: of all images.
            room: pixels on either side of the images, along y and x, that are made as well.
        """
        self.series, self.lens = series, lens
        self.exposures = [replace(one, dose=_NO_DOSE) for one in exposures]
        rays = series.rays
        # What scatters next to an image's edge arrives within it.
        far = max(abs(number(one.optics.defocus)) for one in exposures) * float(
            number(wavelength(lens.voltage))) / (2 * rays.pixel)
        shape = tuple(next_fast_len(n + 2 * (int(min(far / rays.pixel, n / 4) + 1) + more),
                                    real=True) for n, more in zip(rays.shape, room, strict=True))
        self.rays = replace(rays, shape=shape)
        self.inner = tuple(slice(wide // 2 - n // 2, wide // 2 - n // 2 + n)
                           for wide, n in zip(shape, rays.shape, strict=True))
        self.instrument = replace(lens.instrument(shape, rays.pixel), damage=lens.damage)
        doses = as_tensor([float(one.dose) for one in exposures])
        self.phases = seen_as_phases(self.instrument, self.exposures)
        self.groups = [slice(n, n + 1) for n in range(len(exposures))] if self.phases is None else [
            group.which for group in self.phases]
        self.weights = (series.weights > 0) * doses[:, None, None]

    def thin(self) -> "Model":
        """The same images as those of one plane of focus."""
        made = Model(self.series, self.exposures, replace(self.lens, model="projection"))
        made.weights = self.weights
        return made

    def images(self, volume: Tensor) -> list[Tensor]:
        """What is seen of a volume, each (ny, nx) relative to the beam; without gradients."""
        with torch.no_grad():
            return [image for n, part in enumerate(self._parts(volume))
                    for image in self._seen(part, n)]

    def of_projections(self, parts: Tensor) -> Tensor:
        """Images (n, ny, nx) relative to the beam; differentiable.

        Args:
            parts: projections of a thin specimen [V A], (n, ny, nx), by `rays`.
        """
        return torch.cat([self._seen(parts[which], n) for n, which in enumerate(self.groups)])

    def misfit(self, volume: Tensor) -> float:
        """Minus the log of the probability of all images, less a constant."""
        with torch.no_grad():
            return sum(float(self._misfit(self._seen(part, n), n))
                       for n, part in enumerate(self._parts(volume)))

    def gradient(self, volume: Tensor) -> tuple[float, Tensor]:
        """The misfit, and its gradient by the volume [1/V].

        Of projections by their adjoint, so that no graph holds a volume.
        """
        if self.lens.model == "projection":
            with torch.no_grad():
                total, slopes = self.explained(project(volume, self.rays))
                return total, back_project(slopes, self.rays)
        total, whole = 0.0, torch.zeros_like(volume)
        for n in range(len(self.groups)):
            misfit, slope = self._slope(volume, n)
            total, whole = total + misfit, whole.add_(slope)
        return total, whole

    def explained(self, parts: Tensor) -> tuple[float, Tensor]:
        """The misfit, and its gradient by what images are made from.

        Args:
            parts: projections of a specimen [V A], (n, ny, nx), by `rays`.
        """
        found = [self._slope(parts[which], n) for n, which in enumerate(self.groups)]
        return sum(one for one, _ in found), torch.cat([slope for _, slope in found])

    def _slope(self, part: Tensor, n: int) -> tuple[float, Tensor]:
        """Of a group of images."""
        phases = None if self.phases is None else self.phases[n].seen(part)
        with torch.enable_grad():
            free = (part if phases is None else phases[0]).detach().requires_grad_()
            misfit = self._misfit(self._seen(free, n) if phases is None else self._within(free), n)
        slope, = torch.autograd.grad(misfit, free)
        return float(misfit.detach()), slope if phases is None else phases[1](slope)

    def _parts(self, volume: Tensor) -> Sequence[Tensor]:
        """Of each group, what it is made from: projections [V A], (n, ny, nx), or the volume."""
        if self.lens.model == "projection":
            with torch.no_grad():
                whole = project(volume, self.rays)
                return [whole[which] for which in self.groups]
        return [volume] * len(self.groups)

    def _seen(self, part: Tensor, n: int) -> Tensor:
        """Images of a group."""
        if self.phases is not None:
            return self._within(self.phases[n].seen(part)[0])
        specimen: Specimen = Layer(part[0]) if self.lens.model == "projection" else voxels(
            part, self.rays.voxel)
        return self.instrument.intensity(Damaged(specimen), self.exposures[n])[self.inner][None]

    def _within(self, seen: Tensor) -> Tensor:
        """Images without what is beside them."""
        return seen[(slice(None), *self.inner)]

    def _misfit(self, seen: Tensor, n: int) -> Tensor:
        """Of a group; the brightness of each image is free."""
        which = self.groups[n]
        weights = self.weights[which]
        seen, images = seen * weights, (1 - self.series.images[which]) * weights
        with torch.no_grad():
            bright = (seen * images).sum((1, 2), keepdim=True) / seen.square().sum(
                (1, 2), keepdim=True)
        return (images - bright * seen).square().sum() / 2


def typical_slope(images: Explained) -> float:
    """What noise does to the slope of the misfit by a voxel, as a deviation.

    A ray shares its step among two voxels of a plane, whose weights' squares have a mean of 2/3 in
    sum. The noise is that of the highest frequencies, as whatever is large may be the specimen.

    Args:
        images: whose rays are of the grid.
    """
    if isinstance(images, Model) and images.lens.model != "projection":
        images = images.thin()
    rays = images.rays
    empty = torch.zeros((len(rays.rotations), *rays.shape), dtype=rays.rotations.dtype,
                        device=rays.rotations.device)
    sigma = noise_of(images.explained(empty)[1])
    steps = rays.voxel / rays.rotations[:, 2].abs().amax(1)
    return max(float((2 / 3 * (steps * sigma).square()).sum().sqrt()), 1e-30)
