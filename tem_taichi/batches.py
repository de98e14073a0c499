"""Expected images of particles in ice, one or several in a call."""

from dataclasses import fields, replace
from typing import TypeVar

import numpy as np
import torch

from tem_taichi.device import present
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.tem import TEM
from tem_taichi.noise.detector import IDEAL, Detector, expected_counts
from tem_taichi.specimen.particles import ParticlesInIce

T = TypeVar("T")


def expected_image(
    specimen: ParticlesInIce, instrument: TEM, exposure: Exposure, detector: Detector = IDEAL
) -> torch.Tensor:
    """Expected counts on the detector, margin included, from specimen to detector in one call.

    Args:
        specimen: particles and ice.
        instrument: microscope and grids.
        exposure: tilt, lens and dose.
        detector: the camera.

    Returns:
        Counts of the detector's shape; differentiable in every tensor of the four.

    Raises:
        ValueError: if something is given for several images, which `expected_images` takes.
    """
    for name, count in _batches(specimen, exposure).items():
        raise ValueError(f"{name} is given for {count} images: must be one; expected_images takes "
                         "several")
    return expected_counts(instrument.intensity(specimen, exposure), dose=exposure.dose,
                           pixel_size=instrument.pixel_size, detector=detector)


def expected_images(
    specimen: ParticlesInIce, instrument: TEM, exposure: Exposure, detector: Detector = IDEAL
) -> torch.Tensor:
    """Expected counts of b images in one call: tilts, poses, foci, doses.

    What differs from image to image has an axis of length b in front: shape (b,) for the fields of
    the exposure and its optics, (b, n, 3) and (b, n, 3, 3) for poses. Image i has the random
    structure of ice number stream + i. Where only the lens or the dose differ and the ice is a
    continuum, one exit wave serves all.

    Args:
        specimen: particles and ice.
        instrument: microscope and grids.
        exposure: tilt, lens and dose.
        detector: the camera.

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
            wave, distance = instrument.exit_wave(seen, here)
        image = instrument.image(seen, here, wave, distance)
        images.append(expected_counts(image, pixel_size=instrument.pixel_size, dose=here.dose,
                                      detector=detector))
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
