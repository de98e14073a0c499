"""Radiation damage: what an exposed specimen still shows at each frequency."""

import torch

from tem_taichi.arguments import check_number, check_voltage
from tem_taichi.device import as_tensor
from tem_taichi.grid import check_pixel_size, squared_frequencies
from tem_taichi.physics import Value
from tem_taichi.specimen.absorption import mean_free_path


def critical_exposure(k: torch.Tensor, voltage: Value = 300.0) -> torch.Tensor:
    """Exposure N_c [e-/A^2] that leaves 1/sqrt(e) of an amplitude: 0.245 k^-1.665 + 2.81.

    Grant & Grigorieff (2015), eLife 4, e06980, for 300 kV; at other voltages by (v / c)^2, which
    gives the 0.8 they use at 200 kV.

    Args:
        k: frequencies [1/A], any shape; infinite exposure at 0.
        voltage: [kV].
    """
    return as_tensor(mean_free_path(0.245 * k**-1.665 + 2.81, voltage))


def damping(
    shape: tuple[int, int], pixel_size: float, exposure: Value, voltage: Value
) -> torch.Tensor:
    """Factor exp(-N / (2 N_c)) of the specimen's signal, at the frequencies of an rfft2.

    Args:
        shape: (ny, nx).
        pixel_size: [A].
        exposure: N, what the specimen had before and half of the image's own [e-/A^2].
        voltage: [kV].

    Returns:
        Real tensor (ny, nx // 2 + 1), 1 at k = 0; differentiable in the exposure.
    """
    check_number("exposure", exposure, "e-/A^2", 0.0, 1e12)
    check_voltage(voltage)
    k = squared_frequencies(shape, check_pixel_size(pixel_size), half=True).sqrt()
    k[0, 0] = 1e-9
    return torch.exp(-as_tensor(exposure) / (2 * critical_exposure(k, voltage)))
