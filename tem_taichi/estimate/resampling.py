"""What a fall of the noise towards Nyquist's frequency, alike at all tilts, tells of images."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from tem_taichi.estimate.background import BackgroundSpectra
from tem_taichi.estimate.crowd_fit import CrowdFit, Lens, Sight, contrast_power, fit_crowd
from tem_taichi.specimen.ice import ice_power

Array = NDArray[np.float64]

_ROUNDS = 3
_SEEN, _SURE = 0.05, 2.5
"""Least loss of power from the middle rings to the last that counts as a fall [1], and that over
its error."""


def fit_resampled(spectra: BackgroundSpectra, sights: list[Sight], lens: Lens,
                  masses: tuple[float, ...], least: float = 0.0
                  ) -> tuple[CrowdFit, Array | None, Array]:
    """Noise and crowd, and the factor by which resampling took power from both.

    By turns: the crowd by spectra that are freed of the factor, and the factor by what spectra of
    all tilts are over the crowd's model, which never rises with the frequency. A crowd whose noise
    is coloured already has none.

    Args:
        spectra: of the images.
        sights: as of `fit_crowd`, as are the others.
        lens: see sights.
        masses: see sights.
        least: see sights.

    Returns:
        The fit, whose model is that of the spectra as given; the factor at its w, None = 1; and
        what there is without a crowd, of the model's shape.
    """
    ice = ice_spectra(spectra, sights, lens)
    factor = np.ones(spectra.w.shape)
    crowd = _fitted(spectra, ice, factor, sights, lens, masses, least)
    if np.ptp(crowd.noise) > 0.2 * crowd.noise.mean() or not _falls(spectra, crowd):
        return crowd, None, ice + np.interp(spectra.w, crowd.w, crowd.noise)
    for _ in range(_ROUNDS):
        weight = np.minimum(spectra.weight, 100.0)  # what is not in the model counts more
        left = np.log(spectra.ratio / crowd.model * factor)
        known = np.nansum(weight * left, axis=0) / np.maximum(weight.sum(axis=0), 1e-300)
        # Where the crowd is most of it, its own form is not known so well.
        known[spectra.w < 0.1] = 0.0
        falling = np.exp(isotonic_regression(known, weights=weight.sum(axis=0) + 1e-9,
                                             increasing=False).x)
        factor = np.minimum(falling / falling[0], 1.0)
        factor = np.minimum.accumulate(np.convolve(np.pad(factor, 1, mode="edge"),
                                                   [0.25, 0.5, 0.25], mode="valid"))
        crowd = _fitted(spectra, ice, factor, sights, lens, masses, least)
    return crowd, factor, (ice + np.interp(spectra.w, crowd.w, crowd.noise)) * factor


def ice_spectra(spectra: BackgroundSpectra, sights: list[Sight], lens: Lens) -> Array:
    """What the grains of the ice show in spectra of images, noise power over mean.

    Args:
        spectra: of the images.
        sights: one an image.
        lens: of the series.
    """
    k = spectra.w / lens.pixel_size
    grains = ice_power(torch.from_numpy(k)).numpy()
    # Molecules move from image to image, and fade in none.
    return np.stack([grains * contrast_power(k, sight, lens, 0.0) * sight.path * mean
                     / lens.pixel_size**2
                     for sight, mean in zip(sights, spectra.means, strict=True)])


def _fitted(spectra: BackgroundSpectra, ice: Array, factor: Array, sights: list[Sight], lens: Lens,
            masses: tuple[float, ...], least: float) -> CrowdFit:
    """The crowd beside the ice."""
    # Little is left where noise is low, but never less than a tenth of it.
    beside = np.maximum(spectra.ratio / factor - ice, 0.1 * spectra.ratio)
    crowd = fit_crowd(replace(spectra, ratio=beside), sights, lens, masses, least)
    return replace(crowd, model=(crowd.model + ice) * factor)


def _falls(spectra: BackgroundSpectra, crowd: CrowdFit) -> bool:
    """Whether the last rings of all images are below what the crowd's model has of the middle."""
    left = np.log(spectra.ratio / crowd.model)[(spectra.weight > 0).all(axis=1)]
    rings = left.mean(axis=0)
    middle, last = (spectra.w > 0.25) & (spectra.w < 0.4), spectra.w > 0.45
    fall = rings[middle].mean() - rings[last].mean()
    # Rings are off by what the model does not have: few balls, the same in all tilts, are lumpy.
    off = rings[(spectra.w > 0.1) & (spectra.w < 0.4)].std()
    error = off * (1 / middle.sum() + 1 / last.sum()) ** 0.5
    return bool(fall > max(_SEEN, _SURE * error))
