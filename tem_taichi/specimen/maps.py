"""Potential maps as sums of Gaussians."""

import math

import numpy as np
import torch
from scipy import fft

from tem_taichi.device import as_tensor
from tem_taichi.machine import check_memory
from tem_taichi.physics import SCATTERING_TO_POTENTIAL
from tem_taichi.specimen.absorption import Ratios, protein_potentials
from tem_taichi.specimen.ice import mean_potential
from tem_taichi.specimen.potential import Gaussians

_VOXEL_GAUSSIAN = 14.0
"""exp(-14 |k|^2), k in cycles/voxel: the Gaussian that stands for a voxel of a map."""


_PER_VOXEL = 140.0
"""Memory for each voxel of a map of which all are kept [bytes]."""


def map_gaussians(volume: np.ndarray, voxel_size: float) -> tuple[torch.Tensor, Gaussians]:
    """A potential map as Gaussians on a grid, exact under any rotation.

    The map is interpolated to 1.5 times as many voxels, so that its whole spectrum lies inside
    the band in which the Gaussians' aliases are negligible; dividing by their transform
    gives the weights. Voxels below 1e-4 of the largest weight are left out.

    Args:
        volume: potential [V] relative to the surroundings, shape (nz, ny, nx), centre at n // 2.
        voxel_size: [A].

    Returns:
        Positions (n, 3) [A] from the centre, and the Gaussians there.
    """
    check_memory(f"a map of {' x '.join(map(str, volume.shape))} voxels",
                 _PER_VOXEL * volume.size, "crop it, or bin it")
    coarse = volume.shape
    fine = tuple(2 * math.ceil(0.75 * n) for n in coarse)
    weights = _deconvolved(np.asarray(volume, dtype=as_tensor(0.0).cpu().numpy().dtype), fine)
    # f voxels span the length of c: the values keep their scale by f / c along each axis, and a
    # voxel stands for its volume, so that together the factor is that of the coarse voxel.
    weights *= voxel_size**3 / SCATTERING_TO_POTENTIAL
    least = 1e-4 * max(weights.max(), -weights.min(), 1e-300)
    count = sum(int(np.count_nonzero(np.abs(plane) > least)) for plane in weights)
    positions, weight = as_tensor(np.empty((count, 3))), as_tensor(np.empty(count))
    steps = [voxel_size * c / f for f, c in zip(fine, coarse, strict=True)]
    done = 0
    for z, plane in enumerate(weights):  # one by one, since there are many voxels
        y, x = np.nonzero(np.abs(plane) > least)
        here = slice(done, done + len(x))
        weight[here] = as_tensor(plane[y, x])
        for axis, index in enumerate((x, y, np.full(len(x), z))):
            n, step = fine[2 - axis], steps[2 - axis]
            positions[here, axis] = as_tensor((index - n // 2) * step)
        done += len(x)
    return positions, Gaussians.single(weight, _VOXEL_GAUSSIAN * max(steps) ** 2)


def _deconvolved(volume: np.ndarray, fine: tuple[int, ...]) -> np.ndarray:
    """A map on more voxels, divided by the transform of the Gaussian of a voxel."""
    coarse = volume.shape
    spectrum = fft.rfftn(fft.ifftshift(volume))
    out = np.zeros((fine[0], fine[1], fine[2] // 2 + 1), spectrum.dtype)
    half = coarse[2] // 2 + 1
    for z in _both_ends(coarse[0]):
        for y in _both_ends(coarse[1]):
            out[z, y, :half] = spectrum[z, y]
    del spectrum
    # The map's Nyquist frequency is both, the positive and the negative, where there is more room.
    for axis, n in enumerate(coarse):
        ends = np.moveaxis(out, axis, 0)
        if n % 2 == 0 and axis < 2:
            ends[n // 2] = ends[-(n // 2)]
            ends[-(n // 2)] *= 0.5
        if n % 2 == 0:
            ends[n // 2] *= 0.5
    for axis, n in enumerate(fine):
        k = (fft.rfftfreq(n) if axis == 2 else fft.fftfreq(n)).astype(volume.dtype)
        shape = [1, 1, 1]
        shape[axis] = -1
        out *= np.exp(_VOXEL_GAUSSIAN * k**2).reshape(shape)
    return fft.fftshift(fft.irfftn(out, s=fine, overwrite_x=True))


def _both_ends(n: int) -> tuple[slice, slice]:
    """Frequencies of a transform of n values from 0, and the negative ones at its end."""
    return slice(0, n - n // 2), slice(-(n // 2), None) if n > 1 else slice(0, 0)


def ratio_of_maps(ratios: Ratios | None) -> float:
    """Absorption over potential of what is given relative to ice: that of protein [1/V]."""
    real, imaginary = protein_potentials(ratios)
    return (imaginary - 1) / (real - mean_potential("ice"))
