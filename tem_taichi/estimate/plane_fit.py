"""A map over a specimen's plane from numbers of parts of a tilt series' images.

Each number is the mean of the map along the part's rays through a slab, times what is known of it.
How smooth the map is, and whether there is one at all, other tilts decide: of two halves of the
series each is predicted by the other.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from tem_taichi.rotations import tilt_rotation

Array = NDArray[np.float64]

_DEPTHS = 5
"""Places of a ray through the slab."""
_STIFF = 10.0 ** np.arange(-2.0, 3.5)
"""Of the map's second differences, over what the data know of a knot."""
_LEVEL = 0.5
"""Of its first ones, over that: soon beyond what is seen it is level."""
_LEAST = 0.5
"""Of the variance by noise, that a map has to explain."""
_OFFSET = 0.02
"""Deviation of what all numbers of an image have in common [1], where that is looked for."""


@dataclass(frozen=True, eq=False)
class PlaneRays:
    """Where parts of images look through a slab.

    Attributes:
        places: in the specimen's plane [A], x and y, of each layer, (layers, n, depths, parts,
            2).
        across: way through the slab over its thickness, (n,).
    """

    places: Array
    across: Array


@dataclass(frozen=True, eq=False)
class PlaneMap:
    """A map, 1 on average where nothing is known.

    Attributes:
        knots: of each layer, rows along y, columns along x, about the specimen's centre,
            (layers, my, mx).
        spacing: between knots [A].
        offsets: what each image has beside it, (n,).
        model: numbers that it gives, without offsets, (n, parts).
        explained: part of the variance within images of tilts that had no say, beyond noise.
    """

    knots: Array
    spacing: float
    offsets: Array
    model: Array = field(repr=False)
    explained: float


def plane_rays(tilts: pd.DataFrame, slope: tuple[float, ...], thickness: float, places: Array,
               layers: int = 1) -> PlaneRays:
    """How parts of images see a slab.

    Args:
        tilts: tilt_angle, axis_angle [deg], shift_x, shift_y [A] of each image.
        slope: of the slab's mid-plane along x and y.
        thickness: of the slab along z [A].
        places: x, y of the parts from the images' middle [A], (parts, 2).
        layers: of equal thickness that have a map each, from below.
    """
    normal = np.array([-slope[0], -slope[1], 1.0])
    found, across = [], []
    for row in tilts.itertuples():
        turn = tilt_rotation(float(row.tilt_angle), float(row.axis_angle)).double().cpu().numpy()
        start = (places - [row.shift_x, row.shift_y]) @ turn[:2]
        rise = float(turn[2] @ normal)
        count = _DEPTHS * layers
        heights = thickness * ((np.arange(count) + 0.5) / count - 0.5)
        way = (heights[:, None] - start @ normal) / rise
        found.append((start + way[..., None] * turn[2])[..., :2].reshape(
            layers, _DEPTHS, len(places), 2))
        across.append(1 / abs(rise))
    return PlaneRays(np.stack(found, axis=1), np.array(across))


def fit_plane(values: Array, rays: PlaneRays, scale: Array, error: Array, spacing: float,
              offsets: bool) -> PlaneMap:
    """The map that other tilts predict best.

    Args:
        values: of parts of images, (n, parts); NaN = not known.
        rays: where they look.
        scale: value of an image's part where the map is 1, (n,).
        error: deviation of values by noise, (n, parts).
        spacing: between knots [A].
        offsets: whether images may be off by a number each.
    """
    counts = 2 * np.ceil(np.abs(rays.places).max(axis=(0, 1, 2, 3)) / spacing).astype(int) + 1
    layers = len(rays.places)
    ways = sparse.csr_matrix(sparse.hstack([_ways(each, counts, spacing) / layers
                                            for each in rays.places]))
    known = np.isfinite(values)
    weight = np.where(known, 1 / error**2, 0.0)
    given = np.where(known, values, 0.0)
    bends = sparse.csr_matrix(sparse.block_diag([_bends(counts)] * layers))
    problem = _Problem(ways, scale, given, weight, bends, offsets)
    half = np.arange(len(values)) % 2 == 0
    noise = known.sum()

    def missed(stiff: float) -> float:
        return sum(problem.missed(problem.solved(part, stiff)[0], ~part) for part in (half, ~half))

    tried = [missed(stiff) for stiff in _STIFF]
    flat = problem.missed(np.ones(ways.shape[1]), np.ones(len(values), dtype=bool))
    knots, model = problem.solved(np.ones(len(values), dtype=bool), _STIFF[int(np.argmin(tried))])
    off = (weight * (given - model)).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-300)
    return PlaneMap(knots.reshape(layers, *counts[::-1]), spacing, off * offsets, model, _explained(
        flat, min(tried), float(noise)))


def _explained(flat: float, best: float, noise: float) -> float:
    """Part of what is beyond noise that a map has; 0 where that is hardly more than noise."""
    if flat - best < _LEAST * noise:
        return 0.0
    return min(1.0, (flat - best) / max(flat - noise, flat - best))


def _ways(places: Array, counts: NDArray[np.int_], spacing: float) -> sparse.csr_matrix:
    """Part of each knot in the mean along rays, (n parts, knots)."""
    n, depths, parts, _ = places.shape
    at = np.clip(places / spacing + (counts - 1) / 2, 0, counts - 1)
    low = np.minimum(at.astype(int), counts - 2)
    part = at - low
    row = np.broadcast_to(np.arange(n * parts).reshape(n, 1, parts), (n, depths, parts)).ravel()
    total = sparse.csr_matrix((n * parts, int(counts.prod())))
    for right in (0, 1):
        for down in (0, 1):
            share = (np.abs(1 - right - part[..., 0]) * np.abs(1 - down - part[..., 1])) / depths
            column = (low[..., 1] + down) * counts[0] + low[..., 0] + right
            total = total + sparse.csr_matrix((share.ravel(), (row, column.ravel())), total.shape)
    return total


def _bends(counts: NDArray[np.int_]) -> sparse.csr_matrix:
    """Second differences of knots along either axis, and a little of the first, squared."""
    total = sparse.csr_matrix((int(counts.prod()),) * 2)
    for stencil, share in (([1.0, -2.0, 1.0], 1.0), ([-1.0, 1.0], _LEVEL)):
        less = len(stencil) - 1
        one, two = (sparse.diags_array(stencil, offsets=list(range(len(stencil))),
                                       shape=(n - less, n)) for n in counts)
        for steps in (sparse.kron(sparse.eye_array(counts[1]), one),
                      sparse.kron(two, sparse.eye_array(counts[0]))):
            total = total + share * (steps.T @ steps)
    return sparse.csr_matrix(total)


@dataclass(frozen=True, eq=False)
class _Problem:
    ways: sparse.csr_matrix
    scale: Array
    values: Array
    weight: Array
    bends: sparse.csr_matrix
    offsets: bool

    def solved(self, use: NDArray[np.bool_], stiff: float) -> tuple[Array, Array]:
        """Knots by some images, and the numbers of all (n, parts)."""
        scale = np.repeat(self.scale, self.values.shape[1])
        weight = (self.weight * use[:, None]).ravel()
        rows = sparse.diags_array(scale) @ self.ways
        weighted = sparse.diags_array(weight) @ rows
        known = rows.T @ weighted
        each = known.diagonal()
        size = each[each > 0].mean()
        # Knots that nothing tells of are 1.
        normal = known + stiff * size * self.bends + 1e-6 * size * sparse.eye_array(len(each))
        right = weighted.T @ self.values.ravel() + 1e-6 * size
        if self.offsets:
            n = len(self.values)
            images = sparse.csr_matrix((np.ones(self.values.size), (
                np.arange(self.values.size), np.repeat(np.arange(n), self.values.shape[1]))))
            shared = images.T @ weighted
            own = sparse.diags_array((self.weight * use[:, None]).sum(axis=1) + 1 / _OFFSET**2)
            normal = sparse.block_array([[normal, shared.T], [shared, own]])
            right = np.append(right, images.T @ (weight * self.values.ravel()))
        knots = splu(sparse.csc_matrix(normal)).solve(right)[:len(each)]
        return knots, (rows @ knots).reshape(self.values.shape)

    def missed(self, knots: Array, use: NDArray[np.bool_]) -> float:
        """Squared deviation of some images' numbers from a map, in errors."""
        left = (self.values.ravel() - np.repeat(self.scale, self.values.shape[1])
                * (self.ways @ knots)).reshape(self.values.shape)
        if self.offsets:
            left = left - (self.weight * left).sum(axis=1, keepdims=True) / np.maximum(
                self.weight.sum(axis=1, keepdims=True), 1e-300)
        return float((self.weight * left**2)[use].sum())
