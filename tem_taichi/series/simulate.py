"""From a scene to the tilt series that its detector records."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from tem_taichi.device import current, init
from tem_taichi.instrument.forward import Exposure, exit_wave
from tem_taichi.instrument.imaging import intensity
from tem_taichi.noise.detector import detect
from tem_taichi.scene.settings import Scene, doubts
from tem_taichi.series.build import build_specimen
from tem_taichi.series.movie import frames_of
from tem_taichi.series.plan import plan
from tem_taichi.series.record import TiltSeries, recorded
from tem_taichi.sharing import Sharing
from tem_taichi.specimen.particles import ParticlesInIce


class _Timer:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if current().torch_device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


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
        UserWarning: of `config.doubts`.

    Raises:
        ValueError: for a scene that cannot be; nothing has been computed then.
    """
    for doubt in doubts(scene):
        warnings.warn(doubt, stacklevel=2)
    init(scene.compute.arch, scene.compute.dtype)
    stages = _Timer()
    planned = plan(scene)
    instrument = planned.instrument
    with stages("structures"):
        specimen = specimen or build_specimen(scene)
    crop = tuple(slice(full // 2 - n // 2, full // 2 - n // 2 + n)
                 for full, n in zip(instrument.detector_shape, scene.shape, strict=True))

    def record(
        image: torch.Tensor, exposure: Exposure, noise: bool = True, halves: bool = False
    ) -> torch.Tensor:
        counts = detect(image, pixel_size=scene.pixel_size, dose=exposure.dose, noise=noise,
                        detector=instrument.detector, seed=scene.seed, stream=exposure.stream,
                        halves=halves)
        return counts[..., crop[0], crop[1]].cpu()

    n, frames, halves = len(planned.exposures), scene.movie.frames, scene.detector.halves
    clean = torch.zeros((n, *scene.shape), dtype=current().dtype)
    noisy = torch.zeros((2 if halves else 1, *clean.shape), dtype=clean.dtype)
    movie = torch.empty((n, frames, *scene.shape), dtype=clean.dtype) if frames > 1 else None
    with torch.no_grad(), Sharing() as share:
        for i, whole in enumerate(planned.exposures):
            share()
            for frame, (moved, exposure) in enumerate(frames_of(scene, specimen, whole)):
                wave, distance = exit_wave(moved, instrument, exposure, stages)
                with stages("optics"):
                    image = intensity(moved, instrument, exposure, wave, distance)
                with stages("detector"):
                    clean[i] += record(image, exposure, noise=False)
                    counts = record(image, exposure, halves=halves)
                    noisy[:, i] += counts
                    if movie is not None:
                        movie[i, frame] = counts.sum(0) if halves else counts
            if progress:
                progress(i + 1, n)
    return recorded(
        scene, specimen, planned.tilts, images=noisy.sum(0) if halves else noisy[0],
        noise_free=clean, halves=noisy if halves else None, frames=movie, seconds=stages.seconds,
        threads=tuple(share.counts))
