"""Thickness of a specimen in mean free paths, from how a tilt series darkens with the tilt.

The mean of an image is I0 exp(-(t / L) / cos(tilt - tilt of the normal)), t across the specimen's
plane. A slope along the tilt axis only lengthens every path by the same factor and cannot be told
from thickness; neither can a beam that changes in step with the tilt, nor tilts that are all larger
than stated: by 0.1 deg, t / L comes out 0.6 % too large.
"""

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats
from torch import Tensor

from tem_taichi.estimate.angle_errors import Marginal, marginalise
from tem_taichi.estimate.crops import plain

_LEAST = 4  # tilts, one more than parameters
_STEEPEST = 30.0  # angle of normal and beam at zero tilt that is looked for [deg]
_OUTLIER = 1e-4  # part of good tilts taken for outliers: beyond 4.3 deviations of 41, 16 of 7
_LEAST_SCATTER = 1e-6  # relative: without any noise, rounding makes no outliers
_PAIRS = 1500  # of tilts that curves are drawn through
_SCALES = (0.1, 5.0, 0.1)  # steps of t / L, normal [deg] and log I0 alike to the minimiser
_BLOCK, _TRIM = 8, 0.1  # pixels, and the part left out at either end
_STEPS = 3  # of Newton's, from least squares to the mean over errors of the angles
_BENT = 1e-3  # probability of the means below which they fall otherwise than a slab's
_UNSURE = 0.2  # relative half-width of the 95 % interval of t / L called low confidence


@dataclass(frozen=True, eq=False)
class ThicknessFit:
    """What the means of a tilt series say of the specimen's thickness.

    Attributes:
        ratio: thickness over mean free path, t / L, across the specimen's plane.
        ratio_error: its standard error.
        normal_angle: tilt at which the specimen's normal is along the beam, but for its slope
            along the axis [deg]; an offset that all stated tilts have is part of it.
        normal_error: its standard error [deg].
        intensity: I0, the mean without a specimen [counts].
        intensity_error: its standard error [counts].
        covariance: of ratio, normal_angle [deg] and log I0, (3, 3).
        chi2: sum of squared deviations over squared errors of the tilts in use; with errors from
            the scatter it is the number of degrees of freedom.
        degrees: tilts in use less three.
        scatter: standard deviation of a mean from the curve, relative to it.
        angle_error: standard deviation of a tilt angle from the stated one that the deviations
            look like [deg].
        used: which tilts were used, (n,).
        warnings: what to know before the numbers are believed, one sentence each.
        tilt_angles: as given [deg], (n,).
        means: as given [counts], (n,).
        statistical_error: part of ratio_error by the scatter of the means.
        field_deviation: part of ratio_error by places of the field, of which each has another
            t / L: their standard deviation; None where only means were given.
        parts: t / L of parts of the field, rows and columns as in the image; NaN where none fits.
    """

    ratio: float
    ratio_error: float
    normal_angle: float
    normal_error: float
    intensity: float
    intensity_error: float
    covariance: np.ndarray = field(repr=False)
    chi2: float
    degrees: int
    scatter: float
    angle_error: float
    used: np.ndarray = field(repr=False)
    warnings: tuple[str, ...]
    tilt_angles: np.ndarray = field(repr=False)
    means: np.ndarray = field(repr=False)
    statistical_error: float
    field_deviation: float | None = None
    parts: np.ndarray | None = field(default=None, repr=False)

    def thickness(self, mean_free_path: float) -> float:
        """Thickness [A] for a mean free path [A]."""
        return self.ratio * mean_free_path

    def interval(self, name: str = "ratio", level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of "ratio", "normal_angle" or "intensity", by Student's law.

        Raises:
            ValueError: for another name.
        """
        if name not in ("ratio", "normal_angle", "intensity"):
            raise ValueError(f"name={name!r}: must be ratio, normal_angle or intensity")
        place = ("ratio", "normal_angle", "intensity").index(name)
        half = (float(stats.t.ppf((1 + level) / 2, self.degrees))
                * float(np.sqrt(self.covariance[place, place])))
        value = float(getattr(self, name))
        if name == "intensity":  # its logarithm is what is fitted
            return value * float(np.exp(-half)), value * float(np.exp(half))
        return value - half, value + half

    def by_offset(self, part: float) -> float:
        """Change of ratio by a constant added to the means, a part of I0; tilts count alike."""
        path = _path(self.tilt_angles[self.used], self.normal_angle)
        return -float(np.polyfit(path, part * np.exp(self.ratio * path), 1)[0])

    def expected(self, tilt_angles: ArrayLike) -> np.ndarray:
        """The curve: mean at each tilt [counts]."""
        angles = np.asarray(tilt_angles, dtype=float)
        return self.intensity * np.exp(-self.ratio * _path(angles, self.normal_angle))


def mean_intensities(images: np.ndarray | Tensor) -> np.ndarray:
    """Mean of each image of a stack, without fiducials, edges and contamination.

    Means of 8 x 8 blocks, of which the darkest and the brightest tenth are left out; of single
    pixels that would move the mean, since counts are skewed.

    Args:
        images: (n, ny, nx), sides of at least 16 pixels.

    Returns:
        (n,), float64.

    Raises:
        ValueError: for another shape, or values that are not finite.
    """
    stack = plain("images", images)
    if stack.ndim != 3 or len(stack) == 0 or min(stack.shape[1:]) < 2 * _BLOCK:
        raise ValueError(f"images: have shape {stack.shape}; must be (n, ny, nx), sides >= "
                         f"{2 * _BLOCK}")
    n, rows, columns = len(stack), *(side // _BLOCK for side in stack.shape[1:])
    blocks = stack[:, :rows * _BLOCK, :columns * _BLOCK].reshape(
        n, rows, _BLOCK, columns, _BLOCK).mean(axis=(2, 4))
    return np.asarray(stats.trim_mean(blocks.reshape(n, -1), _TRIM, axis=1))


def fit_thickness(means: ArrayLike, tilt_angles: ArrayLike,
                  errors: ArrayLike | None = None) -> ThicknessFit:
    """Fit thickness over mean free path, tilt of the normal and I0 to a tilt series' means.

    A start that almost half of the tilts cannot spoil (least quantile of squares, Rousseeuw 1984)
    finds those near the curve, and least squares of the logarithms uses them, averaged over unknown
    errors of each mean and of each tilt angle (`angle_errors`). Deviations that go together from
    tilt to tilt, of a beam that drifts or a specimen that is no slab, widen the errors as a
    first-order autoregression does.

    Args:
        means: mean of each image [counts], positive, (n,), as from `mean_intensities`.
        tilt_angles: [deg], (n,), in any order.
        errors: standard deviation of each mean [counts]; None takes them as equal parts of the
            means and their size from the scatter, as is wise: images scatter by the beam more
            than by counting electrons. Errors too small for the scatter are enlarged.

    Raises:
        ValueError: for fewer than 4 tilts, means that are not positive or not finite, angles that
            say nothing on thickness, images that are brighter when tilted (the 95 % interval of
            t / L is below 0), or if no curve can be fitted.
    """
    values, angles, sigma = _checked(means, tilt_angles, errors)
    logs, n = np.log(values), len(values)
    point, scale = _robust_start(logs, angles, sigma)
    floor = _LEAST_SCATTER if errors is None else 1.0
    deviation, keep = np.full(n, max(scale, floor)), np.zeros(n, dtype=bool)
    for _ in range(20):
        degrees = max(keep.sum(), n - n // 4, _LEAST) - 3
        limit = stats.t.isf(_OUTLIER / 2, degrees) * deviation
        now = np.abs(_residuals(point, logs, angles, sigma)) <= limit
        if (now == keep).all():
            break
        if now.sum() < max(_LEAST, n / 2):
            raise ValueError(f"means: {now.sum()} of {n} agree with one curve; must be at least "
                             f"{max(_LEAST, -(-n // 2))}")
        keep = now
        point = optimize.least_squares(_residuals, point, method="lm", x_scale=_SCALES,
                                       args=(logs[keep], angles[keep], sigma[keep])).x
        point, share = _marginalised(point, logs[keep], angles[keep], sigma[keep], False)
        turn = _turn(point, angles) / sigma
        deviation = np.sqrt(max(share.noise, floor**2) + share.angles * turn**2)
    return _result(point, values, angles, sigma, keep, errors is not None)


def _checked(means: ArrayLike, tilt_angles: ArrayLike,
             errors: ArrayLike | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, angles and relative errors, 1 where none are given."""
    values, angles = plain("means", means), plain("tilt_angles", tilt_angles)
    if values.ndim != 1 or values.shape != angles.shape or len(values) < _LEAST:
        raise ValueError(f"means {values.shape}, tilt_angles {angles.shape}: must be two rows of "
                         f"the same length, at least {_LEAST} tilts")
    if values.min() <= 0:
        raise ValueError(f"means={values.min():g}: must be positive [counts]")
    if np.abs(angles).max() >= 90:
        raise ValueError(f"tilt_angles={angles[np.abs(angles).argmax()]:g}: must be within 90 deg")
    if np.ptp(_path(angles, 0.0)) < 0.01 or len(np.unique(angles.round(1))) < 3:
        raise ValueError(f"tilt_angles: {angles.min():g} to {angles.max():g} deg must be three "
                         "different ones or more, and change the path by 1 % or more")
    if errors is None:
        return values, angles, np.ones(len(values))
    given = plain("errors", errors)
    if given.shape != values.shape or given.min() <= 0:
        raise ValueError(f"errors: shape {given.shape}, least {given.min():g}; must be positive, "
                         "one for each mean [counts]")
    return values, angles, given / values


def _path(angles: np.ndarray, normal: float) -> np.ndarray:
    """Way through the specimen over its thickness."""
    return np.asarray(1 / np.cos(np.deg2rad(angles - normal)))


def _residuals(point: np.ndarray, logs: np.ndarray, angles: np.ndarray,
               sigma: np.ndarray) -> np.ndarray:
    """Deviations of log means from the curve of ratio, normal's tilt and log I0, in errors."""
    return np.asarray((logs - point[2] + point[0] * _path(angles, point[1])) / sigma)


def _turn(point: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Change of the curve's logarithm by the tilt, but for its sign [1/deg]."""
    path = _path(angles, point[1])
    return np.asarray(np.deg2rad(point[0] * path**2 * np.sin(np.deg2rad(angles - point[1]))))


def _marginalised(point: np.ndarray, logs: np.ndarray, angles: np.ndarray, sigma: np.ndarray,
                  known: bool) -> tuple[np.ndarray, Marginal]:
    """Point at the mean over errors of the angles, and what is known there."""
    for _ in range(_STEPS):
        turn = _turn(point, angles) / sigma
        slopes = np.stack([-_path(angles, point[1]) / sigma, turn, 1 / sigma], axis=1)
        share = marginalise(_residuals(point, logs, angles, sigma), slopes, turn, known)
        point = point + share.shift
    return point, share


def _robust_start(logs: np.ndarray, angles: np.ndarray,
                  sigma: np.ndarray) -> tuple[np.ndarray, float]:
    """Curve through two tilts that is nearest to more than half of all, and their scatter."""
    n = len(logs)
    most = min((n + 3) // 2, n - 1)
    pairs = np.array(list(combinations(range(n), 2)))
    pairs = pairs[np.linspace(0, len(pairs) - 1, min(len(pairs), _PAIRS)).astype(int)]
    best, start = np.inf, np.zeros(3)
    for normal in np.arange(-_STEEPEST, _STEEPEST + 1, 2.0):
        if np.abs(angles - normal).max() > 88:
            continue
        path = _path(angles, float(normal))
        one, two = pairs[np.abs(path[pairs[:, 0]] - path[pairs[:, 1]]) > 1e-3].T
        ratio = (logs[two] - logs[one]) / (path[one] - path[two])
        height = logs[one] + ratio * path[one]
        away = np.abs(logs - height[:, None] + ratio[:, None] * path) / sigma
        middle = np.partition(away, most, axis=1)[:, most]
        middle[ratio <= 0] = np.inf  # no specimen makes an image brighter
        if len(middle) and middle.min() < best:
            best, at = float(middle.min()), int(middle.argmin())
            start = np.array([ratio[at], normal, height[at]])
    if not np.isfinite(best):
        raise ValueError("means: are brighter when tilted, as in dark field; must fall with the "
                         "tilt as those of a slab in bright field do")
    # The grid's steps change means at 60 deg by 1e-2: polished before use.
    point = optimize.least_squares(_residuals, start, loss="soft_l1", x_scale=_SCALES,
                                   f_scale=max(best / 3, _LEAST_SCATTER),
                                   args=(logs, angles, sigma)).x
    spread = np.median(np.abs(_residuals(point, logs, angles, sigma)))
    return point, 1.4826 * (1 + 5 / max(n - 3, 1)) * float(spread)


def _result(point: np.ndarray, values: np.ndarray, angles: np.ndarray, sigma: np.ndarray,
            keep: np.ndarray, given: bool) -> ThicknessFit:
    used = np.log(values[keep]), angles[keep], sigma[keep]
    degrees, notes = len(used[0]) - 3, []
    point, share = _marginalised(point, *used, known=given)
    chi2 = share.chi2 if given else float(degrees)
    if given and stats.chi2.sf(degrees * share.noise, degrees) < 0.01:
        notes.append(f"The means scatter {np.sqrt(share.noise):.1f} times as much as the given "
                     "errors say, which were enlarged.")
    ratio, normal, height = (float(value) for value in point)
    covariance = share.covariance
    spread = np.sqrt(share.noise + share.angles * (_turn(point, used[1]) / used[2]) ** 2)
    together = _correlation((_residuals(point, *used) / spread)[np.argsort(used[1])])
    if together > 0:
        covariance = covariance * (1 + together) / (1 - together)
        notes.append(f"Deviations of neighbouring tilts go together ({together:.2f}): the beam "
                     "drifts or the specimen is no slab; errors are "
                     f"{np.sqrt((1 + together) / (1 - together)):.1f} times as wide for it.")
    if (chance := _bend(point, *used, spread)) < _BENT:
        notes.append(f"The means do not fall as a slab's (p = {chance:.0e}): an offset of "
                     "the counts, angles of another scale or a beam that changes with the tilt "
                     "move t / L by more than the error.")
    if not keep.all():
        notes.append(f"{(~keep).sum()} of {len(keep)} tilts are far from the curve and not used: "
                     f"{', '.join(f'{a:g}' for a in angles[~keep])} deg.")
    deviations = np.sqrt(np.diag(covariance))
    half = float(stats.t.ppf(0.975, degrees)) * deviations[0]
    if ratio + half < 0:
        raise ValueError(f"means: are brighter when tilted (t / L would be {ratio:.3g} +- "
                         f"{deviations[0]:.2g}), as in dark field; must be of bright field, which "
                         "a slab darkens")
    if half > _UNSURE * abs(ratio) or abs(normal) > _STEEPEST or ratio <= 0:
        notes.append(f"Low confidence: t / L is {ratio:.3g} within {half:.2g} (95 %), the normal "
                     f"at {normal:.1f} deg.")
    away = used[0] - (height - ratio * _path(used[1], normal))
    return ThicknessFit(ratio=ratio, ratio_error=float(deviations[0]), normal_angle=normal,
                        normal_error=float(deviations[1]), intensity=float(np.exp(height)),
                        intensity_error=float(np.exp(height) * deviations[2]),
                        covariance=covariance, chi2=chi2, degrees=degrees,
                        scatter=float(np.sqrt((away**2).sum() / degrees)),
                        angle_error=float(np.sqrt(share.angles)), used=keep, warnings=tuple(notes),
                        tilt_angles=angles, means=values, statistical_error=float(deviations[0]))


def _bend(point: np.ndarray, logs: np.ndarray, angles: np.ndarray, sigma: np.ndarray,
          spread: np.ndarray) -> float:
    """Probability that chance alone bends the logarithms as much over the path (F test)."""
    path, free = _path(angles, point[1]), len(logs) - 4
    if free < 2:
        return 1.0
    columns = np.stack([path, _turn(point, angles), np.ones_like(path), path**2], axis=1)
    columns = columns / (sigma * spread)[:, None]
    columns /= np.sqrt((columns**2).sum(axis=0)) + 1e-30
    target = _residuals(point, logs, angles, sigma) / spread
    plain_left, left = (float(((target - part @ np.linalg.lstsq(part, target, None)[0])**2).sum())
                        for part in (columns[:, :3], columns))
    return float(stats.f.sf((plain_left - left) / max(left / free, 1e-12), 1, free))


def _correlation(residuals: np.ndarray) -> float:
    """Correlation of neighbours, where it is more than chance makes it; else 0."""
    n = len(residuals)
    total = float((residuals**2).sum())
    if n < 10 or total == 0:
        return 0.0
    value = float((residuals[1:] * residuals[:-1]).sum()) / total
    # A fit of three parameters alone makes it about -3 / n.
    return min(value + 3 / n, 0.9) if value + 3 / n > 2 / np.sqrt(n) else 0.0
