"""The CTF of a whole tilt series in one fit, as the recipe of CTFs keeps and writes it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tem_taichi.estimate.ctf_row import row_of
from tem_taichi.estimate.ctf_search import CtfSearch
from tem_taichi.estimate.ctf_series import SeriesFit, fit_series
from tem_taichi.estimate.ctf_series_figure import write_series_figure
from tem_taichi.files.unfinished import load_part, part_key, picture_of, save_part

Row = dict[str, Any]


def fit_together(images: NDArray, pixel_size: float, tilts: pd.DataFrame,
                 lens: tuple[float, float, float], search: CtfSearch,
                 kept: Path) -> tuple[list[Row], Row, Path]:
    """Rows of all images, the series' own numbers and its picture: anew, or from a run cut short.

    Args:
        images: (n, ny, nx).
        pixel_size: [A].
        tilts: tilt_angle and axis_angle [deg] of each.
        lens: voltage [kV], Cs [mm] and amplitude contrast.
        search: where to look.
        kept: hidden folder of finished parts.
    """
    pairs = list(zip(tilts["tilt_angle"].tolist(), tilts["axis_angle"].tolist(), strict=True))
    key = part_key(images, ["joint", pixel_size, pairs, *lens, *vars(search).values()])
    part, picture = load_part(kept, key, ("rows", "numbers")), picture_of(kept, key)
    if part is None or not picture.is_file():
        fit = fit_series(images, pixel_size, pairs, *lens, search)
        kept.mkdir(parents=True, exist_ok=True)
        write_series_figure(picture, fit, [angle for angle, _ in pairs])
        part = {"rows": [row_of(one) for one in fit.images()], "numbers": _numbers(fit)}
        save_part(kept, key, part)
    return part["rows"], part["numbers"], picture


def _numbers(fit: SeriesFit) -> Row:
    """Of results.json: what all images have in common."""
    known = fit.stated
    numbers = {
        "defocus_A": fit.mean, "defocus_error_A": fit.mean_error,
        "astigmatism_A": fit.astigmatism, "astigmatism_error_A": fit.astigmatism_error,
        "astigmatism_angle_deg": fit.astigmatism_angle,
        "astigmatism_angle_error_deg": fit.angle_error,
        "defocus_change_A": fit.free, "defocus_drift_A_per_3_deg": fit.smooth,
        "defocus_A_per_0.01_amplitude_contrast": known.by_contrast,
        "heights": known.slope[0], "heights_error": known.slope[1],
        **({} if fit.phase_error > 0 else {
            "phase_beyond_stated_deg": known.phase[0],
            "phase_beyond_stated_error_deg": known.phase[1]}),
        "blur_thickness_A": fit.thickness, "blur_thickness_relative_error": fit.thickness_error}
    return {name: float(value) for name, value in numbers.items() if np.isfinite(value)}
