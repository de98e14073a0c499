"""Recipes by their names, and their settings, checked, from YAML and overrides.

Every module of this package that has a RECIPE, a pair of settings and a function, is a recipe.
"""

import ast
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from os.path import expanduser
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tem_taichi import recipes
from tem_taichi.recipes.settings import Recipe
from tem_taichi.scene.composition import ConfigFiles, compose
from tem_taichi.scene.load import apply, check_order, explain, hydra_errors, parse_values
from tem_taichi.scene.references import hidden, resolved
from tem_taichi.scene.typed import check_mappings, from_plain, to_plain
from tem_taichi.scene.yaml_files import read_yaml

_OWN = "own_recipe"
"""Name before that of a module which is a file of the user's."""


def recipe_names() -> dict[str, str]:
    """What each recipe does, the first line of its docstring, by its name; none is imported."""
    found = {}
    for file in (file for folder in recipes.__path__ for file in Path(folder).glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "\nRECIPE = " in text:
            found[file.stem] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return dict(sorted(found.items()))


def find_recipe(name: str) -> ModuleType:
    """The module of a recipe: one of `recipe_names`, or a Python file with a RECIPE.

    Raises:
        ValueError: if there is none, or the file cannot be loaded.
    """
    if name.endswith(".py"):
        module = _module_of(Path(name))
    elif name in recipe_names():
        module = import_module(f"{recipes.__name__}.{name}")
    else:
        raise ValueError(f"recipe={name}: must be one of {', '.join(recipe_names())}, a YAML file "
                         "whose `recipe` is, or a Python file of your own")
    if not _is_recipe(getattr(module, "RECIPE", None)):
        raise ValueError(f"recipe={name}: must have RECIPE = (settings, run), a dataclass that "
                         "extends recipes.settings.Recipe and a function")
    return module


def _is_recipe(pair: Any) -> bool:
    if not isinstance(pair, tuple) or len(pair) != 2:
        return False
    settings, run = pair
    return isinstance(settings, type) and issubclass(settings, Recipe) and callable(run)


def _module_of(file: Path) -> ModuleType:
    name = f"{_OWN}.{file.stem}"
    spec = spec_from_file_location(name, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"recipe={file}: no such file")
    module = sys.modules[name] = module_from_spec(spec)  # where dataclasses look for their types
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"recipe={file}: cannot be loaded: {type(error).__name__}: {error}"
                         ) from error
    return module


def name_of(module: ModuleType) -> str:
    """A recipe's name, that of its file."""
    return module.__name__.rpartition(".")[2]


def defaults(kind: type[Recipe]) -> dict[str, Any]:
    """The value of each setting where nothing is given, plain data."""
    return {one.name: to_plain(one.default if one.default_factory is MISSING
                               else one.default_factory()) for one in fields(kind)}


def read_recipe(overrides: Sequence[str]) -> tuple[ModuleType, Recipe]:
    """A recipe from overrides such as "recipe=ctf" and "input=a.mrc", in Hydra's grammar.

    Args:
        overrides: recipe=NAME, a shipped one, a Python file of your own, or a YAML file of your own
            that names its base, a shipped one, as `recipe: NAME` or among its defaults; then any of
            its keys. Files that such a YAML file names are looked for in its folder, then in the
            working folder.

    Returns:
        The recipe's module, of `find_recipe`, and the settings.

    Raises:
        ValueError: for anything wrong, with one line that names key, value and what is allowed.
    """
    for word in overrides:
        if "=" not in word and word.endswith((".yaml", ".yml")):
            raise ValueError(f"{word[:99]}: must be KEY=VALUE; a file of settings is recipe=FILE")
    parsed = parse_values(overrides)
    chosen = {one.key_or_group: one.value() for one in parsed}
    name = expanduser(str(chosen.pop("recipe", None)))
    content: dict[Any, Any] = {}
    if name.endswith((".yaml", ".yml")):
        name, content = _read(Path(name))
    module = find_recipe(name)
    kind = module.RECIPE[0]
    check_mappings(kind, content)
    try:
        merged = OmegaConf.create(hidden(defaults(kind)))
        merged.merge_with(hidden(content))
        for one in parsed:
            if one.key_or_group in chosen:
                apply(one, merged)
        plain = OmegaConf.to_container(merged, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(explain(error)) from error
    assert isinstance(plain, dict)
    return module, from_plain(kind, _with_home(resolved(plain)))


def _read(file: Path) -> tuple[str, dict[Any, Any]]:
    """The shipped recipe that a YAML file names, and its settings: data, which runs nothing.

    Hydra composes them. Among a file's defaults a recipe's name stands for `recipe: NAME`.
    """
    if not file.is_file():
        raise ValueError(f"recipe={file}: no such file")
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must be a mapping of keys")
    if isinstance(content.get("defaults"), list):
        check_order(file, content["defaults"])
    names = recipe_names()
    entries = {name: {"recipe": name} for name in names}
    files = ConfigFiles(content, [file.resolve().parent], entries)
    with hydra_errors(f"{file}: defaults: files include each other"):
        composed = OmegaConf.to_container(compose(files)[0])
    assert isinstance(composed, dict)
    name = str(composed.pop("recipe", None))
    if name not in names:
        raise ValueError(f"recipe={name}: must be one of {', '.join(names)}, in {file}")
    return name, _with_files(composed, file.parent)


def _with_home(plain: dict[Any, Any]) -> dict[Any, Any]:
    """One file as a list of one, and ~ as the home, in the files to read."""
    def found(name: Any) -> Any:
        return expanduser(name) if isinstance(name, str) else name

    names = plain.get("input")
    if isinstance(names, str | list):
        plain["input"] = [found(one) for one in ([names] if isinstance(names, str) else names)]
    return plain | ({"angles": found(plain["angles"])} if "angles" in plain else {})


def _with_files(content: dict[Any, Any], folder: Path) -> dict[Any, Any]:
    """The files it reads, in its own folder where they are there."""
    def found(name: Any) -> Any:
        if isinstance(name, list):
            return [found(one) for one in name]
        beside = folder / str(name)
        return str(beside) if isinstance(name, str) and name and os.path.isfile(beside) else name

    return {key: found(value) if key in ("input", "angles") else value
            for key, value in content.items()}
