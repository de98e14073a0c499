"""MRC files without the id "MAP" or a known machine stamp, as programs wrote before the year 2000.

RELION and IMOD read them: the order of bytes is that in which the header's sizes make sense.
"""

import bz2
import gzip
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from mrcfile.mrcinterpreter import MrcInterpreter
from numpy.typing import NDArray

from tem_taichi.machine import check_memory

_HEADER = 1024
_ID = slice(208, 216)
"""Where the id and the stamp are."""
_STAMPS = {"<": (b"DA", b"DD"), ">": (b"\x11\x11",)}
"""First bytes of the stamp, by the order of bytes that it stands for."""
_COPIES = 4
"""Of a file's bytes while it is read, at most."""
_BYTES = {0: 1, 1: 2, 2: 4, 6: 2, 12: 2}
"""Of a pixel, by mode."""


def read_without_id(path: Path) -> tuple[np.recarray, NDArray[Any]] | None:
    """Header and data of a file that lacks nothing but its id or stamp; warns that it does.

    Returns:
        None if there is no such file, it has both, or its size is not what its header says.
    """
    try:
        with _opened(path) as stream:
            start = bytearray(stream.read(_HEADER))
            order, size = _order(start)
            if order is None or (start[_ID][:3] == b"MAP" and start[_ID][4:6] in _STAMPS[order]):
                return None
            check_memory(f"{path}: {size} bytes", _COPIES * size, "take a smaller one")
            rest = stream.read(size - _HEADER + 1)
    except (OSError, EOFError, zlib.error):
        return None
    if len(rest) != size - _HEADER:
        return None
    start[_ID] = b"MAP " + _STAMPS[order][0] + b"\0\0"
    with MrcInterpreter(iostream=BytesIO(start + rest)) as mrc:
        header, data = mrc.header.copy(), np.array(mrc.data)
    warnings.warn(f"{path}: has not the id and stamp of an MRC file; read as one, by the sizes in "
                  "its header", stacklevel=2)
    return header, data


def _opened(path: Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(3)
    return (gzip.open if start[:2] == b"\x1f\x8b" else bz2.open if start == b"BZh" else open)(
        path, "rb")


def _order(header: bytearray) -> tuple[str | None, int]:
    """Order of bytes in which a header makes sense, and the size of its file [bytes]."""
    found = []
    for order in _STAMPS if len(header) == _HEADER else ():
        nx, ny, nz, mode = struct.unpack_from(f"{order}4i", header)
        extended, = struct.unpack_from(f"{order}i", header, 92)
        if min(nx, ny, nz) > 0 and extended >= 0 and mode in _BYTES:
            found.append((_HEADER + extended + nx * ny * nz * _BYTES[mode], order))
    # In the wrong order small numbers are huge ones.
    size, which = min(found, default=(0, None))
    return which, size
