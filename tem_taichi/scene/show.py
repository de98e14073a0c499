"""A scene as YAML in which every key says its unit and meaning."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from itertools import groupby, pairwise
from typing import Any, cast

from tem_taichi.scene.settings import Scene
from tem_taichi.scene.typed import entries

_COMMENT = 50
"""Column where comments begin, unless the value reaches further."""


def to_yaml(scene: Scene) -> str:
    """The whole scene, which `load_scene` reads back to the same scene."""
    return "\n".join(["defaults: [scene_schema, _self_]", *_lines(scene, "")]) + "\n"


def _lines(item: Any, indent: str) -> Iterator[str]:
    for kind, group in groupby(entries(item), key=lambda entry: entry[0]):
        documented = documentation(kind)
        for _, name, value in group:
            yield from _entry(name, value, documented.get(name, ""), indent)


def _entry(name: str, value: Any, about: str, indent: str) -> Iterator[str]:
    if is_dataclass(value):
        yield f"{indent}{name}:"
        yield from _lines(value, indent + "  ")
    elif isinstance(value, dict) and value:
        yield _commented(f"{indent}{name}:", about)
        for key, item in value.items():
            yield from _entry(json.dumps(key), item, "", indent + "  ")
    elif isinstance(value, tuple) and value and isinstance(value[0], tuple):
        yield _commented(f"{indent}{name}:", about)
        yield from (f"{indent}  - {json.dumps(row)}" for row in value)
    else:  # JSON is YAML
        yield _commented(f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}", about)


def _commented(line: str, about: str) -> str:
    return f"{line:{_COMMENT}}  # {about}" if about else line


def documentation(kind: type) -> dict[str, str]:
    """What stands below each field of a dataclass."""
    body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]).body
    return {field.target.id: " ".join(str(text.value.value).split())
            for field, text in pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)}
