"""The ice that particles lie in: its numbers."""

from dataclasses import dataclass

from tem_taichi.arguments import check_number
from tem_taichi.device import present
from tem_taichi.physics import Value
from tem_taichi.specimen.absorption import Ratios
from tem_taichi.specimen.ice_shape import IceShape


@dataclass(frozen=True)
class Ice:
    """A layer of vitreous ice: it attenuates, is displaced by particles, and may be granular."""

    thickness: Value = 0.0
    """Untilted, in the centre [A]."""
    potential: Value = 0.0
    """Mean inner potential [V]; 0 = particles in vacuum."""
    mean_free_path: Value | None = None
    """Of the loss from the image, at the voltage in use [A]; None = no loss."""
    particle_absorption: Value = 1.0
    """What particles absorb over what their composition says [1]."""
    granularity: Value = 0.0
    """Strength of its random structure [1], 1 = physical; 0 = a continuum."""
    seed: int = 0
    """Of the random structure, which differs from exposure to exposure: molecules move."""
    shape: IceShape | None = None
    """Where it is; None = a slab of its thickness."""
    ratios: Ratios | None = None
    """What elements absorb, of `absorption.Loss`; None = by inelastic scattering alone."""
    stopped: Value = 0.0
    """Part of the loss that an aperture stops [1], which comes back without an energy filter no
    more than with it; 0 to 1."""

    def __post_init__(self) -> None:
        check_number("thickness", self.thickness, "A", 0.0)
        check_number("potential", self.potential, "V", -100.0, 100.0)
        if self.mean_free_path is not None:
            check_number("mean_free_path", self.mean_free_path, "A", above=0.0, high=1e12)
        check_number("particle_absorption", self.particle_absorption, "1", 0.0)
        check_number("granularity", self.granularity, "1", 0.0, 100.0)
        check_number("stopped", self.stopped, "1", 0.0, 1.0)

    @property
    def layer(self) -> IceShape:
        """Where it is."""
        return self.shape or IceShape(self.thickness)

    @property
    def structured(self) -> bool:
        """Whether it has slices of its own: granular, or beside a film of carbon."""
        film = self.shape is not None and present(self.shape.carbon_thickness)
        return film or present(self.granularity)
