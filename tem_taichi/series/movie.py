"""The frames of an image's movie: dose and damage, drift of the field, motion of particles."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from tem_taichi.experiment import Image, Instrument, NoiseLaw, recorded
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.scene.settings import Scene
from tem_taichi.specimen.particles import Ice, ParticlesInIce
from tem_taichi.streams import Key
from tem_taichi.timing import Stages

_SETTLING = 4.0
"""Exposure [e-/A^2] within which all but 1/e of the motion is over: most of what beams move lies
in the first few (Zheng et al. 2017, Nat. Methods 14, 331)."""


def movie_images(scene: Scene, specimen: ParticlesInIce, instrument: Instrument, law: NoiseLaw,
                 exposure: Exposure, stages: Stages) -> Iterator[Image]:
    """Record the frames of an image one by one; only one is in memory.

    Where all have the same intensity it is computed once, and each has noise of its own.

    Args:
        scene: movie and seed.
        specimen: before any exposure.
        instrument: that sees it.
        law: of the noise.
        exposure: of the whole image.
        stages: as in `experiment.images`.
    """
    intensity = mean = None
    shared = intensities(scene, specimen.ice) == 1
    for moved, frame in frames_of(scene, specimen, exposure):
        with torch.no_grad():
            if intensity is None or not shared:
                intensity, mean = instrument.intensity(moved, frame), None
            image = recorded(law, intensity, frame, scene.seed, stages, mean)
        mean = image.expected
        yield image


def intensities(scene: Scene, ice: Ice) -> int:
    """How many there are of an image: one where nothing moves or is damaged, else one a frame.

    The molecules of granular ice move from frame to frame.
    """
    movie = scene.movie
    still = not (movie.motion or any(movie.drift) or scene.specimen.damage or ice.structured)
    return 1 if still else movie.frames


def frames_of(
    scene: Scene, specimen: ParticlesInIce, exposure: Exposure
) -> Iterator[tuple[ParticlesInIce, Exposure]]:
    """The specimen and the exposure of each frame of an image.

    A particle is where the truth has it before the first exposure, and moves along a line of its
    own by motion (1 - exp(-N / 4)), N the exposure at the frame's middle. The field drifts evenly
    about the image's middle, so that the shift of the image is that of the average frame.

    Args:
        scene: movie and seed.
        specimen: before any exposure.
        exposure: of the whole image.
    """
    movie = scene.movie
    ways = [Key.of(scene.seed, "motion", kind.name).generator()
            .standard_normal(np.shape(pose.positions)) * movie.motion
            for kind, pose in zip(specimen.kinds, specimen.poses, strict=True)]
    dose = exposure.dose / movie.frames
    for frame in range(movie.frames):
        prior = exposure.prior_dose + frame * dose
        moved = specimen
        if movie.motion > 0:
            done = 1 - np.exp(-(prior + dose / 2) / _SETTLING)
            moved = replace(specimen, poses=tuple(
                replace(pose, positions=pose.positions + done * way)
                for pose, way in zip(specimen.poses, ways, strict=True)))
        part = (frame + 0.5) / movie.frames - 0.5
        yield moved, replace(
            exposure, dose=dose, prior_dose=prior, stream=exposure.stream + frame,
            shift_x=exposure.shift_x + part * movie.drift[0],
            shift_y=exposure.shift_y + part * movie.drift[1])
