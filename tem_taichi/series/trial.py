"""How long a simulation will take, from a trial of some of its slices."""

import os
import time
from collections.abc import Callable, Collection
from functools import partial

import numpy as np
import torch

from tem_taichi.device import current
from tem_taichi.instrument.groups import groups_of
from tem_taichi.scene.settings import Scene
from tem_taichi.series.cost import over_tilts, voxels_of
from tem_taichi.series.movie import intensities
from tem_taichi.series.plan import Plan
from tem_taichi.specimen.particles import ParticlesInIce
from tem_taichi.streams import Key

_VOXEL, _VOXEL_OF_IMAGE = 5e-7, 6e-8
"""Seconds for a voxel of volumes, and for each image that is projected back into it, a core."""
_TRIAL = 3.0
"""Seconds after which the trial of an image ends."""


def foreseen_time(scene: Scene, planned: Plan, specimen: ParticlesInIce,
                  done: Collection[int] = ()) -> float:
    """Seconds that a run will take, from some slices of its least and most tilted images.

    In between it goes with 1 / cos(tilt). What other programs do meanwhile counts: as they do
    now, so the estimate takes them to go on. What is made once, such as kernels and volumes,
    counts as far as it was not there before.

    Args:
        scene: what is asked for.
        planned: what `plan(scene)` gave.
        specimen: what `build_specimen(scene)` gave.
        done: numbers of the images that an interrupted run has finished.
    """
    instrument = planned.instrument
    left = [exposure for number, exposure in enumerate(planned.exposures) if number not in done]
    beginning = 0.0

    def image_time(number: int) -> float:
        nonlocal beginning
        exposure = left[number]
        seen = _seconds(lambda: instrument.view(specimen, exposure))
        groups = groups_of(specimen, instrument.view(specimen, exposure))
        n_slices = sum(group.size for group in groups)
        chosen = sorted({int((n + 0.5) * len(groups) / 3) for n in range(3)}) if groups else []
        wave_of = partial(instrument.exit_wave, specimen, exposure)
        first = _seconds(partial(wave_of, only=chosen[:1]))  # which compiles
        spent, slices = 0.0, 0
        for n in chosen:
            if spent < _TRIAL:
                again = _seconds(partial(wave_of, only=[n]))
                beginning += max(first - again, 0.0) if n == chosen[0] else 0.0
                spent += again - seen
                slices += groups[n].size
        wave, distance = wave_of(only=[])
        image_of = partial(instrument.image, specimen, exposure, wave, distance)
        lens, more = _once_and_again(image_of)
        key = Key(scene.seed, "noise", exposure.stream)
        counts, yet_more = _once_and_again(
            partial(planned.law(exposure).sample, image_of(), exposure.dose, key))
        beginning += more + yet_more
        once = seen + max(spent, 0.0) * n_slices / max(slices, 1) + lens
        return once * intensities(scene, specimen.ice) + 2 * counts * scene.movie.frames

    with torch.no_grad():
        images = over_tilts(np.array([exposure.tilt_angle for exposure in left]),
                            image_time) if left else 0.0
    return beginning + images + voxels_of(scene) * (
        _VOXEL + _VOXEL_OF_IMAGE * len(planned.exposures)) / (os.cpu_count() or 1)


def _once_and_again(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that a function takes the second time, and by how many more it took the first."""
    first, again = _seconds(work), _seconds(work)
    return again, max(first - again, 0.0)


def _seconds(work: Callable[[], object]) -> float:
    """That a function takes; a GPU has finished then."""
    begun = time.perf_counter()
    work()
    if current().torch_device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun
