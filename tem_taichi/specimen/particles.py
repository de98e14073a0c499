"""What is in the ice: kinds of particles as sums of Gaussians, their copies, and the ice."""

from dataclasses import dataclass, field

import torch

from tem_taichi.specimen.attenuation import transmitted
from tem_taichi.specimen.kinds import Kind as Kind
from tem_taichi.specimen.kinds import kind_of as kind_of
from tem_taichi.specimen.layer import Ice as Ice
from tem_taichi.specimen.poses import Poses
from tem_taichi.specimen.slicing import extent, filled, slices
from tem_taichi.specimen.view import Attenuation, View


@dataclass(frozen=True)
class ParticlesInIce:
    """Particles in ice."""

    kinds: tuple[Kind, ...]
    poses: tuple[Poses, ...]
    """Where the copies of each kind are."""
    ice: Ice = field(default_factory=Ice)

    def __post_init__(self) -> None:
        for name, wanted in (("kinds", Kind), ("poses", Poses)):
            given = getattr(self, name)
            if not (isinstance(given, tuple) and all(isinstance(one, wanted) for one in given)):
                raise ValueError(f"{name}: must be a tuple of {wanted.__name__}")
        if len(self.kinds) != len(self.poses):
            raise ValueError(f"poses of {len(self.poses)} kinds: must be one for each of the "
                             f"{len(self.kinds)} kinds")

    def depth_range(self, view: View) -> tuple[float, float]:
        """See `view.Specimen`."""
        return extent(self.kinds, self.poses, self.ice, view)

    def filled(self, view: View) -> torch.Tensor:
        """See `view.Sparse` and `slicing.filled`."""
        return filled(self.kinds, self.poses, self.ice, view)

    def slices(self, view: View, first: int, count: int) -> torch.Tensor:
        """See `view.Specimen` and `slicing.slices`."""
        return slices(self.kinds, self.poses, self.ice, view, first, count)

    def attenuation(self, view: View) -> Attenuation | None:
        """What the ice and its film take along each ray: 1 - exp(-path / mean free path)."""
        ice = self.ice
        if ice.mean_free_path is None:
            return None
        return Attenuation(transmitted(ice.layer, ice.mean_free_path, view, ice.ratios),
                           ice.stopped)

    @property
    def n_scatterers(self) -> int:
        """Of all copies."""
        return sum(len(kind.positions) * len(pose.positions)
                   for kind, pose in zip(self.kinds, self.poses, strict=True))
