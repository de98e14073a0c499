"""CTF of a tilt series, from the rings of all its images at once.

Each image is cut into strips along the tilt axis, whose defoci differ by the known heights of a
plane. A coarse search adds what all images say of one defocus and astigmatism; `ctf_solve` refines
the defoci of all images with all that they share. `ctf_prior` finds from the data how far the
defoci differ. The spectra of all images, stretched to the rings of one defocus and averaged, show
how far the rings go.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tem_taichi.estimate import ctf_fit, ctf_joint, ctf_model, ctf_prior, ctf_solve, spectra
from tem_taichi.estimate.ctf_cut import Image, cut_image
from tem_taichi.estimate.ctf_fit import CtfFit
from tem_taichi.estimate.ctf_joint import Joint
from tem_taichi.estimate.ctf_model import UNIT, Basis, Lens
from tem_taichi.estimate.ctf_refine import Found, best_fit, challenged, free_of
from tem_taichi.estimate.ctf_search import CtfSearch, default_search
from tem_taichi.estimate.ctf_stated import Stated, doubts_of, model_errors, shared_errors, stated
from tem_taichi.estimate.ctf_tilt import Strip, merge
from tem_taichi.grid import check_pixel_size

_GRID = 81  # defoci of the evidence
_REACH = 2.5  # rings at the highest frequency to each side of the mean


@dataclass(frozen=True)
class SeriesFit:
    """Result for a series of n images."""

    defocus: np.ndarray
    """At each image's centre, mean of the principal ones [A], (n,)."""
    errors: np.ndarray
    """Their standard errors [A], (n,)."""
    mean: float
    """Of the defoci [A]."""
    mean_error: float
    """Its standard error [A]."""
    astigmatism: float
    """U - V [A]."""
    astigmatism_error: float
    """Its standard error [A]."""
    astigmatism_angle: float
    """Direction of U [deg], as `CtfFit.astigmatism_angle`."""
    angle_error: float
    """Its standard error [deg]."""
    phase_shift: float
    """[deg], in [0, 180); 0 if not fitted."""
    phase_error: float
    """Its standard error [deg]."""
    free: float
    """Width by which the defocus changes from image to image [A]."""
    smooth: float
    """Width by which it wanders in 3 degrees of tilt [A]."""
    thickness: float
    """Whose rings of all heights blur as those of the images do [A]."""
    thickness_error: float
    """Standard error of its logarithm."""
    stated: Stated
    """What the rings say of what was taken for known."""
    hand_gain: float
    """Log-likelihood over that of the opposite tilts."""
    gains: np.ndarray
    """Of each image: log-likelihood over that of no rings, (n,)."""
    grid: np.ndarray
    """Defoci [A], (d,)."""
    evidence: np.ndarray
    """Log-likelihood of each image at each of these over its least, (n, d); its smooth mean is
    fitted anew at each."""
    whole: CtfFit
    """Of the average of all images, stretched to their mean defocus."""
    doubts: tuple[str, ...]
    """Why not to trust the fit; empty if there is no reason."""

    @property
    def reliable(self) -> bool:
        """Whether there is no doubt."""
        return not self.doubts

    def images(self) -> list[CtfFit]:
        """The fit of each image, with the series' astigmatism, phase shift, rings and doubts."""
        half = self.astigmatism / 2
        found = []
        for value, error, gain in zip(self.defocus, self.errors, self.gains, strict=True):
            own = math.hypot(error, self.astigmatism_error / 2)
            found.append(replace(
                self.whole, defocus_u=float(value) + half, defocus_v=float(value) - half,
                astigmatism_angle=self.astigmatism_angle, phase_shift=self.phase_shift,
                errors=(own, own, self.angle_error, self.phase_error), gain=float(gain),
                doubts=self.doubts, statistical_errors=(math.nan,) * 4,
                model_errors=(math.nan,) * 4, spherical_aberration=self.stated.spherical[0],
                # All of them tell as much as one that is as many times as certain.
                spherical_error=self.stated.spherical[1] * math.sqrt(len(self.defocus)),
                hand_gain=self.hand_gain / len(self.defocus)))
        return found


def fit_series(images: Sequence[ArrayLike] | np.ndarray | Tensor, pixel_size: float,
               tilts: Sequence[tuple[float, float]], voltage: float, spherical_aberration: float,
               amplitude_contrast: float = 0.07, search: CtfSearch | None = None) -> SeriesFit:
    """Fit all images of a flat specimen at once.

    Args:
        images: n of (ny, nx).
        pixel_size: [A].
        tilts: angle, right-handed about the axis, and the axis's angle counter-clockwise from +y
            [deg], of each image.
        voltage: [kV].
        spherical_aberration: Cs [mm].
        amplitude_contrast: Q, within [0, 1).
        search: where to look; None = `default_search`.

    Raises:
        ValueError: as `fit_tilted_micrograph`, or for less than three images.
    """
    check_pixel_size(pixel_size)
    search = search or default_search(pixel_size)
    constants = voltage, spherical_aberration, amplitude_contrast
    lens = ctf_model.make_lens(*constants)
    if len(images) != len(tilts) or len(tilts) < 3:
        raise ValueError(f"tilts: {len(tilts)} of them for {len(images)} images; must be one each, "
                         "and three or more")
    cut = [cut_image(image, pixel_size, tilt, lens, search)
           for image, tilt in zip(images, tilts, strict=True)]
    angles = [angle for angle, _ in tilts]
    coarse, fine = search.resolution
    highest = min(1 / fine, max(float(one.strips[0].sectors.k[-1]) for one in cut))
    lowest = max(1 / coarse, min(float(one.strips[0].sectors.k[0]) for one in cut))
    basis = ctf_model.make_basis(lowest, highest)
    right, wrong = (best_fit(cut, angles, hand, lens, basis, search) for hand in (1, -1))
    return _result(cut, angles, right, wrong, constants, lens, basis, search)


def _result(cut: Sequence[Image], angles: Sequence[float], right: Found, wrong: Found,
            constants: tuple[float, float, float], lens: Lens, basis: Basis,
            search: CtfSearch) -> SeriesFit:
    joint, free = right.joint, free_of(search)
    near = ctf_solve.normal(right.series, joint, lens, basis, right.noise, free)
    defoci = ctf_prior.posterior(angles, *ctf_solve.reduced(near, len(cut)), joint.defocus)
    mean = float(defoci.mean.mean())
    shared = shared_errors(near, angles, right.widths, free)
    moved, *model = model_errors(right, angles, lens, basis, free, shared)
    mean_error = math.hypot(float(defoci.covariance.mean().sqrt()), moved)
    errors = [math.hypot(*pair) for pair in zip(shared.tolist(), model, strict=True)]
    parts = np.array([UNIT * float(one) for one in joint.lens[:2]])
    half = float(np.hypot(*parts))
    along = parts / max(half, 1e-9)
    amount = math.hypot(along[0] * errors[0], along[1] * errors[1])
    turn = math.hypot(along[1] * errors[0], along[0] * errors[1]) / (2 * max(half, 1e-9))
    whole, elsewhere = _average(cut, joint, defoci.mean, basis, lens, constants, search)
    right = challenged(right, elsewhere, angles, lens, basis, search)
    known = stated(right, angles, lens, basis, free)
    gain = sum(gains := _gains(right, lens, basis))
    grid, evidence = _evidence(right, lens, basis, mean, search)
    return SeriesFit(
        defocus=defoci.mean.numpy(),
        errors=(defoci.covariance.diagonal() + moved**2).sqrt().numpy(), mean=mean,
        mean_error=mean_error, astigmatism=2 * half, astigmatism_error=2 * amount,
        astigmatism_angle=math.degrees(math.atan2(parts[1], parts[0])) / 2 % 180,
        angle_error=min(math.degrees(turn), 180 / math.sqrt(12)),
        phase_shift=math.degrees(float(joint.lens[2])) % 180,
        phase_error=math.degrees(errors[2]), free=defoci.free, smooth=defoci.smooth,
        thickness=math.exp(float(joint.lens[3])), thickness_error=errors[3], stated=known,
        hand_gain=(right.likelihood - wrong.likelihood) / right.noise,
        gains=np.array(gains), grid=grid, evidence=evidence, whole=whole,
        doubts=tuple(doubts_of(right, whole, (mean, mean_error), gain, known, lens, moved, search)))


def _average(cut: Sequence[Image], joint: Joint, defoci: Tensor, basis: Basis, lens: Lens,
             constants: tuple[float, float, float],
             search: CtfSearch) -> tuple[CtfFit, float]:
    """Fit of the spectra of all images, stretched to the rings of their mean defocus, near it.

    And the defocus [A] that fits them best by itself.
    """
    mean = float(defoci.mean())
    strips = [replace(strip, height=strip.height + float(own) - mean,
                      count=strip.count * float(strength.exp()),
                      flat=_without(strip, joint, basis))
              for one, own, strength in zip(cut, defoci, joint.strength, strict=True)
              for strip in one.strips]
    strips.sort(key=lambda strip: -len(strip.flat))
    at_centre = mean, UNIT * float(joint.lens[0]), UNIT * float(joint.lens[1])
    average = merge(strips, 1, lens, at_centre)

    def fit(low: float, high: float) -> CtfFit:
        return ctf_fit.fit_spectrum(average, strips[0].pixel_size, *constants,
                                    replace(search, defocus=(low, high)), stated=False)

    free = fit(*search.defocus)
    ring = 1 / (lens.wavelength * basis.highest**2)
    low, high = max(mean - ring, search.defocus[0]), min(mean + ring, search.defocus[1])
    near = fit(low, high) if low < high else free
    # Which ring is which the heights tell, and they are lost in the average.
    return near, free.defocus


def _without(strip: Strip, joint: Joint, basis: Basis) -> Tensor:
    """A strip's spectrum without the camera's noise that all images share."""
    side = len(strip.flat)
    kx, ky = spectra.centred_frequencies((side, side), strip.pixel_size)
    noise = ctf_joint.noise_columns(torch.hypot(kx, ky).reshape(-1), basis) @ joint.noise
    return strip.flat / noise.exp().view(side, side)


def _gains(found: Found, lens: Lens, basis: Basis) -> list[float]:
    """Of each image, log-likelihood over that of no rings."""
    gains = []
    for t, one in enumerate(found.series):
        noise = ctf_joint.noise_columns(one.cells.k, basis) @ found.joint.noise
        cells = replace(one.cells, power=one.cells.power / noise.exp())
        flat = replace(found.joint.rings(t), contrast=torch.zeros_like(found.joint.contrast))
        none = ctf_model.maximise(cells, flat, lens, basis, contrast=False)[1]
        # Of the power over the noise, whose logarithm the former has besides.
        none -= float((one.cells.weight * noise).sum(dtype=torch.float64))
        gains.append((float(ctf_joint.log_likelihood(one, found.joint, t, lens, basis)) - none)
                     / found.noise)
    return gains


def _evidence(found: Found, lens: Lens, basis: Basis, middle: float,
              search: CtfSearch) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihood of each image at defoci around the mean, where it was looked for."""
    reach = _REACH / (lens.wavelength * basis.highest**2)
    grid = np.linspace(max(middle - reach, min(middle, search.defocus[0])),
                       min(middle + reach, max(middle, search.defocus[1])), _GRID)
    rows = torch.stack([ctf_joint.likelihoods(one, found.joint, t, lens, basis, grid.tolist())
                        for t, one in enumerate(found.series)]).cpu().numpy() / found.noise
    return grid, rows - rows.min(axis=1, keepdims=True)
