"""Where leaves of an octree meet: what each of two says of their common face."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tem_taichi.specimen.octree import Tree


@dataclass(frozen=True, eq=False)
class Faces:
    """All pairs of leaves of a tree with a common face, also of different sizes.

    They are compared at the samples of the one whose samples are closer.
    """

    tree: Tree

    @cached_property
    def _pairs(self) -> list[tuple[NDArray, NDArray, NDArray, NDArray]]:
        """By axis: fine and coarse leaf, and whether the fine one is the lower."""
        found = []
        cells, steps = self.tree.cells, self.tree.steps
        for axis in range(3):
            n = cells.shape[axis]
            low, high = (np.take(cells, range(a, b), axis).ravel() for a, b in ((0, n - 1), (1, n)))
            pairs = np.unique(np.stack([low, high], 1)[low != high], axis=0)
            lower = steps[pairs[:, 0]] <= steps[pairs[:, 1]]
            fine = np.where(lower, pairs[:, 0], pairs[:, 1])
            coarse = np.where(lower, pairs[:, 1], pairs[:, 0])
            others = [other for other in range(3) if other != axis]
            # Samples of the fine one in those of the coarse one, along both axes of the face.
            offset = (self.tree.begins[fine] - self.tree.begins[coarse])[:, others]
            places = (offset[..., None] + steps[fine][:, None, None] * np.arange(self.tree.samples)
                      ) / steps[coarse][:, None, None]
            found.append((fine, coarse, lower, places))
        return found

    def sides(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What two leaves say of each common face.

        Args:
            values: of all leaves (n, g, g, g).

        Returns:
            The finer leaf's samples on its face (faces, g, g); the other's at the same places,
            linear between its own; the area for which each stands, in steps of the finest grid
            (faces, 1, 1).
        """
        ones, others, areas = [], [], []
        last = self.tree.samples - 1
        for axis, (fine, coarse, lower, places) in enumerate(self._pairs):
            turned = values.movedim(axis + 1, 1)
            at = torch.as_tensor(np.where(lower, last, 0), device=values.device)
            ones.append(turned[torch.as_tensor(fine, device=values.device), at])
            face = turned[torch.as_tensor(coarse, device=values.device), last - at]
            for dim in (1, 2):
                place = torch.as_tensor(places[:, dim - 1], device=values.device)
                low = place.floor().clamp(max=last - 1).long()
                part = (place - low).to(values)
                shape = (-1, len(part[0]), 1) if dim == 1 else (-1, 1, len(part[0]))
                here, there = (torch.gather(face, dim, (low + step).reshape(shape).expand_as(face))
                               for step in (0, 1))
                face = here + part.reshape(shape) * (there - here)
            others.append(face)
            areas.append(torch.as_tensor(self.tree.steps[fine]**2, device=values.device))
        return torch.cat(ones), torch.cat(others), torch.cat(areas).to(values)[:, None, None]


def jump(faces: Faces, values: Tensor) -> float:
    """Difference across faces over that of neighbouring samples within leaves, root mean squares.

    Args:
        faces: of the tree.
        values: of its leaves.
    """
    one, other, areas = faces.sides(values)
    across = (areas * (one - other).square()).sum() / (areas.sum() * one[0].numel())
    inside = sum(values.diff(dim=axis).square().mean() for axis in (1, 2, 3)) / 3
    return float((across / inside).sqrt())
