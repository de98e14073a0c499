"""Sums of planes, each read along an affine map, and the adjoint: projection and back-projection.

Planes are lines side by side. Line `column` of image a is the sum over the planes b of the line at

    x = m0 + m1 column [line of the plane], moved by y = m2 + m3 column [number along the line],

m = maps[a, b], linear between lines and between numbers, and to 0 one beyond the edge. With the
planes of a volume and maps that follow the beam from one to the next, the sum is a projection
(Joseph 1982); with images as planes it is a back-projection.

Every number of a line has the same weights, so that lines are added to lines, WIDTH numbers at a
time, which the compiler makes vectors of; a line stays in the nearest memory while planes pass. For
that it must know that no index overflows: those that begin a vector are cut to INDICES, which all
are below. Nothing is added by two threads to one number: a thread owns what it writes and takes
what belongs there in a fixed order, hence the same sum in every run. (`x += y` would be atomic.)
"""

import taichi as ti

WIDTH = 16  # numbers of a line that are added together
INDICES = 2**30  # of what is read or written; more is for `gather_each` and `scatter_each`
CHUNK = 16  # lines that a thread takes at once
FAR = 1e9


@ti.func
def neighbours(place, size):
    """Two neighbours of a place among 0 .. size - 1, and their weights, 0 for one beyond."""
    place = ti.min(ti.max(place, -2.0), size + 1.0)
    low = int(ti.floor(place))
    part = place - low
    weight = ti.Vector([1.0 - part, part])
    if low < 0 or low >= size:
        weight[0] = 0.0
    if low + 1 < 0 or low + 1 >= size:
        weight[1] = 0.0
    here = ti.Vector([ti.min(ti.max(low, 0), size - 1), ti.min(ti.max(low + 1, 0), size - 1)])
    return here, weight


@ti.func
def columns_near(line, x0, x1, columns):
    """First and end of the columns whose places x0 + x1 column are less than 1 from a line."""
    first, end = 0, columns
    if ti.abs(x1) > 1e-6:
        one, other = (line - 1.0 - x0) / x1, (line + 1.0 - x0) / x1
        first = ti.max(first, int(ti.ceil(ti.min(ti.max(ti.min(one, other), -FAR), FAR))))
        end = ti.min(end, int(ti.floor(ti.min(ti.max(ti.max(one, other), -FAR), FAR))) + 1)
    return first, end


@ti.func
def along(values: ti.template(), line, place, length):
    """Value at a place of a line that begins at index `line`."""
    at, weight = neighbours(place, length)
    return weight[0] * values[line + at[0]] + weight[1] * values[line + at[1]]


@ti.func
def sum_of_planes(planes: ti.template(), maps: ti.template(), a, column, i, n_planes, by_plane,
                  lines, by_line, length):
    """One number of an image."""
    total = 0.0 * planes[0]
    for b in range(n_planes):
        at, weight = neighbours(maps[a, b, 0] + maps[a, b, 1] * column, lines)
        y = i + maps[a, b, 2] + maps[a, b, 3] * column
        start = b * by_plane
        total += (weight[0] * along(planes, start + at[0] * by_line, y, length)
                  + weight[1] * along(planes, start + at[1] * by_line, y, length))
    return total


@ti.func
def sum_of_images(images: ti.template(), maps: ti.template(), numbers: ti.template(), b, line, i,
                  columns, length):
    """One number of a plane, by the adjoint."""
    total = 0.0 * images[0]
    for a in range(numbers.shape[0]):
        x0, x1 = maps[a, b, 0], maps[a, b, 1]
        first, end = columns_near(line, x0, x1, columns)
        for column in range(first, end):
            near = ti.max(1.0 - ti.abs(x0 + x1 * column - line), 0.0)
            y = maps[a, b, 2] + maps[a, b, 3] * column
            low = int(ti.floor(y))
            part = y - low
            start = (numbers[a] * columns + column) * length
            if 0 <= i - low < length:
                total += near * (1.0 - part) * images[start + i - low]
            if 0 <= i - low - 1 < length:
                total += near * part * images[start + i - low - 1]
    return total


@ti.func
def add_line(out: ti.template(), to, source: ti.template(), start, weight, count):
    """Add a part of a line to another."""
    for block in range(count // WIDTH):
        here = (to + block * WIDTH) & (INDICES - 1)
        there = (start + block * WIDTH) & (INDICES - 1)
        total = ti.Vector.zero(float, WIDTH)
        for s in ti.static(range(WIDTH)):
            total[s] = out[here + s] + weight * source[there + s]
        for s in ti.static(range(WIDTH)):
            out[here + s] = total[s]
    for i in range(ti.max(count, 0) // WIDTH * WIDTH, count):
        out[to + i] = out[to + i] + weight * source[start + i]


@ti.func
def add_lines(out: ti.template(), to, source: ti.template(), one, other, weights, count):
    """Add parts of two lines to another."""
    for block in range(count // WIDTH):
        here = (to + block * WIDTH) & (INDICES - 1)
        first = (one + block * WIDTH) & (INDICES - 1)
        second = (other + block * WIDTH) & (INDICES - 1)
        total = ti.Vector.zero(float, WIDTH)
        for s in ti.static(range(WIDTH)):
            total[s] = (out[here + s] + weights[0] * source[first + s]
                        + weights[1] * source[second + s])
        for s in ti.static(range(WIDTH)):
            out[here + s] = total[s]
    for i in range(ti.max(count, 0) // WIDTH * WIDTH, count):
        out[to + i] = (out[to + i] + weights[0] * source[one + i]
                       + weights[1] * source[other + i])


@ti.kernel
def gather(
    planes: ti.types.ndarray(ndim=1),
    maps: ti.types.ndarray(ndim=3),
    numbers: ti.types.ndarray(ndim=1),
    n_planes: int,
    by_plane: int,
    lines: int,
    by_line: int,
    length: int,
    columns: int,
    count: int,
    out: ti.types.ndarray(ndim=1),
):
    """Write the sums to images numbers[a] of out, (images, columns, count), flat.

    Args:
        planes: flat; number i of line q of plane b is at b by_plane + q by_line + i.
        maps: (len(numbers), n_planes, 4).
        numbers: of the images, each once.
        n_planes: how many.
        by_plane: see planes.
        lines: of a plane.
        by_line: see planes.
        length: of a line of a plane.
        columns: of an image.
        count: of numbers of an image's line.
        out: written.
    """
    ti.loop_config(block_dim=CHUNK)
    for task in range(numbers.shape[0] * columns):
        a = task // columns
        column = task % columns
        to = (numbers[a] * columns + column) * count
        for i in range(count):
            out[to + i] = 0.0
        for b in range(n_planes):
            x = maps[a, b, 0] + maps[a, b, 1] * column
            if -1.0 < x and x < lines:
                at, weight = neighbours(x, lines)
                y = maps[a, b, 2] + maps[a, b, 3] * column
                low = int(ti.floor(y))
                part = y - low
                start = b * by_plane + low
                for n in ti.static(range(2)):
                    if n == 0 or part != 0.0:
                        first = ti.max(0, -low - n)
                        add_lines(out, to + first, planes, start + at[0] * by_line + first + n,
                                  start + at[1] * by_line + first + n,
                                  weight * (part if n else 1.0 - part),
                                  ti.min(count, length - low - n) - first)


@ti.kernel
def gather_each(
    planes: ti.types.ndarray(ndim=1),
    maps: ti.types.ndarray(ndim=3),
    numbers: ti.types.ndarray(ndim=1),
    n_planes: int,
    by_plane: int,
    lines: int,
    by_line: int,
    length: int,
    out: ti.types.ndarray(ndim=3),
):
    """`gather` with a thread for each number."""
    for a, column, i in ti.ndrange(numbers.shape[0], out.shape[1], out.shape[2]):
        out[numbers[a], column, i] = sum_of_planes(
            planes, maps, a, column, i, n_planes, by_plane, lines, by_line, length)


@ti.kernel
def scatter(
    images: ti.types.ndarray(ndim=1),
    maps: ti.types.ndarray(ndim=3),
    numbers: ti.types.ndarray(ndim=1),
    columns: int,
    length: int,
    n_planes: int,
    by_plane: int,
    lines: int,
    by_line: int,
    plane_length: int,
    planes: ti.types.ndarray(ndim=1),
):
    """Add the adjoint of `gather` of images (n, columns, length), flat, to planes.

    Args:
        images: flat, whole.
        maps: of `gather`.
        numbers: of `gather`.
        columns: of an image.
        length: of a line of an image.
        n_planes: of `gather`.
        by_plane: of `gather`.
        lines: of `gather`.
        by_line: of `gather`.
        plane_length: of a line of a plane.
        planes: flat, added to.
    """
    ti.loop_config(block_dim=CHUNK)
    for task in range(n_planes * lines):
        b = task // lines
        line = task % lines
        to = b * by_plane + line * by_line
        for a in range(numbers.shape[0]):
            x0, x1 = maps[a, b, 0], maps[a, b, 1]
            begin, end = columns_near(line, x0, x1, columns)
            for column in range(begin, end):
                near = ti.max(1.0 - ti.abs(x0 + x1 * column - line), 0.0)
                y = maps[a, b, 2] + maps[a, b, 3] * column
                low = int(ti.floor(y))
                part = y - low
                start = (numbers[a] * columns + column) * length - low
                for n in ti.static(range(2)):
                    if n == 0 or part != 0.0:
                        first = ti.max(0, low + n)
                        add_line(planes, to + first, images, start + first - n,
                                 near * (part if n else 1.0 - part),
                                 ti.min(plane_length, length + low + n) - first)


@ti.kernel
def scatter_each(
    images: ti.types.ndarray(ndim=1),
    maps: ti.types.ndarray(ndim=3),
    numbers: ti.types.ndarray(ndim=1),
    columns: int,
    length: int,
    n_planes: int,
    by_plane: int,
    lines: int,
    by_line: int,
    plane_length: int,
    planes: ti.types.ndarray(ndim=1),
):
    """`scatter` with a thread for each number."""
    for b, line, i in ti.ndrange(n_planes, lines, plane_length):
        planes[b * by_plane + line * by_line + i] += sum_of_images(
            images, maps, numbers, b, line, i, columns, length)


@ti.func
def sides(place):
    """Between which of the values at whole numbers a slope is, and 1 over their distance.

    On a value, where a linear interpolation has two slopes, that is their mean.
    """
    low = int(ti.floor(place))
    first, scale = low, 1.0
    if place == low:
        first = low - 1
        scale = 0.5
    return first, low + 1, scale


@ti.func
def read(values: ti.template(), line, i, length):
    """Number i of a line, 0 beyond."""
    found = 0.0 * values[0]
    if 0 <= i < length:
        found = values[line + i]
    return found


@ti.func
def read_line(values: ti.template(), plane, line, lines, by_line, i, part, length):
    """Value of a line of a plane between numbers i and i + 1, 0 beyond."""
    found = 0.0 * values[0]
    if 0 <= line < lines:
        start = plane + line * by_line
        found = ((1.0 - part) * read(values, start, i, length)
                 + part * read(values, start, i + 1, length))
    return found


@ti.kernel
def slopes(
    planes: ti.types.ndarray(ndim=1),
    maps: ti.types.ndarray(ndim=3),
    numbers: ti.types.ndarray(ndim=1),
    by_plane: int,
    lines: int,
    by_line: int,
    length: int,
    out_grad: ti.types.ndarray(ndim=3),
    maps_grad: ti.types.ndarray(ndim=3),
):
    """Add the gradient of `gather` in the maps; a thread for each map."""
    for a, b in ti.ndrange(maps.shape[0], maps.shape[1]):
        total = ti.Vector.zero(float, 4)
        plane = b * by_plane
        for column in range(out_grad.shape[1]):
            x = maps[a, b, 0] + maps[a, b, 1] * column
            if -1.0 <= x and x <= lines:
                y = maps[a, b, 2] + maps[a, b, 3] * column
                at, weight = neighbours(x, lines)
                low_x, high_x, scale_x = sides(x)
                low_y, high_y, scale_y = sides(y)
                low = int(ti.floor(y))
                part = y - low
                by_x = 0.0 * x
                by_y = 0.0 * x
                for i in range(out_grad.shape[2]):
                    g = out_grad[numbers[a], column, i]
                    by_x += g * (read_line(planes, plane, high_x, lines, by_line, i + low, part,
                                           length)
                                 - read_line(planes, plane, low_x, lines, by_line, i + low, part,
                                             length))
                    for n in ti.static(range(2)):
                        line = plane + at[n] * by_line
                        by_y += g * weight[n] * (read(planes, line, i + high_y, length)
                                                 - read(planes, line, i + low_y, length))
                by_x *= scale_x
                by_y *= scale_y
                total += ti.Vector([by_x, column * by_x, by_y, column * by_y])
        for n in ti.static(range(4)):
            maps_grad[a, b, n] += total[n]
