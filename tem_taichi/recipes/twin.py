"""A scene that simulates a labelled series like a real one.

twin.yaml, for `python -m tem_taichi.simulate` and as a template of `python -m tem_taichi.dataset`,
has the ice and what it takes from the beam where, gold at its places, camera and crowd that images,
their angles and doses tell; particles of interest are added as in a scene.
"""

from dataclasses import dataclass

from tem_taichi import checks
from tem_taichi.estimate.twin import (
    NOT_MODELLED,
    TwinSettings,
    make_twin,
    simulation_time,
    twin_text,
)
from tem_taichi.estimate.twin_figure import twin_figure
from tem_taichi.machine import duration
from tem_taichi.recipes.input import images_of, series_table
from tem_taichi.recipes.result import Report, Result
from tem_taichi.recipes.settings import SeriesRecipe


@dataclass(frozen=True)
class TwinRecipe(TwinSettings, SeriesRecipe):
    """What the images do not tell of the twin."""

    voltage: float = 300.0
    """[kV]"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.within("voltage", self.voltage, 10, 3000, "kV")
        checks.within("spherical_aberration", self.spherical_aberration, -100, 100, "mm")
        checks.positive("mean_free_path", self.mean_free_path, "A")
        checks.check(self.shape is None or (len(self.shape) == 2 and min(self.shape) >= 2),
                     "shape", self.shape, "rows and columns [pixel], or null")
        checks.check(self.beads in (None, "auto"), "beads", self.beads, "auto or null")
        checks.positive("bead_diameter", self.bead_diameter, "A")
        checks.check(len(self.cut_from) == 2, "cut_from", self.cut_from, "two numbers [A]")
        checks.positives("masses", self.masses, len(self.masses), "kDa")
        checks.check(32 <= self.tile <= 1024 and self.tile % 8 == 0, "tile", self.tile,
                     "a multiple of 8 from 32 to 1024")
        checks.positive("slice_thickness", self.slice_thickness, "A")
        checks.whole("seed", self.seed, 0, 2**63 - 1)


def run(recipe: TwinRecipe, report: Report) -> Result:
    """A scene like a real series."""
    (name, images, pixel_size), = images_of(recipe)
    tilts = series_table(recipe, name, len(images))
    twin = make_twin(images, tilts, pixel_size, recipe.voltage, recipe)
    warnings = list(twin.warnings)
    seconds: float | None = None
    takes: list[str] = []
    try:
        seconds = simulation_time(twin.scene)
        takes.append(f"Simulating it takes about {duration(seconds)} on this machine, as busy as "
                     "it was.")
    except ValueError as error:
        warnings.append(f"twin.yaml does not run as it is: {error}")
    report(1, 1)
    fit, crowd = twin.thickness, twin.crowd
    return Result(
        {"thickness_over_mean_free_path": fit.ratio, "standard_error": fit.ratio_error,
         "statistical_error": fit.statistical_error, "field_deviation": fit.field_deviation,
         "thickness_A": twin.scene.specimen.ice.thickness,
         "normal_angle_deg": fit.normal_angle, "normal_error_deg": fit.normal_error,
         "nominal_dose": twin.nominal_dose, "implied_dose": twin.implied_dose,
         "crowd_volume_fraction": crowd.volume_fraction, "crowd_damage": crowd.damage,
         "beads": len(twin.found.beads), "aperture_um": twin.scene.microscope.aperture,
         "layers_explain": twin.found.layers.explained,
         "crowd_varies": twin.found.density is not None,
         "crowd_masses_kDa": crowd.masses, "crowd_densities_per_A3": crowd.densities,
         "simulation_seconds": seconds},
        [*twin.assumptions, NOT_MODELLED, *takes], warnings,
        scenes={"twin.yaml": twin_text(twin, takes)}, figures={"twin.png": twin_figure(twin)})


RECIPE = (TwinRecipe, run)
