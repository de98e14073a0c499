"""What the background of a tilt series shows: noise of the detector, and a crowd that scatters.

The power spectrum of background grows with the mean m of the image as m n(w) + m^2 s(k): noise of
counted electrons, and contrast of the specimen relative to the mean. They differ in how they
change with tilt, defocus and exposure, which tells them apart where one image could not. The
crowd is balls of protein of a few masses, far enough apart not to know of each other.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.optimize import minimize_scalar, nnls

from tem_taichi.estimate.background import BackgroundSpectra
from tem_taichi.instrument.optics import round_phase
from tem_taichi.physics import interaction_constant, wavelength
from tem_taichi.specimen.absorption import amplitude_contrast_of_protein, protein_potentials
from tem_taichi.specimen.damage import critical_exposure
from tem_taichi.specimen.globules import VOLUME_PER_MASS

_FASTEST = 8.0
"""Strength of damage up to which is looked."""
_BOUND = 0.98
"""Of that, from where the end of the search is what was found."""
_SOFT = 3.0
"""Deviation of the Gaussian that softens a globule's edge [A]."""
_MODEL_ERROR = 0.1
"""Of a spectrum, relative: what balls and averages leave out."""
_KNOTS = np.linspace(0.0, 0.5, 11)
"""Frequencies between which the noise is linear [cycles/pixel]."""
_WHITE = np.diff(np.eye(len(_KNOTS)), axis=0) / 0.005
"""Stiffness of a counting camera's noise: its difference at neighbouring knots, relative."""
_COLOURED = tuple(np.diff(np.eye(len(_KNOTS))[[1, *range(len(_KNOTS))]], 2, axis=0) / step
                  for step in (0.03, 0.1, 0.3))
"""Of images that were resampled, or of a camera whose events are drawn over some pixels: second
differences, even about 0; less stiff where the noise would be below that of the nominal dose, since
spectra alone hardly tell it from the crowd. White noise does, so this has to be ..."""
_BETTER = 0.5
"""... so much better: its mean square deviation over that of the first."""


@dataclass(frozen=True)
class Sight:
    """How one image sees the background."""

    defocus: float
    """Of the specimen's centre [A]."""
    path: float
    """Through the ice [A]."""
    spread: float
    """Half-width of the range of defocus over the field, for its tilt [A]."""
    exposure: float
    """Before the image and half of its own [e-/A^2]."""
    crowd: float = 1.0
    """Balls in the field over those of the specimen on average [1]."""


@dataclass(frozen=True)
class Lens:
    """What all images have in common."""

    pixel_size: float
    """[A]"""
    voltage: float
    """[kV]"""
    spherical_aberration: float
    """Cs [mm]."""
    mean_free_path: float
    """Of the ice [A]."""
    potential: float
    """Mean inner potential of the ice [V]."""


@dataclass(frozen=True, eq=False)
class CrowdFit:
    """Noise and crowd.

    Attributes:
        w: knots of the noise [cycles/pixel].
        noise: noise power over mean at these [counts].
        masses: of the balls [kDa].
        densities: number of each in the ice [1/A^3].
        damage: how much faster the crowd fades than by Grant & Grigorieff's critical exposures:
            1 = as those. Motion of the specimen under the beam counts as damage.
        model: fitted noise power over mean, the shape of the measured one.
    """

    w: np.ndarray
    noise: np.ndarray
    masses: tuple[float, ...]
    densities: np.ndarray
    damage: float
    model: np.ndarray = field(repr=False)

    @property
    def volume_fraction(self) -> float:
        """Part of the ice that the balls fill."""
        return float(np.dot(self.densities, self.masses) * VOLUME_PER_MASS)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the fit, one sentence each."""
        if not self.volume_fraction or self.damage < _BOUND * _FASTEST:
            return ()
        return (f"The crowd fades {self.damage:.1f} times as fast as by damage, as fast as is "
                "looked for: something else takes it from late images, such as a crowd that does "
                "not fill the field at high tilts, or ice that moves.",)


def ball_potential(k: np.ndarray, mass: float, ice_potential: float) -> np.ndarray:
    """Transform of the potential of a ball of protein relative to ice [V A^3].

    Contrast times volume times 3 (sin x - x cos x) / x^3, x = 2 pi k R, with a soft edge.

    Args:
        k: frequency [1/A], any shape.
        mass: [kDa].
        ice_potential: of the ice [V].
    """
    volume = mass * VOLUME_PER_MASS
    x = np.maximum(2 * np.pi * k * (3 * volume / (4 * np.pi)) ** (1 / 3), 1e-2)
    shape = 3 * (np.sin(x) - x * np.cos(x)) / x**3 * np.exp(-2 * (np.pi * k * _SOFT) ** 2)
    return np.asarray((protein_potentials()[0] - ice_potential) * volume * shape)


def contrast_power(k: np.ndarray, sight: Sight, lens: Lens, damage: float = 1.0) -> np.ndarray:
    """Power that an image shows of the projected potential: (2 sigma)^2 CTF^2 damage^2.

    CTF = sin(chi + asin Q) for weak scatterers, its square averaged over the depth of the ice
    and over the field, and Q that of protein.

    Args:
        k: frequency [1/A], (m,).
        sight: of the image.
        lens: of the series.
        damage: strength of radiation damage, 1 = as measured.

    Returns:
        (m,) [1/(V A)^2], for an intensity relative to its mean.
    """
    length = float(wavelength(lens.voltage))
    u, v = np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 11))
    defocus = sight.defocus + (u * sight.path / 2 + v * sight.spread).ravel()[:, None]
    chi = round_phase(k**2, defocus, lens.spherical_aberration * 1e7, length)
    q = float(amplitude_contrast_of_protein(lens.mean_free_path, lens.voltage, lens.potential))
    transfer = (np.sin(chi - math.asin(q)) ** 2).mean(axis=0)
    return np.asarray((2 * float(interaction_constant(lens.voltage))) ** 2 * transfer
                      * np.exp(-damage * sight.exposure / _critical(k, lens)))


def _critical(k: np.ndarray, lens: Lens) -> np.ndarray:
    return np.asarray(critical_exposure(torch.from_numpy(np.maximum(k, 1e-6)), lens.voltage))


def fit_crowd(spectra: BackgroundSpectra, sights: list[Sight], lens: Lens,
              masses: tuple[float, ...], least: float = 0.0) -> CrowdFit:
    """Noise, damage and numbers of balls, none negative, that come nearest to the spectra.

    The noise is kept nearly white, and its lowest frequencies, 2 periods in a tile, are left out:
    slow variations of thickness are no crowd. Images without weight are predicted only.

    Args:
        spectra: from `background_spectra`.
        sights: one an image.
        lens: of the series.
        masses: of the balls that may be there [kDa].
        least: noise over mean at w = 0 that counting the nominal dose makes, if all electrons
            count [counts]; coloured noise is let be as high.

    Raises:
        ValueError: if the numbers of images differ.
    """
    if len(sights) != len(spectra.means):
        raise ValueError(f"sights: are {len(sights)}; must be one for each of the "
                         f"{len(spectra.means)} images")
    k = spectra.w / lens.pixel_size
    balls = np.array([ball_potential(k, mass, lens.potential) ** 2 for mass in masses]
                     ).reshape(-1, len(k))
    # Counts relative to the mean, per pixel: m n_j path |V_j|^2 / pixel^2.
    crowd = np.stack([balls * contrast_power(k, sight, lens, 0.0) * sight.crowd * sight.path * mean
                      / lens.pixel_size**2
                      for sight, mean in zip(sights, spectra.means, strict=True)])
    hats = np.stack([np.interp(spectra.w, _KNOTS, row) for row in np.eye(len(_KNOTS))])
    exposures = np.array([sight.exposure for sight in sights])[:, None] / _critical(k, lens)

    def fitted(damage: float, stiff: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        terms = np.concatenate([crowd * np.exp(-damage * exposures)[:, None],
                                np.broadcast_to(hats, (len(crowd), *hats.shape))], axis=1)
        return _nearest(spectra, terms, stiff)

    def misfit(damage: float, stiff: np.ndarray) -> float:
        ratio = spectra.ratio / fitted(damage, stiff)[1]
        return float(np.mean(np.log(ratio[_used(spectra)])**2))

    def best(stiff: np.ndarray) -> tuple[float, float]:
        if np.ptp([sight.exposure for sight in sights]) <= 1 or not masses:
            return 1.0, misfit(1.0, stiff)
        found = minimize_scalar(misfit, bounds=(0, _FASTEST), method="bounded", args=(stiff,),
                                options={"xatol": 0.02})
        return float(found.x), float(found.fun)

    damage, misfits = best(_WHITE)
    numbers, model = fitted(damage, _WHITE)
    for stiff in _COLOURED:
        other, second = best(stiff)
        if second > _BETTER * misfits:
            break
        damage = other
        numbers, model = fitted(damage, stiff)
        if numbers[len(masses)] >= least:
            break
    return CrowdFit(w=_KNOTS, noise=numbers[len(masses):], masses=masses,
                    densities=numbers[:len(masses)], damage=damage, model=model)


def held_out(spectra: BackgroundSpectra, sights: list[Sight], lens: Lens,
             masses: tuple[float, ...]) -> np.ndarray:
    """Noise power over mean of each image as a fit to every other one predicts it.

    Args:
        spectra: from `background_spectra`.
        sights: one an image.
        lens: of the series.
        masses: of the balls that may be there [kDa].

    Returns:
        Of the shape of the measured one: even rows by a fit to odd rows, and odd ones by even.

    Raises:
        ValueError: as `fit_crowd`.
    """
    even = np.arange(len(spectra.means))[:, None] % 2 == 0
    by_odd, by_even = (fit_crowd(replace(spectra, weight=spectra.weight * mask), sights, lens,
                                 masses).model for mask in (~even, even))
    return np.where(even, by_odd, by_even)


def _used(spectra: BackgroundSpectra) -> np.ndarray:
    """Rings of some weight whose frequency is not too low, (n, m)."""
    return np.asarray((spectra.weight > 0) & (spectra.w >= 2.5 * spectra.w[spectra.w > 0].min()))


def _nearest(spectra: BackgroundSpectra, terms: np.ndarray,
             stiff: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (p,) >= 0 for which sums of terms (n, p, m) are nearest to the ratios (n, m).

    The last ones are the noise at its knots; relative to it, `stiff` (s, knots) times these is 0
    within 1.
    """
    use = _used(spectra)
    model = np.where(use, spectra.ratio, 1.0)
    scale = terms.max(axis=(0, 2)) + 1e-300
    white = float(np.median(spectra.ratio[use]))
    steps = np.zeros((len(stiff), len(scale)))
    steps[:, -stiff.shape[1]:] = stiff / white
    for _ in range(3):  # errors are parts of the model, not of the noisy measurement
        error = model * np.sqrt(1 / np.maximum(spectra.weight, 1e-9) + _MODEL_ERROR**2)
        rows = (terms / error[:, None]).transpose(0, 2, 1)[use]
        numbers = nnls(np.concatenate([rows, steps]) / scale,
                       np.append((spectra.ratio / error)[use], np.zeros(len(steps))))[0] / scale
        model = np.einsum("npm,p->nm", terms, numbers)
        model = np.maximum(model, 1e-3 * white)
    return numbers, model
