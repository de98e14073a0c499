"""Places that random copies may take: all over the slab, or as its relief and a density say."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from tem_taichi.scene.placing import PlacingSettings
from tem_taichi.scene.settings import Scene
from tem_taichi.scene.specimen import IceSettings
from tem_taichi.specimen.ice_shape import at_knots

Array = NDArray[np.float64]

_TRIES = 100
"""Draws of places before there count as none that a density lets be."""


def proposals(scene: Scene, placing: PlacingSettings, radius: float, rng: np.random.Generator
              ) -> Callable[[int], Array]:
    """A function that gives that many random places, (n, 3) [A].

    Where the ice has a relief they are within its surfaces, about its mid-plane, as far as these
    are level over the copy: in places too thin for a copy there is none.

    Args:
        scene: its ice, and the field that is filled.
        placing: of the copies.
        radius: of the sphere that holds a copy [A].
        rng: source of the random numbers.
    """
    ice = scene.specimen.ice
    size = scene.specimen.size or [n * scene.pixel_size for n in reversed(scene.shape)]
    knots = None if ice.relief is None else np.array(ice.relief)
    density = None if placing.density is None else np.array(placing.density)
    # The same in all, so that there are as many in a volume of thick ice as of thin.
    deepest = ice.thickness / 2 * (1.0 if knots is None else float(knots.max())) - radius
    half = np.array([size[0] / 2, size[1] / 2, deepest])
    if knots is None and density is None:
        return lambda n: rng.uniform(-half, half, (n, 3))

    def propose(n: int) -> Array:
        found: list[Array] = []
        for _ in range(_TRIES):
            points = rng.uniform(-half, half, (2 * n, 3))
            keep = np.ones(len(points), dtype=bool)
            if density is not None:
                there = _at(density, placing.density_spacing, points)
                keep &= rng.uniform(0, density.max(), len(points)) < there
            if knots is not None:
                keep &= np.abs(points[:, 2]) <= (
                    ice.thickness / 2 * _at(knots, ice.relief_spacing, points) - radius)
                points[:, 2] += middle_of(ice, points)
            found.append(points[keep])
            if sum(map(len, found)) >= n:
                break
        return np.concatenate(found)[:n]

    return propose


def middle_of(ice: IceSettings, points: Array) -> Array:
    """Height of the ice's mid-plane over places.

    Args:
        ice: with a relief.
        points: (n, 3) [A].

    Returns:
        (n,) [A].
    """
    middle = points[:, :2] @ np.array(ice.slope)
    if ice.relief_heights is not None:
        middle = middle + _at(np.array(ice.relief_heights), ice.relief_spacing, points)
    return np.asarray(middle)


def _at(knots: Array, spacing: float, points: Array) -> Array:
    x, y = torch.from_numpy(points[:, 0].copy()), torch.from_numpy(points[:, 1].copy())
    return at_knots(torch.from_numpy(knots), spacing, x, y).numpy()
