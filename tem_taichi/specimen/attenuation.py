"""What a layer of ice and its film take from the elastic image, ray by ray."""

import numpy as np
import torch

from tem_taichi.device import as_tensor, number, present
from tem_taichi.physics import Value
from tem_taichi.specimen.absorption import Ratios, absorption_ratios
from tem_taichi.specimen.ice import mean_potential
from tem_taichi.specimen.ice_shape import IceShape, is_slab, path_length
from tem_taichi.specimen.view import View


def transmitted(
    layer: IceShape, mean_free_path: Value, view: View, ratios: Ratios | None = None
) -> torch.Tensor:
    """Part of the electrons that pass a layer of ice and its film without loss.

    Args:
        layer: where they are.
        mean_free_path: of ice [A].
        view: rotation, shift and grid.
        ratios: what elements absorb, of `absorption.Loss`.

    Returns:
        exp(-path / mean free path) of each pixel's ray, (ny, nx).
    """
    # Rays on a coarse grid, about 8 pixels apart, or half as far as knots, since each costs many
    # steps.
    slab = (is_slab(layer) and layer.absorption is None
            and not present(layer.carbon_thickness))
    knots = [number(spacing) for spacing, given in (
        (layer.relief_spacing, layer.relief), (layer.absorption_spacing, layer.absorption))
        if given is not None]
    apart = max(1, int(min([8.0, *(spacing / 2 / view.pixel_size for spacing in knots)])))
    coarse = [n if slab or apart == 1 else -(-n // apart) + 1 for n in view.shape]
    y, x = (as_tensor(np.linspace(-(n // 2), n - 1 - n // 2, few)) * view.pixel_size - by
            for n, few, by in zip(view.shape, coarse, view.shift.flip(0), strict=True))
    rays = (layer, view.rotation, x[None, :], y[:, None])
    lost = path_length(*rays) / mean_free_path
    if present(layer.carbon_thickness):
        stronger = float(absorption_ratios(ratios)[6]) * mean_potential("carbon")
        lost = lost + path_length(*rays, "carbon") * stronger / mean_free_path
    if not slab:
        lost = torch.nn.functional.interpolate(lost[None, None], view.shape, mode="bilinear",
                                               align_corners=True)[0, 0]
    return torch.exp(-lost)
