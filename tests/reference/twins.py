"""Plain numpy in float64 of what the library computes, written to be read, not to be fast."""

import gemmi
import numpy as np
from scipy.ndimage import map_coordinates

VOLT_AREA = 47.87764737  # h^2 / (2 pi m0 e) [V A^2], CODATA 2018


def k_squared(shape, pixel_size):
    ky = np.fft.fftfreq(shape[0], pixel_size)
    kx = np.fft.fftfreq(shape[1], pixel_size)
    return ky[:, None] ** 2 + kx[None, :] ** 2


def in_band(shape):
    """Frequencies inside 2/3 Nyquist, without those on the very edge."""
    return k_squared(shape, 1.0) < 1 / 9 - 1e-5


def scattering_factor(number, squared):
    """Peng's five Gaussians, s = k / 2."""
    factor = gemmi.Element(int(number)).c4322
    return sum(a * np.exp(-b * squared / 4) for a, b in zip(factor.a, factor.b, strict=True))


def exact_potential(numbers, positions, b_factors, occupancies, shape, pixel_size):
    """Fourier sum of the projected potential, FFT order; origin at pixel n // 2."""
    squared = k_squared(shape, pixel_size)
    ky = np.fft.fftfreq(shape[0], pixel_size)
    kx = np.fft.fftfreq(shape[1], pixel_size)
    origin = np.array([shape[1] // 2, shape[0] // 2]) * pixel_size
    total = np.zeros(shape, complex)
    for number, position, b, occupancy in zip(numbers, positions, b_factors, occupancies,
                                              strict=True):
        x, y = position[:2] + origin
        phase = np.exp(-2j * np.pi * ky * y)[:, None] * np.exp(-2j * np.pi * kx * x)[None, :]
        total += (occupancy * scattering_factor(number, squared) * np.exp(-b * squared / 4)
                  * phase)
    return VOLT_AREA / pixel_size**2 * total


def band_limit(shape):
    k = np.sqrt(k_squared(shape, 1.0))
    edge = np.clip((k - (1 / 3 - 0.01)) / 0.01, 0, 1)
    return 0.5 * (1 + np.cos(np.pi * edge)) * (k <= 1 / 3)


def multislice(slices, pixel_size, slice_thickness, wavelength, sigma, contrast=0.0, band=1.0):
    """Transmit and propagate, slice after slice; `band` limits both."""
    shape = slices.shape[1:]
    propagator = band * np.exp(-1j * np.pi * wavelength * slice_thickness
                               * k_squared(shape, pixel_size))
    wave = np.ones(shape, complex)
    for potential in slices:
        transmission = np.exp(1j * sigma * potential
                              * (np.sqrt(1 - contrast**2) + 1j * contrast))
        transmission = np.fft.ifft2(band * np.fft.fft2(transmission))
        wave = np.fft.ifft2(propagator * np.fft.fft2(wave * transmission))
    return wave


def aberration(shape, pixel_size, wavelength, defocus, cs, astigmatism=0.0, angle=0.0):
    """Chi [rad]: defocus, astigmatism in A, cs in A, angle in rad."""
    ky = np.fft.fftfreq(shape[0], pixel_size)[:, None]
    kx = np.fft.fftfreq(shape[1], pixel_size)[None, :]
    squared = kx**2 + ky**2
    local = defocus + astigmatism / 2 * np.cos(2 * (np.arctan2(ky, kx) - angle))
    return (-np.pi * wavelength * local * squared
            + np.pi / 2 * cs * wavelength**3 * squared**2)


def image(wave, pixel_size, wavelength, defocus, cs):
    chi = aberration(wave.shape, pixel_size, wavelength, defocus, cs)
    return np.abs(np.fft.ifft2(np.exp(-1j * chi) * np.fft.fft2(wave))) ** 2


def joseph(volume, rotation, shift, shape):
    """Line integrals of a grid of voxels of 1 on pixels of 1, by planes that rays cross.

    Args:
        volume: (nz, ny, nx).
        rotation: of x, y, z, from the grid to the image, (3, 3).
        shift: x and y [pixel].
        shape: of the image (ny, nx).
    """
    through = int(np.argmax(np.abs(rotation[2])))
    one, other = (axis for axis in range(3) if axis != through)
    inverse = np.linalg.inv(rotation[:2, [one, other]])
    v, u = (grid - n // 2 for grid, n in zip(np.mgrid[:shape[0], :shape[1]], shape, strict=True))
    planes = np.moveaxis(volume, 2 - through, 0)  # rows along `other`, columns along `one`
    total = np.zeros(shape)
    for number, plane in enumerate(planes):
        along = number - len(planes) // 2
        x = u - shift[0] - rotation[0, through] * along
        y = v - shift[1] - rotation[1, through] * along
        columns = inverse[0, 0] * x + inverse[0, 1] * y + plane.shape[1] // 2
        rows = inverse[1, 0] * x + inverse[1, 1] * y + plane.shape[0] // 2
        total += map_coordinates(np.pad(plane, 1), [rows + 1, columns + 1], order=1)
    return total / abs(rotation[2, through])


def octree_nodes(leaves, values, roots, depth):
    """Finest grid of an octree: at each node the mean over the eight octants about it.

    Args:
        leaves: (n, 4), level and place z, y, x in sides of the leaf.
        values: (n, g, g, g).
        roots: cubes along z, y, x.
        depth: largest level.
    """
    side = values.shape[1] - 1
    shape = [n * 2**depth * side + 1 for n in roots]
    total, count = np.zeros(shape), np.zeros(shape)
    nodes = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    for octant in np.ndindex(2, 2, 2):
        inside = nodes + 0.5 * (2 * np.array(octant) - 1)  # half way into the octant
        for (level, *place), cube in zip(leaves, values, strict=True):
            step = 2**(depth - level)
            begin = np.array(place) * step * side
            here = ((inside > begin) & (inside < begin + step * side)).all(1)
            at = tuple(nodes[here].T)
            total[at] += map_coordinates(cube, (nodes[here] - begin).T / step, order=1)
            count[at] += 1
    return total / count


def hash_features(table, points, levels):
    """Features of points from 0 to 1, level by level; levels (count, 3): cells, first row, rows."""
    found = []
    for cells, begin, rows in levels:
        at = np.clip(points, 0, 1) * cells
        low = np.minimum(np.floor(at).astype(np.int64), cells - 1)
        total = 0
        for corner in np.ndindex(2, 2, 2):
            x, y, z = (low + corner).T
            if rows < (cells + 1)**3:
                row = (x ^ (y * 2654435761) ^ (z * 805459861)) % rows
            else:
                row = (z * (cells + 1) + y) * (cells + 1) + x
            weight = np.where(corner, at - low, 1 - at + low).prod(1)
            total = total + weight[:, None] * table[begin + row]
        found.append(total)
    return np.concatenate(found, axis=1)
