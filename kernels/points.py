"""Points with amounts spread on slices by polynomial taps, many to a pixel.

A pass over the points puts each into its band of rows, another copies them into the order of the
bands, the third spreads them. Each thread owns a part of the points in the first two, and bands in
the third: those that have a band between them at once, since taps reach from one into the next.
Nothing is added by two threads to one number, hence the same sum in every run.
"""

from collections.abc import Callable
from functools import cache

import taichi as ti
from tem_taichi.kernels.volumes import polynomials

BAND = 16  # rows that a thread owns, at least as many as taps
CHUNKS = 64  # parts of the points


@ti.kernel
def look_up(
    kind: ti.types.ndarray(ndim=1),
    weight: ti.types.ndarray(ndim=1),
    broadening: ti.types.ndarray(ndim=1),
    rows: ti.types.ndarray(ndim=1),
    ends: ti.types.ndarray(ndim=2),
    table: ti.types.ndarray(ndim=3),
    column: int,
    amounts: ti.types.ndarray(ndim=2),
):
    """Add weight_i table(kind_i, broadening_i) to columns of amounts (n, .), from one on.

    The table (rows, steps, m) is linear between the steps from one end of the broadenings of its
    row to the other, ends (rows, 2); a kind's row is rows[kind].
    """
    for i in range(amounts.shape[0]):
        row = rows[kind[i]]
        steps = table.shape[1] - 1
        at = ((broadening[i] - ends[row, 0]) / ti.max(ends[row, 1] - ends[row, 0], 1e-12)
              * steps)
        step = ti.min(ti.max(int(at), 0), steps - 1)
        f = at - step
        for m in range(table.shape[2]):
            value = (1 - f) * table[row, step, m] + f * table[row, step + 1, m]
            amounts[i, column + m] = amounts[i, column + m] + weight[i] * value


@ti.func
def shared(z, n_slices, smooth):
    """First of the slices that share depth z [slices], and what the next one has of it.

    As `depth.depth_weights`.
    """
    first = ti.min(ti.max(int(ti.floor(z)), 0), n_slices - 1)
    part = 0.0 * z
    if smooth == 1 and n_slices > 1:
        first = ti.min(ti.max(int(ti.floor(z - 0.5)), 0), n_slices - 2)
        part = ti.min(ti.max(z - 0.5 - first, 0.0), 1.0)
    return first, part


@ti.kernel
def place(
    positions: ti.types.ndarray(ndim=2),
    frames: ti.types.ndarray(ndim=3),
    ny: int,
    nx: int,
    first: int,
    count: int,
    before: int,
    places: ti.types.ndarray(ndim=2),
    band: ti.types.ndarray(ndim=1),
    numbers: ti.types.ndarray(ndim=2),
):
    """Column, row and slice of each point of each copy, its band, and how many a band has.

    Point j of copy c is at frames[c] (positions[j], 1) and has number c len(positions) + j. Its
    band is that of the row of its first tap, `before` the one below it; -1 outside the field, and
    further than a slice from slices first .. first + count - 1. numbers (CHUNKS, bands) are zero.
    """
    ti.loop_config(block_dim=1)
    for chunk in range(numbers.shape[0]):
        n = positions.shape[0]
        size = (places.shape[0] + numbers.shape[0] - 1) // numbers.shape[0]
        for i in range(chunk * size, ti.min((chunk + 1) * size, places.shape[0])):
            c = i // n
            j = i - c * n
            at = ti.Vector.zero(float, 3)
            for axis in ti.static(range(3)):
                at[axis] = frames[c, axis, 3]
                for k in ti.static(range(3)):
                    at[axis] += frames[c, axis, k] * positions[j, k]
            column, row, depth = at
            b = -1
            if (column > -0.5 and column < nx - 0.5 and row > -0.5 and row < ny - 0.5
                    and depth > first - 1 and depth < first + count + 1):
                top = int(ti.floor(row)) - before
                if top < 0:
                    top += ny
                b = ti.min(top // BAND, numbers.shape[1] - 1)
                numbers[chunk, b] = numbers[chunk, b] + 1
            for axis in ti.static(range(3)):
                places[i, axis] = at[axis]
            band[i] = b


@ti.kernel
def arrange(
    places: ti.types.ndarray(ndim=2),
    band: ti.types.ndarray(ndim=1),
    amounts: ti.types.ndarray(ndim=2),
    begin: int,
    n: int,
    following: ti.types.ndarray(ndim=2),
    points: ti.types.ndarray(ndim=2),
):
    """Copy places and amounts into rows of `points` (., 3 + m) in the order of bands.

    following (CHUNKS, bands) is where the first of each goes, and is counted up; point i has the
    amounts of row begin + i % n.
    """
    ti.loop_config(block_dim=1)
    for chunk in range(following.shape[0]):
        size = (places.shape[0] + following.shape[0] - 1) // following.shape[0]
        for i in range(chunk * size, ti.min((chunk + 1) * size, places.shape[0])):
            b = band[i]
            if b >= 0:
                to = following[chunk, b]
                following[chunk, b] = to + 1
                for axis in ti.static(range(3)):
                    points[to, axis] = places[i, axis]
                for m in range(amounts.shape[1]):
                    points[to, 3 + m] = amounts[begin + i % n, m]


@cache
def spread_kernel(taps: tuple[tuple[float, ...], ...], amounts: int) -> Callable:
    """The kernel that spreads points in bands on slices, each with some amounts (unrolled)."""
    width = len(taps)
    values = ti.types.vector(amounts, float)
    weights = polynomials(taps)

    @ti.kernel
    def spread(
        points: ti.types.ndarray(ndim=2),
        start: ti.types.ndarray(ndim=1),
        turn: int,
        n_slices: int,
        smooth: int,
        first: int,
        count: int,
        ny: int,
        nx: int,
        grids: ti.types.ndarray(dtype=values, ndim=1),
    ):
        """Add points to grids (count, ny, nx) of vectors of amounts, flat and periodic; in turns.

        Even bands, odd bands, and the last one if it is an even one like the first. Those of band
        b are start[b] .. start[b + 1] - 1; slice s of the grids is first + s of n_slices.
        """
        ti.loop_config(block_dim=1)
        for task in range((start.shape[0] + 1) // 2):
            bands = start.shape[0] - 1
            band = 2 * task + turn
            last_alone = bands > 1 and bands % 2 == 1
            if turn == 2:
                band = bands
                if task == 0 and last_alone:
                    band = bands - 1
            elif last_alone and band == bands - 1:
                band = bands
            if band < bands:
                for i in range(start[band], start[band + 1]):
                    left = ti.floor(points[i, 0])
                    top = ti.floor(points[i, 1])
                    wx = weights(points[i, 0] - left)
                    wy = weights(points[i, 1] - top)
                    column = int(left) - (width // 2 - 1)
                    row = int(top) - (width // 2 - 1)
                    if column < 0:
                        column += nx
                    if row < 0:
                        row += ny
                    layer, part = shared(points[i, 2], n_slices, smooth)
                    given = values(0)
                    for m in ti.static(range(amounts)):
                        given[m] = points[i, 3 + m]
                    for side in range(2):
                        s = layer + side - first
                        share = part
                        if side == 0:
                            share = 1 - part
                        if s >= 0 and s < count and share != 0.0:
                            for y in range(width):
                                at_row = row + y
                                if at_row >= ny:
                                    at_row -= ny
                                at = (s * ny + at_row) * nx + column
                                amount = given * (share * wy[y])
                                if column + width <= nx:
                                    for x in ti.static(range(width)):
                                        # No +=, which would be atomic, at ten times the cost.
                                        grids[at + x] = grids[at + x] + amount * wx[x]
                                else:
                                    for x in range(width):
                                        to = at + x
                                        if column + x >= nx:
                                            to -= nx
                                        grids[to] = grids[to] + amount * wx[x]

    return spread
