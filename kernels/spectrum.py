"""Spectra of real slices, two at once as the parts of a complex one."""

import taichi as ti


@ti.kernel
def multiply(spectrum: ti.types.ndarray(ndim=3), factor: ti.types.ndarray(ndim=2)):
    """A whole spectrum times a real factor that is the same for k and -k, in place.

    Args:
        spectrum: (ny, nx, 2), real and imaginary part.
        factor: (ny, nx // 2 + 1).
    """
    for row in range(spectrum.shape[0]):
        nx = spectrum.shape[1]
        mirror = 0
        if row > 0:
            mirror = spectrum.shape[0] - row
        for column in range(nx // 2 + 1):  # not *=, which would be atomic
            f = factor[row, column]
            spectrum[row, column, 0] = spectrum[row, column, 0] * f
            spectrum[row, column, 1] = spectrum[row, column, 1] * f
        for column in range(nx // 2 + 1, nx):
            f = factor[mirror, nx - column]
            spectrum[row, column, 0] = spectrum[row, column, 0] * f
            spectrum[row, column, 1] = spectrum[row, column, 1] * f
