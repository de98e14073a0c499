"""MTF of any camera from the image of a straight, slightly slanted edge.

An edge at distance d (positive on the bright side) is recorded as
    dark + (bright - dark) E(d),   E(d) = 1/2 + int_0^H M(w) sin(2 pi w d) / (pi w) dw,
the edge spread function of a step that the MTF M blurs (Rossmann 1969); that is the detector's
forward model applied to an infinitely fine edge. The slant samples E between the pixels.
The fit is generalised least squares with the noise's colour and variance as measured.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage
from torch import Tensor

from tem_taichi.estimate.crops import plain
from tem_taichi.estimate.edge_curves import EdgeCurve, EdgeLikelihood, five_numbers, smooth_curve
from tem_taichi.estimate.edge_pixels import EdgePixels
from tem_taichi.estimate.noise_fit import Band, falling

FREQUENCIES = np.arange(129) / 256
"""Where the MTF is given [cycles/pixel], 0 to 0.5."""
_SIGMAS = 1.96
_WIDER = 1.2
"""Bands of a free curve: of six cameras' curves the least well held is so at 0.82 to 0.93 of the
frequencies without this, at 0.89 to 0.97 with it."""
_SUSPECT = 0.01
"""Probability of the data below which the five-parameter form is doubted."""
_POOR = 3.0
"""Misfit above which the model is: sound images scatter from 0.3 to 3."""


@dataclass(frozen=True, eq=False)
class EdgeFit:
    """The MTF that an edge shows.

    Attributes:
        mtf: modulation transfer function, with 95 % intervals from the scatter between stretches
            of the edge, which sees a rough edge, and from the prior. Those of five parameters
            enclose the free curve's: no measured camera has exactly that form.
        parameters: a, b, c, alpha, beta of `curves.mtf_parametric`; None of a free curve.
        angle: of the direction towards the bright side, from +x towards +y [deg].
        offset: distance of the edge from the image's centre (ny // 2, nx // 2) towards the bright
            side [pixel].
        dark, bright: counts on the two sides, of the bright one at the image's centre.
        misfit: variance of the whitened residuals averaged along the edge over what noise leaves;
            about 1 if the model holds.
        model: (ny, nx), the fitted image within `reach` of the edge, NaN outside.
        assumptions: what the result rests on, one sentence each.
        warnings: what speaks against it, one sentence each.
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
    warnings: tuple[str, ...]

    def to_config(self, *, kind: str = "counting", gain: float = 1.0,
                  dqe: float | None = None) -> dict[str, Any]:
        """Mapping for `series.camera.detector_from_config`; an edge tells only the MTF."""
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
        form: "free", a falling curve that departs from the five-parameter form as the data ask,
            or "parametric", the five numbers of `curves.mtf_parametric`.
        highest: H above [cycles/pixel], from 0.5 to 2. A camera's pixels also record, aliased,
            what lies beyond Nyquist: 1 or more. A simulator that crops images in Fourier space
            does not: 0.5 over the cosine of the slant.
        reach: distance from the edge up to which pixels are used [pixel], >= 8.

    Raises:
        ValueError: if an argument is not allowed, the image is not finite, no edge is found, or
            it runs along the pixels.
    """
    stack = _checked(image, form, highest, reach)
    pixels = EdgePixels(stack, *_find(stack), highest, reach)
    data = pixels.solve()
    curve = free = smooth_curve(data, FREQUENCIES)
    mtf = falling(_band(free))
    if form == "parametric":
        curve = five_numbers(data, FREQUENCIES)
        own = _band(curve)
        mtf = Band(FREQUENCIES, own.values, np.minimum(own.lower, mtf.lower),
                   np.maximum(own.upper, mtf.upper))
    model = np.full(stack.shape, np.nan)
    model[pixels.used], misfit = pixels.finish(curve.at_knots)
    offset, angle = float(pixels.place[0]), float(np.degrees(pixels.place[1]))
    dark, bright = (float(level) * pixels.unit for level in pixels.place[2:4])
    assumptions = (
        "The edge is straight and sharp, and blurred by the detector only.",
        "The MTF is the same in every direction; it is measured along the edge's normal.",
        f"Nothing is recorded beyond {highest:g} cycles/pixel.",
        f"The MTF is 1 at 0: a fall below {1 / (2 * reach):.2g} cycles/pixel is not seen.",
        "Gain and DQE are not measured by an edge.")
    return EdgeFit(mtf=mtf, parameters=curve.parameters, angle=angle, offset=offset, dark=dark,
                   bright=bright, misfit=misfit, model=model, assumptions=assumptions,
                   warnings=_warnings(data, curve, free, misfit))


def _band(curve: EdgeCurve) -> Band:
    error = (_SIGMAS if curve.parameters else _WIDER * _SIGMAS) * curve.deviation
    return Band(FREQUENCIES, curve.values, curve.values - error, curve.values + error)


def _warnings(data: EdgeLikelihood, curve: EdgeCurve, free: EdgeCurve,
              misfit: float) -> tuple[str, ...]:
    lines = []
    if curve.parameters is not None:
        chance = data.misfit(curve.at_knots)
        apart = np.abs(curve.values - free.values)
        if chance < _SUSPECT or (apart > _SIGMAS * free.deviation).mean() > 0.05:
            lines.append(f"The five-parameter form does not fit (p = {chance:.0e}): up to "
                         f"{apart.max():.3f} from a free curve; use form=free.")
    if misfit > _POOR:
        lines.append(f"The image is {misfit:.1f} times as far from the model as noise leaves it: "
                     "the edge is not straight or sharp, something else is within reach, or "
                     "highest is too low.")
    return tuple(lines)


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
