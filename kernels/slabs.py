"""Sums of planes as those of `rays`, of one image, shared by slices along the beam; the adjoint.

With m = maps[b], what plane b gives to number i of line `column` is read where `rays` reads it, and
goes to the two slices about

    t = m4 + m5 column + m6 i [slice from the middle of the first]

in linear shares, or, where sharing is not smooth, to the nearest; beyond the first and the last
slice's middle to that one alone. As in `rays` a thread owns what it writes. Where t is the same for
all numbers of a line (`level`), lines are added to lines.
"""

import taichi as ti
from tem_taichi.kernels.rays import (
    CHUNK,
    add_line,
    add_lines,
    along,
    columns_near,
    neighbours,
    read,
    read_line,
    sides,
)


@ti.func
def shares(t, smooth, n_slices):
    """The first of two neighbouring slices, and the part of the second."""
    low, part = 0, 0.0 * t
    if smooth == 0:
        low = int(ti.floor(ti.min(ti.max(t + 0.5, 0.0), n_slices - 1.0)))
    elif n_slices > 1:
        low = int(ti.floor(ti.min(ti.max(t, 0.0), n_slices - 2.0)))
        part = ti.min(ti.max(t - low, 0.0), 1.0)
    return low, part


@ti.func
def value(planes: ti.template(), maps: ti.template(), b, column, i, by_plane, lines, by_line,
          length):
    """What plane b gives to a number."""
    at, weight = neighbours(maps[b, 0] + maps[b, 1] * column, lines)
    y = i + maps[b, 2] + maps[b, 3] * column
    start = b * by_plane
    return (weight[0] * along(planes, start + at[0] * by_line, y, length)
            + weight[1] * along(planes, start + at[1] * by_line, y, length))


@ti.func
def add(out: ti.template(), low, part, column, i, found):
    """A number's shares, to those of its slices that are there."""
    if 0 <= low < out.shape[0]:
        out[low, column, i] += (1.0 - part) * found
    if part != 0.0 and 0 <= low + 1 < out.shape[0]:
        out[low + 1, column, i] += part * found


@ti.func
def shared(images: ti.template(), low, part, count, columns, column, i, length):
    """A number of the slices that share it, by their shares; 0 beyond them."""
    total = 0.0 * images[0]
    if 0 <= i < length:
        if 0 <= low < count:
            total += (1.0 - part) * images[(low * columns + column) * length + i]
        if part != 0.0 and 0 <= low + 1 < count:
            total += part * images[((low + 1) * columns + column) * length + i]
    return total


@ti.func
def sum_of_slices(images: ti.template(), maps: ti.template(), b, line, i, first, n_slices, smooth,
                  count, columns, length):
    """One number of a plane, by the adjoint."""
    total = 0.0 * images[0]
    x0, x1 = maps[b, 0], maps[b, 1]
    begin, end = columns_near(line, x0, x1, columns)
    for column in range(begin, end):
        near = ti.max(1.0 - ti.abs(x0 + x1 * column - line), 0.0)
        y = maps[b, 2] + maps[b, 3] * column
        low = int(ti.floor(y))
        part = y - low
        for n in ti.static(range(2)):
            here = i - low - n
            weight = near * (part if n else 1.0 - part)
            slab, later = shares(maps[b, 4] + maps[b, 5] * column + maps[b, 6] * here, smooth,
                                 n_slices)
            total += weight * shared(images, slab - first, later, count, columns, column, here,
                                     length)
    return total


@ti.kernel
def gather_slabs(
    planes: ti.types.ndarray(ndim=1),
    maps: ti.types.ndarray(ndim=2),
    level: int,
    by_plane: int,
    lines: int,
    by_line: int,
    length: int,
    first: int,
    n_slices: int,
    smooth: int,
    made: int,
    columns: int,
    count: int,
    out: ti.types.ndarray(ndim=1),
):
    """Add the shares of slices first, first + 1, ... to out, (made, columns, count), flat.

    Args:
        planes: flat; see `rays.gather`, and so are by_plane, lines, by_line and length.
        maps: (planes, 7).
        level: whether m6 is 0 everywhere.
        by_plane: see planes.
        lines: see planes.
        by_line: see planes.
        length: see planes.
        first: number of the slice that out begins with.
        n_slices: in all.
        smooth: whether slices share.
        made: slices of out.
        columns: of a slice.
        count: of numbers of a slice's line.
        out: added to.
    """
    ti.loop_config(block_dim=CHUNK)
    for column in range(columns):
        for b in range(maps.shape[0]):
            x = maps[b, 0] + maps[b, 1] * column
            if -1.0 < x and x < lines:
                at, weight = neighbours(x, lines)
                y = maps[b, 2] + maps[b, 3] * column
                low = int(ti.floor(y))
                part = y - low
                t = maps[b, 4] + maps[b, 5] * column
                slab, later = shares(t, smooth, n_slices)
                for m in ti.static(range(2)):
                    share = later if m else 1.0 - later
                    if level == 1 and share != 0.0 and 0 <= slab - first + m < made:
                        to = ((slab - first + m) * columns + column) * count
                        start = b * by_plane + low
                        for n in ti.static(range(2)):
                            if n == 0 or part != 0.0:
                                begin = ti.max(0, -low - n)
                                add_lines(out, to + begin, planes,
                                          start + at[0] * by_line + begin + n,
                                          start + at[1] * by_line + begin + n,
                                          weight * share * (part if n else 1.0 - part),
                                          ti.min(count, length - low - n) - begin)
                if level == 0:
                    for i in range(count):
                        here, after = shares(t + maps[b, 6] * i, smooth, n_slices)
                        found = value(planes, maps, b, column, i, by_plane, lines, by_line, length)
                        for m in ti.static(range(2)):
                            if 0 <= here - first + m < made:
                                to = ((here - first + m) * columns + column) * count + i
                                out[to] = out[to] + (after if m else 1.0 - after) * found


@ti.kernel
def gather_slabs_each(
    planes: ti.types.ndarray(ndim=1),
    maps: ti.types.ndarray(ndim=2),
    by_plane: int,
    lines: int,
    by_line: int,
    length: int,
    first: int,
    n_slices: int,
    smooth: int,
    out: ti.types.ndarray(ndim=3),
):
    """`gather_slabs` with a thread for each number."""
    for column, i in ti.ndrange(out.shape[1], out.shape[2]):
        for b in range(maps.shape[0]):
            t = maps[b, 4] + maps[b, 5] * column + maps[b, 6] * i
            low, part = shares(t, smooth, n_slices)
            if -1 <= low - first and low - first < out.shape[0]:
                add(out, low - first, part, column, i, value(
                    planes, maps, b, column, i, by_plane, lines, by_line, length))


@ti.kernel
def scatter_slabs(
    images: ti.types.ndarray(ndim=1),
    maps: ti.types.ndarray(ndim=2),
    level: int,
    count: int,
    columns: int,
    length: int,
    by_plane: int,
    lines: int,
    by_line: int,
    plane_length: int,
    first: int,
    n_slices: int,
    smooth: int,
    planes: ti.types.ndarray(ndim=1),
):
    """Add the adjoint of `gather_slabs` of images (count, columns, length), flat, to planes.

    Args:
        images: flat.
        maps: of `gather_slabs`, and so are level, by_plane, lines, by_line, first, n_slices and
            smooth.
        level: see maps.
        count: of slices from the first.
        columns: of an image.
        length: of a line of an image.
        by_plane: see maps.
        lines: see maps.
        by_line: see maps.
        plane_length: of a line of a plane.
        first: see maps.
        n_slices: see maps.
        smooth: see maps.
        planes: flat, added to.
    """
    ti.loop_config(block_dim=CHUNK)
    for task in range(maps.shape[0] * lines):
        b = task // lines
        line = task % lines
        to = b * by_plane + line * by_line
        x0, x1 = maps[b, 0], maps[b, 1]
        begin, end = columns_near(line, x0, x1, columns)
        for column in range(begin, end * level):
            near = ti.max(1.0 - ti.abs(x0 + x1 * column - line), 0.0)
            y = maps[b, 2] + maps[b, 3] * column
            low = int(ti.floor(y))
            part = y - low
            slab, later = shares(maps[b, 4] + maps[b, 5] * column, smooth, n_slices)
            for m in ti.static(range(2)):
                share = near * (later if m else 1.0 - later)
                if share != 0.0 and 0 <= slab - first + m < count:
                    start = ((slab - first + m) * columns + column) * length - low
                    for n in ti.static(range(2)):
                        if n == 0 or part != 0.0:
                            here = ti.max(0, low + n)
                            add_line(planes, to + here, images, start + here - n,
                                     share * (part if n else 1.0 - part),
                                     ti.min(plane_length, length + low + n) - here)
        for i in range(plane_length * (1 - level)):
            planes[to + i] = planes[to + i] + sum_of_slices(
                images, maps, b, line, i, first, n_slices, smooth, count, columns, length)


@ti.kernel
def scatter_slabs_each(
    images: ti.types.ndarray(ndim=1),
    maps: ti.types.ndarray(ndim=2),
    count: int,
    columns: int,
    length: int,
    by_plane: int,
    lines: int,
    by_line: int,
    plane_length: int,
    first: int,
    n_slices: int,
    smooth: int,
    planes: ti.types.ndarray(ndim=1),
):
    """`scatter_slabs` with a thread for each number."""
    for b, line, i in ti.ndrange(maps.shape[0], lines, plane_length):
        planes[b * by_plane + line * by_line + i] += sum_of_slices(
            images, maps, b, line, i, first, n_slices, smooth, count, columns, length)


@ti.kernel
def slab_slopes(
    planes: ti.types.ndarray(ndim=1),
    maps: ti.types.ndarray(ndim=2),
    by_plane: int,
    lines: int,
    by_line: int,
    length: int,
    first: int,
    n_slices: int,
    smooth: int,
    grad: ti.types.ndarray(ndim=3),
    maps_grad: ti.types.ndarray(ndim=2),
):
    """Add the gradient of `gather_slabs` in the maps; a thread for each map."""
    for b in range(maps.shape[0]):
        total = ti.Vector.zero(float, 7)
        plane = b * by_plane
        for column in range(grad.shape[1]):
            x = maps[b, 0] + maps[b, 1] * column
            if -1.0 < x and x < lines:
                y = maps[b, 2] + maps[b, 3] * column
                at, weight = neighbours(x, lines)
                low_x, high_x, scale_x = sides(x)
                low_y, high_y, scale_y = sides(y)
                low = int(ti.floor(y))
                part = y - low
                by_x, by_y, by_t, by_ti = 0.0 * x, 0.0 * x, 0.0 * x, 0.0 * x
                for i in range(grad.shape[2]):
                    t = maps[b, 4] + maps[b, 5] * column + maps[b, 6] * i
                    slab, later = shares(t, smooth, n_slices)
                    slab -= first
                    before, after = 0.0 * x, 0.0 * x
                    if 0 <= slab < grad.shape[0]:
                        before = grad[slab, column, i]
                    if 0 <= slab + 1 < grad.shape[0]:
                        after = grad[slab + 1, column, i]
                    g = (1.0 - later) * before + later * after
                    by_x += g * (read_line(planes, plane, high_x, lines, by_line, i + low, part,
                                           length)
                                 - read_line(planes, plane, low_x, lines, by_line, i + low, part,
                                             length))
                    found = 0.0 * x
                    for n in ti.static(range(2)):
                        line = plane + at[n] * by_line
                        by_y += g * weight[n] * (read(planes, line, i + high_y, length)
                                                 - read(planes, line, i + low_y, length))
                        found += weight[n] * ((1.0 - part) * read(planes, line, i + low, length)
                                              + part * read(planes, line, i + low + 1, length))
                    if smooth == 1 and 0.0 <= t and t < n_slices - 1.0:
                        by_t += (after - before) * found
                        by_ti += i * (after - before) * found
                by_x *= scale_x
                by_y *= scale_y
                total += ti.Vector([by_x, column * by_x, by_y, column * by_y, by_t, column * by_t,
                                    by_ti])
        for n in ti.static(range(7)):
            maps_grad[b, n] += total[n]
