"""A scene that simulates a labelled twin of a real tilt series, from its images and metadata.

Means against tilt give the thickness and the gain, and parts of the field how these differ; spectra
of what is left give the noise and a crowd of globules that scatters as much as what is there; gold
beads are found. Real counts are scaled and resampled: what the twin takes them for is said in its
assumptions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from tem_taichi.checks import positive
from tem_taichi.estimate.background import BackgroundSpectra, tile_spectra
from tem_taichi.estimate.bead_masks import filled
from tem_taichi.estimate.bead_poses import Search
from tem_taichi.estimate.bead_series import gold_of
from tem_taichi.estimate.bead_tracks import views_of
from tem_taichi.estimate.crops import plain
from tem_taichi.estimate.crowd_fit import CrowdFit, Lens, Sight
from tem_taichi.estimate.gold_loss import aperture_of, bead_length, path_with_aperture
from tem_taichi.estimate.layer_fit import fit_density, fit_layers
from tem_taichi.estimate.plane_fit import PlaneMap
from tem_taichi.estimate.resampling import fit_resampled
from tem_taichi.estimate.thickness_field import fit_images_thickness
from tem_taichi.estimate.thickness_fit import ThicknessFit
from tem_taichi.estimate.twin_scene import (
    Array,
    Contents,
    axis_of,
    camera_of,
    crowd_strength,
    said_of,
    short,
    sights_of,
    slab,
    specimen_of,
    tilts_of,
    within_ice,
)
from tem_taichi.estimate.twin_table import complete_table
from tem_taichi.scene.particle import ParticleSettings
from tem_taichi.scene.settings import (
    InteractionSettings,
    MicroscopeSettings,
    OpticsSettings,
    Scene,
)
from tem_taichi.scene.show import to_yaml
from tem_taichi.scene.specimen import IceSettings
from tem_taichi.series.build import build_specimen
from tem_taichi.series.plan import plan
from tem_taichi.series.trial import foreseen_time
from tem_taichi.specimen.depth import highest_frequency, thickest

_ROUNDS = 3
"""In which the crowd is fitted to spectra as dense as it is in each image, and then its density."""
_LEAST = 0.01
"""Of the crowd's mean density, that an image is taken to have."""
_BEAM = 0.1
"""Relative deviation from the curve up to which the beam is taken to vary."""

NOT_MODELLED = ("The twin has no membranes, wrinkles or carbon; a part that is thinner is one that "
                "takes less from the beam; its crowd stands for the power spectrum of what is "
                "there, not for its composition.")


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
    beads: str | None = "auto"
    """auto = gold is found, and put where it is; null = there is none"""
    bead_diameter: float | None = None
    """[A]; null = 40 to 300, as the images say, which takes longer"""
    cut_from: tuple[float, float] = (0.0, 0.0)
    """where the middle of the images lies in the frames that they were cut from, x and y from their
    middle [A], through which the tilt axis runs"""
    tile: int = 64
    """side of a tile whose spectrum is taken [pixel]"""
    slice_thickness: float | None = None
    """of the twin's slices [A]; null = the thickest that keep the error of images below 1 % of
    their contrast, a quarter of the ice at most"""
    seed: int = 0
    """of the twin's noise and places"""


@dataclass(frozen=True, eq=False)
class Twin:
    """A scene and what it rests on.

    Attributes:
        scene: for `series.simulate` or `twin_text`.
        thickness: fit of the means.
        spectra: of the real images beside shade and gold.
        found: what there is in the ice.
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
    found: Contents
    sights: list[Sight] = field(repr=False)
    lens: Lens
    nominal_dose: float
    implied_dose: float
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def crowd(self) -> CrowdFit:
        """Fit of the spectra; its masses are () where the scene has ice alone."""
        return self.found.crowd


def make_twin(images: np.ndarray | torch.Tensor, tilts: pd.DataFrame, pixel_size: float,
              voltage: float, settings: TwinSettings | None = None) -> Twin:
    """Fit thickness, noise, crowd and gold, and make the scene of a matched series.

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
    stack, table, beads, length = _gold(stack, table, pixel_size, settings)
    nominal = float(table["dose"].mean())
    fit = fit_images_thickness(stack, table["tilt_angle"], table["dose"] / nominal)
    if fit.ratio <= 0:
        raise ValueError("images: do not darken with the tilt; must be those of a slab in bright "
                         f"field, whose t / L here is at most {fit.interval()[1]:.3g} (95 %)")
    aperture = aperture_of(length, voltage, settings.mean_free_path, pixel_size)
    lens = Lens(pixel_size, voltage, settings.spherical_aberration, path_with_aperture(
        aperture, voltage, settings.mean_free_path, pixel_size), IceSettings().potential)
    thickness, slope = slab(fit, lens.mean_free_path, axis_of(table))
    geometry = (pixel_size, slope, thickness)
    light = fit.intensity * table["dose"].to_numpy() / nominal
    ratio = thickness / lens.mean_free_path
    layers = fit_layers(stack, table, *geometry, ratio, light)
    spectra, corners = tile_spectra(stack, layers.shade, settings.tile)
    sights = sights_of(table, fit, lens, stack.shape[2])
    density: PlaneMap | None = None
    for _ in range(_ROUNDS):
        crowd, factor, floor = fit_resampled(spectra, sights, lens, settings.masses,
                                             fit.intensity / (nominal * pixel_size**2))
        share = (crowd.model - floor) / np.array([sight.crowd for sight in sights])[:, None]
        places = fit_density(spectra, share, floor, corners, settings.tile, stack.shape[1:],
                             table, *geometry)
        if places is None:
            break
        density = places
        sights = [replace(sight, crowd=max(float(mean), _LEAST)) for sight, mean in zip(
            sights, density.model.mean(axis=1), strict=True)]
    if layers.absorption is not None and density is not None:
        stronger = crowd_strength(crowd)
        layers = fit_layers(stack, table, pixel_size, slope, thickness / stronger, ratio, light,
                            (density, 1 - 1 / stronger))
    camera, dose, more = camera_of(fit, crowd, factor, spectra.w, nominal, pixel_size)
    if aperture is not None:
        more.append(f"The aperture, {aperture:.0f} um at a focal length of "
                    f"{MicroscopeSettings().focal_length:g} mm, is that with which gold is as "
                    "dark as the beads are.")
    beads, moved = within_ice(beads, thickness, layers)
    if moved:
        more.append(f"Beads that stick out of the ice are moved into it, by {moved:.0f} A at most.")
    change = (fit.means / fit.expected(fit.tilt_angles) if layers.absorption is None
              else layers.beam)
    # What is far from the curve is no weak beam, but something in its way.
    table["dose"] *= dose / nominal * np.where(np.abs(change - 1) < _BEAM, change, 1.0)
    scene = Scene(
        name="twin", output="twin", seed=settings.seed, pixel_size=pixel_size, dose=short(dose),
        shape=tuple(settings.shape or stack.shape[1:]), detector=camera,
        microscope=MicroscopeSettings(
            voltage=voltage, spherical_aberration=lens.spherical_aberration,
            aperture=None if aperture is None else short(aperture)),
        optics=OpticsSettings(defocus=short(table["defocus"].mean()), astigmatism=short(
            table["astigmatism"].mean()), astigmatism_angle=short(
            table["astigmatism_angle"].median())),
        tilts=tilts_of(table))
    found = Contents(crowd, layers, density, beads)
    specimen = specimen_of(scene, fit, found, settings.mean_free_path, lens.mean_free_path,
                           settings.particles)
    slices = min(thickest("nearest", highest_frequency(pixel_size), voltage),
                 specimen.ice.thickness / 4)
    scene = replace(scene, specimen=specimen, interaction=InteractionSettings(slice_thickness=min(
        settings.slice_thickness or float(f"{slices:.3g}"), specimen.ice.thickness)))
    return Twin(scene=scene, thickness=fit, spectra=spectra, found=found, sights=sights, lens=lens,
                nominal_dose=nominal,
                implied_dose=fit.intensity / (camera.gain / (camera.dqe or 1.0)) / pixel_size**2,
                assumptions=(*notes, *more, *said_of(specimen.ice, crowd, lens.mean_free_path)),
                warnings=(*fit.warnings, *crowd.doubts))


def _gold(stack: Array, table: pd.DataFrame, pixel_size: float, settings: TwinSettings
          ) -> tuple[Array, pd.DataFrame, pd.DataFrame, float | None]:
    """Images without gold, poses by it, about the images' middle, where it is, and how dark."""
    length: float | None = None
    beads = pd.DataFrame(columns=["x", "y", "z", "diameter"], dtype=float)
    if settings.beads is not None:
        gold = gold_of(stack, table, pixel_size, Search(
            settings.bead_diameter, cut_from=settings.cut_from))
        if len(gold.tracks.beads):
            beads = gold.tracks.beads
            table = table.assign(**{name: gold.tilts[name] for name in (
                "tilt_angle", "axis_angle", "shift_x", "shift_y")})
            length = bead_length(stack, gold.places, pixel_size)
        if len(gold.places):
            width = float(gold.places["diameter"].median()) / 2 / pixel_size
            stack = np.asarray(filled(stack, gold.mask, width), dtype=float)
    offsets = views_of(table, settings.cut_from).offsets
    return stack, table.assign(shift_x=offsets[:, 0], shift_y=offsets[:, 1]), beads, length


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

    Args:
        scene: that is to run.

    Raises:
        ValueError: if the scene cannot run.
    """
    grids = plan(scene)
    return foreseen_time(scene, grids, build_specimen(scene))
