"""A scene that simulates a labelled twin of a real tilt series, from its images and metadata.

Means against tilt give the thickness and the gain, spectra of the background the noise and a
crowd of globules that scatters as much as what is there. Real counts are scaled and resampled:
what the twin takes them for is said in its assumptions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from tem_taichi.checks import positive
from tem_taichi.estimate.background import BackgroundSpectra, background_spectra
from tem_taichi.estimate.crops import plain
from tem_taichi.estimate.crowd_fit import CrowdFit, Lens, Sight, fit_crowd
from tem_taichi.estimate.thickness_field import fit_images_thickness
from tem_taichi.estimate.thickness_fit import ThicknessFit
from tem_taichi.estimate.twin_table import complete_table
from tem_taichi.rotations import tilt_rotation
from tem_taichi.scene.particle import GlobuleSettings, ParticleSettings
from tem_taichi.scene.placing import PlacingSettings
from tem_taichi.scene.settings import (
    DetectorSettings,
    InteractionSettings,
    MicroscopeSettings,
    OpticsSettings,
    Scene,
    TiltSettings,
)
from tem_taichi.scene.show import to_yaml
from tem_taichi.scene.specimen import IceSettings, SpecimenSettings
from tem_taichi.series.build import build_specimen
from tem_taichi.series.plan import plan
from tem_taichi.series.trial import foreseen_time
from tem_taichi.specimen.absorption import mean_free_path, protein_potentials

_WHITE = 1.2
"""Largest over least noise up to which it is taken as white."""
_BEAM = 0.1
"""Relative deviation from the curve up to which the beam is taken to vary."""

NOT_MODELLED = ("The twin is a slab of ice that is the same everywhere: it has no gold, membranes, "
                "cell borders, wrinkles or carbon, and its crowd stands for the background's power "
                "spectrum, not for the cell's composition.")


@dataclass(frozen=True)
class TwinSettings:
    """What images and tables do not say."""

    mean_free_path: float = 3950.0
    """of the loss from the image in ice at 300 kV [A], scaled to the voltage; scales thickness"""
    spherical_aberration: float = 2.7
    """Cs [mm]"""
    shape: tuple[int, ...] | None = None
    """rows and columns of the twin's images; null = those of the real ones"""
    masses: tuple[float, ...] = (5.0, 20.0, 100.0, 500.0, 2500.0)
    """of the globules that may crowd the ice [kDa]; [] = ice alone"""
    particles: dict[str, ParticleSettings] = field(default_factory=dict)
    """further particles of interest by name, as in a scene's specimen; they are not fitted"""
    tile: int = 64
    """side of a tile of background [pixel]"""
    slice_thickness: float = 100.0
    """of the twin's slices [A]"""
    seed: int = 0
    """of the twin's noise and places"""


@dataclass(frozen=True, eq=False)
class Twin:
    """A scene and what it rests on.

    Attributes:
        scene: for `series.simulate` or `twin_text`.
        thickness: fit of the means.
        spectra: of the real background.
        crowd: fit of the spectra; its masses are () where the scene has ice alone.
        sights: how each image sees the crowd.
        lens: what they have in common.
        nominal_dose: mean exposure of an image by the table [e-/A^2].
        implied_dose: that would have, counted one by one at the DQE of 1, the noise that there
            is [e-/A^2]; at most the scene's.
        assumptions: what is taken for granted, one sentence each.
        warnings: what the fits warn of, one sentence each.
    """

    scene: Scene
    thickness: ThicknessFit
    spectra: BackgroundSpectra = field(repr=False)
    crowd: CrowdFit
    sights: list[Sight] = field(repr=False)
    lens: Lens
    nominal_dose: float
    implied_dose: float
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


def make_twin(images: np.ndarray | torch.Tensor, tilts: pd.DataFrame, pixel_size: float,
              voltage: float, settings: TwinSettings | None = None) -> Twin:
    """Fit thickness, noise and crowd, and make the scene of a matched series.

    Args:
        images: (n, ny, nx), proportional to counts (0 where no electron comes), not aligned.
        tilts: one row an image, as from `files.tilts.read_mdoc`: tilt_angle [deg]; prior_dose
            [e-/A^2], dose, or both; acquisition_index, or else by prior_dose, or else rows are in
            the order of acquisition; defocus_u and defocus_v, or defocus, or target_defocus [A,
            positive is underfocus], or else the Thon rings tell; axis_angle [deg], shift_x,
            shift_y [A], 0 where not given.
        pixel_size: of the images [A].
        voltage: [kV].
        settings: what else is known.

    Raises:
        ValueError: if a column is missing, images and rows differ in number, a value is out of
            range, or a fit fails.
    """
    settings = settings or TwinSettings()
    positive("pixel_size", pixel_size, "A")
    stack = plain("images", images)
    if stack.ndim != 3 or len(stack) != len(tilts):
        raise ValueError(f"images: have shape {stack.shape}; must be (n, ny, nx), one for each of "
                         f"the {len(tilts)} rows of tilts")
    table, notes = complete_table(tilts, stack, pixel_size, voltage,
                                  settings.spherical_aberration)
    nominal = float(table["dose"].mean())
    fit = fit_images_thickness(stack, table["tilt_angle"], table["dose"] / nominal)
    if fit.ratio <= 0:
        raise ValueError("images: do not darken with the tilt; must be those of a slab in bright "
                         f"field, whose t / L here is at most {fit.interval()[1]:.3g} (95 %)")
    lens = Lens(pixel_size, voltage, settings.spherical_aberration,
                float(mean_free_path(settings.mean_free_path, voltage)), IceSettings().potential)
    spectra = background_spectra(stack, settings.tile)
    sights = _sights(table, fit, lens, stack.shape[2])
    crowd = fit_crowd(spectra, sights, lens, settings.masses,
                      fit.intensity / (nominal * pixel_size**2))
    camera, dose, more = _camera(fit, crowd, nominal, pixel_size)
    change = fit.means / fit.expected(fit.tilt_angles)
    # What is far from the curve is no weak beam, but something in its way.
    table["dose"] *= dose / nominal * np.where(np.abs(change - 1) < _BEAM, change, 1.0)
    scene = Scene(
        name="twin", output="twin", seed=settings.seed, pixel_size=pixel_size, dose=short(dose),
        shape=tuple(settings.shape or stack.shape[1:]), detector=camera,
        microscope=MicroscopeSettings(voltage=voltage,
                                      spherical_aberration=lens.spherical_aberration),
        optics=OpticsSettings(defocus=short(table["defocus"].mean()), astigmatism=short(
            table["astigmatism"].mean()), astigmatism_angle=short(
            table["astigmatism_angle"].median())),
        tilts=_tilts(table))
    specimen, interaction = _specimen(scene, fit, crowd, settings)
    scene = replace(scene, specimen=specimen, interaction=interaction)
    return Twin(scene=scene, thickness=fit, spectra=spectra, crowd=crowd, sights=sights, lens=lens,
                nominal_dose=nominal,
                implied_dose=fit.intensity / float(crowd.noise.mean()) / pixel_size**2,
                assumptions=(*notes, *more, *_said(scene.specimen.ice, crowd)),
                warnings=fit.warnings)


def twin_text(twin: Twin, more: Sequence[str] = ()) -> str:
    """The scene as YAML for `python -m tem_taichi.simulate`, below what to know of it.

    Args:
        twin: from `make_twin`.
        more: lines to say beside its warnings and assumptions.
    """
    lines = (*(f"Warning: {line}" for line in twin.warnings), *twin.assumptions, NOT_MODELLED,
             *more)
    about = "".join(f"# {line}\n" for line in lines)
    return about + to_yaml(twin.scene)


def simulation_time(scene: Scene) -> float:
    """Seconds that a scene will take here, from some slices of it; within about a third.

    Raises:
        ValueError: if the scene cannot run.
    """
    grids = plan(scene)
    return foreseen_time(scene, grids, build_specimen(scene))


def short(value: float) -> float:
    """Six digits, for people who read the scene."""
    return float(f"{float(value):.6g}")


def _sights(table: pd.DataFrame, fit: ThicknessFit, lens: Lens, columns: int) -> list[Sight]:
    angles = table["tilt_angle"].to_numpy()
    paths = fit.thickness(lens.mean_free_path) / np.cos(np.deg2rad(angles - fit.normal_angle))
    spread = columns * lens.pixel_size / 2 * np.abs(np.tan(np.deg2rad(angles)))
    exposures = table["prior_dose"] + table["dose"] / 2
    return [Sight(*map(float, values))
            for values in zip(table["defocus"], paths, spread, exposures, strict=True)]


def _camera(fit: ThicknessFit, crowd: CrowdFit, dose: float,
            pixel_size: float) -> tuple[DetectorSettings, float, list[str]]:
    """Camera with the noise n(w) m of background of mean m, the dose, and what was assumed.

    NPS = gain^2 electrons MTF^2 / DQE = m gain MTF^2 / DQE.
    """
    white = crowd.noise.max() <= _WHITE * crowd.noise.min()
    noise = crowd.noise.mean() if white else crowd.noise[0]
    gain = fit.intensity / (dose * pixel_size**2)
    notes = [f"Gain {gain:.3g} counts per incident electron, from I0 = {fit.intensity:.4g} counts "
             "and the dose: without the specimen nothing else takes electrons away."]
    if gain > noise:
        gain, nominal = float(noise), dose
        dose = fit.intensity / (gain * pixel_size**2)
        notes = [f"The noise is that of {dose:.3g} e-/A^2, more than the nominal {nominal:.3g}: "
                 f"the dose of the scene is that, and the gain {gain:.3g} counts per electron."]
    camera = DetectorSettings(kind="counting", gain=short(gain), dqe=short(gain / noise))
    if white:
        notes.append("The noise is white, as a counting camera's whose images are binned; DQE(0) "
                     "is gain over noise, and the signal's MTF, which background does not show, "
                     "is taken as 1.")
        return camera, dose, notes
    notes.append("The noise is coloured, by assumption of what resampled the images: signal and "
                 "noise went through the same MTF, as in an integrating camera.")
    rows = tuple((float(w), short(value))
                 for w, value in zip(crowd.w, np.sqrt(crowd.noise / noise), strict=True))
    return replace(camera, kind="integrating", mtf_table=rows), dose, notes


def _tilts(table: pd.DataFrame) -> TiltSettings:
    axis = np.angle(np.exp(1j * np.deg2rad(table["axis_angle"])).mean(), deg=True)
    rows = table.sort_values("acquisition_index").round(6)
    return TiltSettings(
        scheme="listed", angles=rows["tilt_angle"].tolist(), axis_angle=short(axis),
        shifts=rows[["shift_x", "shift_y"]].to_numpy().tolist(),
        defocus_offsets=(rows["defocus"] - short(table["defocus"].mean())).round(3).tolist(),
        doses=tuple(map(short, rows["dose"])), prior_dose=short(rows["prior_dose"].min()))


def slab(fit: ThicknessFit, mean_free_path: float,
         axis_angle: float) -> tuple[float, tuple[float, ...]]:
    """Ice whose normal is where the fit has it.

    Args:
        fit: of the means.
        mean_free_path: at the microscope's voltage [A].
        axis_angle: of the tilt axis from +y, counter-clockwise [deg].

    Returns:
        Thickness along z [A] and slope along x and y, as of `IceSettings`.
    """
    normal = tilt_rotation(-fit.normal_angle, axis_angle)[:, 2]
    return (short(fit.thickness(mean_free_path) / float(normal[2])),
            tuple(short(float(-normal[n] / normal[2])) for n in (0, 1)))


def _specimen(scene: Scene, fit: ThicknessFit, crowd: CrowdFit,
              settings: TwinSettings) -> tuple[SpecimenSettings, InteractionSettings]:
    """Ice whose normal is where the fit has it, filled with the crowd over all fields of view."""
    # A crowd absorbs more than ice; the means only tell of both together.
    stronger = 1 + crowd.volume_fraction * (protein_potentials()[1] - 1)
    at_voltage = float(mean_free_path(settings.mean_free_path, scene.microscope.voltage))
    thickness, slope = slab(fit, at_voltage / stronger, scene.tilts.axis_angle)
    ice = IceSettings(thickness=thickness, mean_free_path=settings.mean_free_path, slope=slope)
    size = _field(scene, thickness)
    counts = [round(density * stronger * size[0] * size[1] * thickness)
              for density in crowd.densities]
    particles = {f"globule_{mass:g}": ParticleSettings(
        GlobuleSettings(mass), PlacingSettings(count=count))
        for mass, count in zip(crowd.masses, counts, strict=True) if count}
    return (SpecimenSettings(ice=ice, damage=short(crowd.damage),
                             size=tuple(map(short, size)),
                             particles=settings.particles | particles),
            InteractionSettings(slice_thickness=min(settings.slice_thickness, short(thickness))))


def _field(scene: Scene, thickness: float) -> list[float]:
    """Extent in x, y that the rays of any image pass, shifts included [A]."""
    axis = np.deg2rad(scene.tilts.axis_angle)
    steep = np.deg2rad(max(abs(angle) for angle in scene.tilts.angles or [0.0]))
    across, along = np.abs([np.cos(axis), np.sin(axis)]), np.abs([np.sin(axis), np.cos(axis)])
    shifts = 2 * np.abs(np.asarray(scene.tilts.shifts)).max(axis=0)
    sides = np.array(scene.shape[::-1]) * scene.pixel_size + shifts
    width = across @ sides / np.cos(steep) + thickness * np.tan(steep)
    return (across * width + along * (along @ sides)).tolist()


def _said(ice: IceSettings, crowd: CrowdFit) -> list[str]:
    lines = [f"Thickness {ice.thickness / 10:.0f} nm, if the mean free path of ice at 300 kV is "
             f"{(ice.mean_free_path or 0.0) / 10:.0f} nm; what goes unnoticed is a beam that "
             "changes in step with the tilt.",
             "Each image's dose is nominal times its mean over the curve's.",
             "The handedness of the tilts is taken as in the table."]
    if crowd.masses:
        lines.append(f"The crowd fills {100 * crowd.volume_fraction:.1f} % of the ice with balls "
                     f"of protein, and fades {crowd.damage:.1f} times as fast as by Grant & "
                     "Grigorieff (2015), motion included.")
    return lines
