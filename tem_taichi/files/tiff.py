"""TIFF files of stacks, movies and gain references.

Row 0 of a TIFF file is the top of the picture, as IMOD, RELION and MotionCor take it; row 0 of an
array here is the bottom. So rows are written and read in reverse, and the picture looks the same
in every program, whichever of MRC and TIFF it came through.
"""

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import ArrayLike, NDArray

from tem_taichi.files.mrc import as_type, mrc_mode
from tem_taichi.files.tiff_check import check_whole, contiguous_images

_PER_CENTIMETRE = 1e8
"""[A]"""

_CLASSIC = 2**32 - 2**25
"""Bytes of pixels beyond which a file must be a BigTIFF, with room for the rest; as tifffile's."""

_LARGEST_PIXEL = 1000.0
"""[A]; a resolution that says more is meant for printers."""


def write_tiff(path: Path, images: ArrayLike, pixel_size: float,
               dtype: np.dtype | None = None) -> None:
    """Write images, or the frames of a movie, one page each, page by page.

    Args:
        path: file to write.
        images: (n, ny, nx) or (ny, nx), of type float32, int16, uint16 or int8, which is kept;
            uint8 too.
        pixel_size: [A], kept as the resolution in pixels per centimetre.
        dtype: one of these types to write instead, of `mrc.smallest_type`.

    Raises:
        ValueError: if type or shape is another, or a value or the pixel size is not finite.
    """
    data = np.asarray(images)
    kept = np.dtype(data.dtype if dtype is None else dtype).newbyteorder("=")
    if kept != np.uint8:
        mrc_mode(kept)
    if data.ndim not in (2, 3) or data.size == 0:
        raise ValueError(f"{path}: shape {data.shape} must be (n, ny, nx), none empty")
    if not (np.isfinite(pixel_size) and pixel_size > 0):
        raise ValueError(f"pixel_size={pixel_size}: must be positive [A]")
    pages = data.reshape(-1, *data.shape[-2:])
    if wrong := sum(int(np.sum(~np.isfinite(page))) for page in pages):
        raise ValueError(f"{path}: {wrong} values are not finite")
    tifffile.imwrite(
        path, (np.ascontiguousarray(as_type(page, kept)[::-1]) for page in pages),
        shape=pages.shape, dtype=kept, bigtiff=pages.size * kept.itemsize > _CLASSIC,
        photometric="minisblack", metadata=None, software="tem_taichi",
        resolutionunit="CENTIMETER", resolution=(_PER_CENTIMETRE / pixel_size,) * 2)


def read_tiff(path: Path, finite: bool = True) -> tuple[NDArray[np.float32], float | None]:
    """Read all pages of a TIFF file.

    `finite` refuses values that are not.

    Returns:
        Values, shape (n, ny, nx), row 0 at the bottom, and pixel size [A]; None where the file
        has no resolution that could be a microscope's.

    Raises:
        ValueError: if the file is broken or cut short, in colour, of pages that differ, or holds
            values that are not finite.
    """
    try:
        with tifffile.TiffFile(path) as file:
            check_whole(file)
            shapes = {page.shape for page in file.pages}
            if len(shapes) != 1 or len(next(iter(shapes))) != 2:
                raise ValueError(f"pages of shape {', '.join(map(str, sorted(shapes)))}: must be "
                                 "of one shape (ny, nx)")
            one_piece = contiguous_images(file)
            data = (np.stack([page.asarray() for page in file.pages]) if one_piece is None else
                    one_piece.asarray().reshape(-1, *next(iter(shapes))))
            pixel_size = _pixel_size(file.pages.first)
    except Exception as error:  # tifffile raises whatever broken files lead it to
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: can't be read as TIFF ({lines[0]})") from error
    values = np.ascontiguousarray(data[:, ::-1], dtype=np.float32)
    if finite and not np.all(np.isfinite(values)):
        raise ValueError(f"{path}: {np.sum(~np.isfinite(values))} values are not finite")
    return values, pixel_size


def _pixel_size(page: tifffile.TiffPage) -> float | None:
    units = {2: 2.54 * _PER_CENTIMETRE, 3: _PER_CENTIMETRE}
    tag = page.tags.get("XResolution")
    unit = page.tags.get("ResolutionUnit")
    unit_value = units.get(int(unit.value)) if unit is not None else None
    if tag is None or unit_value is None or 0 in tag.value:
        return None
    size = unit_value * tag.value[1] / tag.value[0]
    return float(size) if size <= _LARGEST_PIXEL else None


def write_gain(path: Path, gain: ArrayLike) -> None:
    """Write a gain reference, by which raw frames are multiplied, as a TIFF file.

    Args:
        path: file to write.
        gain: (ny, nx), zero or positive; 0 marks a dead pixel.

    Raises:
        ValueError: if the shape is another or a value negative or not finite.
    """
    data = _check_gain(path, np.asarray(gain, dtype=np.float32))
    tifffile.imwrite(path, data[::-1], photometric="minisblack", metadata=None,
                     software="tem_taichi")


def read_gain(path: Path) -> NDArray[np.float32]:
    """Read a gain reference, by which raw frames are multiplied, from a TIFF file.

    Returns:
        (ny, nx), row 0 at the bottom; 0 marks a dead pixel.

    Raises:
        ValueError: as `read_tiff`, or if there is not one page or a value is negative.
    """
    pages, _ = read_tiff(path)
    if len(pages) != 1:
        raise ValueError(f"{path}: has {len(pages)} pages; a gain reference has one")
    return _check_gain(path, pages[0])


def _check_gain(path: Path, gain: NDArray[np.float32]) -> NDArray[np.float32]:
    if gain.ndim != 2 or gain.size == 0:
        raise ValueError(f"{path}: shape {gain.shape} of a gain reference must be (ny, nx)")
    if not (np.all(np.isfinite(gain)) and gain.min() >= 0 and gain.max() > 0):
        raise ValueError(f"{path}: gain runs from {gain.min():g} to {gain.max():g}: must be "
                         "finite, not negative and not zero everywhere")
    return gain
