"""Contents of files, which may be or unpack to more than there is memory for."""

import gzip
from pathlib import Path

from tem_taichi.machine import memory_limit, size

_PIECE = 1 << 20
_NEEDED = 30
"""Memory that reading takes, over the size of the content: that of mmCIF files of short words."""


def content_of(path: Path, packed: bool) -> bytes:
    """Content of a file, refused before it fills the memory.

    Args:
        path: of the file.
        packed: whether it is compressed by gzip.

    Raises:
        ValueError: if there is too little memory to make use of it.
        OSError, EOFError, zlib.error: if it is broken.
    """
    most = memory_limit() / _NEEDED
    pieces, total = [], 0
    with (gzip.open if packed else open)(path, "rb") as stream:
        while piece := stream.read(_PIECE):
            total += len(piece)
            if total > most:
                raise ValueError(f"{path}: holds more than {size(most)}"
                                 f"{' once unpacked' * packed}, which this machine has too little "
                                 "memory to read")
            pieces.append(piece)
    return b"".join(pieces)
