"""Splatting sums of Gaussians into slices, and the adjoint of it.

Lengths are in pixels here. Atom i adds to slice s the value

    weight_i sum_g a_g (pi / beta_g) exp(-pi^2 r^2 / beta_g),   beta_g = b_g + b_i,

whose Fourier transform is weight_i sum_g a_g exp(-beta_g |k|^2), k in cycles/pixel. The table
holds a_g and b_g per species; b_i is the atom's own broadening. Slices are periodic.

There are two schedules of one sum, neither with atomic adds, hence fast and the same sum in every
run. For few cores the atoms come sorted by (slice, row), so that every thread owns a band of rows
and finds the atoms that reach it as one range; Gaussians on consecutive pixels follow from one
another by two multiplications, from the centre outward, where they can only decay. For thousands
of threads they come sorted by (slice, row of cells, cell), and every thread owns a pixel; the
threads of a tile go through the same few ranges of atoms side by side.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import taichi as ti

BAND = 32  # rows owned by one thread
TILE = 8  # pixels a side of a tile, whose threads are one block
CELL = 4  # pixels a side of the cells by which tiles find their atoms
PI = 3.141592653589793


class SplatKernels(NamedTuple):
    """The kernels and their adjoint for one number of Gaussians a species."""

    splat: Callable
    splat_tiles: Callable
    adjoint: Callable


@ti.func
def cells(first, count, period):
    """Cells that hold the pixels first, first + 1, ... of a circle, each cell once.

    As first and end of some, and the end of others that begin at 0; no more than all.
    """
    begin = first % period
    end = begin + count
    found = ti.Vector([0, (period + CELL - 1) // CELL, 0])
    if count < period:
        found = ti.Vector([begin // CELL, (ti.min(end, period) + CELL - 1) // CELL, 0])
        if end > period:
            found[2] = ti.min((end - period + CELL - 1) // CELL, begin // CELL)
    return found


@ti.func
def nearest(offset, low, period):
    """Least of offset, give or take periods, that is not below low; |offset| < period."""
    above = offset - low
    if above < 0:
        above += period
    if above >= period:
        above %= period
    return low + above


@cache
def splat_kernels(gaussians: int) -> SplatKernels:
    """Kernels for species that are sums of this many Gaussians (unrolled)."""

    @ti.func
    def rates(table: ti.template(), kind, broadening):
        """pi^2 / beta per Gaussian."""
        rate = ti.Vector.zero(float, gaussians)
        for g in ti.static(range(gaussians)):
            rate[g] = PI * PI / (table[kind, 1, g] + broadening)
        return rate

    @ti.func
    def amplitudes(table: ti.template(), kind, rate):
        amplitude = ti.Vector.zero(float, gaussians)
        for g in ti.static(range(gaussians)):
            amplitude[g] = table[kind, 0, g] * rate[g] / PI
        return amplitude

    # exp(-rate (d + 1)^2) = exp(-rate d^2) decay / tilt with tilt = exp(2 rate d), and so on
    # outward, where every factor is that before it times decay^2.
    @ti.func
    def forward(centre, decay, tilt):
        """Gaussian at the centre's pixel, and the factor from there to the next."""
        return centre, decay / tilt

    @ti.func
    def backward(centre, decay, tilt):
        """Gaussian a pixel before the centre's, and the factor from there to the one before."""
        return centre * decay * tilt, decay * decay * decay * tilt

    @ti.func
    def outward(column, mirror, nx):
        """Columns of the next step to both sides, in a row of period nx."""
        right = column + 1
        left = mirror - 1
        if right == nx:
            right = 0
        if left < 0:
            left = nx - 1
        return right, left

    @ti.kernel
    def splat(
        x: ti.types.ndarray(ndim=1),
        y: ti.types.ndarray(ndim=1),
        weight: ti.types.ndarray(ndim=1),
        broadening: ti.types.ndarray(ndim=1),
        kind: ti.types.ndarray(ndim=1),
        radius: ti.types.ndarray(ndim=1),
        row_start: ti.types.ndarray(ndim=1),
        table: ti.types.ndarray(ndim=3),
        largest: ti.types.ndarray(ndim=1),
        n_bands: int,
        slices: ti.types.ndarray(ndim=3),
    ):
        """Add to slices (n_slices, ny, nx); `largest` holds the largest radius."""
        ti.loop_config(block_dim=1)
        for s, band in ti.ndrange(slices.shape[0], n_bands):
            ny = slices.shape[1]
            nx = slices.shape[2]
            first = band * BAND
            last = ti.min(first + BAND, ny)
            reach = largest[0]
            # The period may fit several times into the reach of a wide atom.
            periods = (reach + ny - 1) // ny
            for wrap in range(-periods, periods + 1):
                low = ti.max(first - reach - wrap * ny, 0)
                high = ti.min(last + reach - wrap * ny, ny)
                if low < high:
                    for i in range(row_start[s * ny + low], row_start[s * ny + high]):
                        centre_x = int(ti.floor(x[i] + 0.5))
                        centre_y = int(ti.floor(y[i] + 0.5))
                        dx = centre_x - x[i]
                        dy = centre_y - y[i]
                        rate = rates(table, kind[i], broadening[i])
                        at_centre = (weight[i] * amplitudes(table, kind[i], rate)
                                     * ti.exp(-rate * (dx * dx + dy * dy)))
                        decay = ti.exp(-rate)
                        tilt_x = ti.exp(2.0 * rate * dx)
                        tilt_y = ti.exp(2.0 * rate * dy)
                        ratio = decay * decay
                        for side in range(2):
                            step = 1 - 2 * side
                            row = centre_y + wrap * ny
                            gauss_y, next_y = forward(at_centre, decay, tilt_y)
                            if side == 1:
                                row -= 1
                                gauss_y, next_y = backward(at_centre, decay, tilt_y)
                            for _i in range(radius[i] + 1 - side):
                                if first <= row and row < last:
                                    right, next_right = forward(gauss_y, decay, tilt_x)
                                    left, next_left = backward(gauss_y, decay, tilt_x)
                                    column = centre_x % nx
                                    mirror = (centre_x - 1) % nx
                                    for _j in range(radius[i] + 1):
                                        slices[s, row, column] = (slices[s, row, column]
                                                                  + right.sum())
                                        slices[s, row, mirror] = (slices[s, row, mirror]
                                                                  + left.sum())
                                        right *= next_right
                                        left *= next_left
                                        next_right *= ratio
                                        next_left *= ratio
                                        column, mirror = outward(column, mirror, nx)
                                gauss_y *= next_y
                                next_y *= ratio
                                row += step

    @ti.kernel
    def splat_tiles(
        x: ti.types.ndarray(ndim=1),
        y: ti.types.ndarray(ndim=1),
        amplitude: ti.types.ndarray(ndim=2),
        rate: ti.types.ndarray(ndim=2),
        radius: ti.types.ndarray(ndim=1),
        cell_start: ti.types.ndarray(ndim=1),
        largest: ti.types.ndarray(ndim=1),
        slices: ti.types.ndarray(ndim=3),
    ):
        """The same with one thread a pixel, of amplitude exp(-rate r^2) for each Gaussian.

        x and y are within half a pixel of the grid, and the atoms sorted by cells of CELL^2 pixels:
        by slice, row and column of cells.
        """
        ti.loop_config(block_dim=TILE * TILE)
        for place in range(slices.shape[0] * ((slices.shape[1] + TILE - 1) // TILE)
                           * ((slices.shape[2] + TILE - 1) // TILE) * TILE * TILE):
            ny = slices.shape[1]
            nx = slices.shape[2]
            tile_rows = (ny + TILE - 1) // TILE
            tile_columns = (nx + TILE - 1) // TILE
            tile = place // (TILE * TILE)
            s = tile // (tile_columns * tile_rows)
            first_row = tile // tile_columns % tile_rows * TILE
            first_column = tile % tile_columns * TILE
            row = first_row + place // TILE % TILE
            column = first_column + place % TILE
            if row < ny and column < nx:
                cells_y = cells(first_row - largest[0], TILE + 2 * largest[0], ny)
                cells_x = cells(first_column - largest[0], TILE + 2 * largest[0] + 1, nx)
                cell_rows = (ny + CELL - 1) // CELL
                cell_columns = (nx + CELL - 1) // CELL
                total = 0.0
                for part in range(4):
                    top = ti.select(part < 2, cells_y[0], 0)
                    bottom = ti.select(part < 2, cells_y[1], cells_y[2])
                    left = ti.select(part % 2 == 0, cells_x[0], 0)
                    right = ti.select(part % 2 == 0, cells_x[1], cells_x[2])
                    if left < right:
                        for cell_row in range(top, bottom):
                            at = (s * cell_rows + cell_row) * cell_columns
                            for i in range(cell_start[at + left], cell_start[at + right]):
                                r = radius[i]
                                centre_y = ti.floor(y[i] + 0.5)
                                step_y = nearest(row - int(centre_y), -r, ny)
                                while step_y <= r:
                                    dy = step_y + (centre_y - y[i])
                                    centre_x = ti.floor(x[i] + 0.5)
                                    step_x = nearest(column - int(centre_x), -r - 1, nx)
                                    while step_x <= r:
                                        dx = step_x + (centre_x - x[i])
                                        for g in ti.static(range(gaussians)):
                                            total += amplitude[i, g] * ti.exp(
                                                -rate[i, g] * (dx * dx + dy * dy))
                                        step_x += nx
                                    step_y += ny
                if total != 0.0:
                    slices[s, row, column] = slices[s, row, column] + total

    @ti.kernel
    def adjoint(
        x: ti.types.ndarray(ndim=1),
        y: ti.types.ndarray(ndim=1),
        weight: ti.types.ndarray(ndim=1),
        broadening: ti.types.ndarray(ndim=1),
        kind: ti.types.ndarray(ndim=1),
        radius: ti.types.ndarray(ndim=1),
        slice_index: ti.types.ndarray(ndim=1),
        table: ti.types.ndarray(ndim=3),
        slices_grad: ti.types.ndarray(ndim=3),
        to_broadening: ti.template(),
        x_grad: ti.types.ndarray(ndim=1),
        y_grad: ti.types.ndarray(ndim=1),
        weight_grad: ti.types.ndarray(ndim=1),
        broadening_grad: ti.types.ndarray(ndim=1),
    ):
        """Gradients of `splat`, by a gather of the same pixels, one thread an atom.

        With the moments m_pq = sum_pixels grad dx^p dy^q exp(-rate r^2) of each Gaussian, times
        its amplitude and rate, the gradients are those of amplitude and rate, both functions of
        beta = pi^2 / rate. Of moments to be summed over the Gaussians only the sum is held.
        """
        for i in range(x.shape[0]):
            ny = slices_grad.shape[1]
            nx = slices_grad.shape[2]
            s = slice_index[i]
            if s < 0 or s >= slices_grad.shape[0]:
                continue
            centre_x = int(ti.floor(x[i] + 0.5))
            centre_y = int(ti.floor(y[i] + 0.5))
            start_dx = centre_x - x[i]
            start_dy = centre_y - y[i]
            rate = rates(table, kind[i], broadening[i])
            at_centre = (rate * amplitudes(table, kind[i], rate)
                         * ti.exp(-rate * (start_dx * start_dx + start_dy * start_dy)))
            decay = ti.exp(-rate)
            tilt_x = ti.exp(2.0 * rate * start_dx)
            tilt_y = ti.exp(2.0 * rate * start_dy)
            ratio = decay * decay
            m_00 = ti.Vector.zero(float, gaussians)
            m_10 = 0.0
            m_01 = 0.0
            m_rr = ti.Vector.zero(float, gaussians)
            for side in range(2):
                step = 1 - 2 * side
                dy = start_dy - side
                gauss_y, next_y = forward(at_centre, decay, tilt_y)
                if side == 1:
                    gauss_y, next_y = backward(at_centre, decay, tilt_y)
                row = (centre_y - side) % ny
                for _i in range(radius[i] + 1 - side):
                    right, next_right = forward(gauss_y, decay, tilt_x)
                    left, next_left = backward(gauss_y, decay, tilt_x)
                    dx = start_dx
                    mirror_dx = start_dx - 1.0
                    column = centre_x % nx
                    mirror = (centre_x - 1) % nx
                    row_0 = ti.Vector.zero(float, gaussians)
                    row_1 = 0.0
                    row_2 = ti.Vector.zero(float, gaussians)
                    for _j in range(radius[i] + 1):
                        from_right = slices_grad[s, row, column] * right
                        from_left = slices_grad[s, row, mirror] * left
                        row_0 += from_right + from_left
                        row_1 += dx * from_right.sum() + mirror_dx * from_left.sum()
                        if ti.static(to_broadening):
                            row_2 += dx * dx * from_right + mirror_dx * mirror_dx * from_left
                        right *= next_right
                        left *= next_left
                        next_right *= ratio
                        next_left *= ratio
                        dx += 1.0
                        mirror_dx -= 1.0
                        column, mirror = outward(column, mirror, nx)
                    m_00 += row_0
                    m_10 += row_1
                    m_01 += dy * row_0.sum()
                    if ti.static(to_broadening):
                        m_rr += row_2 + dy * dy * row_0
                    gauss_y *= next_y
                    next_y *= ratio
                    dy += step
                    row += step
                    if row == ny:
                        row = 0
                    if row < 0:
                        row = ny - 1
            x_grad[i] += weight[i] * 2.0 * m_10
            y_grad[i] += weight[i] * 2.0 * m_01
            weight_grad[i] += (m_00 / rate).sum()
            # d(rate)/d(beta) = -rate^2 / pi^2, and the amplitude is proportional to the rate.
            if ti.static(to_broadening):
                broadening_grad[i] += weight[i] * (rate * m_rr - m_00).sum() / (PI * PI)

    return SplatKernels(splat, splat_tiles, adjoint)
