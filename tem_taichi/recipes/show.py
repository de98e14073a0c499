"""A recipe's settings as YAML in which every key says its unit and meaning."""

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from tem_taichi.recipes.settings import Recipe
from tem_taichi.scene.show import documentation

_WIDTH = 98


def to_yaml(name: str, about: str, kind: type[Recipe], values: Mapping[str, Any]) -> str:
    """Settings with their docstrings as comments, which `recipe=FILE.yaml` reads back.

    Args:
        name: of the recipe.
        about: what it does, its docstring.
        kind: its settings.
        values: plain data for each of them.
    """
    lines = [f"# {line}".rstrip() for line in about.splitlines()] + [f"recipe: {name}"]
    return "\n".join(lines) + "\n" + commented(kind, values)


def commented(kind: type, values: Mapping[str, Any]) -> str:
    """Settings of a dataclass as YAML, each below what its docstring says.

    Args:
        kind: the dataclass.
        values: plain data for each of its keys.
    """
    documented: dict[str, str] = {}
    for base in kind.__mro__[:-1]:
        documented = documentation(base) | documented
    lines = []
    for key, value in values.items():
        lines += [f"# {line}" for line in textwrap.wrap(documented.get(key, ""), _WIDTH)]
        style = None if isinstance(value, dict | list) else False  # lists in one line
        lines.append(yaml.safe_dump({key: value}, default_flow_style=style, sort_keys=False,
                                    allow_unicode=True).rstrip("\n"))
    return "\n".join(lines) + "\n"
