"""Particles as volumes: spreading scatterers on a grid, central slices, and adding patches.

A kernel of `width` taps is a polynomial in the fraction of the way between two samples, one for
each tap: tap j of a place q stands at floor(q) - width // 2 + 1 + j.

Nothing is added by two threads to one number: a thread owns what it writes and takes what belongs
there in a fixed order, hence the same sum in every run.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import taichi as ti

BAND = 32  # rows owned by one thread
LAYERS = 8  # planes of a volume owned by one thread
TWO_PI = 6.283185307179586

class VolumeKernels(NamedTuple):
    """Kernels for one interpolation kernel and number of channels."""

    sample: Callable
    adjoint: Callable


def polynomials(taps: tuple[tuple[float, ...], ...]) -> Callable:
    """The function that gives the polynomials' values, a vector (unrolled)."""
    width = len(taps)

    @ti.func
    def values(f):
        w = ti.Vector.zero(float, width)
        for j in ti.static(range(width)):
            w[j] = taps[j][-1]
            for c in ti.static(taps[j][-2::-1]):
                w[j] = w[j] * f + c
        return w

    return values


@cache
def spread_kernel(taps: tuple[tuple[float, ...], ...]) -> Callable:
    """The kernel that spreads points on a grid."""
    width = len(taps)

    weights = polynomials(taps)

    @ti.kernel
    def spread(
        places: ti.types.ndarray(ndim=2),
        amounts: ti.types.ndarray(ndim=2),
        plane_start: ti.types.ndarray(ndim=1),
        volumes: ti.types.ndarray(ndim=4),
    ):
        """Add points at places (n, 3) [voxel], sorted by floor(z), to volumes (m, nz, ny, nx).

        Point i adds amounts[m, i] to volume m. Points whose first tap is on plane p are
        plane_start[p] .. plane_start[p + 1] - 1; all taps are within the volumes.
        """
        ti.loop_config(block_dim=1)
        for block in range((volumes.shape[1] + LAYERS - 1) // LAYERS):
            first = block * LAYERS
            last = ti.min(first + LAYERS, volumes.shape[1])
            low = ti.max(first - width + 1, 0)
            for i in range(plane_start[low], plane_start[last]):
                ix = int(ti.floor(places[i, 0]))
                iy = int(ti.floor(places[i, 1]))
                iz = int(ti.floor(places[i, 2]))
                wx = weights(places[i, 0] - ix)
                wy = weights(places[i, 1] - iy)
                wz = weights(places[i, 2] - iz)
                ix -= width // 2 - 1
                iy -= width // 2 - 1
                iz -= width // 2 - 1
                for m in range(volumes.shape[0]):
                    amount = amounts[m, i]
                    for z in ti.static(range(width)):
                        if first <= iz + z and iz + z < last:
                            for y in ti.static(range(width)):
                                w = amount * wz[z] * wy[y]
                                for x in ti.static(range(width)):
                                    # No +=, which would be atomic, at many times the cost.
                                    volumes[m, iz + z, iy + y, ix + x] = (
                                        volumes[m, iz + z, iy + y, ix + x] + w * wx[x])

    return spread


@cache
def sampling_kernels(taps: tuple[tuple[float, ...], ...], channels: int) -> VolumeKernels:
    """Kernels that take planes out of spectra of some channels (unrolled)."""
    width = len(taps)
    before = width // 2 - 1

    weights = polynomials(taps)
    slopes = polynomials(tuple(tuple(n * c for n, c in enumerate(tap))[1:] for tap in taps))

    @ti.func
    def gather(spectra: ti.template(), base, plane, row, wx, wy, wz):
        """Weighted sum of the taps from one place of a flat spectrum."""
        re = 0.0
        im = 0.0
        for z in range(width):
            for y in ti.static(range(width)):
                start = base + z * plane + y * row
                re_y = 0.0
                im_y = 0.0
                for x in ti.static(range(width)):
                    re_y += wx[x] * spectra[start + 2 * x]
                    im_y += wx[x] * spectra[start + 2 * x + 1]
                w = wz[z] * wy[y]
                re += w * re_y
                im += w * im_y
        return ti.Vector([re, im])

    @ti.func
    def cut(square, ky, kz):
        """Number of kx >= 0 inside the sphere."""
        left = square - ky * ky - kz * kz
        n = 0
        if left > 0.0:
            n = int(ti.ceil(ti.sqrt(left)))
        return n

    @ti.kernel
    def sample(
        frames: ti.types.ndarray(ndim=3),
        places: ti.types.ndarray(ndim=2),
        spectra: ti.types.ndarray(ndim=1),
        depths: ti.types.ndarray(ndim=1),
        nz: int,
        ny: int,
        nx: int,
        square: float,
        out: ti.types.ndarray(ndim=6),
    ):
        """Planes of spectra (channels, nz, ny, nx, 2), flat, in the frames of some copies.

        The spectra hold x >= 0 from index `before` on, y and z from -n // 2 + before. Frequency
        (kx, ky) of the plane at depth kz of copy c is at kx frames[c, 0] + ky frames[c, 1] +
        kz frames[c, 2], and gets the phase of a shift by places[c] pixels. `out` is (copies,
        channels, planes, P, P // 2 + 1, 2); it is zero where kx^2 + ky^2 + kz^2 >= square.
        """
        for c, j, r in ti.ndrange(out.shape[0], out.shape[2], out.shape[3]):
            size = out.shape[3]
            ky = r
            if 2 * r >= size:
                ky = r - size
            kz = depths[j]
            n = ti.min(cut(square, ky, kz), size // 2)
            turn = TWO_PI / size * places[c, 0]
            start = TWO_PI / size * ky * places[c, 1]
            step_re = ti.cos(turn)
            step_im = -ti.sin(turn)
            ramp_re = ti.cos(start)
            ramp_im = -ti.sin(start)
            for kx in range(n):
                qx = kx * frames[c, 0, 0] + ky * frames[c, 1, 0] + kz * frames[c, 2, 0]
                qy = kx * frames[c, 0, 1] + ky * frames[c, 1, 1] + kz * frames[c, 2, 1]
                qz = kx * frames[c, 0, 2] + ky * frames[c, 1, 2] + kz * frames[c, 2, 2]
                sign = 1.0
                if qx < 0.0:
                    sign = -1.0
                qx *= sign
                qy *= sign
                qz *= sign
                ix = int(ti.floor(qx))
                iy = int(ti.floor(qy))
                iz = int(ti.floor(qz))
                wx = weights(qx - ix)
                wy = weights(qy - iy)
                wz = weights(qz - iz)
                base = (((iz + nz // 2 - before) * ny + iy + ny // 2 - before) * nx + ix) * 2
                for channel in ti.static(range(channels)):
                    found = gather(spectra, base + channel * (nz * ny * nx * 2), ny * nx * 2,
                                   nx * 2, wx, wy, wz)
                    im = sign * found[1]
                    out[c, channel, j, r, kx, 0] = found[0] * ramp_re - im * ramp_im
                    out[c, channel, j, r, kx, 1] = found[0] * ramp_im + im * ramp_re
                re = ramp_re * step_re - ramp_im * step_im
                ramp_im = ramp_re * step_im + ramp_im * step_re
                ramp_re = re
            for channel in ti.static(range(channels)):
                for kx in range(n, size // 2 + 1):
                    out[c, channel, j, r, kx, 0] = 0.0
                    out[c, channel, j, r, kx, 1] = 0.0

    @ti.kernel
    def adjoint(
        frames: ti.types.ndarray(ndim=3),
        places: ti.types.ndarray(ndim=2),
        spectra: ti.types.ndarray(ndim=1),
        depths: ti.types.ndarray(ndim=1),
        nz: int,
        ny: int,
        nx: int,
        square: float,
        out_grad: ti.types.ndarray(ndim=6),
        rows_grad: ti.types.ndarray(ndim=4),
    ):
        """Gradients of `sample` from each row: of frames and places, (copies, planes, P, 11)."""
        for c, j, r in ti.ndrange(out_grad.shape[0], out_grad.shape[2], out_grad.shape[3]):
            size = out_grad.shape[3]
            ky = r
            if 2 * r >= size:
                ky = r - size
            kz = depths[j]
            n = ti.min(cut(square, ky, kz), size // 2)
            turn = TWO_PI / size * places[c, 0]
            start = TWO_PI / size * ky * places[c, 1]
            step_re = ti.cos(turn)
            step_im = -ti.sin(turn)
            ramp_re = ti.cos(start)
            ramp_im = -ti.sin(start)
            along = ti.Vector.zero(float, 3)  # sum of the gradient in q, and kx times it
            along_x = ti.Vector.zero(float, 3)
            phase = 0.0
            phase_x = 0.0
            for kx in range(n):
                qx = kx * frames[c, 0, 0] + ky * frames[c, 1, 0] + kz * frames[c, 2, 0]
                qy = kx * frames[c, 0, 1] + ky * frames[c, 1, 1] + kz * frames[c, 2, 1]
                qz = kx * frames[c, 0, 2] + ky * frames[c, 1, 2] + kz * frames[c, 2, 2]
                sign = 1.0
                if qx < 0.0:
                    sign = -1.0
                qx *= sign
                qy *= sign
                qz *= sign
                ix = int(ti.floor(qx))
                iy = int(ti.floor(qy))
                iz = int(ti.floor(qz))
                wx = weights(qx - ix)
                wy = weights(qy - iy)
                wz = weights(qz - iz)
                dx = slopes(qx - ix)
                dy = slopes(qy - iy)
                dz = slopes(qz - iz)
                base = (((iz + nz // 2 - before) * ny + iy + ny // 2 - before) * nx + ix) * 2
                for channel in ti.static(range(channels)):
                    at = base + channel * (nz * ny * nx * 2)
                    g_re = out_grad[c, channel, j, r, kx, 0]
                    g_im = out_grad[c, channel, j, r, kx, 1]
                    # The gradient before the ramp, and before the conjugation.
                    h_re = g_re * ramp_re + g_im * ramp_im
                    h_im = g_im * ramp_re - g_re * ramp_im
                    found = gather(spectra, at, ny * nx * 2, nx * 2, wx, wy, wz)
                    # d(out) = -2 pi i k / P out d(place)
                    whole = TWO_PI / size * (h_re * found[1] * sign - h_im * found[0])
                    phase += whole
                    phase_x += kx * whole
                    by_x = gather(spectra, at, ny * nx * 2, nx * 2, dx, wy, wz)
                    by_y = gather(spectra, at, ny * nx * 2, nx * 2, wx, dy, wz)
                    by_z = gather(spectra, at, ny * nx * 2, nx * 2, wx, wy, dz)
                    grad = sign * ti.Vector([h_re * by_x[0] + sign * h_im * by_x[1],
                                             h_re * by_y[0] + sign * h_im * by_y[1],
                                             h_re * by_z[0] + sign * h_im * by_z[1]])
                    along += grad
                    along_x += kx * grad
                re = ramp_re * step_re - ramp_im * step_im
                ramp_im = ramp_re * step_im + ramp_im * step_re
                ramp_re = re
            for i in ti.static(range(3)):
                rows_grad[c, j, r, i] = along_x[i]
                rows_grad[c, j, r, 3 + i] = ky * along[i]
                rows_grad[c, j, r, 6 + i] = kz * along[i]
            rows_grad[c, j, r, 9] = phase_x
            rows_grad[c, j, r, 10] = ky * phase

    return VolumeKernels(sample, adjoint)


@ti.kernel
def add_patches(
    patches: ti.types.ndarray(ndim=3),
    weight: ti.types.ndarray(ndim=1),
    source: ti.types.ndarray(ndim=1),
    corner: ti.types.ndarray(ndim=2),
    row_start: ti.types.ndarray(ndim=1),
    window_x: ti.types.ndarray(ndim=1),
    window_y: ti.types.ndarray(ndim=1),
    margin: int,
    n_bands: int,
    slices: ti.types.ndarray(ndim=3),
):
    """Add weight[i] times patch source[i] with its corner (x, y) at corner[i] to slices.

    Sorted by slice and corner row: those of slice s whose corner is in row y begin at
    row_start[s (ny + 2 lead) + y + lead], lead = P + margin. Slices are periodic, and patches are
    cut by windows that reach `margin` pixels over their edges.
    """
    ti.loop_config(block_dim=1)
    for s, band in ti.ndrange(slices.shape[0], n_bands):
        ny = slices.shape[1]
        nx = slices.shape[2]
        size = patches.shape[1]
        lead = size + margin
        rows = ny + 2 * lead
        for wrap in range(-1, 2):
            low = ti.max(band * BAND + wrap * ny, -margin)
            high = ti.min(ti.min(band * BAND + BAND, ny) + wrap * ny, ny + margin)
            if low < high:
                # Corners from low - size + 1 to high - 1 reach these rows.
                begin = row_start[s * rows + low + margin + 1]
                end = row_start[s * rows + high + lead]
                for i in range(begin, end):
                    x = corner[i, 0]
                    y = corner[i, 1]
                    left = ti.max(x, -margin)
                    right = ti.min(x + size, nx + margin)
                    for row in range(ti.max(low, y), ti.min(high, y + size)):
                        factor = weight[i] * window_y[row + margin]
                        to = row - wrap * ny
                        for column in range(ti.max(left, 0), ti.min(right, nx)):
                            slices[s, to, column] += (factor * window_x[column + margin]
                                                      * patches[source[i], row - y, column - x])
                        for column in range(left, ti.min(right, 0)):
                            slices[s, to, column + nx] += (
                                factor * window_x[column + margin]
                                * patches[source[i], row - y, column - x])
                        for column in range(ti.max(left, nx), right):
                            slices[s, to, column - nx] += (
                                factor * window_x[column + margin]
                                * patches[source[i], row - y, column - x])


@ti.kernel
def add_patches_adjoint(
    patches: ti.types.ndarray(ndim=3),
    weight: ti.types.ndarray(ndim=1),
    first: ti.types.ndarray(ndim=1),
    index: ti.types.ndarray(ndim=1),
    corner: ti.types.ndarray(ndim=2),
    window_x: ti.types.ndarray(ndim=1),
    window_y: ti.types.ndarray(ndim=1),
    margin: int,
    slices_grad: ti.types.ndarray(ndim=3),
    patches_grad: ti.types.ndarray(ndim=3),
    weight_grad: ti.types.ndarray(ndim=1),
):
    """Gradients of `add_patches`; patch p is added first[p] .. first[p + 1] - 1, in any order."""
    for p in range(patches.shape[0]):
        ny = slices_grad.shape[1]
        nx = slices_grad.shape[2]
        size = patches.shape[1]
        for i in range(first[p], first[p + 1]):
            x = corner[i, 0]
            y = corner[i, 1]
            total = 0.0
            for row in range(ti.max(y, -margin), ti.min(y + size, ny + margin)):
                from_row = row
                if row < 0:
                    from_row += ny
                if row >= ny:
                    from_row -= ny
                for column in range(ti.max(x, -margin), ti.min(x + size, nx + margin)):
                    of = column
                    if of < 0:
                        of += nx
                    if of >= nx:
                        of -= nx
                    value = (slices_grad[index[i], from_row, of] * window_y[row + margin]
                             * window_x[column + margin])
                    total += value * patches[p, row - y, column - x]
                    patches_grad[p, row - y, column - x] += weight[i] * value
            weight_grad[i] += total
