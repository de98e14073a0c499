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

from tem_taichi import optics
from tem_taichi.config import Scene
from tem_taichi.detector import Detector, detect, detector_from_config
from tem_taichi.device import as_tensor, current, init
from tem_taichi.geometry import tilt_rotation, tilt_table
from tem_taichi.grid import fourier_crop
from tem_taichi.multislice import multislice
from tem_taichi.physics import wavelength
from tem_taichi.placement import particle_table
from tem_taichi.specimen import Specimen, View, build_specimen, extent, slices

_CHUNK = 8
"""Slices held at once."""


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
    """The grids of a scene: what is computed around and between the detector's pixels."""

    detector_shape: tuple[int, int]
    """Detector pixels with the margin."""
    wave_shape: tuple[int, int]
    """Wave pixels over the same field."""
    wave_pixel: float
    """[A]"""
    tilts: pd.DataFrame
    """See `geometry.tilt_table`."""
    detector: Detector


def plan(scene: Scene) -> Plan:
    """Grids and tilts of a scene, checked.

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
    margin = scene.interaction.margin
    if margin is None:
        defocus = tilts[["defocus_u", "defocus_v"]].abs().to_numpy().max()
        margin = wavelength(scene.microscope.voltage) * defocus / (2 * scene.pixel_size)
    twice = round(2 * scene.interaction.oversampling)
    sizes = []
    for n in scene.shape:
        least = math.ceil((n + 2 * margin / scene.pixel_size) / 2)
        while least * twice % 2 or any(next_fast_len(f) != f for f in (least, least * twice)):
            least += 1
        sizes.append((2 * least, least * twice))
    (ny, wy), (nx, wx) = sizes
    return Plan((ny, nx), (wy, wx), 2 * scene.pixel_size / twice, tilts, detector)


class _Stages:
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


def exit_wave(
    scene: Scene, specimen: Specimen, grids: Plan, tilt: pd.Series,
    stages: Callable | None = None,
) -> tuple[torch.Tensor, float]:
    """Wave behind the tilted specimen, and the defocus of its centre as seen from there [A]."""
    stages = stages or _Stages()
    settings = scene.interaction
    rotation = tilt_rotation(tilt["tilt_angle"], tilt["axis_angle"])
    low, high = extent(specimen, rotation)
    thickness = settings.slice_thickness
    if settings.mode == "multislice":
        first = math.floor(low / thickness)
        entrance, n_slices = first * thickness, math.floor(high / thickness) - first + 1
    else:
        entrance, n_slices, thickness = low, 1, max(high - low, 1.0)
    view = View(rotation, as_tensor([tilt["shift_x"], tilt["shift_y"]]), grids.wave_shape,
                grids.wave_pixel, thickness, entrance, n_slices)
    wave = torch.ones(view.shape, dtype=current().complex_dtype, device=current().torch_device)
    for start in range(0, view.n_slices, _CHUNK):
        with stages("potential"):
            chunk = slices(specimen, view, start, min(_CHUNK, view.n_slices - start),
                           settings.depth)
        with stages("interaction"):
            wave = multislice(chunk, view.pixel_size, thickness, scene.microscope.voltage,
                              amplitude_contrast=scene.optics.amplitude_contrast,
                              mode=settings.mode, incident=wave)
    # A slice acts where it begins; its scatterers are half a slice further on the average.
    return wave, view.exit + thickness / 2 if settings.mode == "multislice" else 0.0


def intensity(
    scene: Scene, wave: torch.Tensor, exit_distance: float, grids: Plan, tilt: pd.Series
) -> torch.Tensor:
    """Relative intensity on the detector's pixels, margin included.

    Defocus counts from the specimen's centre, so the lens sees the exit plane, which lies
    `exit_distance` nearer to it, that much further under focus. The ice attenuates by
    exp(-thickness / (mean free path cos(tilt))).
    """
    microscope, ice = scene.microscope, scene.specimen.ice
    lens = optics.Optics(
        defocus=(tilt["defocus_u"] + tilt["defocus_v"]) / 2 + exit_distance,
        astigmatism=tilt["defocus_u"] - tilt["defocus_v"],
        astigmatism_angle=tilt["astigmatism_angle"],
        phase_shift=tilt["phase_shift"],
        **{name: getattr(microscope, name) for name in (
            "spherical_aberration", "chromatic_aberration", "energy_spread", "convergence",
            "aperture", "focal_length")})
    image = optics.form_image(wave, grids.wave_pixel, microscope.voltage, lens,
                              linear=scene.interaction.mode == "weak_phase")
    image = fourier_crop(image, grids.detector_shape)
    if ice.mean_free_path is not None:
        path = ice.thickness / math.cos(math.radians(tilt["tilt_angle"]))
        image = image * math.exp(-path / ice.mean_free_path)
    # Cropping rings below zero only beside edges far sharper than a specimen has.
    return image.clamp(min=0)


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
    stages = _Stages()
    grids = plan(scene)
    with stages("structures"):
        specimen = specimen or build_specimen(scene)
    crop = tuple(slice(full // 2 - n // 2, full // 2 - n // 2 + n)
                 for full, n in zip(grids.detector_shape, scene.shape, strict=True))
    n = len(grids.tilts)
    noisy, clean = (torch.empty((n, *scene.shape), dtype=current().dtype) for _ in range(2))
    with torch.no_grad():
        for i, tilt in grids.tilts.iterrows():
            wave, distance = exit_wave(scene, specimen, grids, tilt, stages)
            with stages("optics"):
                image = intensity(scene, wave, distance, grids, tilt)
            with stages("detector"):
                for target, noise in ((clean, False), (noisy, True)):
                    counts = detect(image, pixel_size=scene.pixel_size, dose=tilt["dose"],
                                    detector=grids.detector, noise=noise, seed=scene.seed,
                                    stream=int(tilt["acquisition_index"]))
                    target[i] = counts[crop].cpu()
            if progress:
                progress(i + 1, n)
    return TiltSeries(noisy, clean, grids.tilts["nominal_angle"].to_numpy(),
                      particle_table([k.name for k in specimen.kinds], specimen.poses),
                      grids.tilts, scene.pixel_size, stages.seconds)
