"""Tilt series: which angles in which order, and how the specimen lies in each image.

Axes are right-handed, in A, with the origin at the specimen's centre: x along the columns, y
along the rows of an image (row 0 at the bottom, as IMOD and ChimeraX show it), z along the beam.
The tilt axis lies in the image plane, turned by the axis angle counter-clockwise from +y, so its
direction is (-sin, cos, 0); a positive tilt turns the specimen right-handedly about it.
"""

import numpy as np
import pandas as pd

from tem_taichi.scene.settings import MAX_TILT, Scene, TiltSettings
from tem_taichi.streams import Key


def acquisition_angles(tilts: TiltSettings) -> np.ndarray:
    """Nominal tilt angles in the order of acquisition [deg].

    Raises:
        ValueError: for duplicates, |angle| of 90 degrees or beyond, or not finite ones.
    """
    if tilts.scheme == "listed":
        angles = np.asarray(tilts.angles, dtype=float)
    else:
        def steps(end: float) -> np.ndarray:
            count = int(np.floor(abs(end - tilts.start) / tilts.step + 1e-6))
            return tilts.start + np.sign(end - tilts.start) * tilts.step * np.arange(1, count + 1)

        if tilts.scheme == "linear":
            count = int(np.floor((tilts.maximum - tilts.minimum) / tilts.step + 1e-6)) + 1
            angles = tilts.minimum + tilts.step * np.arange(count)
        else:
            up, down = steps(tilts.maximum), steps(tilts.minimum)
            longest = max(len(up), len(down))
            size = tilts.group if tilts.scheme == "dose_symmetric" else max(longest, 1)
            parts = [np.array([tilts.start])]
            for first in range(0, longest, size):
                parts += [up[first:first + size], down[first:first + size]]
            angles = np.concatenate(parts)
    if not np.isfinite(angles).all() or np.abs(angles).max() > MAX_TILT:
        raise ValueError(f"tilts: angles from {angles.min():g} to {angles.max():g}: must be "
                         f"finite and within {MAX_TILT} degrees of 0")
    ordered = np.sort(angles)
    if (np.diff(ordered) < 1e-6).any():
        twice = ordered[1:][np.diff(ordered) < 1e-6][0]
        raise ValueError(f"tilts.angles={twice:g}: given more than once; every angle must differ")
    return angles


def tilt_table(scene: Scene) -> pd.DataFrame:
    """One row an image, in the order of the stack (ascending nominal angle).

    Columns: nominal_angle, tilt_angle (true), acquisition_index, prior_dose, dose [e-/A^2],
    axis_angle [deg], shift_x, shift_y [A], defocus_u, defocus_v [A], astigmatism_angle,
    phase_shift [deg]. The seed decides the errors; those of an image do not depend on the others.

    Raises:
        ValueError: for impossible angles, or lists whose length is not the number of tilts.
    """
    tilts, optics, errors = scene.tilts, scene.optics, scene.tilts.errors
    angles = acquisition_angles(tilts)
    n = len(angles)
    for key in ("shifts", "defocus_offsets", "doses"):
        given = getattr(tilts, key)
        if given is not None and len(given) != n:
            raise ValueError(f"tilts.{key}: has {len(given)} entries; must have one for each of "
                             f"the {n} tilts")
    noise = np.stack([Key(scene.seed, "tilts", i).generator().standard_normal(6)
                      for i in range(n)])
    shifts = np.asarray(tilts.shifts or np.zeros((n, 2)), dtype=float) + errors.shift * noise[:, :2]
    defocus = (optics.defocus + np.asarray(tilts.defocus_offsets or np.zeros(n))
               + errors.defocus * noise[:, 2])
    dose = (np.asarray(tilts.doses or np.full(n, scene.dose), dtype=float)
            * np.clip(1 + errors.dose * noise[:, 3], 0.1, None))
    true = angles + errors.angle * noise[:, 4]
    if np.abs(true).max() > MAX_TILT:
        raise ValueError(f"tilts.errors.angle={errors.angle}: turns an image beyond {MAX_TILT} "
                         "degrees")
    table = pd.DataFrame({
        "nominal_angle": angles,
        "tilt_angle": true,
        "acquisition_index": np.arange(n),
        "prior_dose": tilts.prior_dose + np.cumsum(dose) - dose,
        "dose": dose,
        "axis_angle": tilts.axis_angle + errors.axis_angle * noise[:, 5],
        "shift_x": shifts[:, 0],
        "shift_y": shifts[:, 1],
        "defocus_u": defocus + optics.astigmatism / 2,
        "defocus_v": defocus - optics.astigmatism / 2,
        "astigmatism_angle": optics.astigmatism_angle,
        "phase_shift": optics.phase_shift,
    })
    return table.sort_values("nominal_angle", kind="stable", ignore_index=True)
