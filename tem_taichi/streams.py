"""Random numbers: every stream that a seed gives has a name, and none meets another.

Counter-based numbers (Philox, Salmon et al. 2011), so that a stream needs no other to have been
drawn from: what one image, particle or slice gets depends on no other.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from tem_taichi.checks import one_of, whole

ROOM = 1 << 32
"""Numbers of each stream, 0 to ROOM - 1."""

_FIRST = {
    "noise": 0,  # of an image
    "tilts": 1 << 32,  # errors of an image, in the order of acquisition
    "placement": 1 << 33,  # of a kind of particle
    "motion": 1 << 34,  # of a kind of particle
    "ice": 1 << 35,  # of an image
    "orientation": 1 << 36,  # of a kind of particle
    "trials": 1 << 37,  # of an estimate that compares with random images
    "batches": 1 << 38,  # of a pass through the parts of a fit
    "rays": 1 << 39,  # of a scanned image
    "samples": 1 << 40,  # of a key that varies in a data set
}
"""Where the numbers of each stream begin among the 2^64 keys of a seed; to change one changes
pictures."""


@dataclass(frozen=True)
class Key:
    """Which random numbers: those of a seed for one purpose and one thing."""

    seed: int
    """0 to 2^64 - 1."""
    name: str
    """Of the stream: noise, tilts, placement, orientation, motion, ice,
    trials, batches or rays."""
    number: int = 0
    """Of the thing, 0 to ROOM - 1: an image, say."""

    def __post_init__(self) -> None:
        whole("seed", self.seed, 0, 2**64 - 1)
        one_of("name", self.name, tuple(_FIRST))
        whole("number", self.number, 0, ROOM - 1)

    @classmethod
    def of(cls, seed: int, name: str, thing: str) -> "Key":
        """That of a thing with a name, a kind of particle, whatever else there is."""
        return cls(seed, name, zlib.crc32(thing.encode()))

    def generator(self, part: int = 0, kind: int = 0) -> np.random.Generator:
        """A new source of these numbers, at their beginning.

        Args:
            part: of a thing that has many, each with numbers of its own: a slice, of either sign.
            kind: of the part, 0 to 2^64 - 1.
        """
        key = np.array([self.seed, _FIRST[self.name] + self.number], dtype=np.uint64)
        counter = np.array([0, 0, part % 2**64, kind], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def words(self, part: int = 0, kind: int = 0) -> tuple[int, int, int, int, int]:
        """The same for `kernels.random`: two words of Philox 4x32's key and three of its counter.

        No two keys, parts and kinds have the same ones; a fourth word counts within them.

        Args:
            part: as in `generator`, from -2^31 to 2^31 - 1.
            kind: 0 to 2^24 - 1.

        Returns:
            Low and high word of the seed; part, number, and the stream with the kind.
        """
        whole("part", part, -(2**31), 2**31 - 1)
        stream = (_FIRST[self.name] >> 32) + (kind << 8)
        return self.seed % ROOM, self.seed >> 32, part % ROOM, self.number, stream

    def torch_generator(self, device: torch.device) -> torch.Generator:
        """The same for torch, on a device, whose numbers depend on its kind."""
        seed = int(self.generator().integers(2**63))
        return torch.Generator(device).manual_seed(seed)
