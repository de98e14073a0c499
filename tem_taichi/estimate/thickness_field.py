"""Thickness of a specimen from the images of a tilt series, and how it varies over the field.

One curve through the means of whole images takes the specimen for a slab. Whether it is one, the
same fits to the parts of the field tell: what they differ by belongs to the error, since a place
of the specimen is that far from the slab.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from tem_taichi.estimate.crops import plain
from tem_taichi.estimate.thickness_fit import ThicknessFit, fit_thickness, mean_intensities

_PARTS = 3  # of each side of the field
_SMALLEST = 16  # side of a part [pixel]
_SAID = 1.5  # total error over the statistical one from which the field's share is said


def fit_images_thickness(images: np.ndarray | Tensor, tilt_angles: ArrayLike,
                         doses: ArrayLike | None = None) -> ThicknessFit:
    """Fit thickness to images; errors hold that parts of the field differ.

    Ninths of the field are fitted like the whole, after its own deviations from the curve, the
    beam's and the angles', are divided out. What their t / L, normals and I0 scatter by beyond
    their errors is added to the covariance; `field_deviation` is that of t / L.

    Args:
        images: (n, ny, nx), proportional to electrons.
        tilt_angles: [deg], (n,).
        doses: of the images, relative to each other, (n,); None = equal.

    Raises:
        ValueError: as `mean_intensities` and `fit_thickness`.
    """
    stack = plain("images", images)
    weights = np.ones(len(stack)) if doses is None else np.asarray(doses, dtype=float)
    fit = fit_thickness(mean_intensities(stack) / weights, tilt_angles)
    if min(stack.shape[1:]) < _PARTS * _SMALLEST:
        return replace(fit, warnings=(*fit.warnings, f"Images of {stack.shape[1]} x "
                       f"{stack.shape[2]} pixels are too small to tell whether the specimen is as "
                       "thick everywhere; the error holds the scatter of the means alone."))
    beam = (fit.means / fit.expected(fit.tilt_angles) * weights)[fit.used]
    parts: list[ThicknessFit | None] = []
    for rows in np.array_split(stack[fit.used], _PARTS, axis=1):
        for part in np.array_split(rows, _PARTS, axis=2):
            try:
                parts.append(fit_thickness(mean_intensities(part) / beam,
                                           fit.tilt_angles[fit.used]))
            except ValueError:  # no curve goes through it
                parts.append(None)
    return with_field(fit, parts)


def with_field(fit: ThicknessFit, parts: list[ThicknessFit | None]) -> ThicknessFit:
    """A fit whose errors hold what parts of the field differ by.

    Args:
        fit: of the whole field.
        parts: of the field, in rows of equal length; None where no curve could be fitted.
    """
    good = [part for part in parts if part is not None]
    ratios = np.array([np.nan if part is None else part.ratio for part in parts])
    shape = (_PARTS, len(parts) // _PARTS)
    if len(good) < 3:
        return replace(fit, parts=ratios.reshape(shape), warnings=(
            *fit.warnings, f"Low confidence: of {len(parts)} parts of the field only {len(good)} "
            "darken with the tilt as a slab does."))
    found = np.array([[part.ratio, part.normal_angle, np.log(part.intensity)] for part in good])
    # Their own errors are no difference; directions in which these are larger show none.
    size, axes = np.linalg.eigh(np.cov(found.T) - np.mean([part.covariance for part in good],
                                                          axis=0))
    field = (axes * size.clip(min=0)) @ axes.T
    covariance = fit.covariance + field
    errors, notes = np.sqrt(np.diag(covariance)), []
    if errors[0] > _SAID * fit.ratio_error:
        notes.append(f"The specimen is no slab: t / L is {np.nanmin(ratios):.3g} to "
                     f"{np.nanmax(ratios):.3g} in {len(good)} parts of the field, a deviation of "
                     f"{np.sqrt(field[0, 0]):.2g} that the error includes; the scatter of the "
                     f"means alone makes {fit.ratio_error:.2g}.")
    if len(good) < len(parts):
        notes.append(f"{len(parts) - len(good)} of {len(parts)} parts of the field do not darken "
                     "with the tilt as a slab does.")
    return replace(fit, ratio_error=float(errors[0]), normal_error=float(errors[1]),
                   intensity_error=float(errors[2]) * fit.intensity, covariance=covariance,
                   field_deviation=float(np.sqrt(field[0, 0])), parts=ratios.reshape(shape),
                   warnings=(*fit.warnings, *notes))
