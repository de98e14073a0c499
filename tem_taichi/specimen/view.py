"""One tilted view of a specimen, as slices of projected potential."""

from dataclasses import dataclass

import torch

from tem_taichi.physics import Value


@dataclass(frozen=True)
class View:
    """One tilted view of the specimen, cut into slices."""

    rotation: torch.Tensor
    """ParticlesInIce to image frame, (3, 3)."""
    shift: torch.Tensor
    """Of the image [A], (2,)."""
    shape: tuple[int, int]
    """(ny, nx) of the wave's grid."""
    pixel_size: float
    """Of the wave's grid [A]."""
    slice_thickness: float
    """[A]"""
    entrance: float
    """z where the first slice begins [A]."""
    n_slices: int
    absorption: Value | None = None
    """Imaginary potential of the ice [V]; None = atoms absorb nothing of their own."""
    exposure: Value = 0.0
    """What damaged the specimen [e-/A^2]; 0 = nothing."""
    voltage: Value = 300.0
    """At which it did [kV]."""
    stream: int = 0
    """Number of the ice's random structure."""
    contrast: Value | None = None
    """Q of the particles, beside ice that has slices of its own and no Q; None = no Q here."""
