"""Features on grids of several resolutions at any point, as a torch function; see the kernels."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import taichi as ti
import torch
from torch import Tensor

from tem_taichi.bridge import differentiable, launch
from tem_taichi.checks import check, whole
from tem_taichi.device import as_tensor, current, many_threads
from tem_taichi.kernels import hash_grid as kernels
from tem_taichi.streams import Key


@dataclass(frozen=True)
class Levels:
    """Resolutions, each a factor finer than the one before."""

    count: int = 6
    """Of grids."""
    coarsest: int = 4
    """Cells along the longest side of the first."""
    finest: int = 64
    """Of the last."""
    rows: int = 1 << 17
    """Nodes with features of their own of each level, at most; beyond, they share by a hash. A
    power of two."""
    features: int = 2
    """Of each node."""

    def __post_init__(self) -> None:
        whole("count", self.count, 1, 64)
        whole("coarsest", self.coarsest, 1, 1 << 16)
        whole("features", self.features, 1, 64)
        check(self.coarsest <= self.finest <= 1 << 16, "finest", self.finest,
              f"from coarsest={self.coarsest} to 65536")
        check(self.rows > 0 and self.rows & (self.rows - 1) == 0, "rows", self.rows,
              "a power of two")

    @cached_property
    def table(self) -> np.ndarray:
        """Cells a side, first row and rows of each level, (count, 3)."""
        cells = np.rint(np.geomspace(self.coarsest, self.finest, self.count)).astype(np.int64)
        rows = np.minimum((cells + 1)**3, self.rows)
        begins = np.cumsum(rows) - rows
        return np.stack([cells, begins, rows], axis=1).astype(np.int32)

    @property
    def size(self) -> int:
        """Rows of all levels."""
        return int(self.table[-1, 1] + self.table[-1, 2])

    def start(self, seed: int = 0) -> Tensor:
        """A table of features next to 0, (size, features)."""
        draw = Key(seed, "trials", 1).generator()
        return as_tensor(draw.uniform(-1e-2, 1e-2, (self.size, self.features)))

    @cached_property
    def _on_device(self) -> Tensor:
        return torch.as_tensor(self.table, device=current().torch_device)


@ti.ad.grad_replaced
def _encode(table, points, levels, out):  # type: ignore[no-untyped-def]
    launch(kernels.features, table, points, levels, out)


@ti.ad.grad_for(_encode)
def _encode_adjoint(table, points, levels, out):  # type: ignore[no-untyped-def]
    if table.grad is not None:
        add = kernels.scatter_features_each if many_threads() else kernels.scatter_features
        launch(add, points, levels, out.grad, table.grad)
    if points.grad is not None:
        launch(kernels.feature_slopes, table, points, levels, out.grad, points.grad)


def encoded(table: Tensor, points: Tensor, levels: Levels) -> Tensor:
    """Features of points at all levels.

    Args:
        table: (levels.size, levels.features).
        points: from 0 to 1, (n, 3), contiguous.
        levels: how the table is cut.

    Returns:
        (n, levels.count levels.features), differentiable in the table and the points.

    Raises:
        ValueError: if the table is not that of the levels.
    """
    if tuple(table.shape) != (levels.size, levels.features):
        raise ValueError(f"table of shape {tuple(table.shape)}: must be "
                         f"{(levels.size, levels.features)}")
    out = table.new_empty((len(points), levels.count * levels.features))
    return differentiable(_encode, out, table.contiguous(), points.contiguous(),
                          levels._on_device)
