"""From a scene to the tilt series that its detector records."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from scipy.fft import next_fast_len

from tem_taichi.device import current, init
from tem_taichi.instrument.forward import Exposure, Instrument, exit_wave
from tem_taichi.instrument.imaging import intensity
from tem_taichi.instrument.optics import Optics
from tem_taichi.noise.cameras import detector_from_config
from tem_taichi.noise.detector import detect
from tem_taichi.physics import wavelength
from tem_taichi.scene.settings import Scene, doubts
from tem_taichi.series.build import build_specimen
from tem_taichi.series.cost import check_memory, check_time, least_time
from tem_taichi.series.movie import frames_of
from tem_taichi.series.placement import particle_table
from tem_taichi.series.tilts import tilt_table
from tem_taichi.sharing import Sharing
from tem_taichi.specimen.absorption import amplitude_contrast_of_protein
from tem_taichi.specimen.particles import ParticlesInIce

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
    amplitude_contrast: float = 0.07
    """Q of the scene, or that of protein in ice where the scene leaves it to the atoms."""
    halves: torch.Tensor | None = None
    """Two images of half the electrons each, whose sum `images` are, (2, n, ny, nx)."""
    frames: torch.Tensor | None = None
    """Frames of each image's movie, (n, frames, ny, nx)."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent in each stage."""
    threads: tuple[int, ...] = ()
    """Numbers of torch's threads that were used, see `sharing`."""


@dataclass(frozen=True)
class Plan:
    """What a scene asks for, checked: the instrument and one exposure an image."""

    instrument: Instrument
    exposures: list[Exposure]
    """In the order of the stack."""
    tilts: pd.DataFrame
    """See `geometry.tilt_table`; one row an exposure."""
    memory: float
    """That a run takes, within about a third; on a CPU [bytes]."""


def plan(scene: Scene) -> Plan:
    """Grids, tilts and detector of a scene.

    The margin keeps what scatters at the detector's Nyquist frequency from wrapping around: at
    defocus D it travels wavelength D / (2 pixel). Grids are even and factor well.

    Raises:
        ValueError: as `tilt_table` and `detector_from_config`, or if the machine has too little
            memory, which its system would otherwise answer by killing the program, or it takes
            more than a day and the scene does not say force.
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
        # What the projector brings in from beyond the field.
        margin += (abs(scene.optics.magnification_anisotropy) / 2 * scene.pixel_size
                   * max(scene.shape))
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
        detector, scene.optics.magnification_anisotropy, scene.optics.magnification_angle,
        microscope.energy_filter, scene.specimen.damage)
    angles = tilts["tilt_angle"].to_numpy()
    memory = check_memory(scene, instrument, angles)
    check_time(scene, least_time(scene, instrument, angles), len(angles))
    lens = {name: getattr(microscope, name) for name in (
        "spherical_aberration", "chromatic_aberration", "energy_spread", "convergence",
        "aperture", "focal_length")}
    lens |= {name: getattr(scene.optics, name) for name in (
        "coma", "coma_angle", "trefoil", "trefoil_angle")}
    lens |= dict(zip(("beam_tilt_x", "beam_tilt_y"), scene.optics.beam_tilt, strict=True))
    exposures = [
        Exposure(
            Optics(defocus=(t.defocus_u + t.defocus_v) / 2, astigmatism=t.defocus_u - t.defocus_v,
                   astigmatism_angle=t.astigmatism_angle, phase_shift=t.phase_shift, **lens),
            t.tilt_angle, t.axis_angle, t.shift_x, t.shift_y, t.dose, t.prior_dose,
            int(t.acquisition_index) * scene.movie.frames)
        for t in tilts.itertuples()]
    return Plan(instrument, exposures, tilts, memory)


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
    specimen: ParticlesInIce | None = None,
) -> TiltSeries:
    """Simulate the tilt series of a scene.

    Args:
        scene: from `load_scene`, or made in Python.
        progress: called with the number of images done and in all.
        specimen: what `build_specimen(scene)` gave, if it is at hand.

    Returns:
        Images with and without noise, and the truth behind them.

    Warns:
        UserWarning: of `config.doubts`.

    Raises:
        ValueError: for a scene that cannot be; nothing has been computed then.
    """
    for doubt in doubts(scene):
        warnings.warn(doubt, stacklevel=2)
    init(scene.compute.arch, scene.compute.dtype)
    stages = _Timer()
    planned = plan(scene)
    instrument = planned.instrument
    with stages("structures"):
        specimen = specimen or build_specimen(scene)
    crop = tuple(slice(full // 2 - n // 2, full // 2 - n // 2 + n)
                 for full, n in zip(instrument.detector_shape, scene.shape, strict=True))

    def record(
        image: torch.Tensor, exposure: Exposure, noise: bool = True, halves: bool = False
    ) -> torch.Tensor:
        counts = detect(image, pixel_size=scene.pixel_size, dose=exposure.dose, noise=noise,
                        detector=instrument.detector, seed=scene.seed, stream=exposure.stream,
                        halves=halves)
        return counts[..., crop[0], crop[1]].cpu()

    n, frames, halves = len(planned.exposures), scene.movie.frames, scene.detector.halves
    clean = torch.zeros((n, *scene.shape), dtype=current().dtype)
    noisy = torch.zeros((2 if halves else 1, *clean.shape), dtype=clean.dtype)
    movie = torch.empty((n, frames, *scene.shape), dtype=clean.dtype) if frames > 1 else None
    with torch.no_grad(), Sharing() as share:
        for i, whole in enumerate(planned.exposures):
            share()
            for frame, (moved, exposure) in enumerate(frames_of(scene, specimen, whole)):
                wave, distance = exit_wave(moved, instrument, exposure, stages)
                with stages("optics"):
                    image = intensity(moved, instrument, exposure, wave, distance)
                with stages("detector"):
                    clean[i] += record(image, exposure, noise=False)
                    counts = record(image, exposure, halves=halves)
                    noisy[:, i] += counts
                    if movie is not None:
                        movie[i, frame] = counts.sum(0) if halves else counts
            if progress:
                progress(i + 1, n)
    return TiltSeries(
        noisy.sum(0) if halves else noisy[0], clean, planned.tilts["nominal_angle"].to_numpy(),
        particle_table([k.name for k in specimen.kinds], specimen.poses), planned.tilts,
        scene.pixel_size, amplitude_contrast(scene, specimen), noisy if halves else None, movie,
        stages.seconds, tuple(share.counts))


def amplitude_contrast(scene: Scene, specimen: ParticlesInIce) -> float:
    """Q that other programs need as a number: the scene's, or else that of protein in its ice."""
    given, ice = scene.optics.amplitude_contrast, specimen.ice
    if given is not None:
        return given
    if ice.mean_free_path is None:
        return 0.0
    return float(amplitude_contrast_of_protein(
        float(ice.mean_free_path), scene.microscope.voltage, float(ice.potential),
        float(ice.particle_absorption), ice.ratios))
