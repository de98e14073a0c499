"""Volumes as OME-Zarr 0.4: Zarr 2, zlib, each level of half the resolution of the one before."""

import json
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_CHUNK = 128
"""Voxels along the sides of a file."""
_LEVELS = 3
_EFFORT = 1
"""Of zlib: noise hardly shrinks, masks and potentials do at once."""


def write_ome_zarr(folder: Path, volume: NDArray, voxel: float) -> None:
    """Write a volume and its lower levels.

    A voxel of a level is the mean of 2^3 of the level before, or of whole numbers, which are
    labels, the first of them; so the middles of a level's first voxels differ, as the file says.

    Args:
        folder: to make.
        volume: (nz, ny, nx), of floats or of whole numbers.
        voxel: [A].
    """
    folder.mkdir(parents=True)
    labels = np.issubdtype(volume.dtype, np.integer)
    axes = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    datasets, first = [], 0.0
    for level in range(_LEVELS):
        transformations: list[dict[str, object]] = [{"type": "scale", "scale": [voxel] * 3}]
        if first:
            transformations.append({"type": "translation", "translation": [first] * 3})
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
        _write_array(folder / str(level), volume)
        volume = volume[::2, ::2, ::2] if labels else halved(volume)
        first += 0.0 if labels else voxel / 2
        voxel *= 2
    (folder / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
    (folder / ".zattrs").write_text(json.dumps({"multiscales": [{
        "version": "0.4", "name": folder.stem, "axes": axes, "datasets": datasets}]}, indent=2))


def halved(volume: NDArray) -> NDArray:
    """Means of 2^3 voxels, (nz, ny, nx) to halves of these, rounded up; at the end of fewer."""
    wide = np.pad(volume, [(0, n % 2) for n in volume.shape], mode="edge")
    nz, ny, nx = (n // 2 for n in wide.shape)
    return wide.reshape(nz, 2, ny, 2, nx, 2).mean(axis=(1, 3, 5), dtype=np.float32)


def _write_array(folder: Path, volume: NDArray) -> None:
    folder.mkdir()
    chunk = [min(_CHUNK, n) for n in volume.shape]
    data = volume.astype(volume.dtype.newbyteorder("<"), copy=False)
    (folder / ".zarray").write_text(json.dumps({
        "zarr_format": 2, "shape": list(volume.shape), "chunks": chunk, "dtype": data.dtype.str,
        "compressor": {"id": "zlib", "level": _EFFORT}, "fill_value": 0, "order": "C",
        "filters": None, "dimension_separator": "/"}))
    counts = [-(-n // step) for n, step in zip(volume.shape, chunk, strict=True)]
    for place in np.ndindex(*counts):
        part = data[tuple(slice(i * step, (i + 1) * step)
                          for i, step in zip(place, chunk, strict=True))]
        whole = np.zeros(chunk, dtype=data.dtype)
        whole[tuple(slice(n) for n in part.shape)] = part
        file = folder / str(place[0]) / str(place[1]) / str(place[2])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(zlib.compress(whole.tobytes(), _EFFORT))
