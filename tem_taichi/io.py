"""Files of images, volumes and tilt series: MRC, rawtlt, mdoc, CSV and JSON.

A tilt series' truth is a table, one row an image in the order of the stack, with the columns
TILT_COLUMNS; whoever simulates builds it, the writers here take it.
"""

import json
import struct
import warnings
import zlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tem_taichi import __version__

TILT_COLUMNS = (
    "tilt_angle",         # [deg], ascending
    "acquisition_index",  # place in the order of acquisition, from 0
    "prior_dose",         # before this image [e-/A^2]
    "dose",               # of this image [e-/A^2]
    "axis_angle",         # of the tilt axis, counter-clockwise from +y [deg]
    "shift_x", "shift_y",                                    # of the image [A]
    "defocus_u", "defocus_v",                                # positive is underfocus [A]
    "astigmatism_angle",                                     # of defocus_u, from +x [deg]
    "phase_shift",                                           # of a phase plate [deg]
)
"""Columns of the table of a tilt series."""

_MODES = {"float32": 2, "int16": 1, "uint16": 6, "int8": 0}
_READ_MODES = (0, 1, 2, 6, 12)
_FIRST_EXPOSURE = datetime(2025, 1, 1)  # any fixed day: the same input gives the same bytes
_EXPOSURE_INTERVAL = timedelta(minutes=1)


def mrc_mode(dtype: np.dtype) -> int:
    """Number that MRC and mdoc files give a pixel type (MRC2014, Cheng et al. 2015).

    Raises:
        ValueError: if `write_mrc` does not write that type.
    """
    if dtype.name not in _MODES:
        raise ValueError(f"dtype={dtype.name}: must be one of {', '.join(_MODES)}")
    return _MODES[dtype.name]


def write_mrc(path: Path, array: ArrayLike, pixel_size: float, volume: bool = False) -> None:
    """Write images or a volume as MRC2014.

    Args:
        path: file to write.
        array: images (n, ny, nx), one image (ny, nx) or a volume (nz, ny, nx), of type float32,
            int16, uint16 or int8, which is kept.
        pixel_size: spacing of pixels or voxels along every axis [A], positive.
        volume: mark the file as a volume (ISPG 1) instead of a stack of images (ISPG 0).

    Raises:
        ValueError: if the type or shape is another, or a value or the pixel size is not finite;
            no file is left then.
    """
    data = np.asarray(array)
    mrc_mode(data.dtype)
    if data.ndim == 2 and not volume:
        data = data[np.newaxis]
    if data.ndim != 3 or data.size == 0:
        raise ValueError(f"{path}: shape {data.shape} must be 3 dimensions, none empty")
    if not (np.isfinite(pixel_size) and pixel_size > 0):
        raise ValueError(f"pixel_size={pixel_size}: must be positive [A]")
    if not np.all(np.isfinite(data)):
        raise ValueError(f"{path}: {np.sum(~np.isfinite(data))} values are not finite")
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(data)
        if not volume:
            mrc.set_image_stack()
        mrc.voxel_size = pixel_size
        # In place of mrcfile's own label, which holds the time of day.
        mrc.header.label[0] = f"tem_taichi {__version__}"


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
    try:
        with warnings.catch_warnings():
            # mrcfile only warns of data that do not fit the header.
            warnings.simplefilter("error", RuntimeWarning)
            with mrcfile.open(path, permissive=False) as mrc:
                header, data = mrc.header.copy(), np.array(mrc.data)
    except (OSError, EOFError, ValueError, RuntimeWarning, zlib.error, MemoryError,
            OverflowError) as error:
        raise ValueError(f"{path}: can't be read as MRC ({_one_line(error)})") from error
    if int(header.mode) not in _READ_MODES:
        raise ValueError(f"{path}: mode {header.mode} must be one of {_READ_MODES}")
    if data.ndim != 3 or data.size == 0:
        raise ValueError(f"{path}: shape {data.shape} is no volume (nz, ny, nx)")
    if int(header.mode) == 0 and _unsigned_bytes(header):
        data = data.view(np.uint8)
    values = np.ascontiguousarray(_in_order_zyx(path, data, header), dtype=np.float32)
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{path}: {np.sum(~np.isfinite(values))} values are not finite")
    return values, _voxel_size(path, header, voxel_size)


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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a dictionary as JSON, keys in their order; arrays as lists, paths as text.

    Raises:
        ValueError: if a number is not finite or a value has no JSON form.
    """
    def plain(value: object) -> object:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"{type(value).__name__} has no JSON form")

    try:
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False, default=plain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {_one_line(error)}") from error
    Path(path).write_text(text + "\n", encoding="utf-8")


def _check_tilts(table: pd.DataFrame) -> None:
    missing = [name for name in TILT_COLUMNS if name not in table]
    if missing:
        raise ValueError(f"table of tilts: columns {', '.join(missing)} are missing")
    for name in TILT_COLUMNS:
        if not np.all(np.isfinite(table[name].to_numpy(dtype=np.float64))):
            raise ValueError(f"table of tilts: a value of {name} is not finite")
    if np.any(np.diff(table["tilt_angle"]) < 0):
        raise ValueError("table of tilts: tilt_angle must ascend")
    if sorted(table["acquisition_index"]) != list(range(len(table))):
        raise ValueError("table of tilts: acquisition_index must hold 0 .. n-1, each once")


def write_tilt_table(path: Path, table: pd.DataFrame) -> None:
    """Write the table of a tilt series as CSV with TILT_COLUMNS, no digit lost.

    Raises:
        ValueError: if a column is missing, a value not finite or the order not by angle.
    """
    _check_tilts(table)
    table.to_csv(path, columns=list(TILT_COLUMNS), index=False, lineterminator="\n")


def write_rawtlt(path: Path, tilt_angles: ArrayLike) -> None:
    """Write tilt angles as IMOD's .rawtlt: one a line, in the order of the stack.

    Args:
        path: file to write.
        tilt_angles: angles [deg], shape (n,).

    Raises:
        ValueError: if an angle is not finite.
    """
    angles = np.asarray(tilt_angles, dtype=np.float64)
    if not np.all(np.isfinite(angles)):
        raise ValueError(f"{path}: tilt angles must be finite [deg]")
    np.savetxt(path, angles.round(4) + 0.0, fmt="%.4f")  # + 0.0: no "-0.0000"


def write_mdoc(path: Path, table: pd.DataFrame, *, image_file: str, pixel_size: float,
               voltage: float, shape: tuple[int, int], n_frames: int = 1, mode: int = 2) -> None:
    """Write a tilt series' metadata as SerialEM's mdoc, sections in the order of the stack.

    Signs are SerialEM's: defocus is in um and negative for underfocus; RotationAngle is the
    tilt axis angle + 90 deg. SubFramePath only names each image, as other programs tell images
    apart by it: the pixels are in the stack. TargetDefocus is the mean of the series.

    Args:
        path: file to write, by custom <image_file>.mdoc.
        table: the series, columns TILT_COLUMNS.
        image_file: name of the stack.
        pixel_size: [A].
        voltage: [kV].
        shape: of one image (ny, nx).
        n_frames: movie frames of an image.
        mode: pixel type of the stack as from `mrc_mode`.

    Raises:
        ValueError: if a column is missing, a value not finite or the order not by angle.
    """
    _check_tilts(table)
    # The mean direction: a plain mean fails where angles lie on both sides of 180 deg.
    axis = np.angle(np.mean(np.exp(1j * np.deg2rad(table["axis_angle"]))), deg=True)
    defocus = -(table["defocus_u"] + table["defocus_v"]) / 2e4
    lines = [
        f"PixelSpacing = {pixel_size:g}", f"Voltage = {voltage:g}", f"ImageFile = {image_file}",
        f"ImageSize = {shape[1]} {shape[0]}", f"DataMode = {mode}", "",
        f"[T = tem_taichi {__version__}]", "",
        f"[T =     Tilt axis angle = {axis:.2f}, binning = 1  spot = 1  camera = 0]", "",
    ]
    for z, row in enumerate(table.itertuples(index=False)):
        time = _FIRST_EXPOSURE + int(row.acquisition_index) * _EXPOSURE_INTERVAL
        name = f"{Path(image_file).stem}_{int(row.acquisition_index):03d}_{row.tilt_angle:.1f}.mrc"
        lines += [
            f"[ZValue = {z}]",
            f"TiltAngle = {row.tilt_angle:.4f}",
            f"RotationAngle = {(row.axis_angle + 270) % 360 - 180:.4f}",
            f"ExposureDose = {row.dose:.6g}",
            f"PriorRecordDose = {row.prior_dose:.6g}",
            f"Defocus = {defocus.iloc[z]:.4f}",
            f"TargetDefocus = {defocus.mean():.4f}",
            f"PixelSpacing = {pixel_size:g}",
            f"Voltage = {voltage:g}",
            f"SubFramePath = {name}",
            f"NumSubFrames = {n_frames}",
            # Two spaces, English month: Warp takes no other form.
            f"DateTime = {time:%d-%b-%y  %H:%M:%S}",
            "",
        ]
    Path(path).write_text("\n".join(lines), encoding="utf-8")
