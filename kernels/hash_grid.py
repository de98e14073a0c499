"""Features on grids of several resolutions, trilinear at points, and the adjoint.

Level l has a grid of levels[l, 0] cells a side over the cube from 0 to 1. Its nodes' features are
rows of a table from row levels[l, 1] on: each node has one where levels[l, 2] rows are enough, else
nodes share these rows by a hash of their place (Mueller et al. 2022), levels[l, 2] a power of two.

On a CPU a thread of the adjoint owns a level, whose rows it adds to in a fixed order: the same sum
in every run. On a GPU each point is a thread, and the order of sums is not fixed.
"""

import taichi as ti


@ti.func
def row_of(x, y, z, cells, rows):
    """Row of a node within its level."""
    side = cells + 1
    row = (z * side + y) * side + x
    if rows < side * side * side:
        row = (x ^ (y * ti.i32(-1640531535)) ^ (z * ti.i32(805459861))) & (rows - 1)
    return row


@ti.func
def cell_of(place, cells):
    """Cell of a place from 0 to 1 along one side, and how far into it."""
    at = ti.min(ti.max(place, 0.0), 1.0) * cells
    low = ti.min(int(ti.floor(at)), cells - 1)
    return low, at - low


@ti.func
def weight_of(corner, fx, fy, fz):
    """Row offsets of a corner of a cell, and its trilinear weight."""
    dx, dy, dz = corner & 1, (corner >> 1) & 1, corner >> 2
    wx = dx * fx + (1 - dx) * (1.0 - fx)
    wy = dy * fy + (1 - dy) * (1.0 - fy)
    wz = dz * fz + (1 - dz) * (1.0 - fz)
    return dx, dy, dz, wx, wy, wz


@ti.kernel
def features(
    table: ti.types.ndarray(ndim=2),
    points: ti.types.ndarray(ndim=2),
    levels: ti.types.ndarray(ndim=2),
    out: ti.types.ndarray(ndim=2),
):
    """Write the features of points.

    Args:
        table: (rows of all levels, features).
        points: x, y, z from 0 to 1, what is beyond is taken to the border, (n, 3).
        levels: cells a side, first row and rows of each, (levels, 3).
        out: (n, levels features), written.
    """
    for p in range(points.shape[0]):
        for level in range(levels.shape[0]):
            cells, begin, rows = levels[level, 0], levels[level, 1], levels[level, 2]
            x, fx = cell_of(points[p, 0], cells)
            y, fy = cell_of(points[p, 1], cells)
            z, fz = cell_of(points[p, 2], cells)
            for f in range(table.shape[1]):
                out[p, level * table.shape[1] + f] = 0.0
            for corner in range(8):
                dx, dy, dz, wx, wy, wz = weight_of(corner, fx, fy, fz)
                row = begin + row_of(x + dx, y + dy, z + dz, cells, rows)
                for f in range(table.shape[1]):
                    to = level * table.shape[1] + f
                    out[p, to] = out[p, to] + wx * wy * wz * table[row, f]


@ti.kernel
def scatter_features(
    points: ti.types.ndarray(ndim=2),
    levels: ti.types.ndarray(ndim=2),
    out_grad: ti.types.ndarray(ndim=2),
    table_grad: ti.types.ndarray(ndim=2),
):
    """Add the adjoint of `features` to the table's gradient, a thread a level."""
    ti.loop_config(block_dim_adaptive=False)
    for level in range(levels.shape[0]):
        cells, begin, rows = levels[level, 0], levels[level, 1], levels[level, 2]
        for p in range(points.shape[0]):
            x, fx = cell_of(points[p, 0], cells)
            y, fy = cell_of(points[p, 1], cells)
            z, fz = cell_of(points[p, 2], cells)
            for corner in range(8):
                dx, dy, dz, wx, wy, wz = weight_of(corner, fx, fy, fz)
                row = begin + row_of(x + dx, y + dy, z + dz, cells, rows)
                for f in range(table_grad.shape[1]):
                    table_grad[row, f] = table_grad[row, f] + wx * wy * wz * out_grad[
                        p, level * table_grad.shape[1] + f]


@ti.kernel
def scatter_features_each(
    points: ti.types.ndarray(ndim=2),
    levels: ti.types.ndarray(ndim=2),
    out_grad: ti.types.ndarray(ndim=2),
    table_grad: ti.types.ndarray(ndim=2),
):
    """`scatter_features` with a thread for each point and level."""
    for p, level in ti.ndrange(points.shape[0], levels.shape[0]):
        cells, begin, rows = levels[level, 0], levels[level, 1], levels[level, 2]
        x, fx = cell_of(points[p, 0], cells)
        y, fy = cell_of(points[p, 1], cells)
        z, fz = cell_of(points[p, 2], cells)
        for corner in range(8):
            dx, dy, dz, wx, wy, wz = weight_of(corner, fx, fy, fz)
            row = begin + row_of(x + dx, y + dy, z + dz, cells, rows)
            for f in range(table_grad.shape[1]):
                table_grad[row, f] += wx * wy * wz * out_grad[p, level * table_grad.shape[1] + f]


@ti.kernel
def feature_slopes(
    table: ti.types.ndarray(ndim=2),
    points: ti.types.ndarray(ndim=2),
    levels: ti.types.ndarray(ndim=2),
    out_grad: ti.types.ndarray(ndim=2),
    points_grad: ti.types.ndarray(ndim=2),
):
    """Add the gradient of `features` in the points; none where a place is beyond the cube."""
    for p in range(points.shape[0]):
        total = ti.Vector.zero(float, 3)
        for level in range(levels.shape[0]):
            cells, begin, rows = levels[level, 0], levels[level, 1], levels[level, 2]
            x, fx = cell_of(points[p, 0], cells)
            y, fy = cell_of(points[p, 1], cells)
            z, fz = cell_of(points[p, 2], cells)
            for corner in range(8):
                dx, dy, dz, wx, wy, wz = weight_of(corner, fx, fy, fz)
                row = begin + row_of(x + dx, y + dy, z + dz, cells, rows)
                felt = 0.0 * wx
                for f in range(table.shape[1]):
                    felt += table[row, f] * out_grad[p, level * table.shape[1] + f]
                felt *= cells
                total += ti.Vector([(2 * dx - 1) * wy * wz * felt, (2 * dy - 1) * wx * wz * felt,
                                    (2 * dz - 1) * wx * wy * felt])
        for axis in ti.static(range(3)):
            if 0.0 <= points[p, axis] and points[p, axis] <= 1.0:
                points_grad[p, axis] += total[axis]
