"""A tomogram by its own forward model: the potential that explains the images best.

Images are those of a phase object, with the lens's defocus and its slope across a tilted specimen,
or of waves that pass slices of one that is thicker than the lens's focus is deep; noise is white,
as strong in each image as its own high frequencies say; the brightness of each image is free. The
prior is total variation; its strength is that with which images held out are explained best.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tem_taichi.device import as_tensor
from tem_taichi.estimate.kept import Kept
from tem_taichi.estimate.tilt_images import Series, held_out
from tem_taichi.estimate.tomogram import Step, Tomogram
from tem_taichi.experiment import Experiment
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.projection import Projection
from tem_taichi.instrument.tem import TEM
from tem_taichi.inverse.minimise import Fit, Optimiser, Values
from tem_taichi.inverse.priors import total_variation
from tem_taichi.inverse.problem import Problem, fit
from tem_taichi.physics import Value, wavelength
from tem_taichi.specimen.depth import highest_frequency, thickest
from tem_taichi.specimen.field import voxels
from tem_taichi.streams import Key

MODELS = ("projection", "multislice")

_STRENGTHS = (3.0, 1.0, 0.3)
"""Of the prior that are tried, one after another while they explain more [1/V]."""
_BATCH, _RATE, _SLOWER = 8, 0.1, 60
"""Images a step; length of the first steps [V]; steps after which they are half as long."""
_CORNER = 0.1
"""Differences of voxels that cost their square rather than themselves [V]."""
_RING = (0.3, 0.475)
"""Frequencies at which images are taken for noise [cycles/pixel]."""
_LEAST = 1e-5
"""Noise relative to the mean, of 1e10 electrons a pixel."""
_BRIGHTNESS = 0.01
"""Scale of the brightness of an image, relative."""
_PATIENCE = 3
"""Passes through all images without a better one."""


@dataclass(frozen=True)
class Lens:
    """What the images have in common."""

    voltage: float = 300.0
    """[kV]"""
    spherical_aberration: float = 2.7
    """[mm]"""
    amplitude_contrast: float = 0.07
    """[1]"""
    model: str = "projection"
    """Of MODELS."""
    slice_thickness: float | None = None
    """Of multislice [A]; None = `thickest`."""

    def slices(self, voxel: float) -> float:
        """How thick slices are at a size of voxels [A]."""
        return self.slice_thickness or thickest("smooth", highest_frequency(voxel), self.voltage)

    def depth_of_focus(self, voxel: float) -> float:
        """Of details of two voxels [A]: half of it away, their contrast is turned round."""
        return 2 * (2 * voxel)**2 / float(wavelength(self.voltage))

    def instrument(self, shape: tuple[int, int], voxel: float) -> TEM:
        """What makes the images of a grid.

        Args:
            shape: of an image (ny, nx), in voxels.
            voxel: [A].
        """
        one = Projection(detector_shape=shape, wave_shape=shape, pixel_size=voxel,
                         voltage=self.voltage, amplitude_contrast=self.amplitude_contrast)
        if self.model == "projection":
            return one
        return TEM(shape, shape, voxel, self.voltage, self.amplitude_contrast, self.slices(voxel))


@dataclass(frozen=True)
class Whitened:
    """Noise of deviation 1 in all pixels that are finite; a `Likelihood`."""

    def expected(self, intensity: Tensor, dose: Value) -> Tensor:
        """Intensity times what an image is divided by its noise to have."""
        return intensity * as_tensor(dose)

    def sample(self, intensity: Tensor, dose: Value, key: Key) -> Tensor:
        """With noise."""
        mean = self.expected(intensity, dose)
        return mean + as_tensor(key.generator().standard_normal(tuple(mean.shape)))

    def log_prob(self, counts: Tensor, intensity: Tensor, dose: Value) -> Tensor:
        """Less a constant."""
        left = counts - self.expected(intensity, dose)
        return -torch.where(counts.isfinite(), left, 0.0).square().sum() / 2


@dataclass(frozen=True, eq=False)
class Brightened(Sequence):
    """Exposures with free brightness, each made when it is asked for."""

    given: Sequence[Exposure]
    brightness: Tensor

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, n):  # type: ignore[no-untyped-def]
        exposure = self.given[n]
        return replace(exposure, dose=exposure.dose * self.brightness[n])


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

    Args:
        series: images, and their shifts.
        tilts: tilt_angle, axis_angle [deg]; defocus_u and defocus_v with astigmatism_angle [deg],
            or defocus, or target_defocus [A]; phase_shift [deg], or 0.
        lens: of all images.

    Raises:
        ValueError: if no defocus is known of all images, or an image has no noise.
    """
    u, v, _ = defoci_of(tilts)
    angle, phase = (_numbers(tilts, name) for name in ("astigmatism_angle", "phase_shift"))
    level = np.zeros(len(tilts))
    angle, phase = (level if one is None else one for one in (angle, phase))
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
        dose=1 / float(sigma[n])) for n in range(len(tilts))]


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


def fitted(series: Series, exposures: Sequence[Exposure], lens: Lens, passes: int,
           tv: float | None, positive: bool, every: int, step: Step, kept: Kept) -> Tomogram:
    """The potential relative to the surroundings that explains the images best [V].

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
    held = tuple(held_out(series, every)[1]) if every else ()
    voxel = series.rays.voxel
    instrument = lens.instrument(series.rays.shape, voxel)
    weights = as_tensor([float(exposure.dose) for exposure in exposures])[:, None, None]
    counts = torch.where(series.weights > 0, (1 - series.images) * weights, torch.nan)

    def potential(values: Values) -> Tensor:
        free = values["volume"]
        return torch.nn.functional.softplus(free) if positive else free

    def build(values: Values) -> Experiment:
        return Experiment(voxels(potential(values), voxel), instrument, Whitened(),
                          Brightened(exposures, values["brightness"]))

    nz, ny, nx = series.rays.grid
    start: Values = {
        # softplus(-2) = 0.13 V; in memory as projections take it.
        "volume": torch.full((nz, nx, ny), -2.0 if positive else 0.0, dtype=counts.dtype,
                             device=counts.device).transpose(1, 2),
        "brightness": torch.ones(len(exposures), dtype=counts.dtype, device=counts.device)}

    def run(strength: float, start: Values, held: tuple[int, ...], steps: int, name: str) -> Fit:
        problem = Problem(
            start, build, counts, held_out=held, scales={"brightness": _BRIGHTNESS},
            prior=lambda values: total_variation(potential(values), 1 / strength, _CORNER))
        how = Optimiser("adam", steps, rate=_RATE, batch=_BATCH, patience=_PATIENCE,
                        schedule=lambda n: 1 / (1 + n / _SLOWER))
        return fit(problem, how, progress=lambda n, *_: step(n, steps),
                   state_file=kept.state(f"{name} {strength}"))

    steps = passes * -(-(len(exposures) - len(held)) // _BATCH)
    best: Fit | None = None
    found, before = tv, 1.0
    curve: tuple[float, ...] = ()
    for strength in (_STRENGTHS if tv is None else (tv,)) if held else ():
        tried = run(strength, start if best is None else best.values, held, steps, "held out")
        if best is None:
            before = tried.held_out[0]
        elif min(tried.held_out) >= min(best.held_out):
            break
        best, found = tried, strength
        curve = tuple(value / before for value in tried.held_out)
    assert found is not None
    last = run(found, start if best is None else best.values, (),
               steps if best is None else best.steps, "all")
    volume = potential(last.values).detach()
    return Tomogram(series.field(volume), last.steps, found, curve)
