"""Kinds of particles: sums of Gaussians about a centre of their own."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from scipy.spatial import ConvexHull, QhullError

from tem_taichi.arguments import check_array, to_field
from tem_taichi.checks import one_of
from tem_taichi.recompute import tensors_in
from tem_taichi.specimen.absorption import Ratios, absorption_ratios
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.potential import Gaussians, atom_gaussians, solvent_gaussians

T = TypeVar("T")

RENDERS = ("atoms", "volume")

_KEPT = 6
"""Things that are kept of a kind at once: volumes at one or two pixel sizes, and small ones."""

_FEW = 2000
"""Scatterers of which the outermost are not worth looking for."""


@dataclass(frozen=True)
class Kind:
    """One kind of particle, about its own centre."""

    name: str
    positions: torch.Tensor
    """Of its scatterers [A], shape (n, 3)."""
    group: Gaussians
    """What each scatterer adds to the potential."""
    displaced: Gaussians | None = None
    """The same for each volt of the solvent that it displaces, where it displaces any."""
    absorbing: Gaussians | None = None
    """What it adds to the imaginary potential for each volt of that of ice."""
    render: str | None = None
    """Whether copies are drawn as atoms or volume; None = by `choice.drawn_as_volume`. Atoms are
    points where `choice.drawn_as_points` says so."""
    images: int = 1
    """That its copies are drawn in: the more, the sooner a volume, made once, is worth it."""
    made: dict[tuple[Hashable, ...], Any] = field(default_factory=dict, repr=False, compare=False)
    """What `once` keeps."""

    def __post_init__(self) -> None:
        if self.render is not None:
            one_of("render", self.render, RENDERS)
        positions = to_field("positions", self.positions)
        object.__setattr__(self, "positions", positions)
        check_array("positions", positions, ("n", 3), "A")
        if not len(positions):
            raise ValueError(f"positions of kind {self.name!r}: must be at least one scatterer")
        for name in ("group", "displaced", "absorbing"):
            part = getattr(self, name)
            if part is not None and len(part.weight) != len(positions):
                raise ValueError(f"{name} of {len(part.weight)} scatterers: must be one of each "
                                 f"of the {len(positions)} positions")

    @property
    def radius(self) -> float:
        """Of the sphere about the centre that holds all scatterers [A]."""
        return self.once(("radius",), lambda: float(
            torch.linalg.vector_norm(self.positions.detach(), dim=1).max()))

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient is asked for in one of its own tensors."""
        return any(tensor.requires_grad for tensor in tensors_in(self))

    def once(self, key: tuple[Hashable, ...], make: Callable[[], T]) -> T:
        """Something that is made of its tensors, kept until one of them changes.

        Args:
            key: what it is, and of what else it is made; of each the last two are kept.
            make: makes it, without a gradient.
        """
        tensors = tensors_in(self)
        stamp = [(t.data_ptr(), t.shape, t.dtype, 0 if t.is_inference() else t._version)
                 for t in tensors]
        found = self.made.get(key)
        if found is None or found[0] != stamp:
            # Before the next one is made, which may be as large.
            for old in [other for other in self.made if other[0] == key[0]][:-1]:
                del self.made[old]
            # Kept with the tensors, so that no other takes their place in memory.
            found = self.made[key] = (stamp, make(), tensors)
            while len(self.made) > _KEPT:
                self.made.pop(next(iter(self.made)))
        return found[1]

    @property
    def outermost(self) -> torch.Tensor:
        """Positions that hold all others between them [A], (m, 3); without a gradient."""
        if len(self.positions) < _FEW or self.has_gradient:
            return self.positions.detach()
        return self.once(("outermost",), lambda: _corners(self.positions.detach()))


class Solvent(NamedTuple):
    """How much of what a kind displaces is drawn with others of its fields."""

    potential: float = 0.0
    """With `group`: mean inner potential of the solvent [V]; 0 for particles in vacuum."""
    absorption: float = 0.0
    """With `absorbing`: for each volt of the imaginary potential of ice [1]."""


VACUUM = Solvent()
"""Nothing goes with anything."""


def parts_of(kind: Kind, name: str, solvent: Solvent = VACUUM) -> list[Gaussians]:
    """What a kind has of a name, with what goes with it of the solvent that it displaces.

    Args:
        kind: of particle.
        name: group, displaced or absorbing.
        solvent: what goes with them.
    """
    parts = [getattr(kind, name)]
    factor = {"group": solvent.potential, "absorbing": solvent.absorption}.get(name, 0.0)
    if factor and kind.displaced is not None:
        parts.append(kind.displaced.scaled(factor))
    return [part for part in parts if part is not None]


def _corners(positions: torch.Tensor) -> torch.Tensor:
    """Corners of the convex hull of points (n, 3); all points where they lie in a plane."""
    points = positions.double().cpu().numpy()
    try:
        rim = np.arange(len(points))
        if len(points) > 10 * _FEW:  # the hull of some is around most of the others
            some = ConvexHull(points[::len(points) // _FEW])
            middle = points[some.vertices].mean(0)
            inside = -(some.equations[:, :3] @ middle + some.equations[:, 3]).max()
            rim = np.flatnonzero(((points - middle) ** 2).sum(1) >= inside**2)
        corners = np.sort(rim[ConvexHull(points[rim]).vertices])
        return positions[torch.as_tensor(corners, dtype=torch.long, device=positions.device)]
    except QhullError:
        return positions


def kind_of(atoms: Atoms, name: str = "atoms", ratios: Ratios | None = None) -> Kind:
    """Atoms as a kind of particle about the origin; differentiable in every tensor of theirs.

    Args:
        atoms: about the origin.
        name: of the kind.
        ratios: what elements absorb, of `absorption.Loss`; None = by inelastic scattering.
    """
    atoms = atoms.here()
    group = atom_gaussians(atoms)
    table = group.table.clone()
    table[:, 0] *= absorption_ratios(ratios)[:, None]
    return Kind(name, atoms.positions, group, solvent_gaussians(atoms),
                replace(group, table=table))
