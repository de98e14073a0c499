"""A tilt series as it is recorded: images, and the truth behind them."""

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from tem_taichi.scene.settings import Scene


@dataclass(frozen=True)
class TiltSeries:
    """A simulated tilt series, in the order of ascending nominal angle."""

    images: torch.Tensor
    """Counts with noise, (n, ny, nx)."""
    noise_free: torch.Tensor
    """Expected counts, (n, ny, nx)."""
    tilt_angles: np.ndarray
    """Nominal angles [deg], (n,); `tilts` has the true ones."""
    particles: pd.DataFrame
    """kind, x, y, z [A from the specimen's centre], rot, tilt, psi [deg]."""
    tilts: pd.DataFrame
    """Truth of each image, see `geometry.tilt_table`."""
    pixel_size: float
    """[A]"""
    amplitude_contrast: float = 0.07
    """Q of the scene, or that of protein in ice where the scene leaves it to the atoms."""
    halves: torch.Tensor | None = None
    """Two images of half the electrons each, whose sum `images` are, (2, n, ny, nx)."""
    frames: torch.Tensor | None = None
    """Frames of each image's movie, (n, frames, ny, nx)."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent in each stage."""
    threads: tuple[int, ...] = ()
    """Numbers of torch's threads that were used, see `sharing`."""


def tomogram_height(scene: Scene) -> int:
    """Voxels along z of a tomogram that holds the ice wherever it is in the field, even."""
    ice, (ny, nx) = scene.specimen.ice, scene.shape
    thickness = max(ice.thickness, ice.edge_thickness or 0.0)
    rise = (abs(ice.slope[0]) * nx + abs(ice.slope[1]) * ny) * scene.pixel_size
    height = math.ceil((thickness + rise) / scene.pixel_size)
    return height + height % 2
