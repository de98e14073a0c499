"""Lipid bilayers: Gaussians on a surface, whose profile is that of an atomistic bilayer.

The profile is that of 128 DPPC with water (molecular dynamics at 323 K, 64 x 64 A, one frame; the
file dppc_n128.pdb of the biotite project): the potential of its lipids as free atoms, and the
fraction of the water that they displace, both fitted by three pairs of Gaussians, to 0.07 V and
0.009 (rms; the two leaflets of the data differ by 0.22 V and 0.020). Free atoms make the tails
1 V and the heads 2.4 V denser than ice.
"""

import math

import numpy as np

from tem_taichi.checks import check, positive, positives, within
from tem_taichi.device import as_tensor
from tem_taichi.physics import SCATTERING_TO_POTENTIAL
from tem_taichi.specimen.absorption import Ratios, inelastic_ratios
from tem_taichi.specimen.kinds import Kind
from tem_taichi.specimen.potential import Gaussians, peng_factors

DISTANCE = np.array([2.80, 10.32, 18.75])
"""Of the Gaussians from the bilayer's middle, on both sides [A]."""

WIDTH = np.array([3.41, 6.08, 3.00])
"""Their standard deviations [A]."""

LIPID = np.array([1.72, 6.04, 2.39])
"""Height of each in the potential of the lipids' atoms [V]."""

DISPLACED = np.array([0.387, 0.920, 0.177])
"""Height of each in the fraction of the water that is displaced."""

HALF_THICKNESS = 18.7
"""Of the layer that holds no water, were its surface sharp [A]."""

_OFFSETS = np.concatenate([-DISTANCE, DISTANCE])
_WIDTHS = np.tile(WIDTH, 2)

SPACING = 4.5
"""Of the points on a surface [A]: 1.5 standard deviations of the narrowest Gaussian."""

DPPC = {6: 40, 1: 80, 7: 1, 8: 8, 15: 1}
"""Atoms of a lipid."""

SMALLEST_VESICLE, LARGEST = 150.0, 3000.0
"""Diameters and sides [A]; a vesicle of 3000 A has 8 million points."""


def bilayer_profile(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Profile across a flat bilayer.

    Args:
        depth: distance from its middle [A], any shape.

    Returns:
        Potential of the lipids' atoms [V] and displaced fraction of the solvent, each of that
        shape; relative to ice of potential U the bilayer is the first less U times the second.
    """
    offset = np.asarray(depth, dtype=float)[..., None] - _OFFSETS
    shape = np.exp(-0.5 * (offset / _WIDTHS) ** 2)
    return shape @ np.tile(LIPID, 2), shape @ np.tile(DISPLACED, 2)


def vesicle_kind(name: str, diameter: float, ratios: Ratios | None = None) -> Kind:
    """A spherical vesicle filled with ice.

    Args:
        name: of the kind.
        diameter: outer, of the surface of equal displaced water [A], 150 to 3000.
        ratios: as in `kinds.kind_of`.

    Raises:
        ValueError: for another diameter.
    """
    within("diameter", diameter, SMALLEST_VESICLE, LARGEST, "A")
    middle = diameter / 2 - HALF_THICKNESS
    points, areas = [], []
    for offset, width in zip(_OFFSETS, _WIDTHS, strict=True):
        # A shell of Gaussians is denser inside, as r / rho: a shift undoes it to first order.
        radius = middle + offset
        shell = radius + width**2 / radius
        n = math.ceil(4 * math.pi * shell**2 / SPACING**2)
        points.append(shell * fibonacci_sphere(n))
        areas.append(np.full(n, 4 * math.pi * shell * radius / n))
    return _kind(name, points, areas, ratios)


def membrane_kind(name: str, size: tuple[float, float], bend: float | None = None,
                  ratios: Ratios | None = None) -> Kind:
    """A rectangular patch about the origin, its normal along +z; it ends without a rim.

    Args:
        name: of the kind.
        size: along x and y [A], up to 3000; along the middle surface if it is bent.
        bend: radius of curvature about an axis along y below it [A]; None = flat.
        ratios: as in `kinds.kind_of`.

    Raises:
        ValueError: for another size, or a radius below 100 A or too small for one turn.
    """
    positives("size", size, 2, "A")
    within("size", max(size), 0, LARGEST, "A")
    positive("bend", bend, "A")
    check(bend is None or (bend >= 100 and size[0] <= 2 * math.pi * bend), "bend", bend,
          f"at least 100, and {size[0] / (2 * math.pi):.0f} for a patch of {size[0]:g} A [A]")
    counts = [math.ceil(side / SPACING) for side in size]
    along, across = (((np.arange(n) + 0.5) / n - 0.5) * side
                     for n, side in zip(counts, size, strict=True))
    u, y = (part.ravel() for part in np.meshgrid(along, across))
    area = size[0] * size[1] / len(u)
    points, areas = [], []
    for offset, width in zip(_OFFSETS, _WIDTHS, strict=True):
        if bend is None:
            x, z, stretch = u, np.full_like(u, offset), 1.0
        else:  # as in a vesicle, but denser inside as the root of r / rho
            radius = bend + offset
            shell = radius + width**2 / (2 * radius)
            x, z = shell * np.sin(u / bend), shell * np.cos(u / bend) - bend
            stretch = math.sqrt(shell * radius) / bend
        points.append(np.stack([x, y, z], axis=1))
        areas.append(np.full(len(u), area * stretch))
    return _kind(name, points, areas, ratios)


def fibonacci_sphere(n: int) -> np.ndarray:
    """Unit vectors (n, 3), nearly evenly spread: equal steps in z, the golden angle about it."""
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = np.arange(n) * math.pi * (3 - math.sqrt(5))
    rho = np.sqrt(1 - z**2)
    return np.stack([rho * np.cos(angle), rho * np.sin(angle), z], axis=1)


def _absorption(ratios: Ratios | None) -> float:
    """Imaginary over real potential of the lipid, per volt of the ice's imaginary one [1/V]."""
    ratio = ratios or inelastic_ratios()
    strength = {z: count * peng_factors()[z, 0].sum() for z, count in DPPC.items()}
    return sum(strength[z] * ratio[z] for z in DPPC) / sum(strength.values())


def _kind(name: str, points: list[np.ndarray], areas: list[np.ndarray],
          ratios: Ratios | None) -> Kind:
    """Points of each layer of _OFFSETS, each of which stands for an area [A^2]."""
    layer = np.repeat([0, 1, 2, 0, 1, 2], [len(part) for part in points])
    width, area = WIDTH[layer], np.concatenate(areas)

    def group(height: np.ndarray) -> Gaussians:
        weight = as_tensor(height[layer] * width * math.sqrt(2 * math.pi) * area
                           / SCATTERING_TO_POTENTIAL)
        return Gaussians.single(weight, as_tensor(2 * math.pi**2 * width**2))

    lipid = group(LIPID)
    return Kind(name, as_tensor(np.concatenate(points)), lipid,
                group(DISPLACED).scaled(-1.0), lipid.scaled(_absorption(ratios)))
