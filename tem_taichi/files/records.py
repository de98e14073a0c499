"""Arrays of one shape that a long run finishes one after the other: in a file until all are there.

A record is some planes. It is there once a part of the unfinished folder tells the digest of its
bytes: what was cut short, torn where the power failed, or changed, counts as not there, so that
nothing has to wait until the disk has it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tem_taichi.files.unfinished import key_of, load_part, save_part


class Records:
    """The records of a run in an unfinished folder, or in memory where there is none."""

    def __init__(self, folder: Path | None, key: str, shape: tuple[int, int, int, int],
                 dtype: np.dtype) -> None:
        """Nothing is written yet.

        Args:
            folder: of `unfinished.unfinished`; None = in memory.
            key: of `unfinished.key_of`, of all that decides the arrays.
            shape: records, planes of each, ny, nx.
            dtype: of the arrays.
        """
        self._folder, self._key, self.shape, self.dtype = folder, key, shape, dtype
        self._size = int(np.prod(shape[1:])) * dtype.itemsize
        self._memory = np.empty(shape, dtype) if folder is None else None

    @property
    def bytes(self) -> int:
        """Of all records."""
        return self.shape[0] * self._size

    def find(self, number: int) -> dict[str, Any] | None:
        """What `save` was told of a record; None if it is not there or not whole."""
        if self._folder is None:
            return None
        part = load_part(self._folder, self._part(number), ("about", "digest"))
        if part is None:
            return None
        try:
            with open(self._file, "rb") as file:
                file.seek(number * self._size)
                planes = (file.read(self._size // self.shape[1]) for _ in range(self.shape[1]))
                whole = _digest(planes, part["about"]) == part["digest"]
        except OSError:
            return None
        return part["about"] if whole else None

    def save(self, number: int, planes: Iterable[NDArray[Any]], about: Mapping[str, Any]) -> None:
        """Keep a record.

        Args:
            number: of the record.
            planes: one after the other, each (ny, nx).
            about: what has a JSON form; looked at once the last plane is there.
        """
        if self._memory is not None:
            for place, plane in zip(self._memory[number], planes, strict=True):
                place[...] = plane
            return
        assert self._folder is not None
        self._file.touch()
        with open(self._file, "r+b") as file:
            file.seek(number * self._size)

            def written() -> Iterable[memoryview]:
                for plane in planes:
                    data = np.ascontiguousarray(plane, self.dtype).data
                    file.write(data)
                    yield data

            digest = _digest(written(), about)
        save_part(self._folder, self._part(number), {"about": dict(about), "digest": digest})

    def arrays(self) -> NDArray[Any]:
        """All records, which must be there, of `shape`; those in a file as a map of it.

        What is changed in the map does not change the file.
        """
        if self._memory is not None:
            return self._memory
        return np.memmap(self._file, self.dtype, "c", shape=self.shape)

    @property
    def _file(self) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._key}.records"

    def _part(self, number: int) -> str:
        return key_of([self._key, number])


def _digest(planes: Iterable[bytes | memoryview], about: Mapping[str, Any]) -> str:
    """Of a record and what is said of it."""
    digest = hashlib.blake2b(digest_size=16)
    for plane in planes:
        digest.update(plane)
    digest.update(json.dumps(about, sort_keys=True).encode())
    return digest.hexdigest()
