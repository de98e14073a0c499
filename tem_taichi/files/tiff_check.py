"""Whether all that a TIFF file speaks of is there: a cut file may read as one of fewer images.

Libraries stop at the first page that they cannot reach and give those before it. So the chain of
directories is followed here (TIFF 6.0, section 2; BigTIFF has wider numbers).
"""

import math
import struct
from typing import BinaryIO

import tifffile

_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
          16: 8, 17: 8, 18: 8}
"""Of a value, by the number of its type."""

_CUT = "the file is cut short or was not written to its end"


def check_whole(file: tifffile.TiffFile) -> None:
    """Refuse a file of which pages or bytes are missing.

    Raises:
        ValueError: that says what is missing.
    """
    size = file.filehandle.size
    with open(file.filehandle.path, "rb") as stream:
        count = _directories(stream, size, file.byteorder, file.is_bigtiff)
    if count != len(file.pages):
        raise ValueError(f"{count} pages, of which {len(file.pages)} can be read")
    for number, page in enumerate(file.pages, 1):
        segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        if len(segments) != math.prod(page.chunked) or not all(n for _, n in segments):
            raise ValueError(f"page {number}: parts of the image are missing")
        if any(offset + n > size for offset, n in segments):
            raise ValueError(f"page {number}: its image ends after the file's last byte: {_CUT}")


def _directories(stream: BinaryIO, size: int, order: str, big: bool) -> int:
    """Number of directories, each of which is whole, as are the values that it points to."""
    word, few, width = ("Q", "Q", 8) if big else ("I", "H", 4)
    entry = struct.Struct(f"{order}HH{word}{word}")
    few_bytes, seen = struct.calcsize(few), set[int]()

    def number(place: int, form: str) -> int:
        stream.seek(place)
        content = stream.read(struct.calcsize(form))
        if len(content) < struct.calcsize(form):
            raise ValueError(f"page {len(seen)}: its directory ends after the file's last byte: "
                             f"{_CUT}")
        return int(struct.unpack(order + form, content)[0])

    place = number(8 if big else 4, word)
    while place:
        if place in seen:
            raise ValueError(f"page {len(seen)}: is followed by one before it")
        seen.add(place)
        entries = number(place, few)
        next_one = place + few_bytes + entries * entry.size
        following = number(next_one, word)
        stream.seek(place + few_bytes)
        for _, kind, values, where in entry.iter_unpack(stream.read(entries * entry.size)):
            length = _BYTES.get(kind, 0) * values
            if length > width and where + length > size:
                raise ValueError(f"page {len(seen)}: its directory points beyond the file's last "
                                 f"byte: {_CUT}")
        place = following
    return len(seen)


def contiguous_images(file: tifffile.TiffFile) -> tifffile.TiffPageSeries | None:
    """The images of a file that describes them once and holds them in one piece, as ImageJ's do.

    Returns:
        None for a file with a page for each of its images.

    Raises:
        ValueError: if the file says that it has other images than it has.
    """
    said = int((file.imagej_metadata or {}).get("images", 0))
    held = sum(math.prod(series.shape[:-2]) for series in file.series)
    if said > held:
        raise ValueError(f"says that it has {said} images and has {held}: {_CUT}")
    if held == len(file.pages):
        return None
    if len(file.series) > 1 or file.series[0].dataoffset is None:
        raise ValueError(f"says that it has {held} images and has {len(file.pages)}")
    return file.series[0]
