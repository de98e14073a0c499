"""Points along parallel rays: spread evenly, and where a first density says that matter is.

What a ray passes is a sum over points, each with the length that is nearer to it than to others;
points at random places of equal parts first, then others drawn by the density there (Mildenhall et
al. 2020). No grid is made, so that what is asked for grows with the rays alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tem_taichi.checks import whole
from tem_taichi.device import as_tensor
from tem_taichi.specimen.rays import Rays

_EVEN = 0.05
"""Part of the points drawn by density that is spread evenly: none is nowhere."""


@dataclass(frozen=True)
class Along:
    """How many rays and points are asked for at once."""

    rays: int = 1024
    coarse: int = 64
    """Points of a ray, one in each of equal parts."""
    fine: int = 128
    """More points, by the density at the first; 0 = none, and no coarse network."""

    def __post_init__(self) -> None:
        whole("rays", self.rays, 1, 1 << 24)
        whole("coarse", self.coarse, 2, 1 << 16)
        whole("fine", self.fine, 0, 1 << 16)


@dataclass(frozen=True, eq=False)
class Lines:
    """Parallel to the beams of images, through some of their pixels."""

    origins: Tensor
    """(n, 3) [A], x, y, z from the specimen's centre; nearest to it."""
    ways: Tensor
    """Of unit length, (n, 3)."""
    near: Tensor
    """Where each enters the specimen's box, from its origin, (n,) [A]."""
    far: Tensor
    """Where it leaves it; as `near` where it does not meet the box."""

    def at(self, places: Tensor) -> Tensor:
        """Points (n, m, 3) at distances from the origins (n, m) [A]."""
        return self.origins[:, None] + places[..., None] * self.ways[:, None]

    def even(self, count: int, draw: np.random.Generator) -> Tensor:
        """Distances (n, count) [A], rising, one at random in each of equal parts."""
        part = as_tensor(draw.random((len(self.near), count)))
        steps = (as_tensor(torch.arange(count)) + part) / count
        return torch.lerp(self.near[:, None], self.far[:, None], steps)

    def dense(self, places: Tensor, density: Tensor, count: int, draw: np.random.Generator
              ) -> Tensor:
        """Those of `even` and others where density is (n, m + count) [A], rising.

        Args:
            places: of `even`, (n, m).
            density: at them, not negative.
            count: of the others.
            draw: of random numbers.
        """
        n, parts = density.shape
        share = density.detach() + 1e-30
        share = (1 - _EVEN) * share / share.sum(1, keepdim=True) + _EVEN / parts
        ends = torch.nn.functional.pad(share.cumsum(1), (1, 0))
        ends = ends / ends[:, -1:]
        wanted = as_tensor((np.arange(count) + draw.random((n, count))) / count)
        part = (torch.searchsorted(ends, wanted, right=True) - 1).clamp(0, parts - 1)
        low, high = (ends.gather(1, part + by) for by in (0, 1))
        steps = (part + ((wanted - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)) / parts
        return torch.cat([places, torch.lerp(self.near[:, None], self.far[:, None], steps)],
                         dim=1).sort(dim=1).values

    def lengths(self, places: Tensor) -> Tensor:
        """Of the part of a ray that is nearest to each place [A]; their sum is all of it."""
        middle = (places[:, 1:] + places[:, :-1]) / 2
        ends = torch.cat([self.near[:, None], middle, self.far[:, None]], dim=1)
        return ends.diff(dim=1)


def lines_of(rays: Rays, image: Tensor, row: Tensor, column: Tensor,
             size: tuple[float, float, float]) -> Lines:
    """Rays of pixels through a box.

    Args:
        rays: how images see it.
        image: number of each pixel's image, (n,).
        row: of it there.
        column: of it there.
        size: of the box about the specimen's centre along x, y, z [A].
    """
    turn, shift = rays.rotations[image], rays.shifts[image]
    x = (column - rays.shape[1] // 2) * rays.pixel - shift[:, 0]
    y = (row - rays.shape[0] // 2) * rays.pixel - shift[:, 1]
    # The rows of a rotation are the image's axes in the specimen.
    origins = x[:, None] * turn[:, 0] + y[:, None] * turn[:, 1]
    ways = turn[:, 2]
    half = as_tensor(size) / 2
    slow = torch.where(ways.abs() < 1e-9, 1e-9, ways)
    faces = torch.stack([(-half - origins) / slow, (half - origins) / slow])
    near, far = faces.amin(0).amax(1), faces.amax(0).amin(1)
    return Lines(origins, ways, near, torch.maximum(near, far))
