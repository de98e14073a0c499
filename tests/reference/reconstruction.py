"""Reconstruction from projections as RELION's documentation defines it, in plain numpy.

Shares no code with the package: Euler angles, CTF and projection matrices are written again from
RELION's sources (euler.cpp, ctf.cpp, tomogram.cpp). Volumes are (z, y, x), images (y, x), both
with the origin at n // 2.
"""

import gemmi
import numpy as np

PLANCK, ELECTRON, MASS, LIGHT = 6.62607015e-34, 1.602176634e-19, 9.1093837015e-31, 299792458.0


def passive(axis, degrees):
    """Matrix that takes coordinates to those in a frame turned about an axis."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    one, nil = np.ones_like(c), np.zeros_like(c)
    rows = {"x": [[one, nil, nil], [nil, c, s], [nil, -s, c]],
            "y": [[c, nil, -s], [nil, one, nil], [s, nil, c]],
            "z": [[c, s, nil], [-s, c, nil], [nil, nil, one]]}[axis]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def euler_matrix(rot, tilt, psi):
    """Euler_angles2matrix, (n, 3, 3): the frame is turned about z, the new y and the new z."""
    return passive("z", psi) @ passive("y", tilt) @ passive("z", rot)


def wavelength(kilovolts):
    energy = ELECTRON * kilovolts * 1e3
    momentum = np.sqrt(2 * MASS * energy * (1 + energy / (2 * MASS * LIGHT**2)))
    return 1e10 * PLANCK / momentum


def ctf(kx, ky, optics, defocus_u, defocus_v, angle, phase_shift):
    """CTF::getCTF for frequencies [1/A], positive where white protein stays white.

    optics: voltage [kV], Cs [mm], amplitude contrast; defoci [A], angles [deg], which may have a
    first axis for images.
    """
    voltage, spherical, contrast = optics
    wave = wavelength(voltage)
    squared = kx**2 + ky**2
    azimuth = np.arctan2(ky, kx) - np.deg2rad(angle)
    delta = -(defocus_u + defocus_v) / 2 - (defocus_u - defocus_v) / 2 * np.cos(2 * azimuth)
    argument = (np.pi * wave * delta * squared + np.pi / 2 * spherical * 1e7 * wave**3 * squared**2
                - np.deg2rad(phase_shift) - np.arctan(contrast / np.sqrt(1 - contrast**2)))
    return -np.sin(argument)


def frequencies(n, pixel_size):
    """kx, ky of a centred image of side n [1/A], each (n, n)."""
    k = np.fft.fftshift(np.fft.fftfreq(n, pixel_size))
    return np.meshgrid(k, k)


def _transform(array, axes):
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(array, axes), axes=axes), axes)


def reconstruct(images, matrices, shifts, transfer, pixel_size, padding=2):
    """Direct Fourier inversion: the volume V with CTF P(V turned by A) nearest to the images.

    Args:
        images: (m, n, n), white protein, zero beside it.
        matrices: A, (m, 3, 3), from the reference to the image: F2(k) = F3(A^T (kx, ky, 0)).
        shifts: x, y [A] that bring each particle to the centre, (m, 2), as rlnOriginXAngst.
        transfer: function of kx, ky, each (k,), to the CTF of every image (m, k).
        pixel_size: [A].
        padding: of the Fourier volume, into which samples are put trilinearly.
    """
    n = images.shape[-1]
    size = padding * n
    before = size // 2 - n // 2
    kx, ky = frequencies(size, pixel_size)
    # Half of the plane, as the other is its conjugate; only what lies within Nyquist.
    half = (np.hypot(kx, ky) < 0.5 / pixel_size) & ((ky > 0) | ((ky == 0) & (kx >= 0)))
    plane = np.stack([kx[half], ky[half]])
    padded = np.pad(images, ((0, 0), *[(before, size - n - before)] * 2))
    spectra = _transform(padded, (1, 2))[:, half] * np.exp(-2j * np.pi * shifts @ plane)
    contrast = transfer(*plane)
    place = np.einsum("mac,ak->cmk", matrices[:, :2], plane) * size * pixel_size
    low = np.floor(place).astype(int)
    sums = np.zeros((3, size**3))
    for corner in np.ndindex(2, 2, 2):
        corner = np.reshape(corner, (3, 1, 1))
        x, y, z = (low + corner + size // 2) % size
        weight = np.prod(np.where(corner, place - low, 1 - place + low), axis=0)
        for total, amount in zip(sums, (spectra.real * contrast, spectra.imag * contrast,
                                        contrast**2), strict=True):
            total += np.bincount(((z * size + y) * size + x).ravel(), (weight * amount).ravel(),
                                 size**3)
    numerator, power = ((part + np.roll(part[::-1, ::-1, ::-1], 1, (0, 1, 2)).conj()) for part in (
        total.reshape(size, size, size) for total in (sums[0] + 1j * sums[1], sums[2])))
    spectrum = numerator / (power + 1e-3 * power[power > 0].mean())
    volume = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(spectrum))).real
    inner = slice(before, before + n)
    # Trilinear interpolation multiplies by the square of a sinc along each axis.
    droop = np.sinc((np.arange(n) - n // 2) / size) ** 2
    return volume[inner, inner, inner] / (droop[:, None, None] * droop[:, None] * droop)


def scattering_factor(number, b_factor, squared):
    """Peng's factor of an element [A], damped by a B-factor [A^2], at |k|^2 [1/A^2]."""
    table = gemmi.Element(int(number)).c4322
    return sum(a * np.exp(-(b + b_factor) * squared / 4)
               for a, b in zip(table.a, table.b, strict=True))


def potential(positions, numbers, b_factor, n, pixel_size):
    """Potential of atoms within Nyquist, up to a factor: sums of Gaussians in Fourier space."""
    k = np.fft.fftshift(np.fft.fftfreq(n, pixel_size))
    kz, ky, kx = np.meshgrid(k, k, k, indexing="ij")
    squared = kx**2 + ky**2 + kz**2
    spectrum = np.zeros((n, n, n), complex)
    for (x, y, z), number in zip(positions, numbers, strict=True):
        factor = scattering_factor(number, b_factor, squared)
        spectrum += factor * np.exp(-2j * np.pi * (kx * x + ky * y + kz * z))
    return np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(spectrum))).real


def mirrored(volume):
    """The other hand: z becomes -z about the origin."""
    return np.roll(volume[::-1], 1 - volume.shape[0] % 2, axis=0)


def sphere(n, radius, edge=4):
    """Soft mask (n, n, n), radius and cosine edge in voxels."""
    x = np.arange(n) - n // 2
    r = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)
    return 0.5 + 0.5 * np.cos(np.pi * np.clip((r - radius) / edge, 0, 1))


def shell_correlation(first, second):
    """FSC of shells 0 .. n // 2 - 1, one voxel wide."""
    n = first.shape[0]
    a, b = (np.fft.fftn(volume) for volume in (first, second))
    k = np.fft.fftfreq(n, 1 / n)
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int).ravel()
    cross, power_a, power_b = (np.bincount(shell, part.ravel())[:n // 2] for part in (
        (a * b.conj()).real, np.abs(a) ** 2, np.abs(b) ** 2))
    return cross / np.sqrt(power_a * power_b)


def relion5_projection(tilt, tomogram, image_shape, pixel_size):
    """Tomogram::setProjectionMatrix (4, 4): from a tomogram's voxels to an image's pixels.

    Args:
        tilt: row of tilt_series/<name>.star.
        tomogram: row of tomograms.star.
        image_shape: (ny, nx).
        pixel_size: [A].
    """
    def shift(x, y, z):
        matrix = np.eye(4)
        matrix[:3, 3] = x, y, z
        return matrix

    def rotation(axis, degrees):  # gravis: about the axis, right-handedly
        matrix = np.eye(4)
        matrix[:3, :3] = passive(axis, degrees).T
        return matrix

    size = [int(tomogram[f"rlnTomoSize{axis}"]) // 2 for axis in "XYZ"]
    return (shift(tilt.rlnTomoXShiftAngst / pixel_size, tilt.rlnTomoYShiftAngst / pixel_size, 0)
            @ shift(image_shape[1] // 2, image_shape[0] // 2, 0)
            @ rotation("z", tilt.rlnTomoZRot) @ rotation("y", tilt.rlnTomoYTilt)
            @ rotation("x", tilt.rlnTomoXTilt) @ shift(*(-c for c in size)))
