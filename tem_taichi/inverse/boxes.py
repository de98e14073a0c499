"""Measures of a volume in boxes that have names."""

from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor

from tem_taichi.inverse.measures import (
    affine_fit,
    contrast_to_noise,
    equivalent_looks,
    peak_signal_to_noise,
    structural_similarity,
)


def measures_in_boxes(volume: Tensor, boxes: Mapping[str, Sequence[slice]],
                      pairs: Sequence[tuple[str, str]] = (), truth: Tensor | None = None
                      ) -> pd.DataFrame:
    """A row a box, or a pair of boxes.

    Args:
        volume: (nz, ny, nx).
        boxes: slices of each axis by name, as of `files.boxes.read_boxes`.
        pairs: names of a feature and its background.
        truth: of the same shape; the volume is compared with it, in each box, by `affine_fit`.

    Returns:
        box, mean, deviation, enl, equivalent looks, which need a unit with a zero; with a truth
        psnr [dB] and ssim, which is missing in boxes of fewer than 7 voxels a side; of a pair,
        named feature / background, cnr.

    Raises:
        ValueError: if a pair names no box, or the truth has another shape.
    """
    rows = []
    for name, box in boxes.items():
        inside = volume[tuple(box)]
        row = {"box": name, "mean": float(inside.mean()), "deviation": float(inside.std()),
               "enl": float(equivalent_looks(volume, box))}
        if truth is not None:
            true = truth[tuple(box)]
            fitted = affine_fit(inside, true)
            row["psnr"] = peak_signal_to_noise(fitted, true)
            if min(true.shape) >= 7:
                row["ssim"] = structural_similarity(fitted, true)
        rows.append(row)
    for feature, background in pairs:
        for name in (feature, background):
            if name not in boxes:
                raise ValueError(f"pairs: {name}: must be one of the boxes {', '.join(boxes)}")
        rows.append({"box": f"{feature} / {background}", "cnr": float(contrast_to_noise(
            volume, boxes[feature], boxes[background]))})
    return pd.DataFrame(rows)
