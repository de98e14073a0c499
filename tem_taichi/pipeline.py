"""From a scene to the tilt series that its detector records."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from scipy.fft import next_fast_len

from tem_taichi.config import Scene
from tem_taichi.detector import detect, detector_from_config
from tem_taichi.device import current, init
from tem_taichi.forward import Exposure, Instrument, exit_wave, intensity
from tem_taichi.geometry import tilt_table
from tem_taichi.optics import Optics
from tem_taichi.physics import wavelength
from tem_taichi.placement import particle_table
from tem_taichi.specimen import Specimen, build_specimen

_MAX_WAVE = 32768
"""Pixels along a side; beyond it one wave fills a large GPU."""


@dataclass(frozen=True)
class TiltSeries:
    """A simulated tilt series, in the order of ascending nominal angle."""

    images: torch.Tensor
    """Counts with noise, (n, ny, nx)."""
    noise_free: torch.Tensor
    """Expected counts, (n, ny, nx)."""
    tilt_angles: np.ndarray
    """Nominal angles [deg], (n,); `tilts` has the true ones."""
    particles: pd.DataFrame
    """kind, x, y, z [A from the specimen's centre], rot, tilt, psi [deg]."""
    tilts: pd.DataFrame
    """Truth of each image, see `geometry.tilt_table`."""
    pixel_size: float
    """[A]"""
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent in each stage."""


@dataclass(frozen=True)
class Plan:
    """What a scene asks for, checked: the instrument and one exposure an image."""

    instrument: Instrument
    exposures: list[Exposure]
    """In the order of the stack."""
    tilts: pd.DataFrame
    """See `geometry.tilt_table`; one row an exposure."""


def plan(scene: Scene) -> Plan:
    """Grids, tilts and detector of a scene.

    The margin keeps what scatters at the detector's Nyquist frequency from wrapping around: at
    defocus D it travels wavelength D / (2 pixel). Grids are even and factor well.

    Raises:
        ValueError: as `tilt_table` and `detector_from_config`.
    """
    tilts = tilt_table(scene)
    try:
        detector = detector_from_config(scene.detector)
    except (ValueError, OSError) as error:
        text = str(error)
        raise ValueError(text if text.startswith("detector") else f"detector.{text}") from error
    settings, microscope = scene.interaction, scene.microscope
    margin = settings.margin
    if margin is None:
        defocus = tilts[["defocus_u", "defocus_v"]].abs().to_numpy().max()
        margin = wavelength(microscope.voltage) * defocus / (2 * scene.pixel_size)
    twice = round(2 * settings.oversampling)
    sizes = []
    for n in scene.shape:
        least = math.ceil((n + 2 * margin / scene.pixel_size) / 2)
        while least * twice % 2 or any(next_fast_len(f) != f for f in (least, least * twice)):
            least += 1
        sizes.append((2 * least, least * twice))
    (ny, wy), (nx, wx) = sizes
    if max(wy, wx) > _MAX_WAVE:
        raise ValueError(
            f"shape={list(scene.shape)}: with interaction.margin={margin:.0f} A the wave has {wy} "
            f"x {wx} pixels: must be at most {_MAX_WAVE}; lower shape, interaction.margin (null = "
            "by the defocus) or oversampling, or enlarge pixel_size")
    instrument = Instrument(
        (ny, nx), (wy, wx), scene.pixel_size, microscope.voltage,
        scene.optics.amplitude_contrast, settings.mode, settings.slice_thickness, settings.depth,
        detector)
    lens = {name: getattr(microscope, name) for name in (
        "spherical_aberration", "chromatic_aberration", "energy_spread", "convergence",
        "aperture", "focal_length")}
    exposures = [
        Exposure(
            Optics(defocus=(t.defocus_u + t.defocus_v) / 2, astigmatism=t.defocus_u - t.defocus_v,
                   astigmatism_angle=t.astigmatism_angle, phase_shift=t.phase_shift, **lens),
            t.tilt_angle, t.axis_angle, t.shift_x, t.shift_y, t.dose)
        for t in tilts.itertuples()]
    return Plan(instrument, exposures, tilts)


class _Timer:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if current().torch_device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def simulate(
    scene: Scene,
    progress: Callable[[int, int], None] | None = None,
    specimen: Specimen | None = None,
) -> TiltSeries:
    """Simulate the tilt series of a scene.

    Args:
        scene: from `load_scene`, or made in Python.
        progress: called with the number of images done and in all.
        specimen: what `build_specimen(scene)` gave, if it is at hand.

    Returns:
        Images with and without noise, and the truth behind them.

    Raises:
        ValueError: for a scene that cannot be; nothing has been computed then.
    """
    init(scene.compute.arch, scene.compute.dtype)
    stages = _Timer()
    planned = plan(scene)
    instrument = planned.instrument
    with stages("structures"):
        specimen = specimen or build_specimen(scene)
    crop = tuple(slice(full // 2 - n // 2, full // 2 - n // 2 + n)
                 for full, n in zip(instrument.detector_shape, scene.shape, strict=True))
    n = len(planned.exposures)
    noisy, clean = (torch.empty((n, *scene.shape), dtype=current().dtype) for _ in range(2))
    with torch.no_grad():
        for i, exposure in enumerate(planned.exposures):
            wave, distance = exit_wave(specimen, instrument, exposure, stages)
            with stages("optics"):
                image = intensity(specimen, instrument, exposure, wave, distance)
            with stages("detector"):
                for target, noise in ((clean, False), (noisy, True)):
                    counts = detect(image, pixel_size=scene.pixel_size, dose=exposure.dose,
                                    detector=instrument.detector, noise=noise, seed=scene.seed,
                                    stream=int(planned.tilts["acquisition_index"].iloc[i]))
                    target[i] = counts[crop].cpu()
            if progress:
                progress(i + 1, n)
    return TiltSeries(noisy, clean, planned.tilts["nominal_angle"].to_numpy(),
                      particle_table([k.name for k in specimen.kinds], specimen.poses),
                      planned.tilts, scene.pixel_size, stages.seconds)
