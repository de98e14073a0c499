"""A spectrum divided by its smooth mean, and which of its elements to fit."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tem_taichi.estimate import ctf_model, spectra
from tem_taichi.estimate.ctf_model import Basis, Elements, Lens

_ANNULI = 12  # of equal width, each with its own scatter
_ROUNDING = 1e-7  # of the strongest frequency in the band: no camera sees less
_ZERO = 1e-10  # of the mean, in place of elements that are zero
_RINGS = 20  # least number of elements' rings in a band
_HIGHEST = 0.475  # frequency used [cycles/pixel]
_CLIP = 5.0  # deviations beyond which an element's excess counts no more


@dataclass(frozen=True)
class Band:
    """A spectrum over its smooth mean, and the part of it to fit."""

    flat: Elements
    """All elements."""
    inside: Tensor
    """bool (ny, nx), which are to be fitted: one of each mirrored pair."""
    chosen: Elements
    """Those, without outliers."""
    basis: Basis
    width: float
    """Distance of two elements [1/A]."""
    mean: Tensor
    """The smooth mean, (ny nx,)."""

    def again(self, values: Tensor) -> "Band":
        """Another spectrum (ny, nx) over the same smooth mean, times a factor of its own.

        A mean of its own would follow what few rings the spectrum has.
        """
        power = values.reshape(-1) / self.mean
        inside = self.inside.view(-1)
        scale = power[inside].mean()
        if not float(scale) > 0:
            raise ValueError("spectrum: is zero in the band that is searched")
        flat = replace(self.flat, power=(power / scale).clamp(min=_ZERO))
        return replace(self, flat=flat, chosen=_clip(_take(flat, inside)),
                       mean=self.mean * scale)


def make_band(values: Tensor, pixel_size: float, coarse: float, fine: float) -> Band:
    """Prepare the part of a spectrum to fit.

    Args:
        values: (ny, nx), centred.
        pixel_size: that it reaches to [A].
        coarse: lowest resolution [A].
        fine: highest resolution [A].

    Raises:
        ValueError: if less than 20 rings of elements lie between, or all of them are zero.
    """
    ny, nx = values.shape
    kx, ky = spectra.centred_frequencies((ny, nx), pixel_size)
    k, twice = torch.hypot(kx, ky), 2 * torch.atan2(ky, kx)
    step = 1 / (min(ny, nx) * pixel_size)
    low, high = _ends(min(ny, nx), pixel_size, coarse, fine)
    if high - low < _RINGS * step:
        raise ValueError(
            f"pixel_size={pixel_size:.4g}: leaves {max(high - low, 0) / step:.0f} rings of elements"
            f" between {coarse:g} and {fine:g} A; must be 20 or more, "
            + _remedy(min(ny, nx), pixel_size))
    high = _above_rounding(values, k, low, high, step)
    # The axes carry the lines and edges of detectors.
    inside = (k >= low) & (k <= high) & (ky > step / 2) & (kx.abs() > step / 2)
    elements = Elements(*(x.reshape(-1) for x in (
        values, k, torch.cos(twice), torch.sin(twice), torch.ones_like(k))))
    basis = ctf_model.make_basis(low, high)
    flat, mean = _flatten(elements, inside.view(-1), basis)
    return Band(flat, inside, _clip(_take(flat, inside.view(-1))), basis,
                1 / (max(ny, nx) * pixel_size), mean)


def _ends(side: int, pixel_size: float, coarse: float, fine: float) -> tuple[float, float]:
    """Lowest and highest frequency [1/A] of what images of that many pixels hold of a range."""
    return max(1 / coarse, 3 / (side * pixel_size)), min(1 / fine, _HIGHEST / pixel_size)


def _remedy(side: int, pixel_size: float) -> str:
    """A range of resolutions that leaves enough rings, or how large the images must be."""
    usual = max(30, 6 * pixel_size), max(4, 2 * pixel_size)
    for coarse, fine in (usual, (side * pixel_size / 3, 2 * pixel_size)):
        low, high = _ends(side, pixel_size, coarse, fine)
        if high - low >= _RINGS / (side * pixel_size):
            return f"as resolution=[{coarse:.3g},{fine:.3g}] leaves"
    least = math.ceil((_RINGS + 3) / _HIGHEST)
    return f"which takes images, or boxes, of {least} pixels or more: these are of {side}"


def _above_rounding(values: Tensor, k: Tensor, low: float, high: float, step: float) -> float:
    """Highest frequency to use, below where a blurred image has nothing but rounding errors.

    There the spectrum bends suddenly, which splines follow with swings that look like rings.
    """
    ring = (k / step).long().view(-1)
    count = torch.bincount(ring)
    mean = torch.bincount(ring, values.double().view(-1)) / count.clamp(min=1)
    first, last = math.ceil(low / step), math.floor(high / step)
    used = mean[first:last + 1]
    lost = torch.nonzero(used < _ROUNDING * used.max()).flatten()
    if not len(lost):
        return high
    return max((first + int(lost[0])) * step, low + _RINGS * step)


def _take(elements: Elements, which: Tensor) -> Elements:
    return Elements(elements.power[which], elements.k[which], elements.cosine[which],
                    elements.sine[which], elements.weight[which])


def _flatten(elements: Elements, inside: Tensor, basis: Basis) -> tuple[Elements, Tensor]:
    """The spectrum over the smooth mean that explains it best without rings, and that mean."""
    least = _ZERO * elements.power[inside].mean()
    if not float(least) > 0:
        raise ValueError("spectrum: is zero in the band that is searched")
    elements = replace(elements, power=elements.power.clamp(min=float(least)))
    chosen = _take(elements, inside)
    # Least squares of the logarithm first, which hardly heeds the spots of crystals.
    splines = basis.at(chosen)[0].double()
    mean = torch.linalg.solve(splines.T @ splines, splines.T @ chosen.power.log().double())
    smooth = replace(ctf_model.start(basis), mean=mean.to(chosen.power.dtype))
    flat = replace(chosen, power=chosen.power / ctf_model.curves(chosen, smooth, basis)[0])
    change = ctf_model.maximise(_clip(flat), ctf_model.start(basis), Lens(0, 0, 0), basis,
                                contrast=False)[0]
    smooth = replace(smooth, mean=smooth.mean + change.mean)
    level = ctf_model.curves(elements, smooth, basis)[0]
    return replace(elements, power=elements.power / level), level


def _clip(elements: Elements) -> Elements:
    """Without spots of crystals, which stand out from all others at about the same frequency."""
    low, high = float(elements.k.min()), float(elements.k.max())
    annulus = ((elements.k - low) * (_ANNULI / (high - low))).long().clamp(max=_ANNULI - 1)
    limits = []
    for number in range(_ANNULI):
        power = elements.power[annulus == number]
        median = power.median()
        limits.append(median + _CLIP * 1.4826 * (power - median).abs().median())
    limit = torch.stack(limits)[annulus]
    return replace(elements, power=torch.minimum(elements.power, limit))
