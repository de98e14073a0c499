"""Shell correlation inside the missing wedge and out of it, and within masks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tem_taichi.arguments import check_number, check_positive_number, to_field
from tem_taichi.device import as_tensor
from tem_taichi.inverse.measures import (
    check_alike,
    frequencies,
    resolution,
    shell_correlation,
)
from tem_taichi.rotations import tilt_rotation
from tem_taichi.streams import Key

_TRUSTED = 0.8
"""Correlation below which phases are randomised, as RELION's postprocessing does."""


def measured_region(shape: Sequence[int], lowest: float, highest: float, axis_angle: float = 0.0
                    ) -> Tensor:
    """Which Fourier coefficients of a volume a continuous tilt series would reach.

    The rest, `~`, is the missing wedge: what is there in a reconstruction, the method has put in.

    Args:
        shape: (nz, ny, nx) of the volume, x and y as in the untilted image.
        lowest: tilt angle [deg], right-handed about the axis.
        highest: the same.
        axis_angle: of the tilt axis from +y, counter-clockwise [deg].

    Returns:
        Booleans of the shape of the volume's `rfftn`.

    Raises:
        ValueError: if the shape is not that of a volume, or the angles are not within 90 degrees
            and in order.
    """
    for name, value in (("lowest", lowest), ("highest", highest)):
        check_number(name, value, "deg", -90, 90)
    if len(shape) != 3 or lowest > highest:
        raise ValueError(f"shape={tuple(shape)}, lowest={lowest:g}, highest={highest:g}: must be "
                         "(nz, ny, nx) and angles in order")
    kz, ky, kx = frequencies(torch.empty(tuple(shape), device=as_tensor(0.0).device))
    # At a tilt of 90 degrees the beam lies in the plane: its direction across the axis.
    ex, ey = (-float(e) for e in tilt_rotation(90.0, axis_angle)[2, :2])
    across = ex * kx + ey * ky
    # A view at this tilt has the coefficient in its plane; that of the axis is in all.
    tilt = torch.rad2deg(torch.atan2(kz * torch.where(across < 0, -1.0, 1.0), across.abs()))
    near = 1e-4  # [deg], of single precision
    along = (kz == 0) & (across.abs() < 1e-6)
    return along | ((tilt >= lowest - near) & (tilt <= highest + near))


def randomise_phases(field: Tensor, pixel_size: float, resolution: float, seed: int = 0) -> Tensor:
    """A field whose phases beyond a resolution are those of white noise, amplitudes as they were.

    What two such fields still have in common beyond it, a mask has given them (Chen et al. 2013).

    Args:
        field: image or volume.
        pixel_size: [A].
        resolution: up to which nothing changes [A].
        seed: of the noise; another for each field.
    """
    check_positive_number("pixel_size", pixel_size, "A")
    check_positive_number("resolution", resolution, "A")
    k = frequencies(field).square().sum(0).sqrt() / pixel_size
    noise = to_field("noise", Key(seed, "trials").generator().standard_normal(field.shape))
    phases = torch.fft.rfftn(noise.to(field))
    changed = torch.fft.rfftn(field)
    changed = torch.where(k > 1 / resolution, changed.abs() * torch.sgn(phases), changed)
    return torch.fft.irfftn(changed, s=field.shape)


class MaskedShells(NamedTuple):
    """Correlation of two masked fields, and what of it is the mask's."""

    frequency: Tensor
    """Mean of each shell [1/A]."""
    correlation: Tensor
    """As it is within the mask."""
    control: Tensor
    """Of the same fields with random phases, within the same mask."""
    corrected: Tensor
    """(correlation - control) / (1 - control) where phases were random."""
    counts: Tensor


def masked_shell_correlation(one: Tensor, other: Tensor, mask: Tensor, pixel_size: float, *,
                             region: Tensor | None = None, seed: int = 0) -> MaskedShells:
    """`shell_correlation` within a mask, with a phase-randomised control (Chen et al. 2013).

    Phases are random from where the correlation without the mask falls below 0.8.

    Args:
        one: image or volume, independent of the other but for the truth.
        other: of the same shape.
        mask: of the same shape, from 0 to 1, with a soft edge.
        pixel_size: [A].
        region: as in `shell_correlation`.
        seed: of the random phases.

    Raises:
        ValueError: if the shapes differ.
    """
    check_alike(mask, one, "mask")
    limit = resolution(shell_correlation(one, other, pixel_size, region), _TRUSTED)
    within = shell_correlation(one * mask, other * mask, pixel_size, region)
    without = [mask * randomise_phases(field, pixel_size, limit, 2 * seed + n)
               for n, field in enumerate((one, other))]
    random = shell_correlation(without[0], without[1], pixel_size, region)
    width = 2 / (max(one.shape) * pixel_size)  # shells that the mask mixes with those before
    corrected = torch.where(within.frequency > 1 / limit + width,
                            (within.correlation - random.correlation) / (1 - random.correlation),
                            within.correlation)
    return MaskedShells(within.frequency, within.correlation, random.correlation, corrected,
                        within.counts)
