"""A data set: shown, checked, or made sample by sample and put together."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd
import psutil
import yaml
from filelock import FileLock, Timeout

from tem_taichi.cli.progress import progress
from tem_taichi.cli.run import prepare
from tem_taichi.cli.sample import (
    PICTURES,
    TOMOGRAMS,
    Made,
    Maker,
    check_tomogram,
    list_of,
)
from tem_taichi.cli.twin_set import with_twin
from tem_taichi.cli.workers import as_jobs, check_launcher, in_processes, on_ray
from tem_taichi.export.gallery import kinds_of, write_gallery
from tem_taichi.export.merged import merge_copick, merge_relion, merge_shrec
from tem_taichi.files.checksums import read_checksums
from tem_taichi.files.io import write_whole
from tem_taichi.machine import duration, memory_limit, size
from tem_taichi.recipes.show import commented
from tem_taichi.scene.dataset import (
    SAMPLES,
    Dataset,
    check_ends,
    drawn,
    load_dataset,
    name_of,
    scene_of,
    split,
)
from tem_taichi.scene.settings import Scene, doubts
from tem_taichi.scene.typed import to_plain
from tem_taichi.series.trial import foreseen_time

SETTINGS, TABLE, SPLIT, PAGE = "dataset.yaml", "samples.csv", "split.csv", "index.html"
_HOW = ("samples", "output", "launcher", "workers", "address", "slurm", "only", "validation")
"""Keys that may change from one run on a folder to the next: not what a sample is."""
_ROUNDS = 3
"""How often in a row workers may die without a sample done before it is given up."""
_IMAGE_BYTES = {"": 6, "relion5": 2, "shrec": 2, "warp": 2, "aretomo": 4, "imod": 2, "tiff": 2}
_VOXEL_BYTES = {"shrec": 12, "copick": 9}
"""What a pixel of the images and a voxel of the volumes take on disk, as measured on crowds in
whole counts; what is compressed by about a third more or less."""
_TRIED = 2
"""Samples whose time --check foresees."""


def do_dataset(words: Sequence[str], options: set[str]) -> None:
    """Read a data set's settings, and show, check or make it.

    Args:
        words: at most one file of settings, and overrides.
        options: --show or --check.
    """
    files = [word for word in words if word.endswith((".yaml", ".yml")) and "=" not in word]
    overrides = [word for word in words if word not in files]
    odd = [*files[1:], *(word for word in overrides if "=" not in word)]
    if odd:
        raise ValueError(f"{odd[0]}: must be one file ending in .yaml, then KEY=VALUE")
    file = files[0] if files else None
    dataset = load_dataset(file, with_twin(file, overrides, make=not options))
    if "--show" in options:
        print(_shown(dataset), end="")
        return
    _check_settings(dataset)
    if "--check" in options:
        _foretell(dataset)
    else:
        _make(dataset)


def _shown(dataset: Dataset) -> str:
    return commented(Dataset, _plain(dataset))


def _plain(dataset: Dataset) -> dict:
    """Settings as YAML has them; of a distribution its one word."""
    plain = to_plain(dataset)
    plain["vary"] = {key: {word: value for word, value in one.items() if value is not None}
                     for key, one in to_plain(dict(dataset.vary)).items()}
    plain["slurm"] = dict(dataset.slurm)
    return plain


def _check_settings(dataset: Dataset) -> None:
    """Raise a ValueError for what would fail later, or in every sample."""
    check_launcher(dataset.launcher)
    check_ends(dataset)
    check_tomogram(dataset)
    kept = dataset.folder / SETTINGS
    if not kept.is_file():
        if dataset.folder.is_dir() and any(dataset.folder.iterdir()):
            raise ValueError(f"output={dataset.output}: exists already and is no data set; choose "
                             "another folder")
        return
    before, now = yaml.safe_load(kept.read_text(encoding="utf-8")), _plain(dataset)
    before = before if isinstance(before, dict) else {}
    for key in now:
        if key not in _HOW and before.get(key) != now[key]:
            raise ValueError(f"output={dataset.output}: holds a data set whose {key} is "
                             f"{before.get(key)!r}, not {now[key]!r}; choose another folder")


def _workers(dataset: Dataset, memory: float) -> int:
    """As many as there are cores and memory for."""
    if dataset.workers is not None:
        return dataset.workers
    cores = len(psutil.Process().cpu_affinity()) if hasattr(
        psutil.Process, "cpu_affinity") else psutil.cpu_count()
    return max(1, min(cores or 1, int(0.8 * memory_limit() / max(memory, 1.0)),
                      len(dataset.numbers)))


def _foretell(dataset: Dataset) -> None:
    """Say what making the set would take, by the first samples."""
    times, memory, disk = [], 0.0, 0.0
    for number in dataset.numbers[:_TRIED]:
        scene = scene_of(dataset, number)
        planned, specimen = prepare(scene, may_exist=True)
        times.append(foreseen_time(scene, planned, specimen))
        memory = max(memory, planned.memory)
        disk = max(disk, _disk_of(scene, len(planned.exposures)))
    for doubt in doubts(scene_of(dataset, 0)):
        print(f"warning: {doubt}")
    count, workers = len(dataset.numbers), _workers(dataset, memory)
    if there := [list_of(dataset, n) for n in dataset.numbers if list_of(dataset, n).is_file()]:
        print(f"{len(there)} of {count} samples are there already")
    left = count - len(there)
    mean = sum(times) / len(times)
    print(f"{left} samples to make, about {duration(mean)} of one core each for images"
          f"{' and labels' if dataset.formats else ''}"
          + (", and the tomograms' time" if dataset.tomogram is not None else ""))
    print(f"{workers} at a time, about {size(workers * memory)} of memory, "
          f"{duration(mean * left / workers)}, {size(disk * left)} of disk in {dataset.output}")
    parts = Counter(split(dataset))
    print(", ".join(f"{parts[part]} for {part}" for part in ("train", "validation")
                    if parts[part]))


def _disk_of(scene: Scene, images: int) -> float:
    """Bytes of a sample's files."""
    ny, nx = scene.shape
    kinds = ("", *scene.formats)
    depth = scene.specimen.ice.thickness / scene.pixel_size
    return ny * nx * (images * sum(_IMAGE_BYTES.get(name, 0) for name in kinds)
                      + depth * sum(_VOXEL_BYTES.get(name, 0) for name in kinds))


def _make(dataset: Dataset) -> None:
    folder = dataset.folder
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"output={dataset.output}: another run is at work there") from None
    try:
        for doubt in doubts(scene_of(dataset, 0)):
            print(f"warning: {doubt}", file=sys.stderr)
        write_whole(folder / SETTINGS, _shown(replace(dataset, only=None)))
        made = _all_made(dataset)
        _say(dataset, made)
        put_together(dataset)
        failed = [one for one in made if one.error is not None]
        lost = sorted(set(dataset.numbers) - {one.number for one in made})
        if failed or lost:
            first = failed[0] if failed else Made(lost[0], error="its process died again and "
                                                  "again; is there enough memory? see workers")
            raise ValueError(f"{name_of(dataset, first.number)}: {first.error} "
                             f"({len(failed) + len(lost)} of {len(dataset.numbers)} samples failed,"
                             " the others are there)")
    finally:
        lock.release()
        (folder / ".lock").unlink(missing_ok=True)


def _all_made(dataset: Dataset) -> list[Made]:
    """Every sample, begun again where the process that made it died."""
    done: dict[int, Made] = {}
    idle = 0
    with progress(f"making samples of {dataset.stem}", len(dataset.numbers)) as report:
        while (left := [n for n in dataset.numbers if n not in done]) and idle < _ROUNDS:
            before = len(done)
            for one in _launched(dataset, left):
                done[one.number] = one
                report(len(done), len(dataset.numbers))
            idle = idle + 1 if len(done) == before else 0
    return sorted(done.values(), key=lambda one: one.number)


def _launched(dataset: Dataset, numbers: Sequence[int]) -> Iterator[Made]:
    job, logs = Maker(dataset), dataset.folder / ".launcher"
    match dataset.launcher:
        case "ray":
            return on_ray(job, numbers, dataset.workers, dataset.address)
        case "joblib":
            scene = scene_of(dataset, numbers[0])
            memory = prepare(scene, may_exist=True)[0].memory
            workers = _workers(dataset, memory)
            return in_processes(job, numbers, min(workers, len(numbers)))
        case _:
            cluster = dataset.launcher.removeprefix("submitit_")
            most = dataset.workers or (None if cluster == "slurm" else _workers(dataset, 0))
            return as_jobs(job, numbers, most, cluster, dict(dataset.slurm), logs)


def _say(dataset: Dataset, made: Sequence[Made]) -> None:
    new = [one for one in made if not one.kept and one.error is None]
    kept = sum(one.kept for one in made)
    print(f"{len(new)} samples made, {kept} kept, of {len(dataset.numbers)}"
          + (f"; {duration(sum(one.seconds for one in new) / len(new))} each" if new else ""))
    for text, count in Counter(text for one in made for text in one.warnings).items():
        print(f"warning: {' '.join(text.split())} ({count} of {len(made)} samples)",
              file=sys.stderr)


def put_together(dataset: Dataset) -> None:
    """Tables, projects and gallery of the samples that are there."""
    folder = dataset.folder
    numbers = [n for n in range(dataset.samples) if list_of(dataset, n).is_file()]
    if not numbers:
        return
    parts = split(dataset)
    rows = []
    for n in numbers:
        files = read_checksums(list_of(dataset, n))
        rows.append({"number": n, "name": name_of(dataset, n), "split": parts[n],
                     "seed": scene_of(dataset, n).seed, **drawn(dataset, n), "files": len(files),
                     "bytes": sum((folder / name).stat().st_size for name in files)})
    table = pd.DataFrame(rows)
    write_whole(folder / TABLE, table.to_csv(index=False))
    write_whole(folder / SPLIT, table[["name", "split"]].to_csv(index=False))
    samples = [folder / SAMPLES / name for name in table["name"]]
    tomograms = {}
    if dataset.tomogram is not None:
        method = next((word.partition("=")[2] for word in reversed(dataset.tomogram)
                       if word.startswith("method=")), "wbp")
        tomograms = {name: (f"reconstruct-{method}", folder / TOMOGRAMS / name / "tomogram.mrc")
                     for name in table["name"]}
    for name in dataset.formats:
        place = folder / name
        if name in ("relion5", "copick", "shrec"):
            place.mkdir(exist_ok=True)
        if name == "relion5":
            merge_relion(place, samples)
        elif name == "copick":
            merge_copick(place, samples, dataset.stem, tomograms)
        elif name == "shrec":
            merge_shrec(place, zip(numbers, samples, strict=True))
    shown = table.drop(columns=["files", "bytes", "number"]).assign(
        folder=[f"{SAMPLES}/{name}" for name in table["name"]])
    write_gallery(folder / PAGE, dataset.stem, [
        f"{len(numbers)} of {dataset.samples} samples: the least and the most tilted image, a "
        "slice of the tomogram, and its labels."], kinds_of(samples[0]), shown,
        {name: folder / PICTURES / f"{name}.jpg" for name in table["name"]})
    print(f"wrote {dataset.output}/: " + ", ".join(sorted(
        file.name for file in folder.iterdir() if file.name[0] != ".")))
