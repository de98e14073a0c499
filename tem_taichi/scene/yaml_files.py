"""YAML as plain data, within bounds: a small file may ask for more than any machine has."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

_DEEPEST = 50
"""Levels of lists and mappings; a scene has seven."""
_MOST = 1_000_000
"""Values, those that aliases repeat counted each time."""


def read_yaml(file: Path) -> Any:
    """What a YAML file says; tags that would make objects are refused, and 1e5 is a number.

    Raises:
        ValueError: if it cannot be read, nests too deeply, or its aliases repeat too much.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
        return yaml.load(text.removeprefix("\ufeff"), Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        said = str(error.problem)
    except (yaml.YAMLError, ValueError, TypeError, OSError, OverflowError) as error:
        place, said = "", f"can't be read as YAML ({str(error).strip() or type(error).__name__})"
    raise ValueError(f"{file}: {place}{' '.join(said.split())[:200]}")


@cache
def _loader() -> Any:
    base = get_yaml_loader()

    class Loader(base):  # type: ignore[misc, valid-type]
        def __init__(self, stream: Any) -> None:
            super().__init__(stream)
            self.depth = self.count = 0
            self.sizes: dict[int, int] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            self.depth, self.count, before = self.depth + 1, self.count + 1, self.count
            if self.depth > _DEEPEST:
                self._refuse(event, f"is nested more than {_DEEPEST} levels deep")
            node = super().compose_node(parent, index)
            if isinstance(event, yaml.AliasEvent):
                if id(node) not in self.sizes:
                    self._refuse(event, f"the alias *{event.anchor} stands within itself")
                self.count += self.sizes[id(node)]
            if self.count > _MOST:
                self._refuse(event, f"has more than {_MOST:,} values, aliases counted each time")
            self.depth -= 1
            self.sizes[id(node)] = self.count - before
            return node

        def _refuse(self, event: Any, problem: str) -> None:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)

    return Loader
