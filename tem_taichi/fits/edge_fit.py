"""MTF of any camera from the image of a straight, slightly slanted edge.

An edge at distance d (positive on the bright side) is recorded as
    dark + (bright - dark) E(d),   E(d) = 1/2 + int_0^H M(w) sin(2 pi w d) / (pi w) dw,
the edge spread function of a step that the MTF M blurs (Rossmann 1969); that is the detector's
forward model applied to an infinitely fine edge. The slant samples E between the pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from scipy.interpolate import BSpline
from torch import Tensor

from tem_taichi.fits.crops import plain
from tem_taichi.fits.fitting import Values, covariance, fit
from tem_taichi.fits.noise_curves import EXPECTED, shaped_mtf
from tem_taichi.fits.noise_fit import Band, falling

FREQUENCIES = np.arange(129) / 256
"""Where the MTF is given [cycles/pixel], 0 to 0.5."""
_SIGMAS = 1.96
_FINENESS = 16
"""Points per pixel at which the edge spread function is tabulated."""
_SPACING = 1 / 24
"""Between knots of the free MTF [cycles/pixel]."""
_STRENGTHS = np.logspace(0, 6, 25)
"""Inverse variances of the MTF's second differences between knots to choose from."""


@dataclass(frozen=True, eq=False)
class EdgeFit:
    """The MTF that an edge shows.

    Attributes:
        mtf: modulation transfer function, with 95 % intervals from the scatter between stretches
            of the edge, which sees noise of any colour and a rough edge.
        parameters: a, b, c, alpha, beta of `curves.mtf_parametric`; None of a free curve.
        angle: of the direction towards the bright side, from +x towards +y [deg].
        offset: distance of the edge from the image's centre (ny // 2, nx // 2) towards the bright
            side [pixel].
        dark, bright: counts on the two sides, of the bright one at the image's centre.
        misfit: variance of the residuals averaged along the edge over what noise leaves; about 1
            if the model holds.
        model: (ny, nx), the fitted image within `reach` of the edge, NaN outside.
        assumptions: what the result rests on, one sentence each.
    """

    mtf: Band
    parameters: tuple[float, ...] | None
    angle: float
    offset: float
    dark: float
    bright: float
    misfit: float
    model: np.ndarray = field(repr=False)
    assumptions: tuple[str, ...]

    def to_config(self, *, kind: str = "counting", gain: float = 1.0,
                  dqe: float | None = None) -> dict[str, Any]:
        """Mapping for `cameras.detector_from_config`; an edge tells only the MTF."""
        curve = ({"mtf_table": self.mtf.rows()} if self.parameters is None
                 else {"mtf": list(self.parameters)})
        return {"kind": kind, "gain": gain, "dqe": dqe, **curve}


def estimate_mtf_from_edge(image: np.ndarray | Tensor, *, form: str = "free",
                           highest: float = 1.0, reach: float = 40.0) -> EdgeFit:
    """Fit a slanted edge: where it is, its angle, both levels and the MTF.

    The brightness may slope linearly; the edge must be straight, its shadow uniform, and nothing
    else within reach.

    Args:
        image: (ny, nx) [counts], or (n, ny, nx) of the same edge, which are averaged; cut so that
            the edge crosses it once. Corrected for gain errors.
        form: "free", a falling spline with knots every 1/24 cycles/pixel, or "parametric".
        highest: H above [cycles/pixel], from 0.5 to 2. A camera's pixels also record, aliased,
            what lies beyond Nyquist: 1 or more. A simulator that crops images in Fourier space
            does not: 0.5 over the cosine of the slant.
        reach: distance from the edge up to which pixels are used [pixel], >= 8.

    Raises:
        ValueError: if an argument is not allowed, the image is not finite, no edge is found, or
            it runs along the pixels.
    """
    stack = _checked(image, form, highest, reach)
    normal, offset = _find(stack)
    ny, nx = stack.shape
    y, x = (np.arange(n) - n // 2 for n in (ny, nx))
    far = normal[0] * x + normal[1] * y[:, None] - offset
    used = np.abs(far) < reach
    margin = 2 + 3 * highest  # the sharp end of a wrapped image, not the edge's own
    used &= (np.abs(x + 0.5) < nx / 2 - margin) & (np.abs(y + 0.5) < ny / 2 - margin)[:, None]
    rows, columns = np.nonzero(used)
    problem = _Problem(stack[used], x[columns], y[rows], offset, np.arctan2(*normal[::-1]),
                       form, highest, reach)
    theta = problem.solve()
    variance, misfit = problem.scatter(theta)
    shape = theta[6:]
    design = problem.design(FREQUENCIES)
    slope = _slopes(lambda own: problem.mtf(design, own), shape).numpy()
    error = _SIGMAS * np.sqrt(np.einsum("ki,ij,kj->k", slope, variance[6:, 6:], slope))
    values = problem.mtf(design, shape).numpy()
    model = np.full(stack.shape, np.nan)
    model[used] = problem.image(theta).numpy() * problem.unit
    mtf, parameters = Band(FREQUENCIES, values, values - error, values + error), None
    mtf = falling(mtf) if form == "free" else mtf
    if form == "parametric":
        a, b = (float(own) for own in shape[:2])
        parameters = (a, b, 1 - a - b, float(shape[2].exp()), float(shape[3].exp()))
    dark, bright = (float(level) * problem.unit for level in theta[2:4])
    return EdgeFit(mtf, parameters, float(theta[1].rad2deg()), float(theta[0]), dark, bright,
                   misfit, model, (
        "The edge is straight and sharp, and blurred by the detector only.",
        "The MTF is the same in every direction; it is measured along the edge's normal.",
        f"Nothing is recorded beyond {highest:g} cycles/pixel.",
        "Gain and DQE are not measured by an edge."))


class _Problem:
    """Counts of pixels near an edge, and their model.

    theta: offset, angle, dark, bright, slopes of bright along x and y over the reach, then the
    MTF's free numbers. Counts are in units of the contrast.
    """

    def __init__(self, counts: np.ndarray, x: np.ndarray, y: np.ndarray, offset: float,
                 angle: float, form: str, highest: float, reach: float) -> None:
        bright_side = np.cos(angle) * x + np.sin(angle) * y > offset
        low, high = (float(np.median(counts[side])) for side in (~bright_side, bright_side))
        self.unit = high - low
        self.counts, self.x, self.y = (torch.tensor(array, dtype=torch.float64) for array in
                                       (counts / self.unit, x, y))
        self.form, self.highest, self.reach = form, highest, reach
        nodes, weights = np.polynomial.legendre.leggauss(int(6 * highest * reach) + 40)
        table = np.arange(-(reach + 8) * _FINENESS, (reach + 8) * _FINENESS + 1) / _FINENESS
        w = (nodes + 1) * highest / 2
        self.table_start = float(table[0])
        self.kernel = torch.tensor(np.sin(2 * np.pi * np.outer(table, w)) / (np.pi * w)
                                   * weights * highest / 2)
        self.variance = torch.ones_like(self.counts)
        start = [offset, angle, low / self.unit, high / self.unit, 0, 0]
        if form == "parametric":
            self.centre, self.error = torch.tensor(EXPECTED, dtype=torch.float64).T
            shape = self.centre.tolist()
        else:
            count = int(np.ceil(highest / _SPACING))
            knots = np.arange(-3, count + 4) * (highest / count)
            self.splines = BSpline(knots, np.eye(count + 3), 3)
            shape = (1 / (1 + 8 * (np.arange(count + 2) * highest / count) ** 2)).tolist()
            self.at_knots = self.design(np.linspace(0, highest, count + 1))
        self.start = torch.tensor(start + shape, dtype=torch.float64)
        self.nodes, self.strength = self.design(w), 1e3

    def design(self, w: np.ndarray) -> Tensor:
        """What `mtf` needs of the frequencies: themselves, or the splines there."""
        if self.form == "parametric":
            return torch.tensor(w)
        basis = self.splines(np.append(np.minimum(w, self.highest * (1 - 1e-9)), 0))
        # The first spline makes up for the others at 0, where the MTF is 1.
        ratio = basis[:-1, :1] / basis[-1, 0]
        return torch.tensor(np.hstack([ratio, basis[:-1, 1:] - ratio * basis[-1, 1:]]))

    def mtf(self, design: Tensor, shape: Tensor) -> Tensor:
        if self.form == "parametric":
            return shaped_mtf(design, shape)
        return design[:, 0] + design[:, 1:] @ shape

    def image(self, theta: Tensor) -> Tensor:
        offset, angle, dark, bright, slope_x, slope_y = theta[:6]
        spread = 0.5 + self.kernel @ self.mtf(self.nodes, theta[6:])
        distance = angle.cos() * self.x + angle.sin() * self.y - offset
        place = (distance - self.table_start) * _FINENESS
        index = place.detach().floor().long().clamp(0, len(spread) - 2)
        edge = torch.lerp(spread[index], spread[index + 1], place - index)
        tilt = (slope_x * self.x + slope_y * self.y) / self.reach
        return dark + (bright + tilt - dark) * edge

    def loss(self, theta: Tensor, counts: Tensor) -> Tensor:
        squares = ((counts - self.image(theta)).square() / self.variance).sum() / 2
        if self.form == "parametric":
            return squares + ((theta[6:] - self.centre) / self.error).square().sum() / 2
        return squares + self.strength * self.second(theta[6:]).square().sum() / 2

    def second(self, shape: Tensor) -> Tensor:
        """Second differences of the MTF between knots."""
        return (self.at_knots[:, 0] + self.at_knots[:, 1:] @ shape).diff(n=2)

    def choose_strength(self, theta: Tensor) -> None:
        """Smoothness of greatest marginal likelihood, the model linear about theta."""
        slopes = _slopes(self.image, theta)
        scaled = slopes / self.variance[:, None]
        target = scaled.T @ (self.counts - self.image(theta) + slopes @ theta)
        rough = torch.zeros(len(self.at_knots) - 2, len(theta)).double()
        rough[:, 6:] = self.at_knots[:, 1:].diff(n=2, dim=0)
        fixed = self.at_knots[:, 0].diff(n=2)
        curvature = slopes.T @ scaled
        evidence = []
        for strength in _STRENGTHS:
            precision = curvature + strength * rough.T @ rough
            right = target - strength * rough.T @ fixed
            fitted = right @ torch.linalg.solve(precision, right) - strength * fixed @ fixed
            evidence.append(len(rough) * np.log(strength)
                            + float(fitted - torch.logdet(precision)))
        self.strength = float(_STRENGTHS[int(np.argmax(evidence))])

    def information(self, theta: Tensor) -> Tensor:
        """Covariance of theta if the noise were white."""
        model = self.image(theta)
        return covariance(lambda values: self.loss(values["theta"], model), {"theta": theta})

    def solve(self) -> Tensor:
        theta = self.start
        for _ in range(3):
            level = self.image(theta)
            residual = (self.counts - level).square()
            # Shot noise: variance rises linearly with the mean.
            bright = level > (level.min() + level.max()) / 2
            low, high = residual[~bright].mean(), residual[bright].mean()
            share = ((level - theta[2]) / (theta[3] - theta[2])).clamp(0, 1)
            self.variance = (low + (high - low) * share).clamp(min=1e-12)
            if self.form == "free":
                self.choose_strength(theta)
            frame = torch.linalg.cholesky(self.information(theta))

            def loss(values: Values, start: Tensor = theta, frame: Tensor = frame) -> Tensor:
                return self.loss(start + frame @ values["z"], self.counts)

            found = fit(loss, {"z": torch.zeros(len(theta)).double()}, steps=60, tolerance=1e-9)
            theta = theta + frame @ found.values["z"]
        return theta

    def scatter(self, theta: Tensor) -> tuple[np.ndarray, float]:
        """Covariance from stretches of the edge, and the misfit of the mean profile."""
        residual = ((self.counts - self.image(theta)) / self.variance).numpy()
        slopes = _slopes(self.image, theta).numpy()
        along = (-theta[1].sin() * self.x + theta[1].cos() * self.y).numpy()
        blocks = np.clip(((along - along.min()) / 8).astype(int), 0, None)
        scores = np.stack([np.bincount(blocks, column * residual) for column in slopes.T], axis=1)
        count = len(np.unique(blocks))
        inverse = self.information(theta).numpy()
        variance = inverse @ (scores.T @ scores) @ inverse * count / max(count - 1, 1)
        if self.form == "free":
            # Smoothing trades scatter for bias, which only the prior accounts for.
            curvature = slopes.T / self.variance.numpy() @ slopes
            variance = variance + inverse - inverse @ curvature @ inverse
        across = (theta[1].cos() * self.x + theta[1].sin() * self.y - theta[0]).numpy()
        bins = np.floor(across - across.min()).astype(int)
        number = np.bincount(bins)
        white = residual * np.sqrt(self.variance.numpy())
        total = np.bincount(bins, white)[number > 0] / np.sqrt(number[number > 0])
        halves = np.bincount(bins, white * np.where(blocks % 2, 1, -1))[number > 0]
        return variance, float((total**2).mean() / (halves**2 / number[number > 0]).mean())


def _slopes(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """Derivatives (n, parameters) by central differences: few parameters, double precision."""
    steps = 1e-5 * torch.eye(len(theta)).double()
    return torch.stack([function(theta + own) - function(theta - own) for own in steps], 1) / 2e-5


def _checked(image: object, form: str, highest: float, reach: float) -> np.ndarray:
    if form not in ("free", "parametric"):
        raise ValueError(f"form={form!r}: must be free or parametric")
    if not (0.5 <= highest <= 2 and reach >= 8):
        raise ValueError(f"highest={highest:g}, reach={reach:g}: must be from 0.5 to 2 "
                         "cycles/pixel, and at least 8 pixels")
    stack = plain("image", image)
    if stack.ndim not in (2, 3) or stack.size == 0 or min(stack.shape[-2:]) < 32:
        raise ValueError(f"image has shape {stack.shape}: must be (ny, nx) or (n, ny, nx), sides "
                         "of 32 pixels or more")
    return stack if stack.ndim == 2 else stack.mean(axis=0)


def _find(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Unit normal (x, y) of the edge towards the bright side, and its offset from the centre."""
    smooth = ndimage.gaussian_filter(image, 3, mode="nearest")
    slope = np.stack(np.gradient(smooth)[::-1])[:, 8:-8, 8:-8]
    strength = (slope**2).sum(axis=0)
    strong = strength > 0.3 * strength.max()
    direction = slope[:, strong].sum(axis=1)
    size = np.hypot(*direction)
    y, x = (np.arange(n)[8:-8] - n // 2 for n in image.shape)
    length = strong.sum() / 8  # the blurred slope is about that wide
    if strength.max() == 0 or size < 0.7 * np.sqrt(strength[strong]).sum() or (
            length < 0.4 * min(image.shape)):
        raise ValueError("image: shows no straight edge from side to side")
    normal = direction / size
    offset = float(np.average((normal[0] * x + normal[1] * y[:, None])[strong],
                              weights=strength[strong]))
    slant = np.degrees(np.arcsin(np.abs(normal).min()))
    if np.sin(np.radians(slant)) * min(image.shape) < 2:
        raise ValueError(f"image: the edge is slanted by {slant:.1f} degrees to the pixels, must "
                         "cross at least two of them; 2 to 10 degrees is best")
    return normal, offset
