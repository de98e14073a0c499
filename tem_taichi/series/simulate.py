"""From a scene to the tilt series that its detector records."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch

from tem_taichi.device import current, init
from tem_taichi.experiment import images
from tem_taichi.scene.settings import Scene, doubts
from tem_taichi.series.build import build_specimen
from tem_taichi.series.movie import frames_of
from tem_taichi.series.plan import plan
from tem_taichi.series.record import TiltSeries, recorded
from tem_taichi.sharing import Sharing
from tem_taichi.specimen.particles import ParticlesInIce
from tem_taichi.timing import Timer


def simulate(
    scene: Scene,
    progress: Callable[[int, int], None] | None = None,
    specimen: ParticlesInIce | None = None,
) -> TiltSeries:
    """Simulate the tilt series of a scene.

    Args:
        scene: from `load_scene`, or made in Python.
        progress: called with the number of images done and in all.
        specimen: what `build_specimen(scene)` gave, if it is at hand.

    Returns:
        Images with and without noise, and the truth behind them.

    Warns:
        UserWarning: of `scene.settings.doubts`.

    Raises:
        ValueError: for a scene that cannot be; nothing has been computed then.
    """
    for doubt in doubts(scene):
        warnings.warn(doubt, stacklevel=2)
    init(scene.compute.arch, scene.compute.dtype)
    stages = Timer()
    planned = plan(scene)
    with stages("structures"):
        specimen = specimen or build_specimen(scene)
    experiment = planned.experiment(specimen, stages)
    n, frames, halves = len(planned.exposures), scene.movie.frames, scene.detector.halves
    clean = torch.zeros((n, *scene.shape), dtype=current().dtype)
    noisy = torch.zeros((2 if halves else 1, *clean.shape), dtype=clean.dtype)
    movie = torch.empty((n, frames, *scene.shape), dtype=clean.dtype) if frames > 1 else None
    with Sharing() as share:
        for i, whole in enumerate(planned.exposures):
            share()
            for frame, (moved, exposure) in enumerate(frames_of(scene, specimen, whole)):
                here = replace(experiment, specimen=moved, exposures=[exposure])
                for image in images(here, scene.seed, stages):
                    counts = image.counts.cpu()
                    clean[i] += image.expected.cpu()
                    noisy[:, i] += counts
                    if movie is not None:
                        movie[i, frame] = counts.sum(0) if halves else counts
            if progress:
                progress(i + 1, n)
    return recorded(
        scene, specimen, planned.tilts, images=noisy.sum(0) if halves else noisy[0],
        noise_free=clean, halves=noisy if halves else None, frames=movie, seconds=stages.seconds,
        threads=tuple(share.counts))
