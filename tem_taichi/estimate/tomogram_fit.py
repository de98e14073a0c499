"""A tomogram by its own forward model: the potential that explains the images best.

Images are those of a phase object, with the lens's defocus and its slope across a tilted specimen,
or of waves that pass slices of one that is thicker than the lens's focus is deep, and show what the
dose has left of it; noise is white, as strong in each image as its own high frequencies say; the
brightness of each image is free. The prior is total variation; its strength is that with which
images held out are explained best.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.tilt_images import Series, band, finer, held_out
from tem_taichi.estimate.tomogram import Step, Tomogram, iterate, judged
from tem_taichi.estimate.tomogram_model import Lens, Model
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.inverse.accelerated import Accelerated, Metric, metric_of
from tem_taichi.inverse.priors import total_variation_curvature, total_variation_slope

_CORNER = 0.1
"""Differences of voxels that cost their square rather than themselves [V]."""
_COARSE = 32
"""Pixels along a side of images from which wider voxels come first."""
_LAST, _SMALL = 5, 0.002
"""Steps that end a fit where they took no more than that part of all that the loss has fallen since
the first step."""
_STRENGTHS = (2.0, 1.0, 0.5, 0.25, 0.12)
"""Of the prior that are tried, one after another while they explain more, in typical gradients of
the images' probability by a voxel, at the start."""
_STRONGER = (1.0, 2.0, 4.0)
"""Than with wide voxels: what is tried with narrow ones, which show more noise beside the same
specimen, in the same way."""
_RING = (0.3, 0.475)
"""Frequencies at which images are taken for noise [cycles/pixel]."""
_LEAST = 1e-5
"""Noise relative to the mean, of 1e10 electrons a pixel."""


def noise_of(images: Tensor) -> Tensor:
    """Standard deviation of each image's noise, by its power where it hardly has another part.

    Args:
        images: (n, ny, nx).

    Returns:
        (n,).
    """
    _, ny, nx = images.shape
    ky = torch.fft.fftfreq(ny, device=images.device)[:, None]
    k = (ky**2 + torch.fft.rfftfreq(nx, device=images.device)**2).sqrt()
    ring = (k > _RING[0]) & (k < _RING[1])
    power = torch.fft.rfft2(images).abs().square()[:, ring].mean(1) / (ny * nx)
    return power.sqrt()


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
    # What noise does to a voxel's slope, by which strengths are alike for voxels of any width.
    typical = [_typical(model(of, everything)) for of in (coarse, series)]
    found = 0.0 if tv is None else tv / typical[1]
    curve: tuple[float, ...] = ()
    if every:
        rest, others = held_out(series, every)
        part = band(series)
        coarse_part = part.coarser() if wide else part
        shown = model(coarse_part, rest)
        found, curve = _chosen(shown, model(coarse_part, others), _even(coarse_part), typical[0],
                               _STRENGTHS if tv is None else (found,), passes, positive, step, kept)
        if wide and tv is None:
            run = _run(shown, found * typical[0], positive, _even(coarse_part))
            _settled(run, passes, step, kept.state(f"shown {found}"))
            found, curve = _chosen(
                model(part, rest), model(part, others), finer(run.volume, part.rays.grid),
                typical[1], [found * more for more in _STRONGER], passes, positive, step, kept)
    volume = _even(coarse)
    for of, unit in zip((coarse, series), typical, strict=True) if wide else [(series, typical[1])]:
        if volume.shape != of.rays.grid:
            volume = finer(volume, of.rays.grid)
        run = _run(model(of, everything), found * unit, positive, volume)
        losses = _settled(run, passes, step, kept.state(f"all {found} {of.rays.voxel}"))
        volume = run.volume
    return Tomogram(series.field(volume), volume, len(losses) - 1, found * typical[1], curve)


def _chosen(shown: Model, hidden: Model, start: Tensor, typical: float,
            strengths: Sequence[float], passes: int, positive: bool, step: Step, kept: Kept
            ) -> tuple[float, tuple[float, ...]]:
    """Strength, and the curve of what was held out: its misfit over that of an even specimen."""
    metric = metric_of(shown.gradient, start)
    base = hidden.misfit(_even(shown.series))
    best: tuple[float, tuple[float, ...]] | None = None
    for strength in strengths:
        name = f"held out {strength} {shown.series.rays.voxel}"
        curve = tuple(kept.numbers(name, partial(
            judged, _run(shown, strength * typical, positive, start, metric),
            lambda volume: hidden.misfit(volume) / base, passes, step, kept.state(name))))
        if best is not None and min(curve) >= min(best[1]):
            break
        best = strength, curve
    assert best is not None
    return best


def _typical(model: Model) -> float:
    """Slope of the misfit by a voxel at the start, of those that are mostly noise [1/V]."""
    slope = model.gradient(_even(model.series))[1]
    return max(1.4826 * float(slope[::2, ::2, ::2].abs().median()), 1e-30)


def _settled(run: Accelerated, passes: int, step: Step, file: Path | None) -> list[float]:
    """Steps until they hardly lessen the loss; their losses, after a first 1."""
    def more(losses: list[float]) -> bool:
        ends = len(losses) > _LAST + 1 and (
            losses[-1 - _LAST] - losses[-1] <= _SMALL * (losses[1] - losses[-1]))
        return len(losses) <= passes and not ends

    return iterate(run, more, lambda volume: run.loss, lambda done: step(done, passes), file)


def _run(model: Model, tv: float, positive: bool, start: Tensor, metric: Metric | None = None
         ) -> Accelerated:
    """Of a strength of the prior [1/V]."""
    def gradient(volume: Tensor) -> tuple[float, Tensor]:
        misfit, slope = model.gradient(volume)
        cost, by_cost = total_variation_slope(volume, 1 / tv, _CORNER)
        return misfit + cost, slope.add_(by_cost)

    metric = metric or metric_of(model.gradient, start)
    metric = metric.plus(total_variation_curvature(start, 1 / tv, _CORNER))
    return Accelerated(gradient, start, metric, positive)


def _even(series: Series) -> Tensor:
    """A volume of 0, in memory as projections take it."""
    nz, ny, nx = series.rays.grid
    return torch.zeros((nz, nx, ny), dtype=series.images.dtype,
                       device=series.images.device).transpose(1, 2)
