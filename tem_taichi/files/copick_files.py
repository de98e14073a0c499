"""A copick project: picks of every kind of particle and tomograms as OME-Zarr.

Locations are in A from the middle of the tomogram's first voxel; a pick's transformation turns
the particle's coordinates to the tomogram's and adds nothing. The tomograms are in the specimen's
own frame: `wbp`, the reconstruction, and `potential`, the truth relative to the ice [V].
"""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi.config import Scene
from tem_taichi.files.io import write_json
from tem_taichi.files.particle_files import ANGLES, POSITION
from tem_taichi.files.volumes import Volumes
from tem_taichi.pipeline import TiltSeries
from tem_taichi.poses import euler_to_matrix

_USER = "tem-taichi"
_SESSION = "0"
"""What copick calls the session of a program."""
_COLOURS = ([230, 159, 0, 255], [86, 180, 233, 255], [0, 158, 115, 255], [240, 228, 66, 255],
            [0, 114, 178, 255], [213, 94, 0, 255], [204, 121, 167, 255])
_CHUNK = 64
"""Slices of a tomogram in one file."""


def object_name(kind: str) -> str:
    """A kind's name as copick allows it: without "_", which parts the names of its files."""
    return re.sub("_+", "-", kind).strip("-") or "object"


def write_copick(folder: Path, scene: Scene, series: TiltSeries, volumes: Volumes) -> None:
    """Write config.json and ExperimentRuns/<name>/ with Picks and the tomograms.

    Args:
        folder: an existing, empty folder. copick runs in it: config.json says it is ".".
        scene: what was simulated.
        series: its result.
        volumes: of the same.

    Raises:
        ValueError: if two kinds have the same name once "_" is "-".
    """
    names = {kind.name: object_name(kind.name) for kind in volumes.specimen.kinds}
    if len(set(names.values())) < len(names):
        raise ValueError(f"formats: copick takes {', '.join(names)} for the same name, as '_' "
                         "becomes '-': names of particles must differ in more")
    write_json(folder / "config.json", {
        "config_type": "filesystem", "name": scene.name,
        "description": "A tilt series simulated by tem_taichi, with its truth.",
        "version": "1.0.0",
        "pickable_objects": [
            {"name": names[kind.name], "is_particle": True, "label": number,
             "color": _COLOURS[(number - 1) % len(_COLOURS)], "radius": round(kind.radius, 3)}
            for number, kind in enumerate(volumes.specimen.kinds, 1)],
        "overlay_root": "local://.", "overlay_fs_args": {"auto_mkdir": True},
    })
    run = folder / "ExperimentRuns" / scene.name
    picks, spacing = run / "Picks", run / f"VoxelSpacing{scene.pixel_size:.3f}"
    for place in (picks, spacing):
        place.mkdir(parents=True)
    first = np.array([n // 2 for n in reversed(volumes.shape)]) * scene.pixel_size
    for kind, name in names.items():
        table = series.particles[series.particles["kind"] == kind]
        write_json(picks / f"{_USER}_{_SESSION}_{name}.json", {
            "pickable_object_name": name, "user_id": _USER, "session_id": _SESSION,
            "run_name": scene.name, "voxel_spacing": scene.pixel_size, "unit": "angstrom",
            "points": _points(table, first), "trust_orientation": True})
    write_ome_zarr(spacing / "wbp.zarr", volumes.reconstruction, scene.pixel_size)
    write_ome_zarr(spacing / "potential.zarr", volumes.potential, scene.pixel_size)


def _points(table: pd.DataFrame, first: NDArray[np.float64]) -> list[dict[str, object]]:
    places = table[list(POSITION)].to_numpy(np.float64) + first
    transformations = np.tile(np.eye(4), (len(table), 1, 1))
    transformations[:, :3, :3] = euler_to_matrix(*table[list(ANGLES)].to_numpy(np.float64).T)
    return [{"location": dict(zip("xyz", place, strict=True)),
             "transformation_": transformation, "instance_id": number, "score": 1.0}
            for number, (place, transformation) in enumerate(
                zip(places.tolist(), transformations.tolist(), strict=True), 1)]


def write_ome_zarr(folder: Path, volume: NDArray[np.float32], voxel: float) -> None:
    """Write a volume as OME-Zarr 0.4 (Zarr 2) of one scale, not compressed.

    Args:
        folder: to make.
        volume: (nz, ny, nx).
        voxel: [A].
    """
    nz, ny, nx = volume.shape
    depth = min(_CHUNK, nz)
    array = folder / "0"
    array.mkdir(parents=True)
    axes = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    scale = [{"type": "scale", "scale": [voxel] * 3}]
    header = {"zarr_format": 2, "shape": [nz, ny, nx], "chunks": [depth, ny, nx], "dtype": "<f4",
              "compressor": None, "fill_value": 0.0, "order": "C", "filters": None,
              "dimension_separator": "/"}
    (folder / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
    write_json(folder / ".zattrs", {"multiscales": [{
        "version": "0.4", "name": folder.stem, "axes": axes,
        "datasets": [{"path": "0", "coordinateTransformations": scale}]}]})
    (array / ".zarray").write_text(json.dumps(header))
    for number, first in enumerate(range(0, nz, depth)):
        chunk = np.zeros((depth, ny, nx), dtype="<f4")
        part = volume[first:first + depth]
        chunk[:len(part)] = part
        place = array / str(number) / "0"
        place.mkdir(parents=True)
        chunk.tofile(place / "0")
