"""Ice and carbon along the rays of an image: one thread a ray."""

import taichi as ti


@ti.func
def _positive(first, last):
    """Beginning and end of the part of [0, 1] where a line from first to last is positive."""
    fall = first - last
    if ti.abs(fall) < 1e-6:
        fall = 1e-6
    root = ti.min(ti.max(first / fall, 0.0), 1.0)
    return ti.select(fall < 0.0, root, 0.0), ti.select(fall < 0.0, 1.0, root)


@ti.func
def _between(thick, rise, next_thick, next_rise):
    """Part of a step between two surfaces about the mid-plane, from both of its ends."""
    above, next_above = thick / 2 - rise, next_thick / 2 - next_rise
    below, next_below = thick / 2 + rise, next_thick / 2 + next_rise
    part = 1.0
    if ti.max(above, next_above) <= 0.0 or ti.max(below, next_below) <= 0.0:
        part = 0.0
    elif ti.min(ti.min(above, next_above), ti.min(below, next_below)) < 0.0:
        top = _positive(above, next_above)
        bottom = _positive(below, next_below)
        part = ti.max(ti.min(top[1], bottom[1]) - ti.max(top[0], bottom[0]), 0.0)
    return part


@ti.func
def _relief(knots: ti.template(), which: ti.template(), spacing, x, y):
    """Factor on the ice's thickness, or height of its mid-plane, linear between knots."""
    rows, columns = knots.shape[1], knots.shape[2]
    down = ti.min(ti.max(y / spacing + (rows - 1) * 0.5, 0.0), float(rows - 1))
    right = ti.min(ti.max(x / spacing + (columns - 1) * 0.5, 0.0), float(columns - 1))
    row, column = ti.min(int(down), rows - 2), ti.min(int(right), columns - 2)
    down -= row
    right -= column
    above = knots[which, row, column] * (1.0 - right) + knots[which, row, column + 1] * right
    below = (knots[which, row + 1, column] * (1.0 - right)
             + knots[which, row + 1, column + 1] * right)
    return above * (1.0 - down) + below * down


@ti.func
def _layers(shape, knots: ti.template(), spacing, relief, film, x, y):
    """Thickness of the ice and of the film at a point of the specimen [A]."""
    # See ice_shape.thickness_at and carbon_at.
    squared = ((x - shape[3]) * (x - shape[3]) + (y - shape[4]) * (y - shape[4])) / (
        shape[2] * shape[2])
    ice = shape[0] + (shape[1] - shape[0]) * ti.min(squared, 1.0)
    if relief == 1:
        ice *= _relief(knots, 0, spacing, x, y)
    carbon = 0.0
    if film == 1:
        rho = ti.sqrt(ti.max(squared, 1e-6)) * shape[2]
        part = ti.min(ti.max((rho - shape[2]) / shape[6] + 0.5, 0.0), 1.0)
        carbon = shape[5] * part * part * (3.0 - 2.0 * part)
    return ice, carbon


@ti.kernel
def fill(
    p: ti.types.ndarray(ndim=1),
    knots: ti.types.ndarray(ndim=3),
    spacing: float,
    relief: int,
    entrances: ti.types.ndarray(ndim=1),
    depth: float,
    n_steps: int,
    pixel_size: float,
    film: int,
    carbon: int,
    out: ti.types.ndarray(ndim=3),
):
    """Part of each ray between two depths that lies in the ice, or in the film.

    Args:
        p: thickness, that of the edge, radius, centre x and y, slopes x and y of the mid-plane,
            thickness and edge of the film, specimen to image frame row by row (9), shift (2).
        knots: of the relief, (2, my, mx), factors on the ice's thickness and heights of its
            mid-plane [A].
        spacing: between knots [A].
        relief: whether there is one.
        entrances: where slices begin [A], (n,).
        depth: of each [A].
        n_steps: in which surfaces are straight.
        pixel_size: [A].
        film: whether there is one.
        carbon: whether it is asked for, in place of the ice.
        out: (n, ny, nx), written.
    """
    for row, n in ti.ndrange(out.shape[1], out.shape[0]):
        shape = ti.Vector([p[0], p[1], p[2], p[3], p[4], p[7], p[8]])
        y = (row - out.shape[1] // 2) * pixel_size - p[19]
        # Of the point at x = 0 and z = 0 in the specimen, and for each A along x and along z.
        start = ti.Vector([y * p[12], y * p[13], y * p[14]])
        right = ti.Vector([p[9], p[10], p[11]])
        down = ti.Vector([p[15], p[16], p[17]])
        plane = ti.Vector([-p[5], -p[6], 1.0])  # height above the mid-plane
        shift = p[18]
        entrance = entrances[n]
        for column in range(out.shape[2]):
            x = (column - out.shape[2] // 2) * pixel_size - shift
            total = 0.0
            point = start + x * right + entrance * down
            rise = plane.dot(point)
            if relief == 1:
                rise -= _relief(knots, 1, spacing, point[0], point[1])
            ice, here = _layers(shape, knots, spacing, relief, film, point[0], point[1])
            for step in range(n_steps):
                # Not `point` again: what was computed of its elements would change with it.
                there = start + x * right + (entrance + depth * (step + 1) / n_steps) * down
                next_rise = plane.dot(there)
                if relief == 1:
                    next_rise -= _relief(knots, 1, spacing, there[0], there[1])
                next_ice, next_here = _layers(shape, knots, spacing, relief, film,
                                              there[0], there[1])
                if carbon == 1:
                    total += _between(here, rise, next_here, next_rise)
                else:
                    total += _between(ice, rise, next_ice, next_rise)
                    if film == 1:
                        total -= _between(ti.min(ice, here), rise,
                                          ti.min(next_ice, next_here), next_rise)
                ice = next_ice
                here = next_here
                rise = next_rise
            out[n, row, column] = total / n_steps


@ti.kernel
def fill_slab(
    p: ti.types.ndarray(ndim=1),
    entrances: ti.types.ndarray(ndim=1),
    depth: float,
    pixel_size: float,
    out: ti.types.ndarray(ndim=3),
):
    """As `fill`, for ice of one thickness without a hole: its surfaces are planes.

    Args:
        p: as of `fill`.
        entrances: where slices begin [A], (n,).
        depth: of each [A].
        pixel_size: [A].
        out: (n, ny, nx), written.
    """
    for row, n in ti.ndrange(out.shape[1], out.shape[0]):
        y = (row - out.shape[1] // 2) * pixel_size - p[19]
        # How the height above the mid-plane grows along the image's axes.
        along_x = p[11] - p[5] * p[9] - p[6] * p[10]
        along_y = p[14] - p[5] * p[12] - p[6] * p[13]
        along_z = p[17] - p[5] * p[15] - p[6] * p[16]
        # Where the ray crosses the middle and how far the surfaces are from there, of a slice.
        middle = -(along_y * y - along_x * p[18]) / along_z - entrances[n]
        shear = -along_x / along_z * pixel_size / depth
        reach = p[0] / 2 / ti.abs(along_z) / depth
        start = middle / depth - shear * (out.shape[2] // 2)
        for column in range(out.shape[2]):
            there = start + shear * column
            out[n, row, column] = ti.max(
                ti.min(there + reach, 1.0) - ti.max(there - reach, 0.0), 0.0)
