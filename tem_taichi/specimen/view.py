"""How a specimen is seen: one tilted view of it, cut into slices, and what can be seen so."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from tem_taichi.physics import Value


@dataclass(frozen=True)
class View:
    """One tilted view of a specimen, cut into slices."""

    rotation: torch.Tensor
    """Specimen to image frame, (3, 3)."""
    shift: torch.Tensor
    """Of the image [A], (2,)."""
    shape: tuple[int, int]
    """(ny, nx) of the wave's grid."""
    pixel_size: float
    """Of the wave's grid [A]."""
    slice_thickness: float
    """[A]"""
    entrance: float = 0.0
    """z where the first slice begins [A]."""
    n_slices: int = 1
    voltage: Value = 300.0
    """[kV]"""
    amplitude_contrast: Value | None = 0.0
    """Q that the instrument gives to slices that do not absorb by themselves [1]; None = slices
    absorb by what they are made of."""
    exposure: Value = 0.0
    """What damaged the specimen [e-/A^2]; 0 = nothing."""
    stream: int = 0
    """Number of the image's random structures."""
    depth: str | None = "nearest"
    """How atoms are shared by slices, see `depth.depth_for`."""
    propagates: bool = False
    """Whether waves propagate from slice to slice, see `depth.compensation`."""

    @property
    def field(self) -> tuple[float, float]:
        """Width and height [A]."""
        return self.shape[1] * self.pixel_size, self.shape[0] * self.pixel_size


class Attenuation(NamedTuple):
    """What surroundings without a structure take from the elastic image."""

    left: torch.Tensor
    """Part of the electrons that pass without loss along the ray of each pixel, (ny, nx)."""
    stopped: Value
    """Part of the others that reaches no detector, with an energy filter or without [1]."""


class Specimen(Protocol):
    """Whatever scatters electrons: particles in ice, a grid of voxels, a network.

    Tensors that need gradients are fields of a frozen dataclass, or in tuples and dataclasses
    within it, where `recompute.tensors_in` finds them.
    """

    def depth_range(self, view: View) -> tuple[float, float]:
        """Least and largest z [A] where it needs slices in a view without any; 0, 0 = nowhere."""

    def slices(self, view: View, first: int, count: int) -> torch.Tensor:
        """Projected potential [V A] of some slices of a view, (count, ny, nx).

        Complex slices absorb by their imaginary part; real ones by the view's
        `amplitude_contrast`.
        """

    def attenuation(self, view: View) -> Attenuation | None:
        """What is lost beside it, on the view's grid; None = nothing."""


@runtime_checkable
class Sparse(Specimen, Protocol):
    """A specimen that knows which slices are empty: no other method is called for these."""

    def filled(self, view: View) -> torch.Tensor:
        """Whether each slice of a view may hold anything, booleans (n_slices,)."""
