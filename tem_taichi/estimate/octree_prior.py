"""Priors of a tree's leaves: variation, agreement on common faces, likeness of their lines."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.inverse.priors import cells_variation, consistent, non_local
from tem_taichi.specimen.faces import Faces
from tem_taichi.specimen.octree import Tree
from tem_taichi.streams import Key

_CORNER = 0.02
"""Differences of free numbers that cost their square rather than themselves."""
_PAIRS = 8
"""Leaves that are compared with another one in a step of the published fit, and at a time."""


@dataclass(frozen=True)
class Priors:
    """Strengths: what the mean over all leaves, faces and lines costs, in the images' mean square.

    They are of the free numbers, before the softplus, as published.
    """

    variation: float = 4e-4
    """Of the mean of |gradient| by finest sample."""
    boundary: float = 2e-4
    """Of the mean squared difference on common faces."""
    non_local: float = 1e-6
    """Of the mean squared difference from the means of another leaf's lines."""

    def __post_init__(self) -> None:
        if not self.variation > 0:
            raise ValueError(f"variation={self.variation}: must be positive")

    def cost(self, tree: Tree, faces: Faces, free: Tensor, pixels: int, seed: int = 0) -> Tensor:
        """Minus the log of the prior density, where images count as sum of squares / 2.

        Args:
            tree: whose leaves they are.
            faces: of the tree.
            free: numbers of the leaves.
            pixels: of all images.
            seed: of the leaves that are compared with others.
        """
        volume = float((tree.steps**3).sum()) * (tree.samples - 1)**3
        total = cells_variation(free, as_tensor(tree.steps),
                                volume / (pixels / 2 * self.variation), _CORNER)
        if self.boundary and len(free) > 1:
            one, other, areas = faces.sides(free)
            scale = float(areas.sum()) * one[0].numel()
            total = total + consistent(one, other, areas, (scale / pixels / self.boundary)**0.5)
        if self.non_local and len(free) > 1:
            # The values decide what is drawn: a run that goes on draws what it would have drawn.
            number = int(free.detach().double().abs().sum() * 1e6) % (1 << 31)
            draw = Key(seed, "batches", number).generator()
            n = min(_PAIRS, len(free))
            a = torch.as_tensor(draw.choice(len(free), n, replace=False))
            b = (a + torch.as_tensor(draw.integers(1, len(free), n))) % len(free)
            scale = free[a].numel() / pixels / self.non_local
            total = total + non_local(free[a], free[b], scale**0.5)
        return total


@dataclass(frozen=True)
class Ratios:
    """What other differences cost beside those of total variation, where these are small."""

    boundary: float = 1.0
    """Of leaves on their common face, beside neighbouring samples."""
    non_local: float = 0.0
    """Of a sample from the mean of another leaf's lines."""


@dataclass(frozen=True, eq=False)
class LeafPrior:
    """Minus the log of the prior density of leaves' values."""

    tree: Tree
    strength: float
    """Of the total variation: what a difference of neighbouring nodes costs, one over the values'
    unit."""
    corner: float
    """Differences of neighbouring nodes that cost their square rather than themselves."""
    unit: float
    """In which lines are compared."""
    ratios: Ratios = field(default_factory=Ratios)
    seed: int = 0
    """Of the leaf with which each is compared."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_faces", Faces(self.tree))

    @property
    def _stiff(self) -> float:
        """Of the square of a small difference."""
        return self.strength / self.corner

    def slope(self, values: Tensor) -> tuple[float, Tensor]:
        """The cost, and its gradient."""
        cost, found = self.variation(values)
        more, way = self.ties(values)
        return cost + more, found.add_(way)

    def variation(self, values: Tensor) -> tuple[float, Tensor]:
        """Of the total variation alone."""
        with torch.enable_grad():
            free = values.detach().requires_grad_()
            total = cells_variation(free, as_tensor(self.tree.steps), 1 / self.strength,
                                    self.corner)
        found, = torch.autograd.grad(total, free)
        return float(total.detach()), found

    def ties(self, values: Tensor) -> tuple[float, Tensor]:
        """Of leaves beside each other, and of those that are alike."""
        cost, found = 0.0, torch.zeros_like(values)
        if self.ratios.boundary and len(values) > 1:
            with torch.enable_grad():
                free = values.detach().requires_grad_()
                one, other, areas = self._faces.sides(free)  # type: ignore[attr-defined]
                # As stiff as the layer of nodes beside the face.
                total = consistent(one, other, areas.sqrt(),
                                   (self._stiff * self.ratios.boundary)**-0.5)
            cost, found = float(total.detach()), torch.autograd.grad(total, free)[0]
        if self.ratios.non_local and len(values) > 1:
            more, way = self._non_local(values)
            cost, found = cost + more, found + way
        return cost, found

    def _non_local(self, values: Tensor) -> tuple[float, Tensor]:
        """Every leaf beside another; some at a time are in memory."""
        n, total, out = len(values), 0.0, torch.zeros_like(values)
        draw = Key(self.seed, "batches", n).generator()
        others = (torch.arange(n) + torch.as_tensor(draw.integers(1, n, n))) % n
        steps = as_tensor(self.tree.steps).to(values).reshape(-1, 1, 1, 1)
        by_step = steps**1.5 / self.unit
        sigma = (self._stiff * self.ratios.non_local)**-0.5 / self.unit
        for a in torch.arange(n).split(_PAIRS):
            b = others[a]
            # Of leaves by size: a sample stands for as much as its cell.
            for size in torch.unique(by_step[a]):
                which = a[by_step[a].flatten() == size]
                mates = b[by_step[a].flatten() == size]
                with torch.enable_grad():
                    one, other = (values[rows].detach().requires_grad_()
                                  for rows in (which, mates))
                    cost = (float(size) * self.unit)**2 * non_local(
                        one / self.unit, other / self.unit, sigma)
                first, second = torch.autograd.grad(cost, (one, other))
                out.index_add_(0, which, first)
                out.index_add_(0, mates, second)
                total += float(cost.detach())
        return total, out

    def curvature(self) -> Tensor:
        """No less than by each value, (leaves, 1, 1, 1)."""
        steps = as_tensor(self.tree.steps).reshape(-1, 1, 1, 1)
        return self._stiff * (steps * (12 + 6 * self.ratios.boundary)
                              + steps**3 * self.ratios.non_local)
