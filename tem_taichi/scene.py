"""Reading a scene: YAML and overrides to a checked `Scene`, by Hydra's compose."""

import difflib
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from tem_taichi.config import Scene

# Importing it makes the schema of the scene known to Hydra.
CONFIG_FOLDER = Path(str(import_module("tem_taichi.conf").__file__)).resolve().parent
DEFAULT = CONFIG_FOLDER / "simulate.yaml"
"""The scene that runs when none is given."""

SEARCH_PATH = "hydra.searchpath=[pkg://tem_taichi.conf]"

_OF_THE_RUN = ("job", "runtime", "overrides", "searchpath", "mode", "verbose")
"""Parts of Hydra's own settings that differ between scenes without their doing."""


def load_scene(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Scene:
    """Read a scene file, apply overrides and check every value.

    Args:
        path: YAML file that begins with `defaults: [simulate, _self_]`; None = the embedded one.
        overrides: Hydra overrides, such as "optics.defocus=25000" or "microscope=polara".

    Returns:
        The scene.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for anything else, with one line that names key, value and what is allowed.
    """
    file = DEFAULT if path is None else Path(path)
    check_file(file)
    try:
        return to_scene(_compose(file, overrides))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(explain(error)) from error


def to_scene(config: DictConfig) -> Scene:
    """The composed configuration as a checked scene."""
    content = OmegaConf.to_object(config)
    if not isinstance(content, Scene):
        raise ValueError("defaults: a scene must begin with `defaults: [simulate, _self_]`")
    return content


def to_yaml(scene: Scene) -> str:
    """The scene as YAML that `load_scene` reads back to the same scene."""
    content = yaml.safe_dump(asdict(scene), sort_keys=False)
    return "defaults: [scene_schema, _self_]\n" + content


def check_file(file: Path) -> None:
    """A scene must be a file of plain data that leaves Hydra's own settings alone.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not YAML, not a mapping, or sets how Hydra runs.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such scene file")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {explain(error)}") from error
    if not isinstance(content, dict) or "defaults" not in content:
        raise ValueError(f"{file}: must begin with `defaults: [simulate, _self_]`")
    # Hydra starts launchers and callbacks by the names in its settings: those would be code.
    if file.resolve() != DEFAULT:
        try:
            ours, given = (_hydra_settings(f) for f in (DEFAULT, file))
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            raise ValueError(explain(error)) from error
        if ours != given:
            raise ValueError(f"{file}: hydra: a scene cannot change how Hydra runs; give that on "
                             "the command line")


def _compose(file: Path, overrides: Sequence[str], hydra: bool = False) -> DictConfig:
    folder = str(file.resolve().parent)
    with initialize_config_dir(config_dir=folder, version_base="1.3", job_name="simulate"):
        return compose(file.stem, overrides=[SEARCH_PATH, *overrides],
                       return_hydra_config=hydra)


def _hydra_settings(file: Path) -> dict[str, Any]:
    settings: Any = OmegaConf.to_container(_compose(file, (), hydra=True).hydra, resolve=False)
    return {key: value for key, value in settings.items() if key not in _OF_THE_RUN}


def explain(error: BaseException) -> str:
    """One line that says what is wrong with a configuration."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for cause in reversed(chain):
        if isinstance(cause, ConfigKeyError):
            return _unknown_key(cause)
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            return f"{cause.full_key}: {_first_line(cause)}"
        if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark:
            mark = cause.problem_mark
            return f"line {mark.line + 1}, column {mark.column + 1}: {cause.problem}"
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].strip()


def _unknown_key(error: ConfigKeyError) -> str:
    kind = error.object_type
    name = str(error.full_key).rsplit(".", 1)[-1]
    if not hasattr(kind, "__dataclass_fields__"):
        return f"{error.full_key}: no such key"
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else "must be one of " + ", ".join(known)
    return f"{error.full_key}: no such key; {hint}"
