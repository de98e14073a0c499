"""An octree of small grids, written to planes of the finest grid, the adjoint, and single nodes.

A leaf is a cube of samples^3 values, the outermost on its faces, trilinear between them; its
neighbours' spacings are powers of two times its own. A node of the finest grid has the mean of the
leaves' values about it: on a leaf's inside the leaf's own, on a face the mean of both sides, on the
border of the whole that of what is there. Lengths are the finest grid's spacing.

Every thread owns what it writes, but for the nodes' adjoint, and takes what belongs there in a
fixed order: the same sum in every run.

`cells` says which leaf each smallest possible leaf is in or is, (cz, cb, cc); `leaves` where each
begins and how far its samples are apart: (n, 4), z, b, c, spacing. Axis c is that along which a
thread works; b is the other one.
"""

import taichi as ti


@ti.func
def cells_about(node, side, cells):
    """First and last of the smallest cells, `side` wide, that a node is in or between."""
    high = node // side
    low = high
    if node % side == 0:
        low = high - 1
    return ti.max(low, 0), ti.min(high, cells - 1)


@ti.func
def share(node, begin, end, size):
    """Part of a node that a leaf from begin to end decides: on a face that has another side 1/2."""
    part = 1.0
    if (node == begin and begin > 0) or (node == end and end < size - 1):
        part = 0.5
    return part


@ti.kernel
def expand(
    values: ti.types.ndarray(ndim=1),
    cells: ti.types.ndarray(ndim=3),
    leaves: ti.types.ndarray(ndim=2),
    samples: int,
    by_b: int,
    by_c: int,
    first: int,
    out: ti.types.ndarray(ndim=3),
):
    """Write some planes of the finest grid.

    Args:
        values: flat; sample (z, b, c) of leaf n is at n samples^3 + z samples^2 + b by_b + c by_c.
        cells: see above.
        leaves: see above.
        samples: along a leaf's side.
        by_b: see values.
        by_c: see values.
        first: plane.
        out: (planes, b, c), written.
    """
    for task in range(out.shape[0] * out.shape[1]):
        plane = task // out.shape[1]
        b = task % out.shape[1]
        z = first + plane
        side = samples - 1
        for c in range(out.shape[2]):
            out[plane, b, c] = 0.0
        z_low, z_high = cells_about(z, side, cells.shape[0])
        b_low, b_high = cells_about(b, side, cells.shape[1])
        part = 1.0 / ((z_high - z_low + 1) * (b_high - b_low + 1))
        for at_z in range(z_low, z_high + 1):
            for at_b in range(b_low, b_high + 1):
                cell = 0
                while cell < cells.shape[2]:
                    leaf = cells[at_z, at_b, cell]
                    step = leaves[leaf, 3]
                    begin = leaves[leaf, 2]
                    last = side * step
                    iz, ib = (z - leaves[leaf, 0]) // step, (b - leaves[leaf, 1]) // step
                    fz = (z - leaves[leaf, 0] - iz * step) / float(step)
                    fb = (b - leaves[leaf, 1] - ib * step) / float(step)
                    one = leaf * samples**3 + iz * samples**2 + ib * by_b
                    over_z, over_b = 0, 0
                    if fz > 0.0:
                        over_z = samples**2
                    if fb > 0.0:
                        over_b = by_b
                    w00, w01 = part * (1.0 - fz) * (1.0 - fb), part * (1.0 - fz) * fb
                    w10, w11 = part * fz * (1.0 - fb), part * fz * fb
                    here = w00 * values[one] + w01 * values[one + over_b]
                    here += w10 * values[one + over_z] + w11 * values[one + over_z + over_b]
                    before = out[plane, b, begin]
                    out[plane, b, begin] = before + here * share(begin, begin, begin + last,
                                                                 out.shape[2])
                    for i in range(side):
                        at = one + (i + 1) * by_c
                        there = w00 * values[at]
                        if fz > 0.0 or fb > 0.0:
                            there += w01 * values[at + over_b] + w10 * values[at + over_z]
                            there += w11 * values[at + over_z + over_b]
                        node = begin + i * step
                        slope = (there - here) / float(step)
                        for k in range(1, step):
                            old = out[plane, b, node + k]
                            out[plane, b, node + k] = old + here + k * slope
                        old = out[plane, b, node + step]
                        out[plane, b, node + step] = old + there * share(
                            node + step, begin, begin + last, out.shape[2])
                        here = there
                    cell += step


@ti.kernel
def restrict(
    planes: ti.types.ndarray(ndim=3),
    leaves: ti.types.ndarray(ndim=2),
    samples: int,
    by_b: int,
    by_c: int,
    first: int,
    depth: int,
    values: ti.types.ndarray(ndim=1),
):
    """Add the adjoint of `expand` of some planes to the values.

    Args:
        planes: (planes, b, c).
        leaves: of `expand`.
        samples: of `expand`.
        by_b: of `expand`.
        by_c: of `expand`.
        first: of `expand`.
        depth: planes of the whole.
        values: flat, added to.
    """
    for task in range(leaves.shape[0] * samples * samples):
        leaf = task // samples**2
        iz = task // samples % samples
        ib = task % samples
        step = leaves[leaf, 3]
        z0, b0, c0 = leaves[leaf, 0], leaves[leaf, 1], leaves[leaf, 2]
        last = (samples - 1) * step
        z_begin = ti.max(ti.max(z0, z0 + (iz - 1) * step + 1), first)
        z_end = ti.min(ti.min(z0 + last, z0 + (iz + 1) * step - 1) + 1, first + planes.shape[0])
        b_begin = ti.max(b0, b0 + (ib - 1) * step + 1)
        b_end = ti.min(b0 + last, b0 + (ib + 1) * step - 1) + 1
        to = leaf * samples**3 + iz * samples**2 + ib * by_b
        for z in range(z_begin, z_end):
            near_z = 1.0 - ti.abs(z - z0 - iz * step) / float(step)
            near_z *= share(z, z0, z0 + last, depth)
            for b in range(b_begin, b_end):
                near = near_z * (1.0 - ti.abs(b - b0 - ib * step) / float(step))
                near *= share(b, b0, b0 + last, planes.shape[1])
                for i in range(samples):
                    middle = c0 + i * step
                    total = planes[z - first, b, middle] * share(middle, c0, c0 + last,
                                                                 planes.shape[2])
                    for k in range(1, step):
                        weight = 1.0 - k / float(step)
                        if i > 0:
                            total += weight * planes[z - first, b, middle - k]
                        if i < samples - 1:
                            total += weight * planes[z - first, b, middle + k]
                    at = to + i * by_c
                    old = values[at]
                    values[at] = old + near * total


@ti.func
def corner_at(nodes: ti.template(), m, leaves: ti.template(), leaf, corner, samples):
    """Index of one of the eight samples of a leaf about node m, and its weight in the node."""
    step = leaves[leaf, 3]
    at, weight = leaf, 1.0
    for axis in ti.static(range(3)):
        beyond = nodes[m, axis] - leaves[leaf, axis]
        low = beyond // step
        part = (beyond - low * step) / float(step)
        if corner & (4 >> axis):
            low, weight = ti.min(low + 1, samples - 1), weight * part
        else:
            weight *= 1.0 - part
        at = at * samples + low
    return at, weight


@ti.kernel
def take(
    values: ti.types.ndarray(ndim=1),
    cells: ti.types.ndarray(ndim=3),
    leaves: ti.types.ndarray(ndim=2),
    nodes: ti.types.ndarray(ndim=2),
    samples: int,
    out: ti.types.ndarray(ndim=1),
):
    """Write the values of some nodes (n, 3), z, y, x, of the finest grid; b is y and c is x."""
    for m in range(nodes.shape[0]):
        side = samples - 1
        z_low, z_high = cells_about(nodes[m, 0], side, cells.shape[0])
        y_low, y_high = cells_about(nodes[m, 1], side, cells.shape[1])
        x_low, x_high = cells_about(nodes[m, 2], side, cells.shape[2])
        total = 0.0 * values[0]
        for cz in range(z_low, z_high + 1):
            for cy in range(y_low, y_high + 1):
                for cx in range(x_low, x_high + 1):
                    leaf = cells[cz, cy, cx]
                    for corner in range(8):
                        at, weight = corner_at(nodes, m, leaves, leaf, corner, samples)
                        total += weight * values[at]
        out[m] = total / ((z_high - z_low + 1) * (y_high - y_low + 1) * (x_high - x_low + 1))


@ti.kernel
def take_adjoint(
    out_grad: ti.types.ndarray(ndim=1),
    cells: ti.types.ndarray(ndim=3),
    leaves: ti.types.ndarray(ndim=2),
    nodes: ti.types.ndarray(ndim=2),
    samples: int,
    values_grad: ti.types.ndarray(ndim=1),
):
    """Add the adjoint of `take` to the values; threads share them, in no fixed order."""
    for m in range(nodes.shape[0]):
        side = samples - 1
        z_low, z_high = cells_about(nodes[m, 0], side, cells.shape[0])
        y_low, y_high = cells_about(nodes[m, 1], side, cells.shape[1])
        x_low, x_high = cells_about(nodes[m, 2], side, cells.shape[2])
        grad = out_grad[m] / ((z_high - z_low + 1) * (y_high - y_low + 1) * (x_high - x_low + 1))
        for cz in range(z_low, z_high + 1):
            for cy in range(y_low, y_high + 1):
                for cx in range(x_low, x_high + 1):
                    leaf = cells[cz, cy, cx]
                    for corner in range(8):
                        at, weight = corner_at(nodes, m, leaves, leaf, corner, samples)
                        ti.atomic_add(values_grad[at], weight * grad)
