"""The settings that recipes share; each recipe adds its own."""

from dataclasses import dataclass

from tem_taichi import checks
from tem_taichi.scene.typed import keep_tuples


@dataclass(frozen=True)
class Recipe:
    """What all recipes have."""

    input: tuple[str, ...] = ()
    """files to read, see the recipe"""
    output: str = "tem_taichi_fit"
    """folder for the results"""
    overwrite: bool = False
    """replace earlier results in that folder"""
    pixel_size: float | None = None
    """[A]; null = the file's own. Where both are given they must agree"""

    def __post_init__(self) -> None:
        keep_tuples(self)
        checks.check(bool(self.input), "input", self.input, "a file, or a list of files")
        checks.check(len(set(self.input)) == len(self.input), "input", self.input,
                     "different files: one is given twice")
        checks.check(bool(self.output.strip()), "output", self.output, "the name of a folder")
        checks.positive("pixel_size", self.pixel_size, "A")


@dataclass(frozen=True)
class SeriesRecipe(Recipe):
    """What recipes on a tilt series have: one stack, and its angles."""

    angles: str | None = None
    """.mdoc, .rawtlt, .tlt, or a CSV or TSV table with the column tilt_angle and, for twin, dose or
    prior_dose, defocus_um, axis_angle; null = beside the stack, by name"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check(len(self.input) == 1, "input", self.input, "one stack of a tilt series")
