"""A tomogram by its own forward model: the potential that explains the images best.

Images are those of a phase object, with the lens's defocus and its slope across a tilted specimen,
or of waves that pass slices of one that is thicker than the lens's focus is deep, and show what the
dose has left of it; noise is white, as strong in each image as its own high frequencies say; the
brightness of each image is free. The prior is total variation, which gives back in rounds the
contrast that it takes (`inverse.rounds`); as many as explain images held out best.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.tilt_images import Series, band, held_out
from tem_taichi.estimate.tomogram import Step, Tomogram, stopped
from tem_taichi.estimate.tomogram_model import Lens, Model, typical_slope
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.inverse.accelerated import in_memory, metric_of
from tem_taichi.inverse.priors import total_variation_curvature, total_variation_slope
from tem_taichi.inverse.rounds import Rounds
from tem_taichi.noise.looks import noise_of as noise_of

CORNER = 0.1
"""Differences of voxels that cost their square rather than themselves [V]."""
_STRENGTH = 5.0
"""Of the prior in each round, in what noise does to the slope by a voxel: images are explained best
after some ten rounds; half of it needs half as many and finds a little less."""
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
             lens: Lens, room: tuple[int, int] = (0, 0)) -> Model:
    """Of some images of a series that has been made coarser or cut to a band.

    Of pixels as wide, the noise of the narrow ones; of a middle elsewhere, other shifts.

    Args:
        series: all images as they are now, and the grid.
        which: numbers of the images.
        exposures: of all images as they were, of `exposures_of`.
        pixel: of the images as they were [A].
        lens: of all images.
        room: of `Model`.
    """
    finer_by, shifts = series.rays.pixel / pixel, series.rays.shifts.tolist()
    return Model(series.some(which), [
        replace(exposures[n], dose=exposures[n].dose * finer_by, shift_x=shifts[n][0],
                shift_y=shifts[n][1]) for n in which], lens, room)


def fitted(series: Series, exposures: Sequence[Exposure], lens: Lens, rounds: int,
           tv: float | None, positive: bool, every: int, step: Step, kept: Kept) -> Tomogram:
    """The potential relative to the surroundings that explains the images best [V].

    Args:
        series: images and the grid.
        exposures: of `exposures_of`.
        lens: of all images.
        rounds: of `inverse.rounds`, at most; as many where nothing is held out.
        tv: strength of the prior in each round: what a difference of neighbours costs [1/V]; None =
            that to which noise is faint.
        positive: whether the potential is kept from falling below 0.
        every: one image of so many is held out to find when to stop, those of a `band`; all are
            used then. 0 = none.
        step: called after each round.
        kept: from where an interrupted run goes on.
    """
    def model(of: Series, which: Sequence[int]) -> Model:
        return model_of(of, which, exposures, series.rays.pixel, lens)

    whole = model(series, range(len(exposures)))
    found = _STRENGTH * typical_slope(whole) if tv is None else tv
    rest, left = whole, None
    if every:
        part = band(series)
        rest, others = (model(part, which) for which in held_out(part, every))
        even_one = others.misfit(even(part))

        def left(volume: Tensor) -> float:
            return others.misfit(volume) / even_one

    volume, number, curve = stopped(
        lambda shown: rounds_of(rest if shown else whole, found, positive), left, rounds, step,
        kept)
    return Tomogram(series.field(volume), volume, number, found, curve)


def rounds_of(model: Model, tv: float, positive: bool) -> Rounds:
    """Of a volume to images, from an even one.

    Args:
        model: of the images.
        tv: strength of the prior [1/V].
        positive: whether the potential is kept from falling below 0.
    """
    start = even(model.series)
    curved = total_variation_curvature(start.permute(in_memory(start)), 1 / tv, CORNER)
    return Rounds(model.gradient, lambda volume: total_variation_slope(volume, 1 / tv, CORNER),
                  start, metric_of(model.gradient, start).plus(curved), positive)


def even(series: Series) -> Tensor:
    """A volume of 0, in memory as projections take it."""
    nz, ny, nx = series.rays.grid
    return torch.zeros((nz, nx, ny), dtype=series.images.dtype,
                       device=series.images.device).transpose(1, 2)
