"""A scene or a recipe put together from its defaults by Hydra, without Hydra's global state.

Hydra's own `compose` works on one global object, so that two threads, or a program that itself
runs under `hydra.main`, get in each other's way; it also imports whatever package is called
hydra_plugins. Here it gets a repository of its own: the shipped files, those beside the scene, and
the scene as plain data.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

from tem_taichi.checks import shown
from tem_taichi.scene.references import hidden
from tem_taichi.scene.settings import Scene
from tem_taichi.scene.typed import check_mappings, to_plain
from tem_taichi.scene.yaml_files import read_yaml

CONFIG_FOLDER = Path(str(import_module("tem_taichi.conf").__file__)).resolve().parent
SCHEMA, STORED = "scene_schema", "tem_taichi_scene"
"""Names of the defaults of every key, and of the scene at hand."""


class ConfigFiles(ConfigRepository):
    """What Hydra may read for a scene or a recipe.

    Args:
        content: the scene or recipe, plain data.
        folders: in which the files are that it may name.
        made: what has a name but no file, plain data.
        kind: dataclass that all of it becomes; None = not known yet.
    """

    def __init__(self, content: dict[Any, Any], folders: Sequence[Path],
                 made: Mapping[str, dict[Any, Any]], kind: type | None = None) -> None:
        self._folders, self._kind = folders, kind
        self._made = {STORED: content, **made}
        self._read: dict[str, ConfigResult] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        """A file's content and its list of defaults; None if there is no such file."""
        name = config_path.removesuffix(".yaml")
        if name not in self._read:
            header: dict[str, str | None] = {"package": None}
            content, file = self._made.get(name), self._file(name)
            if content is None:
                if file is None:
                    return None
                content = read_yaml(file)
                try:
                    header = ConfigSource._get_header_dict(file.read_text("utf-8")[:512])
                except ValueError as error:
                    raise ValueError(f"{file}: {error}") from error
            if not isinstance(content, dict):
                raise ValueError(f"{file}: must be a mapping of keys")
            for item in _listed(content, "the file" if name == STORED else name):
                _check_default(item)
            group = name.rpartition("/")[0]
            kind = get_type_hints(self._kind).get(group) if group and self._kind else self._kind
            if kind and not header["package"]:
                check_mappings(kind, content, group)
            config = OmegaConf.create(hidden(content))
            defaults = self._create_defaults_list(name, self._extract_defaults_list(name, config))
            self._read[name] = ConfigResult(
                provider="scene", path=name, config=config, header=header, defaults_list=defaults,
                is_schema_source=True)
        return self._read[name]

    def group_exists(self, config_path: str) -> bool:
        """Whether there is a folder of this name."""
        return _inside(config_path) and any((f / config_path).is_dir() for f in self._folders)

    def config_exists(self, config_path: str) -> bool:
        """Whether there is a file of this name."""
        name = config_path.removesuffix(".yaml")
        return name in self._made or self._file(name) is not None

    def get_group_options(self, group_name: str,
                          results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        """Names of the files in a folder."""
        return sorted({file.stem for folder in self._folders if _inside(group_name)
                       for file in (folder / group_name).glob("*.yaml")})

    def get_sources(self) -> list[ConfigSource]:
        """None of Hydra's: they are found among its plugins."""
        return []

    def _file(self, name: str) -> Path | None:
        if not _inside(name):
            return None
        return next((file for folder in self._folders
                     if (file := folder / f"{name}.yaml").is_file()), None)


def scene_files(content: dict[Any, Any], folder: Path) -> ConfigFiles:
    """What a scene in a folder may name: the shipped files, and those beside it."""
    return ConfigFiles(content, (CONFIG_FOLDER, folder), {SCHEMA: to_plain(Scene())}, Scene)


def compose(files: ConfigFiles,
            chosen: Sequence[Override] = ()) -> tuple[DictConfig, list[Override]]:
    """What was given with its defaults, and the overrides that choose no file.

    Args:
        files: what may be read.
        chosen: overrides that may choose files, such as microscope=polara.
    """
    defaults = create_defaults_list(files, STORED, list(chosen), prepend_hydra=False,
                                    skip_missing=False)
    # A loader without a search path: it neither looks for plugins nor keeps anything.
    loader = ConfigLoaderImpl(ConfigSearchPathImpl())
    return (loader._compose_config_from_defaults_list(defaults.defaults, files),
            defaults.config_overrides)


def _inside(name: str) -> bool:
    """Whether a name stays in the folder it is looked for in, and can be one, on every system."""
    return not any(part in ("", ".", "..") or set(part) & set("\\:\0")
                   or len(part.encode("utf-8", "replace")) > 250 for part in name.split("/"))


def _listed(content: dict[Any, Any], name: str) -> list[Any]:
    defaults = content.get("defaults", [])
    if not isinstance(defaults, list):
        raise ValueError(f"defaults={shown(defaults)}: must be a list in {name}")
    return defaults


def _check_default(item: Any) -> None:
    """Refuse what is no choice: Hydra meets it with an assertion, or reads the environment."""
    said = f"defaults: {shown(item)}"
    pair = isinstance(item, dict) and len(item) == 1
    key, value = next(iter(item.items())) if pair else (item, None)
    if not isinstance(key, str) or not key.strip() or (isinstance(item, dict) and not pair):
        raise ValueError(f"{said}: must be a name, or one GROUP: NAME")
    if not isinstance(value, str | None):
        raise ValueError(f"{key}={shown(value)}: must be one name, in defaults")
    if "${" in key or "${" in str(value):
        raise ValueError(f"{said}: must be a plain name, without ${{}}")
    group = key.split()[-1].lstrip("/")
    if group == "hydra" or group.startswith(("hydra/", "hydra@")):
        raise ValueError(f"{said}: Hydra's own settings have no effect here")
