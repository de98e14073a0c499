"""Maps over a specimen's plane, in layers, from numbers of parts of a tilt series' images.

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
    """How parts of images look through a specimen.

    Attributes:
        start: where rays meet the specimen's mid-plane, x and y [A], (n, parts, 2).
        step: of that with the height above it [1], (n, 2).
        across: way over height [1], (n,).
    """

    start: Array
    step: Array
    across: Array

    def through(self, thickness: float, layers: int = 1) -> Array:
        """Where rays are in layers of a slab.

        Args:
            thickness: of the slab along z [A].
            layers: of these.

        Returns:
            x and y [A] at even heights from below, (n, depths, parts, 2).
        """
        count = _DEPTHS * layers
        heights = thickness * ((np.arange(count) + 0.5) / count - 0.5)
        return self.start[:, None] + (heights[:, None] * self.step[:, None])[:, :, None]


@dataclass(frozen=True, eq=False)
class PlaneMap:
    """A map, 1 on average where nothing is known.

    Attributes:
        knots: of each layer from below, rows along y, columns along x, about the specimen's
            centre, (layers, my, mx).
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


def plane_rays(tilts: pd.DataFrame, slope: tuple[float, ...], places: Array) -> PlaneRays:
    """How parts of images see a specimen.

    Args:
        tilts: tilt_angle, axis_angle [deg], shift_x, shift_y [A] of each image.
        slope: of the specimen's mid-plane along x and y.
        places: x, y of the parts from the images' middle [A], (parts, 2).
    """
    normal = np.array([-slope[0], -slope[1], 1.0])
    start, step, across = [], [], []
    for row in tilts.itertuples():
        turn = tilt_rotation(float(row.tilt_angle), float(row.axis_angle)).double().cpu().numpy()
        rise = float(turn[2] @ normal)
        flat = (places - [row.shift_x, row.shift_y]) @ turn[:2]
        start.append(flat[:, :2] - (flat @ normal)[:, None] / rise * turn[2, :2])
        step.append(turn[2, :2] / rise)
        across.append(1 / abs(rise))
    return PlaneRays(np.array(start), np.array(step), np.array(across))


def fit_plane(values: Array, places: Array, scale: Array, error: Array, spacing: float,
              offsets: bool, layers: int = 1) -> PlaneMap:
    """The map that other tilts predict best.

    Args:
        values: of parts of images, (n, parts); NaN = not known.
        places: of which each is the mean, x and y [A], (n, depths, parts, 2), with layers at even
            heights from below.
        scale: value of an image's part where the map is 1, (n,).
        error: deviation of values by noise, (n, parts).
        spacing: between knots [A].
        offsets: whether images may be off by a number each.
        layers: of equal thickness: the map is linear between their middles.
    """
    counts = 2 * np.ceil(np.abs(places).max(axis=(0, 1, 2)) / spacing).astype(int) + 1
    depths = places.shape[1]
    height = np.clip((np.arange(depths) + 0.5) / depths * layers - 0.5, 0, layers - 1)
    parts = np.clip(1 - np.abs(height - np.arange(layers)[:, None]), 0, None)
    ways = sparse.csr_matrix(sparse.hstack([_ways(places, counts, spacing, part)
                                            for part in parts]))
    known = np.isfinite(values)
    weight = np.where(known, 1 / error**2, 0.0)
    given = np.where(known, values, 0.0)
    bends = sparse.csr_matrix(sparse.block_diag([_bends(counts)] * layers))
    rows = sparse.csr_matrix(sparse.diags_array(np.repeat(scale, values.shape[1])) @ ways)
    problem = _Problem(rows, given, weight, bends, offsets)
    half = np.arange(len(values)) % 2 == 0
    tried = problem.tried(half) + problem.tried(~half)
    every = np.ones(len(values), dtype=bool)
    flat = problem.missed(np.ones(ways.shape[1]), every)
    knots = problem.solved(problem.sums(every), _STIFF[int(tried.argmin())])
    model = problem.model(knots)
    off = (weight * (given - model)).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-300)
    return PlaneMap(knots.reshape(layers, *counts[::-1]), spacing, off * offsets, model, _explained(
        flat, float(tried.min()), float(known.sum())))


def _explained(flat: float, best: float, noise: float) -> float:
    """Part of what is beyond noise that a map has; 0 where that is hardly more than noise."""
    if flat - best < _LEAST * noise:
        return 0.0
    return min(1.0, (flat - best) / max(flat - noise, flat - best))


def _ways(places: Array, counts: NDArray[np.int_], spacing: float, weight: Array
          ) -> sparse.csr_matrix:
    """Part of each knot in the mean along rays, of depths of some weight, (n parts, knots)."""
    places, weight = places[:, weight > 0], weight[weight > 0] / len(weight)
    n, depths, parts, _ = places.shape
    at = np.clip(places / spacing + (counts - 1) / 2, 0, counts - 1)
    low = np.minimum(at.astype(int), counts - 2)
    part = at - low
    row = np.broadcast_to(np.arange(n * parts).reshape(n, 1, parts), (n, depths, parts)).ravel()
    total = sparse.csr_matrix((n * parts, int(counts.prod())))
    for right in (0, 1):
        for down in (0, 1):
            share = (np.abs(1 - right - part[..., 0]) * np.abs(1 - down - part[..., 1])
                     * weight[:, None])
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
    rows: sparse.csr_matrix
    values: Array
    weight: Array
    bends: sparse.csr_matrix
    offsets: bool

    def sums(self, use: NDArray[np.bool_]) -> tuple[sparse.csr_matrix, Array]:
        """Normal equations of some images, of knots and then offsets, without stiffness."""
        weight = (self.weight * use[:, None]).ravel()
        weighted = sparse.diags_array(weight) @ self.rows
        normal, right = self.rows.T @ weighted, weighted.T @ self.values.ravel()
        if not self.offsets:
            return normal, right
        n = len(self.values)
        images = sparse.csr_matrix((np.ones(self.values.size), (
            np.arange(self.values.size), np.repeat(np.arange(n), self.values.shape[1]))))
        shared = images.T @ weighted
        own = sparse.diags_array((self.weight * use[:, None]).sum(axis=1) + 1 / _OFFSET**2)
        return (sparse.block_array([[normal, shared.T], [shared, own]], format="csr"),
                np.append(right, images.T @ (weight * self.values.ravel())))

    def solved(self, sums: tuple[sparse.csr_matrix, Array], stiff: float) -> Array:
        """Knots of a stiffness."""
        normal, right = sums
        knots = self.rows.shape[1]
        each = normal.diagonal()[:knots]
        size = each[each > 0].mean()
        # Knots that nothing tells of are 1.
        added = stiff * size * self.bends + 1e-6 * size * sparse.eye_array(knots)
        added.resize(normal.shape)
        # Positive definite: symmetric orders without pivots are twice as fast.
        factors = splu(sparse.csc_matrix(normal + added), permc_spec="MMD_AT_PLUS_A",
                       diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        return np.asarray(factors.solve(
            right + 1e-6 * size * (np.arange(len(right)) < knots))[:knots])

    def tried(self, part: NDArray[np.bool_]) -> Array:
        """How badly knots by some images predict the others, at each stiffness."""
        sums = self.sums(part)
        return np.array([self.missed(self.solved(sums, stiff), ~part) for stiff in _STIFF])

    def model(self, knots: Array) -> Array:
        """The numbers that knots give, (n, parts)."""
        return np.asarray((self.rows @ knots).reshape(self.values.shape))

    def missed(self, knots: Array, use: NDArray[np.bool_]) -> float:
        """Squared deviation of some images' numbers from a map, in errors."""
        left = self.values - self.model(knots)
        if self.offsets:
            left = left - (self.weight * left).sum(axis=1, keepdims=True) / np.maximum(
                self.weight.sum(axis=1, keepdims=True), 1e-300)
        return float((self.weight * left**2)[use].sum())
