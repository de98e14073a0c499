"""What a scene asks for, checked before anything is computed: instrument and exposures."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import pandas as pd
from scipy.fft import next_fast_len
from torch import Tensor

from tem_taichi.experiment import Experiment, NoiseLaw, Specimen
from tem_taichi.instrument.exposure import Exposure
from tem_taichi.instrument.optics import Optics
from tem_taichi.instrument.projection import Projection
from tem_taichi.instrument.stem import STEM
from tem_taichi.instrument.tem import TEM
from tem_taichi.noise.camera import Camera
from tem_taichi.physics import wavelength
from tem_taichi.scene.particle import FiducialSettings
from tem_taichi.scene.settings import Scene
from tem_taichi.series.build import ice_of
from tem_taichi.series.camera import detector_from_config
from tem_taichi.series.cost import check_memory, check_time, least_time
from tem_taichi.series.styles import Styles, styles_of
from tem_taichi.series.tilts import tilt_table
from tem_taichi.specimen.depth import highest_frequency, thickest
from tem_taichi.timing import Stages

_MAX_WAVE = 32768
"""Pixels along a side; beyond it one wave fills a large GPU."""
_BESIDE = 8
"""Pixels about a scanned image that are computed too."""
_LATTICE = 1 / 2.4
"""Frequency [1/A] beyond which images show the planes of gold, the widest 2.355 A apart."""


@dataclass(frozen=True)
class Scanned(Projection):
    """A `STEM` with the grids of a projection, by which costs are foreseen."""

    stem: STEM = field(kw_only=True)

    def intensity(self, specimen: Specimen, exposure: Exposure) -> Tensor:
        """The STEM's."""
        with self.stages("interaction"):
            return self.stem.intensity(specimen, exposure)


@dataclass(frozen=True)
class Plan:
    """What a scene asks for, checked: the instrument and one exposure an image."""

    instrument: TEM
    camera: Camera
    exposures: list[Exposure]
    """In the order of the stack."""
    tilts: pd.DataFrame
    """See `tilts.tilt_table`; one row an exposure."""
    memory: float
    """That a run takes, within about a third; on a CPU [bytes]."""
    styles: Styles | None = None
    """Whose looks images take in the place of the camera's noise."""

    def law(self, exposure: Exposure) -> NoiseLaw:
        """Of an image's noise."""
        return self.camera if self.styles is None else self.styles.law(
            float(exposure.tilt_angle))

    def experiment(self, specimen: Specimen, stages: Stages = nullcontext) -> Experiment:
        """With a specimen, and the camera; `stages` times the instrument."""
        return Experiment(specimen, replace(self.instrument, stages=stages), self.camera,
                          self.exposures)


def plan(scene: Scene) -> Plan:
    """Grids, tilts and detector of a scene.

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
    camera = Camera(scene.pixel_size, detector, (scene.shape[0], scene.shape[1]),
                    scene.detector.halves)
    instrument = _instrument(scene, tilts)
    angles = tilts["tilt_angle"].to_numpy()
    memory = check_memory(scene, instrument, angles)
    check_time(scene, least_time(scene, instrument, angles), len(angles))
    styles = None if scene.noise.style is None else styles_of(
        scene.noise, scene.pixel_size, (scene.shape[0], scene.shape[1]))
    return Plan(instrument, camera, _exposures(scene, tilts), tilts, memory, styles)


def _margin(scene: Scene, tilts: pd.DataFrame) -> float:
    """Computed around the images [A].

    By default it keeps what scatters at the detector's Nyquist frequency from wrapping around: at
    defocus D it travels wavelength D / (2 pixel).
    """
    if scene.interaction.margin is not None:
        return scene.interaction.margin
    defocus = tilts[["defocus_u", "defocus_v"]].abs().to_numpy().max()
    travelled = wavelength(scene.microscope.voltage) * defocus / (2 * scene.pixel_size)
    # What the projector brings in from beyond the field.
    brought = abs(scene.optics.magnification_anisotropy) / 2 * scene.pixel_size * max(scene.shape)
    return float(travelled + brought)


def _grids(scene: Scene, margin: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pixels of the detector with its margin and of the wave, even and with small factors."""
    twice = round(2 * scene.interaction.oversampling)
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
    return (ny, nx), (wy, wx)


def slices_for(scene: Scene) -> tuple[float, str | None]:
    """Thickness of a scene's slices [A], and how they share atoms: what it says, or by the rule."""
    settings = scene.interaction
    if settings.slice_thickness is not None:
        return settings.slice_thickness, settings.depth
    return by_rule(scene), settings.depth or "smooth"


def by_rule(scene: Scene) -> float:
    """Thickness of slices [A] that keeps the error of a scene's images below 1 %.

    The rule is that of `depth.thickest`. Beside gold whose lattice the image resolves it is a
    third, since its columns scatter electrons more than once; where ice has a structure, which
    each slice has in its middle, at most a quarter of the ice. Measured in docs/slices.md.
    """
    settings = scene.interaction
    depth = settings.depth or ("smooth" if settings.slice_thickness is None else "nearest")
    frequency = highest_frequency(scene.pixel_size, settings.oversampling)
    thickness = thickest(depth, frequency, scene.microscope.voltage)
    sources = (particle.source for particle in scene.specimen.particles.values())
    if frequency > _LATTICE and any(isinstance(source, FiducialSettings) for source in sources):
        thickness /= 3
    if ice_of(scene).structured:
        thickness = min(thickness, scene.specimen.ice.thickness / 4)
    return float(f"{thickness:.3g}")


def _instrument(scene: Scene, tilts: pd.DataFrame) -> TEM:
    settings = scene.interaction
    if scene.instrument == "stem":
        return _scanned(scene)
    detector_shape, wave_shape = _grids(scene, _margin(scene, tilts))
    kind = TEM if settings.mode == "multislice" else Projection
    thickness, depth = slices_for(scene)
    return kind(
        detector_shape=detector_shape, wave_shape=wave_shape, pixel_size=scene.pixel_size,
        voltage=scene.microscope.voltage, amplitude_contrast=scene.optics.amplitude_contrast,
        slice_thickness=thickness, depth=depth,
        anisotropy=scene.optics.magnification_anisotropy,
        anisotropy_angle=scene.optics.magnification_angle,
        energy_filter=scene.microscope.energy_filter, damage=scene.specimen.damage,
        linear=settings.mode == "weak_phase")


def _scanned(scene: Scene) -> Scanned:
    """A beam at each of the detector's pixels, and about them, as what is beyond wraps around."""
    margin, stem = scene.interaction.margin, scene.stem
    if margin is None:
        margin = _BESIDE * scene.pixel_size + 3 * stem.probe
    shape, _ = _grids(scene, margin)
    return Scanned(
        detector_shape=shape, wave_shape=shape, pixel_size=scene.pixel_size,
        voltage=scene.microscope.voltage, amplitude_contrast=0.0, damage=0.0,
        stem=STEM(shape, scene.pixel_size, stem.signal, offset=stem.offset,
                  convergence=stem.convergence, probe=stem.probe,
                  dynamic_focus=stem.dynamic_focus, rays=stem.rays, seed=scene.seed))


def _exposures(scene: Scene, tilts: pd.DataFrame) -> list[Exposure]:
    """One a row of the table."""
    lens = {name: getattr(scene.microscope, name) for name in (
        "spherical_aberration", "chromatic_aberration", "energy_spread", "convergence",
        "aperture", "focal_length")}
    lens |= {name: getattr(scene.optics, name) for name in (
        "coma", "coma_angle", "trefoil", "trefoil_angle")}
    lens |= dict(zip(("beam_tilt_x", "beam_tilt_y"), scene.optics.beam_tilt, strict=True))
    return [
        Exposure(
            optics=Optics(
                defocus=(t.defocus_u + t.defocus_v) / 2, astigmatism=t.defocus_u - t.defocus_v,
                astigmatism_angle=t.astigmatism_angle, phase_shift=t.phase_shift, **lens),
            tilt_angle=t.tilt_angle, axis_angle=t.axis_angle, shift_x=t.shift_x, shift_y=t.shift_y,
            dose=t.dose, prior_dose=t.prior_dose,
            stream=int(t.acquisition_index) * scene.movie.frames)
        for t in tilts.itertuples()]
