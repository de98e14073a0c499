"""The recipes of `python -m tem_taichi.fit`: their settings, checked, from YAML and overrides."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import expanduser
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tem_taichi import checks
from tem_taichi.scene.references import hidden, resolved
from tem_taichi.scene.specimen import ParticleSettings
from tem_taichi.scene.typed import check_mappings, from_plain
from tem_taichi.scene.yaml_files import read_yaml


@dataclass(frozen=True)
class Recipe:
    """What all recipes have."""

    input: list[str] = field(default_factory=list)
    """files to read, see the recipe"""
    output: str = "tem_taichi_fit"
    """folder for the results"""
    overwrite: bool = False
    """replace earlier results in that folder"""
    pixel_size: float | None = None
    """[A]; null = the file's own. Where both are given they must agree"""

    def __post_init__(self) -> None:
        checks.check(bool(self.input), "input", self.input, "a file, or a list of files")
        checks.check(len(set(self.input)) == len(self.input), "input", self.input,
                     "different files: one is given twice")
        checks.check(bool(self.output.strip()), "output", self.output, "the name of a folder")
        checks.positive("pixel_size", self.pixel_size, "A")


@dataclass(frozen=True)
class DetectorRecipe(Recipe):
    """Noise spectrum and MTF of a camera from flat crops, micrographs or the image of an edge."""

    method: str = "background"
    """background = noise of flat regions; edge = a slanted edge or beam stop; focal_loss = the
    pixel-wise loss of Diff-TEM (2024), for comparison: it is biased"""
    form: str = "free"
    """free = a smooth curve; parametric = five numbers a, b, c, alpha, beta"""
    kind: str | None = None
    """integrating = assume noise blurred as the signal is, which gives an MTF; null = do not"""
    gain: float | None = None
    """counts per electron; null = unknown"""
    electrons: float | None = None
    """of each pixel; null = mean counts over the gain"""
    dqe: float | None = None
    """DQE(0); null = unknown"""
    pick: bool = False
    """cut flat regions out of the images and show which; false = the images are flat crops"""
    size: int = 256
    """of the regions picked [pixel]"""
    count: int = 10
    """of the regions picked in each image"""
    periodic: bool = False
    """whether the crops are whole simulated images, whose edges meet: no taper then"""
    highest: float = 1.0
    """for edge: H above which nothing is recorded [cycles/pixel]; 0.5 for our own simulations"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("method", self.method, ("background", "edge", "focal_loss"))
        checks.one_of("form", self.form, ("free", "parametric"))
        checks.check(not (self.pick and self.method == "edge"), "pick", self.pick,
                     "false for method=edge: cut the images around the edge")
        checks.check(self.kind in (None, "integrating", "counting"), "kind", self.kind,
                     "integrating, counting or null")
        checks.positive("gain", self.gain, "counts per electron")
        checks.positive("electrons", self.electrons, "e-/pixel")
        checks.check(self.dqe is None or 1e-4 <= self.dqe <= 1, "dqe", self.dqe,
                     "from 0.0001 to 1, or null")
        checks.within("highest", self.highest, 0.5, 2, "cycles/pixel")
        checks.check(32 <= self.size <= 4096 and self.size % 8 == 0, "size", self.size,
                     "a multiple of 8 from 32 to 4096")
        checks.whole("count", self.count, 1, 1000)


@dataclass(frozen=True)
class CtfRecipe(Recipe):
    """Defocus, astigmatism and phase shift of micrographs, stacks, tilt series or spectra."""

    spectrum: bool = False
    """whether the input holds power spectra (zero frequency in the middle) instead of images"""
    average: bool = False
    """whether all images of a file share one CTF, as particles of a micrograph do: one fit each"""
    voltage: float = 300.0
    """[kV]"""
    spherical_aberration: float = 2.7
    """Cs [mm]"""
    amplitude_contrast: float = 0.07
    """Q"""
    defocus: list[float] = field(default_factory=lambda: [1500.0, 60000.0])
    """lowest and highest looked for [A], positive = underfocus"""
    astigmatism: float = 1200.0
    """largest U - V looked for [A]"""
    resolution: list[float] | None = None
    """lowest and highest used [A]; null = 30 to 4 A, coarser for pixels beyond 2 A"""
    phase_shift: bool = False
    """whether to look for a phase plate's shift"""
    angles: str | None = None
    """of a tilt series: .mdoc, .rawtlt, .tlt, or a CSV or TSV table with the columns tilt_angle and
    axis_angle; null = the images are not tilted"""
    axis_angle: float | None = None
    """of the tilt axis, counter-clockwise from +y [deg]; null = that of the file of angles"""
    common_astigmatism: bool = True
    """whether the images of a tilt series have one astigmatism, that of their fits' median; then
    each is fitted once more with it"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.within("voltage", self.voltage, 10, 3000, "kV")
        checks.within("spherical_aberration", self.spherical_aberration, -100, 100, "mm")
        checks.within("amplitude_contrast", self.amplitude_contrast, 0, 0.99, "1")
        checks.positives("defocus", self.defocus, 2, "A")
        if self.resolution is not None:
            checks.positives("resolution", self.resolution, 2, "A")
        checks.check(not (self.average and (self.spectrum or self.angles)), "average", True,
                     "false for spectra and tilt series")
        checks.within("astigmatism", self.astigmatism, 0, 1e5, "A")
        checks.check(self.angles is None or (len(self.input) == 1 and not self.spectrum), "angles",
                     self.angles, "null, or the input one stack of images")
        checks.check(self.axis_angle is None or self.angles is not None, "axis_angle",
                     self.axis_angle, "null where there are no angles")


@dataclass(frozen=True)
class SeriesRecipe(Recipe):
    """What recipes on a tilt series have: one stack, and its angles."""

    angles: str | None = None
    """.mdoc, .rawtlt, .tlt, or a CSV or TSV table with the column tilt_angle and, for twin, dose or
    prior_dose, defocus_um, axis_angle; null = beside the stack, by name"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check(len(self.input) == 1, "input", self.input, "one stack of a tilt series")


@dataclass(frozen=True)
class ThicknessRecipe(SeriesRecipe):
    """Thickness over mean free path of a tilt series, I0 exp(-(t / L) / cos(theta - theta0))."""

    mean_free_path: float = 3950.0
    """L [A], to state the thickness; 3950 A: zero-loss imaging of ice at 300 kV"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive("mean_free_path", self.mean_free_path, "A")


@dataclass(frozen=True)
class TwinRecipe(SeriesRecipe):
    """A scene that simulates a labelled series like a real one."""

    voltage: float = 300.0
    """[kV]"""
    spherical_aberration: float = 2.7
    """Cs [mm]"""
    mean_free_path: float = 3950.0
    """of the loss from the image in ice at 300 kV [A], scaled to the voltage; scales thickness"""
    shape: list[int] | None = None
    """rows and columns of the twin's images; null = those of the real ones"""
    masses: list[float] = field(default_factory=lambda: [5.0, 20.0, 100.0, 500.0, 2500.0])
    """of the globules that may crowd the ice [kDa]; [] = ice alone"""
    particles: dict[str, ParticleSettings] = field(default_factory=dict)
    """further particles of interest by name, as in a scene's specimen; they are not fitted"""
    tile: int = 64
    """side of a tile of background [pixel]"""
    slice_thickness: float = 100.0
    """of the twin's slices [A]"""
    seed: int = 0
    """of the twin's noise and places"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.within("voltage", self.voltage, 10, 3000, "kV")
        checks.within("spherical_aberration", self.spherical_aberration, -100, 100, "mm")
        checks.positive("mean_free_path", self.mean_free_path, "A")
        checks.check(self.shape is None or (len(self.shape) == 2 and min(self.shape) >= 2),
                     "shape", self.shape, "rows and columns [pixel], or null")
        checks.positives("masses", self.masses, len(self.masses), "kDa")
        checks.check(32 <= self.tile <= 1024 and self.tile % 8 == 0, "tile", self.tile,
                     "a multiple of 8 from 32 to 1024")
        checks.positive("slice_thickness", self.slice_thickness, "A")
        checks.whole("seed", self.seed, 0, 2**63 - 1)


RECIPES: dict[str, type[Recipe]] = {
    "detector": DetectorRecipe, "ctf": CtfRecipe, "thickness": ThicknessRecipe,
    "twin": TwinRecipe}


def read_recipe(overrides: Sequence[str]) -> Recipe:
    """A recipe from overrides such as "recipe=ctf" and "input=a.mrc", in Hydra's grammar.

    Args:
        overrides: recipe=NAME, one of those shipped in conf/recipe, or a YAML file of your own that
            names its base as `recipe`; then any of its keys. Files that such a YAML file names
            are looked for in its folder, then in the working folder.

    Raises:
        ValueError: for anything wrong, with one line that names key, value and what is allowed.
    """
    from tem_taichi.scene.load import CONFIG_FOLDER, apply, explain, parse_overrides

    for word in overrides:
        if "=" not in word and word.endswith((".yaml", ".yml")):
            raise ValueError(f"{word[:99]}: must be KEY=VALUE; a file of settings is recipe=FILE")
    parsed = parse_overrides(overrides)
    for one in parsed:
        if one.is_delete() or one.is_sweep_override():
            raise ValueError(f"{str(one.input_line)[:99]}: must be KEY=VALUE with one value; a "
                             "list is [1,2]")
    chosen = {one.key_or_group: one.value() for one in parsed}
    name = expanduser(str(chosen.pop("recipe", None)))
    content: dict[Any, Any] = {}
    if name.endswith((".yaml", ".yml")):
        if not os.path.isfile(name):
            raise ValueError(f"recipe={name}: no such file")
        content = _with_files(_mapping(Path(name)), Path(name).parent)
        name = str(content.pop("recipe", None))
    if name not in RECIPES:
        raise ValueError(f"recipe={name}: must be one of {', '.join(RECIPES)}, or a YAML file "
                         "whose `recipe` is")
    check_mappings(RECIPES[name], content)
    try:
        merged = OmegaConf.create(hidden(_mapping(CONFIG_FOLDER / "recipe" / f"{name}.yaml")))
        merged.merge_with(hidden(content))
        for one in parsed:
            if one.key_or_group in chosen:
                apply(one, merged)
        plain = OmegaConf.to_container(merged, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(explain(error)) from error
    assert isinstance(plain, dict)
    plain = resolved(plain)
    if isinstance(plain.get("input"), str):
        plain["input"] = [plain["input"]]
    if isinstance(plain, dict) and isinstance(plain["input"], list):
        plain["input"] = [expanduser(one) if isinstance(one, str) else one
                          for one in plain["input"]]
    if isinstance(plain, dict) and isinstance(plain.get("angles"), str):
        plain["angles"] = expanduser(plain["angles"])
    return from_plain(RECIPES[name], plain)


def _with_files(content: dict[Any, Any], folder: Path) -> dict[Any, Any]:
    """The files it reads, in its own folder where they are there."""
    def found(name: Any) -> Any:
        if isinstance(name, list):
            return [found(one) for one in name]
        beside = folder / str(name)
        return str(beside) if isinstance(name, str) and name and os.path.isfile(beside) else name

    return {key: found(value) if key in ("input", "angles") else value
            for key, value in content.items()}


def _mapping(file: Path) -> dict[Any, Any]:
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must be a mapping of keys")
    return content
