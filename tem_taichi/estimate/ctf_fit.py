"""Defocus, astigmatism and phase shift from the Thon rings of a power spectrum.

A coarse search over defocus and astigmatism finds candidates, Fisher scoring of the likelihood of
`ctf_model` refines everything at once. The scatter about the model gives the number of averages
of the spectrum, and with it the errors.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate import ctf_checks, ctf_curves, ctf_model, ctf_search, spectra
from tem_taichi.estimate.ctf_band import Band, make_band
from tem_taichi.estimate.ctf_curves import CtfCurves
from tem_taichi.estimate.ctf_model import Lens, Rings
from tem_taichi.estimate.ctf_search import CtfSearch, default_search
from tem_taichi.grid import check_pixel_size

_CANDIDATES = 4
_SIGNIFICANT = 5.0  # standard errors that tell two values apart
_LEAD = 10.0  # log-likelihood by which the best defocus must lead
_HALF_RINGS = 5  # least number that must be seen: with fewer anything with minima would do
_EXPLAINED = 0.8  # of the variance of equal-phase averages: a ring that is no ring leaves more
_FEW = 18.0  # half rings, below which the wider band is fitted
RINGS = 30.0
"""Log-likelihood above which rings are no chance among the hypotheses searched."""
SHOWN = 0.7
"""Of the finest resolution fitted, which the curves reach."""


_UNKNOWN = (math.nan,) * 4


@dataclass(frozen=True)
class CtfFit:
    """Result of a fit."""

    defocus_u: float
    """Larger principal defocus [A], positive = underfocus."""
    defocus_v: float
    """Smaller one [A]."""
    astigmatism_angle: float
    """Direction of defocus_u [deg], from +x towards +y (row 0 at the bottom), as RELION's
    rlnDefocusAngle; in [0, 180)."""
    phase_shift: float
    """Of a phase plate [deg], in [0, 180); 0 if not fitted."""
    errors: tuple[float, float, float, float]
    """Standard errors of defocus_u, defocus_v [A], angle, phase_shift [deg]: those of the two
    kinds below, squares added."""
    resolution: float
    """To which the rings follow the model [A]; inf if nowhere."""
    gain: float
    """Log-likelihood over that of a spectrum without rings, of independent elements."""
    figure_of_merit: float
    """Correlation of rings and model up to the resolution of the search."""
    doubts: tuple[str, ...]
    """Why not to trust the fit; empty if there is no reason."""
    curves: CtfCurves
    """For a plot."""
    model: np.ndarray
    """Fitted power over M, of the shape of the spectrum, centred."""
    flattened: np.ndarray
    """Measured power over M, likewise."""
    pixel_size: float
    """That the spectra reach to: Nyquist is 1 / (2 pixel_size) [A]."""
    statistical_errors: tuple[float, float, float, float] = _UNKNOWN
    """Of the noise."""
    model_errors: tuple[float, float, float, float] = _UNKNOWN
    """Of the model: what the values move by, beyond noise, with the highest frequency used."""
    spherical_aberration: float = math.nan
    """That the rings want if it and a constant phase are free [mm]."""
    spherical_error: float = math.nan
    """Its standard error [mm]."""
    hand_gain: float = math.nan
    """Of a tilted specimen: log-likelihood over that of the opposite tilt."""

    @property
    def reliable(self) -> bool:
        """Whether the rings are beyond chance and explained by one defocus only."""
        return not self.doubts

    @property
    def defocus(self) -> float:
        """Mean of the principal defoci [A]."""
        return (self.defocus_u + self.defocus_v) / 2

    @property
    def astigmatism(self) -> float:
        """Difference U - V [A]."""
        return self.defocus_u - self.defocus_v


def fit_micrograph(image: ArrayLike | Tensor, pixel_size: float, voltage: float,
                   spherical_aberration: float, amplitude_contrast: float = 0.07,
                   search: CtfSearch | None = None, tile: int | None = None) -> CtfFit:
    """Fit the averaged periodogram of one image.

    Args:
        image: (ny, nx).
        pixel_size: [A].
        voltage: [kV].
        spherical_aberration: Cs [mm].
        amplitude_contrast: Q, within [0, 1).
        search: where to look.
        tile: side of the periodograms' tiles [pixels]; about 1000 A if None.

    Raises:
        ValueError: for an image without contrast, with values that are not finite, or too small.
    """
    check_pixel_size(pixel_size)
    pixels = spectra.check_image(image)
    side = tile or spectra.tile_size((pixels.shape[0], pixels.shape[1]), pixel_size)
    spectrum = spectra.average_periodogram(pixels, side)
    return fit_spectrum(spectrum, pixel_size, voltage, spherical_aberration, amplitude_contrast,
                        search)


def fit_particles(images: ArrayLike | Tensor, pixel_size: float, voltage: float,
                  spherical_aberration: float, amplitude_contrast: float = 0.07,
                  search: CtfSearch | None = None) -> CtfFit:
    """Fit the average of the periodograms of images that share one CTF.

    Args:
        images: (n, ny, nx), boxes of one micrograph say; those without contrast or with values
            that are not finite are left out.
        pixel_size: [A].
        voltage: [kV].
        spherical_aberration: Cs [mm].
        amplitude_contrast: Q, within [0, 1).
        search: where to look.

    Raises:
        ValueError: if no image is left, or they are too small.
    """
    check_pixel_size(pixel_size)
    return fit_spectrum(spectra.stack_periodogram(images, pixel_size), pixel_size, voltage,
                        spherical_aberration, amplitude_contrast, search)


def fit_spectrum(spectrum: ArrayLike | Tensor, pixel_size: float, voltage: float,
                 spherical_aberration: float, amplitude_contrast: float = 0.07,
                 search: CtfSearch | None = None, stated: bool = True) -> CtfFit:
    """Fit a power spectrum, or an amplitude spectrum.

    Args:
        spectrum: (ny, nx), centred on [ny // 2, nx // 2], not negative.
        pixel_size: that it reaches to [A]: Nyquist is 1 / (2 pixel_size).
        voltage: [kV].
        spherical_aberration: Cs [mm].
        amplitude_contrast: Q, within [0, 1).
        search: where to look.
        stated: whether doubts about phase, aberration and range are said; false where others judge.

    Raises:
        ValueError: for a spectrum without contrast, with negative values or ones that are not
            finite, or a pixel size that leaves too little of the search's resolutions.
    """
    check_pixel_size(pixel_size)
    search = search or default_search(pixel_size)
    lens = ctf_model.make_lens(voltage, spherical_aberration, amplitude_contrast)
    values = spectra.check_image(spectrum, "spectrum")
    if bool((values < 0).any()):
        raise ValueError(f"spectrum: {int((values < 0).sum())} values are negative")
    coarse, fine = search.resolution
    values, pixel_size = spectra.crop_spectrum(values, pixel_size, SHOWN * fine)
    band = make_band(values, pixel_size, coarse, fine)
    # The curves also show where the rings go beyond what was fitted.
    shown = make_band(values, pixel_size, coarse, SHOWN * fine)
    best = _best(band, shown, lens, search)
    wide = replace(ctf_model.start(shown.basis, contrast=0.1), lens=best.rings.lens)
    wide = ctf_model.maximise(shown.chosen, wide, lens, shown.basis)[0]
    curves = ctf_curves.equal_phase_curves(shown.chosen, wide, lens, shown.basis, shown.width,
                                           best.noise)
    mean = ctf_model.curves(shown.flat, wide, shown.basis)[0]
    model = ctf_model.relative_power(shown.flat, wide, lens, shown.basis).view(values.shape)
    measured = (shown.flat.power / mean).view(values.shape)
    both = torch.stack([measured[band.inside], model[band.inside]])
    resolution = ctf_curves.resolution(curves)
    checks = ctf_checks.examine(
        ctf_search.bin_sectors(shown), best.rings,
        best.covariance.diagonal()[:4].tolist(), lens, shown.basis, best.free, best.noise, fine,
        resolution)
    u, v, angle, shift, statistics = _principal(best)
    systematic = _principal(replace(best, covariance=torch.diag(
        torch.tensor([*checks.shares, 0.0], dtype=torch.float64)**2)))[-1]
    first, second, third, fourth = map(math.hypot, statistics, systematic)
    doubts = _doubts(best, curves, lens, search) + ctf_checks.doubts(
        checks, lens, (u + v) / 2, statistics[0], best.gain, stated)
    return CtfFit(defocus_u=u, defocus_v=v, astigmatism_angle=angle, phase_shift=shift,
                  errors=(first, second, third, fourth), resolution=resolution, gain=best.gain,
                  figure_of_merit=float(torch.corrcoef(both)[0, 1]), doubts=tuple(doubts),
                  curves=curves, model=model.cpu().numpy(), flattened=measured.cpu().numpy(),
                  pixel_size=pixel_size, statistical_errors=statistics, model_errors=systematic,
                  spherical_aberration=checks.spherical_aberration,
                  spherical_error=checks.spherical_error)


@dataclass(frozen=True)
class _Best:
    """The most likely rings."""

    rings: Rings
    free: tuple[int, ...]  # of the lens's parameters, which were fitted
    covariance: Tensor  # of the lens's parameters [A, rad, mm], (5, 5)
    noise: float  # variance of power over model, times the elements that share their noise
    gain: float  # in log-likelihood over none
    lead: float  # in log-likelihood over the best other defocus


def _best(band: Band, wide: Band, lens: Lens, search: CtfSearch) -> _Best:
    """Search, refine all candidates on sectors and the best on every element.

    Few rings, of a small defocus, are fitted in the wider band: there the splines could imitate
    them, while the lens's higher aberrations hardly matter yet.
    """
    free = search.free
    fits = _candidates(band, lens, search)
    if ctf_curves.half_rings(np.array(band.basis.limits), fits[0][0], lens) < _FEW:
        band = wide
        fits = _candidates(band, lens, search)
    rings, likelihood = ctf_model.maximise(band.chosen, fits[0][0], lens, band.basis, free)
    covariance, noise = ctf_model.covariance(band.chosen, rings, lens, band.basis, free,
                                             band.inside)
    without = ctf_model.maximise(band.chosen, ctf_model.start(band.basis), lens, band.basis,
                                 contrast=False)[1]
    # Candidates that ran into the same maximum are no rivals.
    same = _SIGNIFICANT * float(covariance[0, 0]) ** 0.5
    leads = [fits[0][1] - other for rival, other in fits
             if abs(float(rival.lens[0] - fits[0][0].lens[0])) * ctf_model.UNIT > same]
    return _Best(rings, free, covariance, noise, (likelihood - without) / noise,
                 min(leads, default=math.inf) / noise)


def _candidates(band: Band, lens: Lens, search: CtfSearch) -> list[tuple[Rings, float]]:
    """Maxima of the likelihood of an average over sectors, from a coarse search; best first."""
    sectors = ctf_search.bin_sectors(band)
    starts = ctf_search.search([(sectors, 0.0)], lens, search.defocus, search.astigmatisms,
                               as_tensor(search.phases), _CANDIDATES)
    if not starts:
        raise ValueError("spectrum: no trace of rings at any defocus searched")
    cells = ctf_search.cells(sectors)
    fits = [ctf_model.maximise(cells, ctf_model.start(band.basis, *candidate), lens, band.basis,
                               search.free) for candidate in starts]
    return sorted(fits, key=lambda fit: -fit[1])


def _doubts(best: _Best, curves: CtfCurves, lens: Lens, search: CtfSearch) -> list[str]:
    """Reasons not to trust the rings."""
    resolution = ctf_curves.resolution(curves)
    seen = ctf_curves.half_rings(curves.frequency[curves.frequency <= 1 / resolution], best.rings,
                                 lens)
    explained = ctf_curves.explained(curves, resolution)
    low, high = search.defocus
    defocus, cosine, sine, _ = ctf_model.in_angstrom(best.rings.lens)
    astigmatism = 2 * math.hypot(cosine, sine)
    return [text for text, found in (
        (f"the rings gain {best.gain:.0f} in log-likelihood, less than {RINGS:g}",
         not best.gain >= RINGS),
        (f"{seen:.1f} half rings are seen, less than {_HALF_RINGS}", seen < _HALF_RINGS),
        (f"the model explains {explained:.0%} of the rings' variance, less than {_EXPLAINED:.0%}",
         not explained >= _EXPLAINED),
        (f"another defocus is only {best.lead:.0f} less likely", not best.lead >= _LEAD),
        (f"defocus {defocus:.0f} A is outside of {low:g} to {high:g} A",
         not low <= defocus <= high),
        (f"astigmatism {astigmatism:.0f} A is far beyond {search.astigmatism:g} A",
         astigmatism > 1.5 * search.astigmatism + 100)) if found]


def _principal(best: _Best) -> tuple[
        float, float, float, float, tuple[float, float, float, float]]:
    """U, V [A], angle of U and phase shift [deg], and their errors."""
    mean, cosine, sine, shift = ctf_model.in_angstrom(best.rings.lens)
    covariance = best.covariance
    half = math.hypot(cosine, sine)
    angle = math.degrees(math.atan2(sine, cosine)) / 2 % 180
    along = torch.tensor([cosine, sine], dtype=torch.float64) / max(half, 1e-9)
    gradients = torch.zeros(3, 5, dtype=torch.float64)
    gradients[:2, 0] = 1
    gradients[0, 1:3], gradients[1, 1:3] = along, -along
    gradients[2, 1:3] = torch.stack([-along[1], along[0]]) / (2 * max(half, 1e-9))
    variance = (gradients @ covariance @ gradients.T).diagonal().clamp(min=0)
    u, v, turn = variance.sqrt().tolist()
    # A direction can't be less known than uniform over half a turn.
    errors = (u, v, min(math.degrees(turn), 180 / math.sqrt(12)),
              math.degrees(math.sqrt(max(float(covariance[3, 3]), 0))))
    return mean + half, mean - half, angle, math.degrees(shift) % 180, errors
