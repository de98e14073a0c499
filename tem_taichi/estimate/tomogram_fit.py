"""A tomogram by its own forward model: the potential that explains the images best.

Images are those of a phase object, with the lens's defocus and its slope across a tilted specimen,
or of waves that pass slices of one that is thicker than the lens's focus is deep, and show what the
dose has left of it; noise is white, as strong in each image as its own high frequencies say; the
brightness of each image is free. The prior is total variation; its strength is that with which
images held out are explained best.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.tilt_images import Series, band, finer, held_out
from tem_taichi.estimate.tomogram import Step, Tomogram
from tem_taichi.estimate.tomogram_model import Lens, Model
from tem_taichi.estimate.tomogram_strength import Fit, Trials, even, least, typical_slope
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.noise.looks import noise_of as noise_of

_COARSE = 32
"""Pixels along a side of images from which wider voxels come first."""
_FIRST = 2.0
"""Strength of the prior that is tried first, in typical slopes of the misfit by a voxel at the
start."""
_TRIED = ((2.0, 4), (2**0.5, 2))
"""Ratio of strengths that are tried with wide voxels, and then with narrow ones, and how many are
in any case."""
_LEAST = 1e-5
"""Noise relative to the mean, of 1e10 electrons a pixel."""


def exposures_of(series: Series, tilts: pd.DataFrame, lens: Lens) -> list[Exposure]:
    """How each image was taken; doses are one over its noise, relative to its mean.

    The dose before it is what the specimen has had by the middle of the image.

    Args:
        series: images, and their shifts.
        tilts: tilt_angle, axis_angle [deg]; defocus_u and defocus_v with astigmatism_angle [deg],
            or defocus, or target_defocus [A]; phase_shift [deg], or 0; prior_dose and dose
            [e-/A^2], without which nothing is taken for damaged.
        lens: of all images.

    Raises:
        ValueError: if no defocus is known of all images, or an image has no noise.
    """
    u, v, _ = defoci_of(tilts)
    angle, phase = (_numbers(tilts, name) for name in ("astigmatism_angle", "phase_shift"))
    level = np.zeros(len(tilts))
    angle, phase = (level if one is None else one for one in (angle, phase))
    prior, dose = (_numbers(tilts, name) for name in ("prior_dose", "dose"))
    had = level if prior is None or dose is None else np.maximum(prior + dose / 2, 0)
    sigma = noise_of(series.images)
    if float(sigma.min()) < _LEAST:
        raise ValueError(f"input: image {int(sigma.argmin()) + 1} has no noise; it must be as it "
                         "was recorded for method=gradient")
    return [Exposure(
        Optics(defocus=float(u[n] + v[n]) / 2, astigmatism=float(u[n] - v[n]),
               astigmatism_angle=float(angle[n]), phase_shift=float(phase[n]),
               spherical_aberration=lens.spherical_aberration),
        tilt_angle=float(tilts["tilt_angle"].iloc[n]),
        axis_angle=float(tilts["axis_angle"].iloc[n]),
        shift_x=float(series.rays.shifts[n, 0]), shift_y=float(series.rays.shifts[n, 1]),
        dose=1 / float(sigma[n]), prior_dose=float(had[n])) for n in range(len(tilts))]


def defoci_of(tilts: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, str]:
    """Defocus U and V of each image [A], and the columns that they are from.

    Args:
        tilts: as `exposures_of` takes them.

    Raises:
        ValueError: if no defocus is known of all images.
    """
    for names in (("defocus_u", "defocus_v"), ("defocus",), ("target_defocus",)):
        found = [_numbers(tilts, name) for name in names]
        if found[0] is not None and found[-1] is not None:
            return found[0], found[-1], " and ".join(names)
    raise ValueError("angles: must have defocus_u and defocus_v, defocus or target_defocus of "
                     "every image [A] for method=gradient")


def _numbers(tilts: pd.DataFrame, name: str) -> np.ndarray | None:
    """A column; None where there is none or it has no number for some image."""
    if name in tilts and np.isfinite(tilts[name].to_numpy(float)).all():
        return tilts[name].to_numpy(float)
    return None


def model_of(series: Series, which: Sequence[int], exposures: Sequence[Exposure], pixel: float,
             lens: Lens) -> Model:
    """Of some images of a series that has been made coarser or cut to a band.

    Of pixels as wide, the noise of the narrow ones; of a middle elsewhere, other shifts.

    Args:
        series: all images as they are now, and the grid.
        which: numbers of the images.
        exposures: of all images as they were, of `exposures_of`.
        pixel: of the images as they were [A].
        lens: of all images.
    """
    finer_by, shifts = series.rays.pixel / pixel, series.rays.shifts.tolist()
    return Model(series.some(which), [
        replace(exposures[n], dose=exposures[n].dose * finer_by, shift_x=shifts[n][0],
                shift_y=shifts[n][1]) for n in which], lens)


def fitted(series: Series, exposures: Sequence[Exposure], lens: Lens, passes: int,
           tv: float | None, positive: bool, every: int, step: Step, kept: Kept) -> Tomogram:
    """The potential relative to the surroundings that explains the images best [V].

    The strength of the prior is looked for, and the fit begins, with voxels twice as wide; whether
    narrow ones need more is asked of the images held out again. Both are asked of a `band`.

    Args:
        series: images and the grid.
        exposures: of `exposures_of`.
        lens: of all images.
        passes: through all images, at most, for each strength.
        tv: strength of the prior: what a difference of neighbours costs [1/V]; None = by the images
            held out.
        positive: whether the potential is kept from falling below 0.
        every: one image of so many is held out; 0 = none.
        step: called after each step.
        kept: from where an interrupted run goes on.

    Raises:
        ValueError: if tv is None and nothing is held out.
    """
    if tv is None and not every:
        raise ValueError("tv=null: needs held_out, by which the strength is chosen")
    wide = min(series.rays.shape) >= _COARSE and series.rays.grid[0] > 1
    coarse = series.coarser() if wide else series

    def model(of: Series, which: Sequence[int]) -> Model:
        return model_of(of, which, exposures, series.rays.pixel, lens)

    everything = range(len(exposures))
    scales = (coarse, series) if wide else (series,)
    # What noise does to a voxel's slope, by which strengths are alike for voxels of any width.
    typical = [typical_slope(model(of, everything)) for of in scales]
    found = _FIRST if tv is None else tv / typical[-1]
    curve: tuple[float, ...] = ()
    if every:
        rest, others = held_out(series, every)
        part, begun = band(series), None
        parts = (part.coarser(), part) if wide else (part,)
        for of, unit, (ratio, count) in zip(parts, typical, _TRIED, strict=False):
            trials = Trials(shown=model(of, rest), hidden=model(of, others), unit=unit, start=begun,
                            positive=positive, passes=passes, step=step, kept=kept)
            if tv is None:
                found = least(trials.left, found if begun is None else ratio * found, ratio,
                              count)
            begun, curve = trials.fitted(found)
            if tv is not None:
                break
    volume = even(scales[0])
    for of, unit in zip(scales, typical, strict=True):
        volume = finer(volume, of.rays.grid) if volume.shape != of.rays.grid else volume
        fit = Fit(model(of, everything), positive)
        run = fit.run(found * unit, volume)
        curve_of_all = fit.settled(run, lambda volume: 0.0, passes, step,
                                   kept.state(f"all {found} {of.rays.voxel}"))
        volume = run.volume
    return Tomogram(series.field(volume), volume, len(curve_of_all) - 1, found * typical[-1], curve)
