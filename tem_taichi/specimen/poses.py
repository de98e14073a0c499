"""Where the copies of a kind of particle are, and how they are turned."""

from dataclasses import dataclass

import numpy as np
import torch

from tem_taichi.arguments import check_array, to_tensor


@dataclass(frozen=True)
class Poses:
    """Copies of one kind of particle in the specimen."""

    positions: np.ndarray | torch.Tensor
    """x, y, z of each copy's centre from the specimen's [A], shape (n, 3); a tensor may have a
    gradient. For `batches.expected_images` also (b, n, 3), of each of b images."""
    rotations: np.ndarray | torch.Tensor
    """Matrices that take the particle's coordinates to the specimen's [1], shape (n, 3, 3), or
    (b, n, 3, 3); see `rotations.rotation_from_vector` for gradients."""
    filament: np.ndarray | None = None
    """Number of the filament that each is part of, from 1, shape (n,); None = not in filaments."""

    def __post_init__(self) -> None:
        for name in ("positions", "rotations"):
            if not isinstance(getattr(self, name), (np.ndarray, torch.Tensor)):
                object.__setattr__(self, name, to_tensor(name, getattr(self, name)).numpy())
        positions, rotations = (to_tensor(name, getattr(self, name)).detach()
                                for name in ("positions", "rotations"))
        *batch, n, _ = positions.shape if positions.ndim >= 2 else (0, 0)
        check_array("positions", positions, (*("b" for _ in batch[:1]), "n", 3), "A")
        check_array("rotations", rotations, (*(["b"] if rotations.ndim == 4 else []), n, 3, 3), "1")
        rotations = rotations.double()
        # Steps of an optimiser that knows no rotations, and mirror images, are far beyond this.
        apart = (rotations @ rotations.mT - torch.eye(3).to(rotations)).abs()
        if n and not (float(apart.max()) < 1e-3 and bool((torch.linalg.det(rotations) > 0).all())):
            raise ValueError("rotations: must be rotation matrices (orthogonal, determinant +1)")
