"""The differentiable model of one image: specimen, instrument and exposure to expected counts.

Every number may be a tensor with a gradient. What is not continuous (grids, the number of slices,
which slice an atom belongs to with depth "nearest") has none: a tensor there is refused.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import TypeVar

import numpy as np
import torch

from tem_taichi.device import as_tensor, current, present
from tem_taichi.instrument.exposure import Exposure as Exposure
from tem_taichi.instrument.exposure import Instrument as Instrument
from tem_taichi.instrument.imaging import intensity
from tem_taichi.instrument.multislice import multislice
from tem_taichi.noise.detector import expected_counts
from tem_taichi.physics import Value
from tem_taichi.recompute import recomputed, tensors_in, with_tensors
from tem_taichi.rotations import tilt_rotation
from tem_taichi.specimen.absorption import imaginary_potential
from tem_taichi.specimen.particles import ParticlesInIce
from tem_taichi.specimen.potential import depth_for
from tem_taichi.specimen.slicing import extent, slices
from tem_taichi.specimen.view import View

_GROUP = 6
"""Slices held at once; of very many slices more, as the root of their number, since on the way
back a slice needs ten times the memory of the wave that is kept for each group."""

_WHOLE = 16
"""Up to so many slices the way back starts from all of them: faster, and no more memory."""

T = TypeVar("T")

Stages = Callable[[str], AbstractContextManager]
"""Called with the name of a stage; what it returns is held during the stage."""


def view_of(specimen: ParticlesInIce, instrument: Instrument, exposure: Exposure) -> View:
    """How an exposure sees the specimen, with as many slices as its particles need.

    Slices begin at multiples of their thickness from the specimen's centre. The modes that
    know no depth have one slice that holds everything.
    """
    rotation = tilt_rotation(exposure.tilt_angle, exposure.axis_angle)
    shift = torch.stack([as_tensor(exposure.shift_x), as_tensor(exposure.shift_y)])
    shape, pixel_size = instrument.wave_shape, instrument.wave_pixel
    ice, voltage = specimen.ice, instrument.voltage
    absorption = None
    if instrument.amplitude_contrast is None and ice.mean_free_path is not None:
        absorption = imaginary_potential(ice.mean_free_path, voltage)
    damage: Value = 0.0
    if present(instrument.damage):
        damage = instrument.damage * (exposure.prior_dose + exposure.dose / 2)
    low, high = extent(specimen, rotation, (shape[1] * pixel_size, shape[0] * pixel_size))
    if instrument.mode != "multislice":
        thickness, entrance, n_slices = max(high - low, 1.0), low, 1
    else:
        thickness = instrument.slice_thickness
        # Where slices share their atoms, the outermost atoms too need a slice on either side.
        depth = resolved_depth(specimen, instrument, exposure)
        spare = thickness / 2 if depth == "smooth" else 0.0
        first, last = (math.floor(z / thickness) for z in (low - spare, high + spare))
        entrance, n_slices = first * thickness, last - first + 1
    return View(rotation, shift, shape, pixel_size, thickness, entrance, n_slices, absorption,
                damage, voltage, exposure.stream,
                # A film of carbon attenuates each ray, and grains scatter: neither has a Q too.
                instrument.amplitude_contrast if ice.structured else None)


def resolved_depth(specimen: ParticlesInIce, instrument: Instrument, exposure: Exposure) -> str:
    """The instrument's `depth`, decided where it is None."""
    return depth_for(instrument.depth, exposure.tilt_angle, exposure.axis_angle,
                     *tensors_in(tuple(kind.positions for kind in specimen.kinds)),
                     *tensors_in(specimen.poses))


def group_size(n_slices: int) -> int:
    """Slices held at once where no gradient is asked for."""
    return max(_GROUP, math.isqrt(n_slices // 10))


def exit_wave(
    specimen: ParticlesInIce, instrument: Instrument, exposure: Exposure,
    stages: Stages = nullcontext, only: Sequence[int] | None = None,
) -> tuple[torch.Tensor, float]:
    """Wave behind the tilted specimen, some slices at a time.

    Where gradients are asked for, only the waves between the groups of slices are kept; the
    potential is made again from the atoms on the way back.

    Args:
        specimen: particles.
        instrument: grids, voltage and mode.
        exposure: tilt and shift.
        stages: for timing.
        only: numbers of groups of slices that alone are passed, to time them; None = all.

    Returns:
        Complex wave (ny, nx) on the wave's grid, and the distance [A] by which the specimen's
        centre is further under focus than its plane.
    """
    instrument = replace(instrument, depth=resolved_depth(specimen, instrument, exposure))
    view = view_of(specimen, instrument, exposure)
    device = current()

    def pass_through(wave: torch.Tensor, n: int, *tensors: torch.Tensor) -> torch.Tensor:
        here, seen, how = with_tensors(parts, iter(tensors))
        first = n * size
        with stages("potential"):
            chunk = slices(here, seen, first, min(size, view.n_slices - first),
                           depth_for(how.depth))
        contrast = how.amplitude_contrast if seen.contrast is None else 0.0
        with stages("interaction"):
            return multislice(chunk, view.pixel_size, view.slice_thickness, how.voltage,
                              amplitude_contrast=0.0 if contrast is None else contrast,
                              mode=how.mode, incident=wave)

    parts = (specimen, view, instrument)
    tensors = tensors_in(parts)
    recompute = torch.is_grad_enabled() and view.n_slices > _WHOLE
    whole = torch.is_grad_enabled() and not recompute
    size = _WHOLE if whole else group_size(view.n_slices)
    n_groups = -(-view.n_slices // size)
    wave = torch.ones(view.shape, dtype=device.complex_dtype, device=device.torch_device)
    if recompute:
        wave = recomputed(pass_through, n_groups, wave, *tensors)
    else:
        for n in range(n_groups) if only is None else only:
            wave = pass_through(wave, n, *tensors)
    if instrument.mode != "multislice":
        return wave, 0.0
    # A slice acts where it begins; its scatterers are half a slice further on the average.
    return wave, view.entrance + (view.n_slices + 0.5) * view.slice_thickness


def expected_image(
    specimen: ParticlesInIce, instrument: Instrument, exposure: Exposure
) -> torch.Tensor:
    """Expected counts on the detector, margin included, from specimen to detector in one call.

    Args:
        specimen: particles and ice.
        instrument: microscope, grids and detector.
        exposure: tilt, lens and dose.

    Returns:
        Counts of the detector's shape; differentiable in every tensor of the three.

    Raises:
        ValueError: if something is given for several images, which `expected_images` takes.
    """
    for name, count in _batches(specimen, exposure).items():
        raise ValueError(f"{name} is given for {count} images: must be one; expected_images takes "
                         "several")
    wave, distance = exit_wave(specimen, instrument, exposure)
    image = intensity(specimen, instrument, exposure, wave, distance)
    return expected_counts(image, pixel_size=instrument.pixel_size, dose=exposure.dose,
                           detector=instrument.detector)


def expected_images(
    specimen: ParticlesInIce, instrument: Instrument, exposure: Exposure
) -> torch.Tensor:
    """Expected counts of b images in one call: tilts, poses, foci, doses.

    What differs from image to image has an axis of length b in front: shape (b,) for the fields of
    the exposure and its optics, (b, n, 3) and (b, n, 3, 3) for poses. Image i has the random
    structure of ice number stream + i. Where only the lens or the dose differ and the ice is a
    continuum, one exit wave serves all.

    Args:
        specimen: particles and ice.
        instrument: microscope, grids and detector.
        exposure: tilt, lens and dose.

    Returns:
        Counts (b, ny, nx), image i as `expected_image` gives it; differentiable likewise. The
        memory for gradients grows with b.

    Raises:
        ValueError: if the lengths of what is given for several images differ.
    """
    batches = _batches(specimen, exposure)
    if len(set(batches.values())) > 1:
        raise ValueError("given for different numbers of images: "
                         + ", ".join(f"{name} for {n}" for name, n in batches.items()))
    count = next(iter(batches.values()), 1)
    depth = resolved_depth(specimen, instrument, exposure)
    instrument = replace(instrument, depth=depth)
    through_lens = {"dose"} if not present(instrument.damage) else set()
    through_lens |= {f.name for f in fields(exposure.optics)}
    one_wave = set(batches) <= through_lens and not specimen.ice.structured
    images, wave, distance = [], None, 0.0
    for n in range(count):
        poses = tuple(_nth(pose, n, {"positions": 3, "rotations": 4}) for pose in specimen.poses)
        seen = replace(specimen, poses=poses)
        here = replace(_nth(exposure, n), optics=_nth(exposure.optics, n),
                       stream=exposure.stream + n)
        if wave is None or not one_wave:
            wave, distance = exit_wave(seen, instrument, here)
        image = intensity(seen, instrument, here, wave, distance)
        images.append(expected_counts(image, pixel_size=instrument.pixel_size, dose=here.dose,
                                      detector=instrument.detector))
    return torch.stack(images)


def _batches(specimen: ParticlesInIce, exposure: Exposure) -> dict[str, int]:
    """What is given for each of several images, and for how many."""
    found = {f.name: len(value) for part in (exposure, exposure.optics) for f in fields(part)
             if np.ndim(value := getattr(part, f.name))}
    for kind, pose in zip(specimen.kinds, specimen.poses, strict=True):
        for name, several in (("positions", 3), ("rotations", 4)):
            if (value := getattr(pose, name)).ndim == several:
                found[f"{name} of {kind.name}"] = len(value)
    return found


def _nth(value: T, n: int, several: dict[str, int] | None = None) -> T:
    """A dataclass with the n-th of what is given for several images."""
    axes = several or {f.name: 1 for f in fields(value)}  # type: ignore[arg-type]
    return replace(value, **{  # type: ignore[type-var]
        name: given[n] for name, axis in axes.items()
        if np.ndim(given := getattr(value, name)) == axis})
