"""A copick project: picks, masks and maps of every kind of particle, and tomograms, as OME-Zarr.

Locations are in A from the middle of the tomogram's first voxel; a pick's transformation turns
the particle's coordinates to the tomogram's and adds nothing. The tomograms are in the specimen's
own frame: `wbp`, the reconstruction, and `potential`, the truth relative to the ice [V]. Masks are
of all kinds at once (multilabel `kinds`), of each kind's particles by their instance_id, and of
each kind of membrane alone, which copick takes for no particle.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi.export.volumes import Volumes, reference
from tem_taichi.files.copick import copick_name
from tem_taichi.files.io import write_json
from tem_taichi.files.particles import ANGLES, POSITION
from tem_taichi.files.zarr import write_ome_zarr
from tem_taichi.rotations import euler_to_matrix
from tem_taichi.series.record import TiltSeries

_USER = "tem-taichi"
_SESSION = "0"
"""What copick calls the session of a program."""
_COLOURS = ([230, 159, 0, 255], [86, 180, 233, 255], [0, 158, 115, 255], [240, 228, 66, 255],
            [0, 114, 178, 255], [213, 94, 0, 255], [204, 121, 167, 255])


def write_copick(folder: Path, series: TiltSeries, volumes: Volumes, root: Path) -> None:
    """Write config.json, Objects/, and `ExperimentRuns/<name>/` with picks, masks and tomograms.

    Args:
        folder: an existing, empty folder.
        series: of a simulation.
        volumes: of the same.
        root: where the folder will be. copick knows no place relative to its config.json, only
            to the working folder, so that it must be named in full.
    """
    names = {kind.name: copick_name(kind.name) for kind in volumes.specimen.kinds}
    write_json(folder / "config.json", {
        "config_type": "filesystem", "name": series.name,
        "description": "A tilt series simulated by tem_taichi, with its truth.",
        "version": "1.0.0",
        "pickable_objects": [
            {"name": names[kind.name], "is_particle": not _is_membrane(series, kind.name),
             "label": number,
             "color": _COLOURS[(number - 1) % len(_COLOURS)], "radius": round(kind.radius, 3)}
            for number, kind in enumerate(volumes.specimen.kinds, 1)],
        "overlay_root": f"local://{root.resolve()}", "overlay_fs_args": {"auto_mkdir": True},
    })
    run = folder / "ExperimentRuns" / series.name
    picks, spacing = run / "Picks", run / f"VoxelSpacing{series.pixel_size:.3f}"
    for place in (picks, spacing):
        place.mkdir(parents=True)
    first = np.array([n // 2 for n in reversed(volumes.shape)]) * series.pixel_size
    for kind, name in names.items():
        table = volumes.particles[volumes.listed & (volumes.particles["kind"] == kind)]
        write_json(picks / f"{_USER}_{_SESSION}_{name}.json", {
            "pickable_object_name": name, "user_id": _USER, "session_id": _SESSION,
            "run_name": series.name, "voxel_spacing": series.pixel_size, "unit": "angstrom",
            "points": _points(table, first), "trust_orientation": True})
    write_ome_zarr(spacing / "wbp.zarr", volumes.reconstruction, series.pixel_size)
    write_ome_zarr(spacing / "potential.zarr", volumes.potential, series.pixel_size)
    _write_masks(run, series, volumes, names)
    for made in volumes.specimen.kinds:
        one = reference(made, volumes.specimen.ice, series.pixel_size)
        write_ome_zarr(folder / "Objects" / f"{names[made.name]}.zarr", one.potential, one.voxel)


def _is_membrane(series: TiltSeries, kind: str) -> bool:
    return series.kinds.get(kind) in ("vesicle", "membrane")


def _write_masks(run: Path, series: TiltSeries, volumes: Volumes, names: dict[str, str]) -> None:
    voxel, occupancy = series.pixel_size, volumes.occupancy
    start = f"{voxel:.3f}_{_USER}_{_SESSION}"
    all_kinds = run / "Segmentations" / f"{start}_kinds-multilabel.zarr"
    write_ome_zarr(all_kinds, _smallest(volumes.classes), voxel)
    # By their number in the occupancy: those with picks come first.
    kinds = volumes.particles["kind"].to_numpy()[np.argsort(volumes.numbers)]
    for kind, name in names.items():
        number = np.concatenate([[0], np.where(kinds == kind, np.cumsum(kinds == kind), 0)])
        instances = _smallest(number.astype(np.int64)[occupancy])
        write_ome_zarr(run / "InstanceSegmentations" / f"{start}_{name}.zarr", instances, voxel)
        if _is_membrane(series, kind):
            write_ome_zarr(run / "Segmentations" / f"{start}_{name}.zarr",
                           (instances > 0).astype(np.uint8), voxel)


def _smallest(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    return labels.astype(np.min_scalar_type(int(labels.max())))


def _points(table: pd.DataFrame, first: NDArray[np.float64]) -> list[dict[str, object]]:
    places = table[list(POSITION)].to_numpy(np.float64) + first
    transformations = np.tile(np.eye(4), (len(table), 1, 1))
    transformations[:, :3, :3] = euler_to_matrix(*table[list(ANGLES)].to_numpy(np.float64).T)
    return [{"location": dict(zip("xyz", place, strict=True)),
             "transformation_": transformation, "instance_id": number, "score": 1.0}
            for number, (place, transformation) in enumerate(
                zip(places.tolist(), transformations.tolist(), strict=True), 1)]
