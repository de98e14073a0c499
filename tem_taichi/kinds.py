"""Kinds of particles: sums of Gaussians about a centre of their own."""

from dataclasses import dataclass, replace

import torch

from tem_taichi.absorption import Ratios, absorption_ratios
from tem_taichi.potential import Gaussians, atom_gaussians, solvent_gaussians
from tem_taichi.structures import Atoms


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
    group = atom_gaussians(atoms)
    table = group.table.clone()
    table[:, 0] *= absorption_ratios(ratios)[:, None]
    return Kind(name, atoms.positions, group, solvent_gaussians(atoms),
                replace(group, table=table))
