"""The numbers of a CTF fit as a row of a table, as JSON keeps it, and back."""

import math
from typing import Any

import numpy as np

from tem_taichi.estimate.ctf_curves import CtfCurves
from tem_taichi.estimate.ctf_fit import CtfFit

ROW = ("defocus_u", "defocus_v", "astigmatism_angle", "phase_shift", "errors",
        "statistical_errors", "model_errors", "resolution", "gain", "figure_of_merit",
        "spherical_aberration", "spherical_error", "reliable", "doubts", "hand_gain")
"""What is kept of a fit; its curves are in the picture."""


def row_of(fit: CtfFit) -> dict[str, Any]:
    """The fit's numbers; null for what JSON has no number for."""
    return {name: finite(getattr(fit, name)) for name in ROW}


def failed_row(reason: str) -> dict[str, Any]:
    """The row of an image that could not be fitted, all numbers NaN."""
    row: dict[str, Any] = dict.fromkeys(ROW, math.nan)
    four = (math.nan,) * 4
    return row | {"errors": four, "statistical_errors": four, "model_errors": four, "gain": 0.0,
                  "reliable": False, "doubts": [reason], "failed": reason}


def finite(value: Any) -> Any:
    """Null for what JSON has no number for, as the resolution of a fit without rings."""
    if isinstance(value, tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fit_of(row: dict[str, Any]) -> CtfFit:
    """The fit's numbers for a star file, without its curves."""
    none = np.empty(0)
    number: dict[str, Any] = {name: math.nan if row[name] is None else row[name] for name in ROW
                              if name not in ("reliable", "resolution")}
    resolution = math.inf if row["resolution"] is None else row["resolution"]
    return CtfFit(**number, resolution=resolution, curves=CtfCurves(*6 * [none]), model=none,
                  flattened=none, pixel_size=math.nan)
