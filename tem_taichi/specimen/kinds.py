"""Kinds of particles: sums of Gaussians about a centre of their own."""

from dataclasses import dataclass, replace

import torch

from tem_taichi.arguments import check_array, to_field
from tem_taichi.specimen.absorption import Ratios, absorption_ratios
from tem_taichi.specimen.atoms import Atoms
from tem_taichi.specimen.potential import Gaussians, atom_gaussians, solvent_gaussians


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

    def __post_init__(self) -> None:
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
        return float(torch.linalg.vector_norm(self.positions.detach(), dim=1).max())


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
