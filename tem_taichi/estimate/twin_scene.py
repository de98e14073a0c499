"""What fits of a real series make of a scene: its specimen, camera and tilts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from tem_taichi.estimate.crowd_fit import CrowdFit, Lens, Sight
from tem_taichi.estimate.layer_fit import Layers
from tem_taichi.estimate.plane_fit import PlaneMap
from tem_taichi.estimate.thickness_fit import ThicknessFit
from tem_taichi.rotations import tilt_rotation
from tem_taichi.scene.particle import FiducialSettings, GlobuleSettings, ParticleSettings
from tem_taichi.scene.placing import PlacingSettings
from tem_taichi.scene.settings import DetectorSettings, Scene, TiltSettings
from tem_taichi.scene.specimen import IceSettings, SpecimenSettings
from tem_taichi.specimen.absorption import protein_potentials
from tem_taichi.specimen.ice_shape import at_knots

Array = NDArray[np.float64]

_WHITE = 1.2
"""Largest over least noise up to which it is taken as white."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What there is in the ice.

    Attributes:
        crowd: of balls.
        layers: of the ice.
        density: of the crowd, relative; None = the same everywhere.
        beads: of gold, x, y, z, diameter [A].
    """

    crowd: CrowdFit
    layers: Layers
    density: PlaneMap | None
    beads: pd.DataFrame


def short(value: float) -> float:
    """Six digits, for people who read the scene."""
    return float(f"{float(value):.6g}")


def sights_of(table: pd.DataFrame, fit: ThicknessFit, lens: Lens, columns: int) -> list[Sight]:
    """How each image sees the crowd.

    Args:
        table: of `complete_table`.
        fit: of the means.
        lens: of the series.
        columns: of an image.
    """
    angles = table["tilt_angle"].to_numpy()
    paths = fit.thickness(lens.mean_free_path) / np.cos(np.deg2rad(angles - fit.normal_angle))
    spread = columns * lens.pixel_size / 2 * np.abs(np.tan(np.deg2rad(angles)))
    exposures = table["prior_dose"] + table["dose"] / 2
    return [Sight(*map(float, values))
            for values in zip(table["defocus"], paths, spread, exposures, strict=True)]


def camera_of(fit: ThicknessFit, crowd: CrowdFit, factor: Array | None, w: Array, dose: float,
              pixel_size: float) -> tuple[DetectorSettings, float, list[str]]:
    """Camera with the noise n(w) m of background of mean m, the dose, and what was assumed.

    NPS = gain^2 electrons MTF^2 / DQE = m gain MTF^2 / DQE.

    Args:
        fit: of the means.
        crowd: with the noise.
        factor: of `fit_resampled`, at w; None = 1.
        w: frequencies [cycles/pixel].
        dose: nominal, of an image [e-/A^2].
        pixel_size: [A].
    """
    white = factor is None and crowd.noise.max() <= _WHITE * crowd.noise.min()
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
    power = crowd.noise / noise * (1.0 if factor is None else np.interp(crowd.w, w, factor))
    rows = tuple((float(at), short(value)) for at, value in zip(
        crowd.w, np.sqrt(power / power[0]), strict=True))
    return replace(camera, kind="integrating", mtf_table=rows), dose, notes


def axis_of(table: pd.DataFrame) -> float:
    """Mean direction of the tilt axis from +y, counter-clockwise [deg].

    Args:
        table: with axis_angle.
    """
    return float(np.angle(np.exp(1j * np.deg2rad(table["axis_angle"])).mean(), deg=True))


def tilts_of(table: pd.DataFrame) -> TiltSettings:
    """Of a scene.

    Args:
        table: of `complete_table`.
    """
    rows = table.sort_values("acquisition_index").round(6)
    return TiltSettings(
        scheme="listed", angles=rows["tilt_angle"].tolist(), axis_angle=short(axis_of(table)),
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


def crowd_strength(crowd: CrowdFit) -> float:
    """What crowded ice absorbs over what ice does.

    Args:
        crowd: of balls.
    """
    return 1 + crowd.volume_fraction * (protein_potentials()[1] - 1)


def specimen_of(scene: Scene, fit: ThicknessFit, found: Contents, mean_free_path_at_300: float,
                lost: float, particles: Mapping[str, ParticleSettings]) -> SpecimenSettings:
    """Ice whose normal is where the fit has it, filled with the crowd over all fields of view.

    Args:
        scene: its instrument and tilts.
        fit: of the means.
        found: what there is in the ice.
        mean_free_path_at_300: of ice, without an aperture [A].
        lost: that for all that is lost at the microscope's voltage [A].
        particles: of interest, by name.
    """
    crowd = found.crowd
    # The means only tell of ice and crowd together.
    stronger = crowd_strength(crowd)
    thickness, slope = slab(fit, lost / stronger, scene.tilts.axis_angle)
    ice = IceSettings(thickness=thickness, mean_free_path=mean_free_path_at_300, slope=slope)
    layers = found.layers
    if layers.absorption is not None:
        ice = replace(ice, absorption=tuple(map(_rows, layers.absorption)),
                      absorption_spacing=short(layers.spacing))
    size = _field(scene, thickness)
    # The crowd's numbers are those of a slab that is crowded everywhere alike.
    placing, kept = PlacingSettings(), np.ones((1, 1))
    if found.density is not None:
        knots = found.density.knots[0]
        kept = _sampled(knots, found.density.spacing, size)
        placing = PlacingSettings(density=_rows(knots),
                                  density_spacing=short(found.density.spacing))
    counts = [round(one * stronger * size[0] * size[1] * thickness * kept.mean())
              for one in crowd.densities]
    globules = {f"globule_{mass:g}": ParticleSettings(
        GlobuleSettings(mass), replace(placing, count=count))
        for mass, count in zip(crowd.masses, counts, strict=True) if count}
    gold = {} if not len(found.beads) else {"gold": ParticleSettings(
        FiducialSettings(short(found.beads["diameter"].median())), PlacingSettings(
            placement="listed", positions=_rows(found.beads[["x", "y", "z"]].to_numpy())))}
    return SpecimenSettings(ice=ice, damage=short(crowd.damage), size=tuple(map(short, size)),
                            particles=dict(particles) | gold | globules)


def _rows(table: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(f"{value:.4g}") for value in row) for row in table.tolist())


def _sampled(knots: Array, spacing: float, size: list[float]) -> Array:
    """A map at even places of the field."""
    x, y = (torch.linspace(-side / 2, side / 2, 64, dtype=torch.float64) for side in size)
    return at_knots(torch.from_numpy(knots), spacing, x[None, :], y[:, None]).numpy()


def within_ice(beads: pd.DataFrame, thickness: float, layers: Layers
               ) -> tuple[pd.DataFrame, float]:
    """Beads moved into a slab along z where they stick out of it, and the farthest move [A].

    Where it is not the same everywhere they stay where they are, on its faces as within it.

    Args:
        beads: x, y, z, diameter [A].
        thickness: of the slab [A].
        layers: of the ice.
    """
    if layers.absorption is not None or not len(beads):
        return beads, 0.0
    # Radii of atoms, and rounding.
    reach = max(thickness / 2 - float(beads["diameter"].max()) / 2 - 5, 0.0)
    inside = beads["z"].clip(-reach, reach)
    return beads.assign(z=inside), float((inside - beads["z"]).abs().max())


def _field(scene: Scene, thickness: float) -> list[float]:
    """Extent in x, y that the rays of any image pass, shifts included [A]."""
    axis = np.deg2rad(scene.tilts.axis_angle)
    steep = np.deg2rad(max(abs(angle) for angle in scene.tilts.angles or [0.0]))
    across, along = np.abs([np.cos(axis), np.sin(axis)]), np.abs([np.sin(axis), np.cos(axis)])
    shifts = 2 * np.abs(np.asarray(scene.tilts.shifts)).max(axis=0)
    sides = np.array(scene.shape[::-1]) * scene.pixel_size + shifts
    width = across @ sides / np.cos(steep) + thickness * np.tan(steep)
    return (across * width + along * (along @ sides)).tolist()


def said_of(ice: IceSettings, crowd: CrowdFit, lost: float) -> list[str]:
    """What is taken for granted of the ice and the crowd, one sentence each.

    Args:
        ice: of the scene.
        crowd: in it.
        lost: mean free path for all that is lost from an image [A].
    """
    lines = [f"Thickness {ice.thickness / 10:.0f} nm, if the mean free path of ice is "
             f"{lost / 10:.0f} nm; what goes unnoticed is a beam that "
             "changes in step with the tilt.",
             "Each image's dose is nominal times its mean over the curve's.",
             "The handedness of the tilts is taken as in the table."]
    if crowd.masses:
        lines.append(f"The crowd fills {100 * crowd.volume_fraction:.1f} % of the ice with balls "
                     f"of protein, and fades {crowd.damage:.1f} times as fast as by Grant & "
                     "Grigorieff (2015), motion included.")
    return lines
