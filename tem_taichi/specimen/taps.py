"""Kernels of compact support that carry values between a grid and places off it.

What is spread by a kernel K on a grid, or read from one by it, is its transform times that of K,
which division undoes, and aliases of it, which stay. Here K is the piecewise polynomial, continuous
and zero at its ends, whose aliases are least: with four taps on a twofold grid 2.3e-4 (root mean
square over a ball), half of those of a Kaiser-Bessel kernel, which jumps at its ends.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial.legendre import leggauss

Taps = tuple[tuple[float, ...], ...]
"""Coefficients of each tap in the fraction of the way between samples, the constant first."""

_NODES, _WEIGHTS = (0.5 * leggauss(64)[0] + 0.5, 0.5 * leggauss(64)[1])
_ALIASES = [m for m in range(-8, 9) if m]


@dataclass(frozen=True)
class Spreading:
    """An even kernel of `width` taps, a polynomial on each unit of its half."""

    pieces: tuple[tuple[float, ...], ...]
    """Coefficients in t - j for j <= |t| < j + 1, the constant first."""

    @property
    def width(self) -> int:
        """Samples that it reaches, an even number."""
        return 2 * len(self.pieces)

    @property
    def taps(self) -> Taps:
        """Coefficients in f of the tap j, which is at t = f + width / 2 - 1 - j."""
        half = len(self.pieces)
        mirrored = [np.polynomial.Polynomial(piece)(np.polynomial.Polynomial([1.0, -1.0]))
                    for piece in self.pieces]
        return tuple(self.pieces[half - 1 - j] if j < half
                     else tuple(map(float, mirrored[j - half].coef)) for j in range(2 * half))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Fourier transform at frequencies x [cycles per sample], of the same shape."""
        values = _transforms(np.ravel(x), len(self.pieces), len(self.pieces[0]))
        return (values @ np.concatenate(self.pieces)).reshape(np.shape(x))


@cache
def least_aliases(width: int, oversampling: float, degree: int) -> Spreading:
    """The kernel of least aliases for what fills 1 / oversampling of the grid.

    Args:
        width: taps, even.
        oversampling: grid over what is used of it.
        degree: of the polynomials.
    """
    half, n = width // 2, degree + 1
    # Values at the ends of the pieces: the next one begins where one ends, and the last at zero.
    ends = np.zeros((half + 1, half * n))
    for j in range(half):
        ends[j, j * n:(j + 1) * n] = 1
        if j + 1 < half:
            ends[j, (j + 1) * n] = -1
    ends[half, 1] = 1  # no kink in the middle
    free = np.linalg.svd(ends)[2][len(ends):].T
    x = np.linspace(0, 0.5 / oversampling, 40)
    inside = _transforms(x, half, n) @ free
    aliases = [_transforms(x + m, half, n) @ free for m in _ALIASES]
    share = 1.1 - (x / x[-1]) ** 2  # of a ball, in projection along the axis, and of its ends
    divided = np.ones(len(x))
    for _ in range(8):  # the division by the kernel's own transform makes it no linear problem
        cost = sum(np.einsum("xa,xb,x->ab", a, a, share / divided**2) for a in aliases)
        found = np.linalg.solve(cost + 1e-16 * np.trace(cost) * np.eye(len(cost)), inside[0])
        found /= inside[0] @ found
        divided = inside @ found
    return Spreading(tuple(tuple(map(float, piece)) for piece in (free @ found).reshape(half, n)))


def _transforms(x: np.ndarray, half: int, n: int) -> np.ndarray:
    """Fourier transforms of each even monomial piece at frequencies x, (len(x), half * n)."""
    powers = _NODES[:, None] ** np.arange(n) * _WEIGHTS[:, None]
    return np.concatenate([
        2 * np.cos(2 * np.pi * np.multiply.outer(x, _NODES + j)) @ powers
        for j in range(half)], axis=1)
