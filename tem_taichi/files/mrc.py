"""MRC files of images and volumes (MRC2014, Cheng et al. 2015)."""

import bz2
import gzip
import struct
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import mrcfile.bzip2mrcfile
import mrcfile.gzipmrcfile
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tem_taichi import __version__
from tem_taichi.files.mrc_without_id import read_without_id
from tem_taichi.machine import check_memory

_MODES = {"float32": 2, "int16": 1, "uint16": 6, "int8": 0}
_SINGLE = np.dtype(np.float32)
_HEADER = 1024
_READ_MODES = (0, 1, 2, 6, 12)
_LARGEST_VALUE, _PER_VALUE = 8, 12
"""Bytes of a value in a file, and memory to read one: as it is, a copy, and single precision."""


def mrc_mode(dtype: np.dtype) -> int:
    """Number that MRC and mdoc files give a pixel type (MRC2014, Cheng et al. 2015).

    Raises:
        ValueError: if `write_mrc` does not write that type.
    """
    if dtype.name not in _MODES:
        raise ValueError(f"dtype={dtype.name}: must be one of {', '.join(_MODES)}")
    return _MODES[dtype.name]


def smallest_type(planes: Iterable[NDArray[Any]], integer: bool) -> np.dtype:
    """The smallest type that holds counts exactly enough: 16 bits for whole numbers.

    Args:
        planes: values, some at a time, each of any shape.
        integer: whether they are whole numbers.

    Returns:
        int16 or uint16 where whole numbers fit, else float32.
    """
    if integer:
        low, high = np.array([(plane.min(), plane.max()) for plane in planes]).T
        for whole in (np.int16, np.uint16):
            if low.min() >= np.iinfo(whole).min and high.max() <= np.iinfo(whole).max:
                return np.dtype(whole)
    return np.dtype(np.float32)


def as_type(counts: NDArray[Any], dtype: np.dtype) -> NDArray[Any]:
    """Counts as a type of `smallest_type`, rounded to whole numbers where it is one of these."""
    return (np.rint(counts) if dtype.kind in "iu" else counts).astype(dtype, copy=False)


def write_mrc(path: Path, array: ArrayLike, pixel_size: float, volume: bool = False,
              dtype: np.dtype | None = None, origin: Sequence[float] = (0.0, 0.0, 0.0)) -> None:
    """Write images or a volume as MRC2014, plane by plane.

    Args:
        path: file to write.
        array: images (n, ny, nx), one image (ny, nx) or a volume (nz, ny, nx), of type float32,
            int16, uint16 or int8, which is kept.
        pixel_size: spacing of pixels or voxels along every axis [A], positive.
        volume: mark the file as a volume (ISPG 1) instead of a stack of images (ISPG 0).
        dtype: one of these types to write instead, of `smallest_type`.
        origin: x, y, z of the middle of the first voxel [A].

    Raises:
        ValueError: if the type or shape is another, or a value or the pixel size is not finite;
            no file is left then.
    """
    data = np.asarray(array)
    if data.ndim == 2 and not volume:
        data = data[np.newaxis]
    if data.ndim != 3 or data.size == 0:
        raise ValueError(f"{path}: shape {data.shape} must be 3 dimensions, none empty")
    write_planes(path, data, pixel_size, volume, data.dtype if dtype is None else dtype, origin)


def write_planes(path: Path, planes: Iterable[NDArray[Any]], pixel_size: float,
                 volume: bool = False, dtype: np.dtype = _SINGLE,
                 origin: Sequence[float] = (0.0, 0.0, 0.0)) -> None:
    """Write images or planes that come one after the other; as `write_mrc`.

    Args:
        path: file to write.
        planes: at least one, each (ny, nx), of one shape.
        pixel_size: as there.
        volume: as there.
        dtype: as there.
        origin: as there.

    Raises:
        ValueError: as there.
    """
    mrc_mode(dtype)
    if not (np.isfinite(pixel_size) and pixel_size > 0):
        raise ValueError(f"pixel_size={pixel_size}: must be positive [A]")
    all_planes = iter(planes)
    first = next(all_planes)
    header = _header(path, first.shape, pixel_size, volume, dtype)
    known, wrong = _Statistics(), 0
    try:
        with open(path, "r+b") as file:
            file.seek(_HEADER)
            for plane in chain([first], all_planes):
                stored = np.ascontiguousarray(as_type(plane, dtype), dtype.newbyteorder("="))
                if bad := int(np.sum(~np.isfinite(stored))):
                    wrong += bad
                elif not wrong:
                    known.add(stored)
                    file.write(stored.data)
            if wrong:
                raise ValueError(f"{path}: {wrong} values are not finite")
            known.describe(header, pixel_size, volume)
            header.origin.x, header.origin.y, header.origin.z = origin
            file.seek(0)
            file.write(header.tobytes())
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise


def _header(path: Path, shape: tuple[int, ...], pixel_size: float, volume: bool,
            dtype: np.dtype) -> np.recarray:
    """Of a file with one plane, which is made."""
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(np.zeros((1, *shape), dtype.newbyteorder("=")))
        if not volume:
            mrc.set_image_stack()
        mrc.voxel_size = pixel_size
        # In place of mrcfile's own label, which holds the time of day.
        mrc.header.label[0] = f"tem_taichi {__version__}"
        return mrc.header.copy()


@dataclass
class _Statistics:
    """Of planes that come one after the other, in double precision (Chan et al. 1979)."""

    planes: int = 0
    size: int = 0
    least: float = np.inf
    most: float = -np.inf
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared deviations from the mean."""

    def add(self, plane: NDArray[Any]) -> None:
        mean, variance = (float(of(plane, dtype=np.float64)) for of in (np.mean, np.var))
        size, away = self.size + plane.size, mean - self.mean
        self.squares += variance * plane.size + away**2 * self.size * plane.size / size
        self.mean += away * plane.size / size
        self.size, self.planes = size, self.planes + 1
        self.least = min(self.least, float(plane.min()))
        self.most = max(self.most, float(plane.max()))

    def describe(self, header: np.recarray, pixel_size: float, volume: bool) -> None:
        """Put them into a file's header."""
        header.nz = self.planes
        if volume:
            header.mz = self.planes
            header.cella.z = pixel_size * self.planes
        header.dmin, header.dmax, header.dmean = self.least, self.most, self.mean
        header.rms = (self.squares / self.size) ** 0.5


def read_volume(path: Path, voxel_size: float | None = None) -> tuple[NDArray[np.float32], float]:
    """Read a volume from an MRC or CCP4 file, also compressed by gzip.

    Args:
        path: file of mode 0, 1, 2, 6 or 12.
        voxel_size: spacing to use in place of the header's [A].

    Returns:
        Values, shape (nz, ny, nx) whatever the order of axes in the file, and voxel size [A].

    Raises:
        ValueError: if the file is broken, is no volume, holds values that are not finite, or
            its header has no voxel size or one that differs by more than 1 % between axes.
    """
    header, data = _read(path)
    if data.ndim != 3 or data.size == 0:
        raise ValueError(f"{path}: shape {data.shape} is no volume (nz, ny, nx)")
    values = _finite(path, _in_order_zyx(path, data, header))
    return values, _voxel_size(path, header, voxel_size)


def read_image_stack(path: Path,
                     finite: bool = True) -> tuple[NDArray[np.float32], float | None]:
    """Read images from an MRC file, also compressed by gzip.

    Args:
        path: file of mode 0, 1, 2, 6 or 12; a stack, one image or the slices of a volume.
        finite: whether to refuse values that are not finite.

    Returns:
        Values, shape (n, ny, nx), and the pixel size [A]; None where the header has none, or
        one that differs by more than 1 % between x and y.

    Raises:
        ValueError: if the file is broken or holds values that are not finite.
    """
    header, data = _read(path)
    if data.ndim not in (2, 3) or data.size == 0:
        raise ValueError(f"{path}: shape {data.shape} is no stack of images (n, ny, nx)")
    cell, count = (np.array([float(part) for part in parts]) for parts in (
        (header.cella["x"], header.cella["y"]), (header.mx, header.my)))
    x, y = np.divide(cell, count, out=np.zeros(2), where=count > 0)
    known = np.isfinite(x) and np.isfinite(y) and 0 < max(x, y) <= 1.01 * min(x, y)
    images = data.reshape(-1, *data.shape[-2:])
    values = _finite(path, images) if finite else np.ascontiguousarray(images, dtype=np.float32)
    return values, float((x + y) / 2) if known else None


def _read(path: Path) -> tuple[np.recarray, NDArray[Any]]:
    try:
        with warnings.catch_warnings():
            # mrcfile only warns of data that do not fit the header.
            warnings.simplefilter("error", RuntimeWarning)
            _check_size(path)
            with mrcfile.open(path, permissive=False) as mrc:
                header, data = mrc.header.copy(), np.array(mrc.data)
    except (OSError, EOFError, ValueError, RuntimeWarning, zlib.error, MemoryError,
            OverflowError) as error:
        without = read_without_id(path)
        if without is None:
            raise ValueError(f"{path}: can't be read as MRC ({_one_line(error)})") from error
        header, data = without
    if int(header.mode) not in _READ_MODES:
        raise ValueError(f"{path}: mode {header.mode} must be one of {_READ_MODES}")
    if int(header.mode) == 0 and _unsigned_bytes(header):
        data = data.view(np.uint8)
    return header, data


def _check_size(path: Path) -> None:
    """Refuse a file before it is read, or unpacked, if its data have no room in the memory."""
    with mrcfile.open(path, permissive=False, header_only=True) as mrc:
        shape = [float(n) for n in (mrc.header.nx, mrc.header.ny, mrc.header.nz)]
        values = float(np.prod(np.maximum(shape, 0)))
        whole = 1024 + int(mrc.header.nsymbt) + values * _LARGEST_VALUE
        unpack: Any = {mrcfile.gzipmrcfile.GzipMrcFile: gzip.open,
                       mrcfile.bzip2mrcfile.Bzip2MrcFile: bz2.open}.get(type(mrc))
    check_memory(" x ".join(f"{n:.0f}" for n in shape) + " values", _PER_VALUE * values,
                 "take a smaller one")
    if unpack is None:
        return
    total = 0
    with unpack(path) as stream:  # mrcfile unpacks at once whatever comes behind the data
        while piece := stream.read(1 << 20):
            total += len(piece)
            if total > whole + (1 << 20):
                raise ValueError("unpacks to more data than its header says")


def _finite(path: Path, data: NDArray[Any]) -> NDArray[np.float32]:
    values = np.ascontiguousarray(data, dtype=np.float32)
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{path}: {np.sum(~np.isfinite(values))} values are not finite")
    return values


def _one_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _unsigned_bytes(header: np.recarray) -> bool:
    """Whether IMOD wrote mode 0 with its older unsigned bytes (imodStamp, imodFlags)."""
    order = ">" if header.mode.dtype.str.startswith(">") else "<"
    stamp, flags = struct.unpack(order + "2i", header.extra2.tobytes()[40:48])
    return stamp == 1146047817 and not flags & 1


def _in_order_zyx(path: Path, data: NDArray[Any], header: np.recarray) -> NDArray[Any]:
    axes = [int(header.maps), int(header.mapr), int(header.mapc)]
    if axes == [0, 0, 0]:  # never set, by old programs
        return data
    if sorted(axes) != [1, 2, 3]:
        raise ValueError(f"{path}: axes {axes[::-1]} in the header must be a permutation of 1 2 3")
    return data.transpose([axes.index(axis) for axis in (3, 2, 1)])


def _voxel_size(path: Path, header: np.recarray, override: float | None) -> float:
    angles = [float(header.cellb[name]) for name in ("alpha", "beta", "gamma")]
    if any(angles) and not np.allclose(angles, 90, rtol=0, atol=0.01):
        raise ValueError(f"{path}: cell angles {angles} must be 90 deg")
    if override is not None:
        if not (np.isfinite(override) and override > 0):
            raise ValueError(f"voxel_size={override}: must be positive [A]")
        return float(override)
    cell = np.array([header.cella[name] for name in "xyz"], dtype=np.float64)
    count = np.array([header.mx, header.my, header.mz], dtype=np.float64)
    sizes = np.divide(cell, count, out=np.zeros(3), where=count > 0)
    shown = " x ".join(f"{size:g}" for size in sizes)
    if not np.all(np.isfinite(sizes) & (sizes > 0)):
        raise ValueError(f"{path}: voxel size {shown} A in the header must be positive; "
                         "give voxel_size")
    if sizes.max() > 1.01 * sizes.min():
        raise ValueError(f"{path}: voxel size {shown} A in the header differs by more than 1 %; "
                         "give voxel_size")
    return float(sizes.mean())
