"""Template matching: turned references as their tomogram shows them, correlated at every place.

A template is the reference's potential, turned, as the microscope and the missing wedge leave it
(the back-projection of its images' point spread), within a ball. Tomogram and templates are
weighted by one over the root of the tomogram's radial power, so that noise is white. The score is
the correlation over the norms of template and tomogram within the ball, of -1 to 1.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from experiments.picker_scores import radial_power
from tem_taichi.export.reconstruction import back_project
from tem_taichi.instrument.optics import Optics, ctf

_SUPER = (np.sqrt(2), 1.533751168755204288118041)
"""Numbers of the spiral (Alexa 2022, Super-Fibonacci spirals)."""


def rotations(degrees: float) -> NDArray[np.float64]:
    """Rotations that lie about so far apart, evenly over all of them.

    Args:
        degrees: the cubic root of the volume that each stands for.

    Returns:
        Matrices (n, 3, 3), on columns (x, y, z).
    """
    n = int(np.ceil(8 * np.pi**2 / np.deg2rad(degrees) ** 3))
    s = np.arange(n) + 0.5
    inner, outer = np.sqrt(s / n), np.sqrt(1 - s / n)
    alpha, beta = (2 * np.pi * s / one for one in _SUPER)
    quaternions = np.stack((inner * np.sin(alpha), inner * np.cos(alpha),
                            outer * np.sin(beta), outer * np.cos(beta)), axis=1)
    return Rotation.from_quat(quaternions).as_matrix()


def point_spread(tilts: pd.DataFrame, shape: tuple[int, int, int], voxel: float, voltage: float,
                 spherical_aberration: float, amplitude_contrast: float) -> Tensor:
    """What a tomogram shows of a point of potential 1, its middle at n // 2.

    Args:
        tilts: tilt_angle, axis_angle [deg], defocus_u, defocus_v [A] of each image.
        shape: (nz, ny, nx) of the result, odd or even.
        voxel: [A].
        voltage: [kV].
        spherical_aberration: [mm].
        amplitude_contrast: Q.

    Returns:
        (nz, ny, nx), in units of its own; matter dark as images under focus are.
    """
    nz, ny, nx = shape
    images = []
    for u, v in zip(tilts["defocus_u"], tilts["defocus_v"], strict=True):
        optics = Optics((u + v) / 2, spherical_aberration)
        spread = torch.fft.ifft2(ctf((ny, nx), voxel, voltage, optics, amplitude_contrast)).real
        images.append(1 + 0.01 * torch.fft.fftshift(spread))
    still = tilts.assign(shift_x=0.0, shift_y=0.0)
    return back_project(torch.stack(images), still, voxel, nz).float().cpu()


def turned(reference: Tensor, matrices: NDArray[np.float64]) -> Tensor:
    """A volume turned about its voxel n // 2, by linear interpolation.

    Args:
        reference: (n, n, n).
        matrices: (m, 3, 3), from the reference's to the tomogram's frame, on (x, y, z).

    Returns:
        (m, n, n, n).
    """
    n = len(reference)
    axis = torch.arange(n, dtype=torch.float32) - n // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    places = torch.stack((x, y, z), dim=-1).reshape(-1, 3)
    back = places @ torch.as_tensor(np.asarray(matrices), dtype=torch.float32)
    grid = ((back + n // 2 + 0.5) * 2 / n - 1).reshape(len(matrices), n, n, n, 3)
    return torch.nn.functional.grid_sample(
        reference[None, None].expand(len(matrices), -1, -1, -1, -1), grid,
        align_corners=False)[:, 0]


def different(templates: Tensor, alike: float) -> NDArray[np.int64]:
    """Numbers of templates so that every one is as alike to one of them as asked.

    Drops what symmetry repeats and what blurred templates do not tell apart.

    Args:
        templates: (n, ...).
        alike: correlation from which one stands for another.
    """
    flat = templates.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    flat = flat / flat.norm(dim=1, keepdim=True)
    same = flat @ flat.T >= alike
    left, kept = torch.ones(len(flat), dtype=torch.bool), []
    while left.any():
        one = int(left.nonzero()[0])
        kept.append(one)
        left &= ~same[one]
        left[one] = False
    return np.array(kept)


@dataclass(frozen=True)
class Scene:
    """A tomogram, weighted, and what weighs its templates."""

    spectrum: Tensor
    """Of the weighted tomogram, half of it."""
    shape: tuple[int, int, int]
    scale: float
    """Voxels of the tomogram in one of these."""
    spread: Tensor
    """Weighted point spread, in a box of the templates' size or more, middle at n // 2."""


def scene(volume: NDArray[np.float32], spread: Tensor, size: int) -> Scene:
    """Weigh a tomogram and its point spread, on coarser voxels.

    Args:
        volume: (n, n, n).
        spread: of the same shape and voxels.
        size: voxels along a side afterwards, at most n, even.
    """
    n = len(volume)
    power = torch.as_tensor(radial_power(volume, n // 2), dtype=torch.float32)
    at = torch.fft.fftfreq(n), torch.fft.fftfreq(n), torch.fft.rfftfreq(n)
    k = torch.sqrt(sum(f**2 for f in torch.meshgrid(*at, indexing="ij"))) * n
    weight = 1 / torch.sqrt(power[torch.clamp(k.long(), max=n // 2 - 1)])
    weight[(k < 1) | (k >= size / 2)] = 0
    spectra = [_smaller(torch.fft.rfftn(torch.as_tensor(one)) * weight, n, size)
               for one in (volume, torch.fft.ifftshift(spread))]
    spread = torch.fft.fftshift(torch.fft.irfftn(spectra[1], (size,) * 3))
    return Scene(spectra[0], (size,) * 3, n / size, spread)


def _smaller(spectrum: Tensor, n: int, size: int) -> Tensor:
    """Low frequencies of half a spectrum, as that of coarser voxels."""
    if size == n:
        return spectrum
    low = torch.cat([torch.arange(size // 2), torch.arange(n - size // 2, n)])
    return spectrum[low][:, low][..., :size // 2 + 1] * (size / n) ** 3


def coarser(reference: NDArray[np.float32], scale: float, size: int) -> Tensor:
    """A reference on the scene's voxels in a box, its middle at size // 2."""
    turn = torch.eye(3) * scale
    n = len(reference)
    blurred = torch.as_tensor(reference)[None, None]
    if scale > 1:  # a Gaussian against aliases
        axis = torch.arange(-3, 4, dtype=torch.float32)
        line = torch.exp(-axis**2 / (2 * (0.35 * scale) ** 2))
        line = line / line.sum()
        for dim in range(3):
            kernel = line.reshape([1, 1] + [7 if d == dim else 1 for d in range(3)])
            blurred = torch.nn.functional.conv3d(blurred, kernel, padding=[
                3 if d == dim else 0 for d in range(3)])
    axis = torch.arange(size, dtype=torch.float32) - size // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    places = torch.stack((x, y, z), dim=-1) @ turn
    grid = ((places + n // 2 + 0.5) * 2 / n - 1)[None]
    return torch.nn.functional.grid_sample(blurred, grid, align_corners=False)[0, 0]


def evenly(scene: Scene, reference: Tensor) -> Tensor:
    """A reference as the weighted tomogram shows it on average over directions, not turned."""
    m, low = len(reference), scene.shape[0] // 2 - len(reference) // 2
    box = scene.spread[low:low + m, low:low + m, low:low + m]
    shown = torch.fft.fftn(torch.fft.ifftshift(box)).real
    at = torch.meshgrid(*[torch.fft.fftfreq(m) * m] * 3, indexing="ij")
    shell = torch.sqrt(sum(f**2 for f in at)).round().long().flatten()
    mean = (torch.bincount(shell, shown.flatten()) / torch.bincount(shell)).float()
    return torch.fft.ifftn(torch.fft.fftn(reference) * mean[shell].reshape(shown.shape)).real


def templates(scene: Scene, reference: Tensor, matrices: NDArray[np.float64],
              radius: float) -> Tensor:
    """Turned references as the weighted tomogram shows them, within a ball, of norm 1.

    Args:
        scene: to match.
        reference: on its voxels, (m, m, m).
        matrices: (n, 3, 3).
        radius: of the ball [voxel of the scene].

    Returns:
        (n, m, m, m), of mean 0 within the ball.
    """
    m, size = len(reference), scene.shape[0]
    low = size // 2 - m // 2
    box = scene.spread[low:low + m, low:low + m, low:low + m]
    shown = torch.fft.irfftn(
        torch.fft.rfftn(turned(reference, matrices), dim=(1, 2, 3))
        * torch.fft.rfftn(torch.fft.ifftshift(box)), (m, m, m), dim=(1, 2, 3))
    ball = ball_of(m, radius)
    shown = (shown - (shown * ball).sum((1, 2, 3), keepdim=True) / ball.sum()) * ball
    return shown / shown.flatten(1).norm(dim=1)[:, None, None, None]


def ball_of(m: int, radius: float) -> Tensor:
    """1 within a ball about voxel m // 2, 0 outside, (m, m, m)."""
    axis = (torch.arange(m) - m // 2) ** 2
    return (axis[:, None, None] + axis[:, None] + axis <= radius**2).float()


def spectrum_of(box: Tensor, size: int) -> Tensor:
    """Half the spectrum of a box in a corner of a volume of zeros, line by line."""
    lines = torch.fft.rfft(box, n=size, dim=-1)
    return torch.fft.fft(torch.fft.fft(lines, n=size, dim=-2), n=size, dim=-3)


def matched(scene: Scene, reference: Tensor, matrices: NDArray[np.float64], radius: float,
            batch: int = 32) -> tuple[Tensor, Tensor]:
    """Best score at each voxel over all rotations, and the rotation's number.

    Two FFTs of the volume a rotation, one of them of few lines.
    """
    size, m = scene.shape[0], len(reference)
    ball = spectrum_of(ball_of(m, radius), size).conj()
    volume = torch.fft.irfftn(scene.spectrum, scene.shape)
    sums = [torch.fft.irfftn(torch.fft.rfftn(one) * ball, scene.shape) for one in
            (volume, volume**2)]
    count = float(ball[0, 0, 0].real)
    norm = torch.sqrt(torch.clamp(sums[1] - sums[0] ** 2 / count, min=1e-6 * float(
        volume.var()) * count))
    best = torch.full(scene.shape, -2.0)
    which = torch.zeros(scene.shape, dtype=torch.int32)
    for first in range(0, len(matrices), batch):
        for n, one in enumerate(templates(scene, reference, matrices[first:first + batch],
                                          radius), first):
            score = torch.fft.irfftn(scene.spectrum * spectrum_of(one, size).conj(),
                                     scene.shape) / norm
            better = score > best
            best = torch.where(better, score, best)
            which[better] = n
    return tuple(torch.roll(one, (m // 2,) * 3, (0, 1, 2)) for one in (best, which))
