"""Volumes as OME-Zarr 0.4: format 2 of Zarr, zlib, each level of half the resolution of the last.

By zarr alone: ome-zarr would bring dask, scikit-image and a client of S3 for the few lines of
metadata below. Both zarr 2, which copick asks for, and zarr 3 will do.
"""

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
    import zarr  # here: what takes long to import, for this alone
    from numcodecs import Zlib

    # zarr 2 has no other format, nor the word for it.
    version = {} if zarr.__version__.startswith("2.") else {"zarr_format": 2}
    group = zarr.open_group(str(folder), mode="w-", **version)
    labels = np.issubdtype(volume.dtype, np.integer)
    axes = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    datasets, first = [], 0.0
    for level in range(_LEVELS):
        transformations: list[dict[str, object]] = [{"type": "scale", "scale": [voxel] * 3}]
        if first:
            transformations.append({"type": "translation", "translation": [first] * 3})
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
        array = zarr.create(
            volume.shape, chunks=tuple(min(_CHUNK, n) for n in volume.shape), fill_value=0,
            dtype=volume.dtype.newbyteorder("<"), compressor=Zlib(_EFFORT),
            store=str(folder / str(level)), dimension_separator="/", **version)
        array[...] = volume
        volume = volume[::2, ::2, ::2] if labels else halved(volume)
        first += 0.0 if labels else voxel / 2
        voxel *= 2
    group.attrs["multiscales"] = [{
        "version": "0.4", "name": folder.stem, "axes": axes, "datasets": datasets}]


def halved(volume: NDArray) -> NDArray:
    """Means of 2^3 voxels, (nz, ny, nx) to halves of these, rounded up; at the end of fewer."""
    wide = np.pad(volume, [(0, n % 2) for n in volume.shape], mode="edge")
    nz, ny, nx = (n // 2 for n in wide.shape)
    return wide.reshape(nz, 2, ny, 2, nx, 2).mean(axis=(1, 3, 5), dtype=np.float32)
