"""Reading a scene: YAML and overrides, composed by Hydra, to a checked `Scene`.

Hydra only composes here. It gets the scene as plain data and neither runs nor starts anything,
so that a scene can set values and nothing else.
"""

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tem_taichi.checks import shown
from tem_taichi.scene.composition import CONFIG_FOLDER as CONFIG_FOLDER
from tem_taichi.scene.composition import SCHEMA, STORED, ConfigFiles, compose, scene_files
from tem_taichi.scene.references import hidden, resolved
from tem_taichi.scene.settings import Scene
from tem_taichi.scene.typed import from_plain
from tem_taichi.scene.yaml_files import read_yaml

DEFAULT = CONFIG_FOLDER / "simulate.yaml"
"""The scene that runs when none is given."""

_BEGIN = "must begin with `defaults: [simulate, _self_]`"
_SECTIONS = [f.name for f in fields(Scene) if is_dataclass(f.type)]


def load_scene(path: str | Path | None = None, overrides: Sequence[str] = (),
               values: Mapping[str, Any] | None = None) -> Scene:
    """Read a scene file, apply overrides and check every value.

    Args:
        path: YAML file that begins with `defaults: [simulate, _self_]`; None = the embedded one.
        overrides: such as "optics.defocus=25000" or "microscope=polara", in Hydra's grammar. A
            key need not be there before: "specimen.particles.mine.structure=4v1w" adds a kind of
            particle, and "~specimen.particles.mine" takes one away.
        values: of more keys, such as {"optics.defocus": 25000}, also of those whose names the
            grammar does not know, as specimen.particles.4v1w.count.

    Returns:
        The scene; its files are absolute paths.

    Raises:
        ValueError: for anything wrong, with one line that names key, value and what is allowed.
    """
    file = DEFAULT if path is None else Path(path)
    folder = file.resolve().parent
    files = scene_files(_read(file), folder)
    with hydra_errors(f"{file}: defaults: files include each other"):
        parsed = parse_overrides(overrides)
        for override in parsed:
            if override.is_sweep_override():
                raise ValueError(f"{_cut(override.input_line)}: write a list as [1,2]; to sweep "
                                 "over values add -m")
        parsed += [Override(OverrideType.CHANGE, key, ValueType.ELEMENT, value,
                            input_line=f"{key}={value}")
                   for key, value in (values or {}).items()]
        plain = OmegaConf.to_container(_composed(files, parsed), throw_on_missing=True)
    assert isinstance(plain, dict)
    return _with_absolute_files(from_plain(Scene, resolved(plain)), folder)


def load_sweep(path: str | Path | None, overrides: Sequence[str]) -> list[Scene]:
    """Every combination of swept values, such as "dose=1,2,3" or "microscope=krios,polara".

    Args:
        path: as in `load_scene`.
        overrides: as in `load_scene`; those with several values are swept, the last one fastest.

    Returns:
        Scenes, each with a folder of its own in `output`, named by its number and values;
        where their names are not swept, its number is also in its name, so that the tables of all
        of them can be merged.

    Raises:
        ValueError: as `load_scene`.
    """
    file = DEFAULT if path is None else Path(path)
    files: Any = scene_files(_read(file), file.resolve().parent)  # which glob() looks into
    fixed, swept = [], []
    for override in parse_overrides(overrides, files):
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            values = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if not values:
                raise ValueError(f"{override.input_line}: matches nothing; must list its values, "
                                 "as dose=1,2,3")
            swept.append(values)
        else:
            raise ValueError(f"{_cut(override.input_line)}: must list its values, as dose=1,2,3")
    scenes = []
    for number, chosen in enumerate(itertools.product(*swept)):
        scene = load_scene(path, [*fixed, *chosen])
        label = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{number:03d} {' '.join(chosen)}".strip())
        scenes.append(replace(scene, output=str(Path(scene.output) / label[:80].rstrip("_."))))
    if len({scene.name for scene in scenes}) < len(scenes):
        return [replace(scene, name=f"{scene.name}_{number:03d}")
                for number, scene in enumerate(scenes)]
    return scenes


def parse_overrides(overrides: Sequence[str], files: Any = None) -> list[Override]:
    """Overrides in Hydra's grammar.

    Args:
        overrides: such as "optics.defocus=25000".
        files: where glob() finds the names of a group.

    Raises:
        ValueError: with one line that names the one that is wrong.
    """
    parsed = []
    for line in overrides:
        with hydra_errors(f"{_cut(line)}: is nested too deeply"):
            parsed += OverridesParser.create(files).parse_overrides([line])
        if parsed[-1].is_hydra_override():
            raise ValueError(f"{line}: Hydra's own settings have no effect here")
    return parsed


def parse_values(overrides: Sequence[str]) -> list[Override]:
    """Overrides that each give a key one value, as `parse_overrides`.

    Args:
        overrides: such as "samples=100".

    Raises:
        ValueError: with one line that names the one that is wrong.
    """
    parsed = parse_overrides(overrides)
    for one in parsed:
        if one.is_delete() or one.is_sweep_override():
            raise ValueError(f"{str(one.input_line)[:99]}: must be KEY=VALUE with one value; a "
                             "list is [1,2]")
    return parsed


@contextmanager
def hydra_errors(too_deep: str) -> Iterator[None]:
    """Hydra's errors as ValueErrors of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from error
    except RecursionError as error:
        raise ValueError(too_deep) from error


def _read(file: Path) -> dict[Any, Any]:
    """Content of a scene file.

    Raises:
        ValueError: if it is missing, no mapping, without defaults, or hides behind a shipped one.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such scene file")
    content = read_yaml(file)
    if not isinstance(content, dict) or "defaults" not in content:
        raise ValueError(f"{file}: {_BEGIN}")
    defaults = content["defaults"]
    if not isinstance(defaults, list):
        raise ValueError(f"{file}: defaults={shown(defaults)}: {_BEGIN}")
    check_order(file, defaults)
    folder = file.resolve().parent
    shipped = [str(path.relative_to(CONFIG_FOLDER)) for path in CONFIG_FOLDER.glob("*/*.yaml")]
    for name in (*shipped, f"{SCHEMA}.yaml", f"{STORED}.yaml"):
        if (folder / name).exists() and folder != CONFIG_FOLDER:
            raise ValueError(f"{folder / name}: has the name of a shipped one; rename it")
    return content


def check_order(file: Path, defaults: list[Any]) -> None:
    """ValueError unless what a file itself says holds over its defaults."""
    if defaults[-1:] != ["_self_"]:
        raise ValueError(f"{file}: defaults: must end with _self_, so that the file's own values "
                         "hold")


def _composed(files: ConfigFiles, overrides: list[Override]) -> DictConfig:
    """The scene with its defaults and overrides.

    Hydra itself sets no key that the scene does not name, such as a new particle's; so it only
    gets the choices of files, and `from_plain` refuses what nobody knows.
    """
    chosen = [o for o in overrides if o.package is not None
              or (o.key_or_group in _SECTIONS and isinstance(o.value(), str | list))]
    for override in chosen:
        if not isinstance(override.value(), str) or "${" in str(override.value()):
            raise ValueError(f"{_cut(override.input_line)}: must be one name")
    config, others = compose(files, chosen)
    if any(field.name not in config for field in fields(Scene)):
        raise ValueError(f"defaults: a scene {_BEGIN}")
    for override in overrides:
        if override in others and override.package is not None:
            raise ValueError(f"{_cut(override.input_line)}: there are no such files to choose")
        if override not in chosen or override in others:
            apply(override, config)
    return config


def apply(override: Override, config: DictConfig) -> None:
    """Set, add or delete one key."""
    key = override.key_or_group
    if not override.is_delete():
        value = hidden(override.value())  # {} empties a mapping, into which others are merged
        try:
            OmegaConf.update(config, key, value, merge=isinstance(value, dict) and value != {},
                             force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{_cut(override.input_line)}: {_first_line(error)}") from error
        return
    above, _, name = key.rpartition(".")
    holder = OmegaConf.select(config, above) if above else config
    if not isinstance(holder, DictConfig) or name not in holder:
        raise ValueError(f"{_cut(f'~{key}')}: no such key")
    del holder[name]


def _with_absolute_files(scene: Scene, folder: Path) -> Scene:
    """File names that exist, in the scene's folder or else in the working folder, made absolute."""
    def found(name: str | None) -> str | None:
        places = [where / os.path.expanduser(name) for where in (folder, Path.cwd()) if name]
        return next((os.path.abspath(place) for place in places if os.path.isfile(place)),
                    name)

    particles = {name: particle.with_files(found)
                 for name, particle in scene.specimen.particles.items()}
    camera, noise = scene.detector, scene.noise
    return replace(scene, specimen=replace(scene.specimen, particles=particles),
                   detector=replace(camera, mtf_file=found(camera.mtf_file),
                                    dqe_file=found(camera.dqe_file)),
                   noise=replace(noise, style=found(noise.style), weights=found(noise.weights),
                                 style_angles=found(noise.style_angles)))


def explain(error: BaseException) -> str:
    """One line that says what is wrong with a configuration."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).partition("/")
        return f"{_cut(f'{group}={name}')}: must be one of {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return (f"{_cut(error.override)}: must be KEY=VALUE in Hydra's grammar "
                f"({_first_line(error)})")
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for cause in reversed(chain):
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            return f"{cause.full_key}: {_first_line(cause)}"
    text = str(error).partition("Config search path")[0].replace(f"In '{STORED}'", "defaults")
    return " ".join(text.split())


def _first_line(error: BaseException) -> str:
    return _cut((str(error).splitlines() or [type(error).__name__])[0].strip(), 200)


def _cut(text: object, length: int = 100) -> str:
    return str(text) if len(str(text)) <= length else str(text)[:length] + "..."
