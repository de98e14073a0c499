"""A tomogram by weighted back-projection at the true alignment, without CTF correction."""

import warnings

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.rotations import tilt_rotation

_BATCH = 1 << 22
"""Voxels at once: bounds the memory."""


def back_project(images: Tensor, tilts: pd.DataFrame, pixel_size: float, depth: int) -> Tensor:
    """Sum of the filtered images along their beams, in the specimen's own frame.

    volume(r) = sum_i step_i q_i((R_i r)_xy + shift_i), with q the image filtered by |k . p|, p
    the direction in the image across the tilt axis, and step the angle [rad] that an image
    stands for (Kak & Slaney 1988, ch. 3). Images are taken relative to their mean;
    one whose mean is not positive adds nothing, which a warning says.

    Args:
        images: (n, ny, nx), finite.
        tilts: tilt_angle, axis_angle [deg], shift_x, shift_y [A] of each.
        pixel_size: of images and volume [A].
        depth: voxels along z.

    Returns:
        Relative intensity per voxel, (depth, ny, nx), centre at n // 2; dark is negative. Zero
        where no image shows the voxel.

    Raises:
        ValueError: if depth is not positive, or images and tilts differ in number.
    """
    n, ny, nx = images.shape
    if depth < 1:
        raise ValueError(f"depth={depth}: must be positive [voxel]")
    if len(tilts) != n:
        raise ValueError(f"tilts: has {len(tilts)} rows; must have one for each of the {n} images")
    steps = _steps(tilts["tilt_angle"].to_numpy(np.float64))
    volume = as_tensor(np.zeros((depth, ny, nx)))
    y, x = (as_tensor(np.arange(size) - size // 2) for size in (ny, nx))
    slab = max(1, _BATCH // (ny * nx))
    scale = as_tensor([2 / nx, 2 / ny])
    empty = [n for n, image in enumerate(images, 1) if not image.mean() > 0]
    if empty:
        warnings.warn(f"{len(empty)} of {n} images, the first of them image {empty[0]}, have no "
                      "positive mean: they add nothing to the reconstruction", stacklevel=2)
    for image, step, tilt in zip(images, steps, tilts.itertuples(), strict=True):
        if not image.mean() > 0:
            continue
        filtered = _filtered(as_tensor(image), tilt.axis_angle)[None, None] * step
        rotation = tilt_rotation(tilt.tilt_angle, tilt.axis_angle)[:2]
        middle = as_tensor([nx // 2 + tilt.shift_x / pixel_size,
                            ny // 2 + tilt.shift_y / pixel_size])
        flat = (x[:, None] * rotation[:, 0] + y[:, None, None] * rotation[:, 1] + middle)
        for first in range(0, depth, slab):
            z = as_tensor(np.arange(first, min(first + slab, depth)) - depth // 2)
            pixels = flat + z[:, None, None, None] * rotation[:, 2]
            # grid_sample counts from -1 at the image's lower edge, half a pixel off pixel 0.
            places = (pixels + 0.5) * scale - 1
            values = torch.nn.functional.grid_sample(
                filtered, places.reshape(1, -1, nx, 2), align_corners=False)
            volume[first:first + len(z)] += values.reshape(len(z), ny, nx)
    return volume


def _steps(angles: np.ndarray) -> np.ndarray:
    """Angle that each image stands for [rad]: half way to its neighbours on either side."""
    if len(angles) < 2:
        return np.ones(len(angles))
    order = np.argsort(angles)
    middles = (angles[order][1:] + angles[order][:-1]) / 2
    ends = 2 * angles[order][[0, -1]] - middles[[0, -1]]
    steps = np.empty(len(angles))
    steps[order] = np.diff(np.concatenate([ends[:1], middles, ends[1:]]))
    return np.deg2rad(steps)


def _filtered(image: Tensor, axis_angle: float) -> Tensor:
    """Image relative to its mean, its frequencies weighted by their distance from the axis'."""
    ny, nx = image.shape
    ky = torch.fft.fftfreq(ny, dtype=image.dtype, device=image.device)[:, None]
    kx = torch.fft.rfftfreq(nx, dtype=image.dtype, device=image.device)[None, :]
    axis = np.deg2rad(axis_angle)
    across = torch.abs(kx * np.cos(axis) + ky * np.sin(axis))
    spectrum = torch.fft.rfft2(image / image.mean() - 1)
    return torch.fft.irfft2(spectrum * across, s=(ny, nx))
