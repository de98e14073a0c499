"""The samples of a data set as one project of RELION, one of copick, and SHREC's numbered models.

Files are links to those of the samples (hard ones, which take no room and that every program
follows), so that a sample and the projects hold the same bytes. Nothing is ever removed here: what
a user or a program adds to a project stays.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import starfile

from tem_taichi.files.copick import copick_name
from tem_taichi.files.io import write_json, write_whole
from tem_taichi.files.mrc import read_volume
from tem_taichi.files.particles import star_table
from tem_taichi.files.zarr import write_ome_zarr

_VERSION = "# version 50001\n\n"


def linked(source: Path, place: Path) -> None:
    """Make a file be another one, or a copy of it where the disk knows no links."""
    if place.exists() and os.path.samefile(source, place):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copy2(source, partial)
    partial.replace(place)


def linked_tree(source: Path, place: Path) -> None:
    """All files of a folder in another, see `linked`."""
    for file in source.rglob("*"):
        if file.is_file():
            linked(file, place / file.relative_to(source))


def merge_relion(folder: Path, samples: Sequence[Path]) -> None:
    """One RELION 5 project: tomograms.star, particles.star, optimisation_set.star and all tilts.

    Samples with the same voltage, aberration, contrast and pixel size share an optics group.

    Args:
        folder: of the project, which RELION runs in.
        samples: output folders, each with relion5/.
    """
    tomograms: list[pd.DataFrame] = []
    optics: list[pd.DataFrame] = []
    particles: list[pd.DataFrame] = []
    groups: dict[tuple, int] = {}
    for sample in samples:
        one = sample / "relion5"
        linked_tree(one / "tilts", folder / "tilts")
        linked_tree(one / "tilt_series", folder / "tilt_series")
        tomogram = _tables(one / "tomograms.star")["global"]
        star = _tables(one / "particles.star")
        group = star["optics"].drop(columns=["rlnOpticsGroup", "rlnOpticsGroupName"])
        number = groups.setdefault(tuple(group.iloc[0]), len(groups) + 1)
        if number > len(optics):
            optics.append(star["optics"].assign(rlnOpticsGroup=number,
                                                rlnOpticsGroupName=f"opticsGroup{number}"))
        tomograms.append(tomogram.assign(rlnOpticsGroupName=f"opticsGroup{number}"))
        if len(star.get("particles", ())):
            particles.append(star["particles"].assign(rlnOpticsGroup=number))
    write_whole(folder / "tomograms.star", _VERSION + star_table("global", pd.concat(tomograms)))
    if not particles:
        return
    write_whole(folder / "particles.star", "".join((
        _VERSION, "data_general\n\n_rlnTomoSubTomosAre2DStacks 1\n\n\n",
        star_table("optics", pd.concat(optics)), "\n",
        star_table("particles", pd.concat(particles)))))
    write_whole(folder / "optimisation_set.star", (
        f"{_VERSION}data_\n\n_rlnTomoParticlesFile particles.star\n"
        "_rlnTomoTomogramsFile tomograms.star\n"))


def _tables(path: Path) -> dict[str, pd.DataFrame]:
    names = ["rlnTomoName", "temParticle", "rlnTomoParticleName"]
    return starfile.read(path, always_dict=True, parse_as_string=names)


def merge_copick(folder: Path, samples: Sequence[Path], name: str,
                 tomograms: Mapping[str, tuple[str, Path]]) -> None:
    """One copick project, a run a sample; what its users add goes to copick_overlay/ beside it.

    Args:
        folder: of the project.
        samples: output folders, each with copick/.
        name: of the project.
        tomograms: of runs, by their names: a type of tomogram, as copick calls it, and a volume.
    """
    for sample in samples:
        one = sample / "copick"
        linked_tree(one / "ExperimentRuns", folder / "ExperimentRuns")
        linked_tree(one / "Objects", folder / "Objects")
    config = json.loads((samples[0] / "copick" / "config.json").read_text(encoding="utf-8"))
    overlay = folder.with_name(f"{folder.name}_overlay").resolve()
    write_json(folder / "config.json", config | {
        "name": name, "description": "Tilt series simulated by tem_taichi, with their truth.",
        "static_root": f"local://{folder.resolve()}", "static_fs_args": {},
        "overlay_root": f"local://{overlay}"})
    for run, (kind, file) in tomograms.items():
        volume, voxel = read_volume(file)
        place = (folder / "ExperimentRuns" / run / f"VoxelSpacing{voxel:.3f}"
                 / f"{copick_name(kind)}.zarr")
        if place.is_dir() and place.stat().st_mtime >= file.stat().st_mtime:
            continue
        partial = place.with_name(f".{place.name}.partial")
        for old in (partial, place):
            shutil.rmtree(old, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        write_ome_zarr(partial, volume, voxel)
        partial.rename(place)


def merge_shrec(folder: Path, samples: Iterable[tuple[int, Path]]) -> None:
    """model_0/, model_1/, ... and references/ as SHREC has them.

    Args:
        folder: to fill.
        samples: their numbers and output folders, each with shrec/.
    """
    for number, sample in samples:
        linked_tree(sample / "shrec" / "model_0", folder / f"model_{number}")
        linked_tree(sample / "shrec" / "references", folder / "references")
