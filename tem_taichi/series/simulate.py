"""From a scene to the tilt series that its detector records."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from tem_taichi.device import current, init
from tem_taichi.experiment import Image
from tem_taichi.files.records import Records
from tem_taichi.machine import check_memory
from tem_taichi.scene.settings import Scene, doubts
from tem_taichi.series.build import build_specimen
from tem_taichi.series.finished import key_of_images
from tem_taichi.series.movie import movie_images
from tem_taichi.series.plan import Plan, plan
from tem_taichi.series.record import TiltSeries, recorded
from tem_taichi.sharing import Sharing
from tem_taichi.specimen.particles import ParticlesInIce
from tem_taichi.timing import Timer


def simulate(
    scene: Scene,
    progress: Callable[[int, int], None] | None = None,
    specimen: ParticlesInIce | None = None,
    folder: str | Path | None = None,
) -> TiltSeries:
    """Simulate the tilt series of a scene.

    Args:
        scene: from `load_scene`, or made in Python.
        progress: called with the number of images done and in all, at first with those that are
            there already.
        specimen: what `build_specimen(scene)` gave, if it is at hand.
        folder: where images are kept as they finish, and those of the same scene that an
            interrupted run has finished are found, made if it is not there; the series' tensors
            are maps of a file in it. It stays, and is for one run at a time, as
            `files.unfinished.unfinished` holds one. None = all images are held in memory; whoever
            wants them one by one without a file takes `experiment.images`.

    Returns:
        Images with and without noise, and the truth behind them.

    Warns:
        UserWarning: of `scene.settings.doubts`.

    Raises:
        ValueError: for a scene that cannot be, or a folder that cannot be made; nothing has been
            computed then.
    """
    for doubt in doubts(scene):
        warnings.warn(doubt, stacklevel=2)
    init(scene.compute.arch, scene.compute.dtype)
    stages = Timer()
    planned = plan(scene)
    records = records_of(scene, planned, None if folder is None else Path(folder))
    with stages("structures"):
        specimen = specimen or build_specimen(scene)
    if folder is not None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"folder={str(folder)!r}: must be a folder, or one that can be made "
                             f"({error.strerror})") from error
    experiment = planned.experiment(specimen, stages)
    total = len(planned.exposures)
    with Sharing() as share:
        about = images_there(records, share)
        for known in about.values():
            for stage, spent in known["seconds"].items():
                stages.add(stage, spent)
        if progress:
            progress(len(about), total)
        for number in (number for number in range(total) if number not in about):
            share()
            frames = movie_images(scene, specimen, experiment.instrument,
                                  planned.law(planned.exposures[number]),
                                  planned.exposures[number], stages)
            about[number] = _record(records, number, scene, frames, stages)
            if progress:
                progress(len(about), total)
    threads = dict.fromkeys(about[number]["threads"] for number in range(total))
    return recorded(scene, specimen, planned.tilts, seconds=stages.seconds,
                    threads=tuple(threads), **_fields(scene, records))


def records_of(scene: Scene, planned: Plan, folder: Path | None) -> Records:
    """Where the images of a scene go: each with its planes, in the order of `_planes`.

    Args:
        scene: to be simulated.
        planned: what `plan(scene)` gave.
        folder: as in `simulate`.

    Raises:
        ValueError: if the memory, in which they are to be, is too small.
    """
    frames = scene.movie.frames if scene.movie.frames > 1 else 0
    ny, nx = scene.shape
    shape = (len(planned.exposures), frames + (4 if scene.detector.halves else 2), ny, nx)
    dtype = torch.empty((), dtype=current().dtype).numpy().dtype
    if folder is None:
        check_memory(f"shape={list(scene.shape)}: {shape[0]} images in memory",
                     float(math.prod(shape)) * dtype.itemsize, "lower it, movie.frames or the "
                     "number of tilts, or keep them in a folder")
    return Records(folder, key_of_images(scene), shape, dtype)


def images_there(records: Records, share: Sharing) -> dict[int, dict[str, Any]]:
    """What `_record` told of the images that an interrupted run has finished, by their numbers."""
    found = {number: records.find(number) for number in range(records.shape[0])}
    return {number: about for number, about in found.items()
            if about is not None and share.may_take(about["threads"])}


def _record(records: Records, number: int, scene: Scene, images: Iterable[Image],
            stages: Timer) -> dict[str, Any]:
    """Make and keep an image, by its frames; the number of threads and the seconds that it took."""
    before = dict(stages.seconds)
    about: dict[str, Any] = {"threads": torch.get_num_threads()}

    def planes() -> Iterator[NDArray[Any]]:
        for plane in _planes(scene, images):
            yield plane.cpu().numpy()
        about["seconds"] = {stage: spent - before.get(stage, 0.0)
                            for stage, spent in stages.seconds.items()}

    records.save(number, planes(), about)
    return about


def _planes(scene: Scene, images: Iterable[Image]) -> Iterator[torch.Tensor]:
    """Frames, if there are many; the image without noise and with it; and its halves, if any."""
    halves, many = scene.detector.halves, scene.movie.frames > 1
    clean = torch.zeros(scene.shape, dtype=current().dtype)
    noisy = torch.zeros((2 if halves else 1, *scene.shape), dtype=current().dtype)
    for image in images:
        counts = image.counts.cpu()
        clean += image.expected.cpu()
        noisy += counts
        if many:
            yield counts.sum(0) if halves else counts
    yield clean
    yield noisy.sum(0) if halves else noisy[0]
    if halves:
        yield from noisy


def _fields(scene: Scene, records: Records) -> dict[str, torch.Tensor]:
    """Of a `TiltSeries`, from the planes of all images."""
    planes = torch.from_numpy(records.arrays())
    frames = scene.movie.frames if scene.movie.frames > 1 else 0
    fields = {"noise_free": planes[:, frames], "images": planes[:, frames + 1]}
    if frames:
        fields["frames"] = planes[:, :frames]
    if scene.detector.halves:
        fields["halves"] = planes[:, frames + 2:].transpose(0, 1)
    return fields
