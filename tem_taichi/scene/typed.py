"""Plain data, as YAML gives it, into dataclasses; unknown keys and wrong types are refused."""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from tem_taichi.checks import shown

T = TypeVar("T")
BESIDE = {"beside": True}
"""Metadata of a field, a dataclass, whose keys stand beside those of the one that it is in."""

_NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "text",
          list: "a list", tuple: "a list", dict: "a mapping of names",
          Mapping: "a mapping of names"}


def from_plain(kind: type[T], content: Any, key: str = "") -> T:
    """A dataclass from a mapping of its fields.

    Fields are float, int, bool, str, dataclasses, list[...], tuple[..., ...], Mapping[str, ...],
    dict[str, ...] or one of these or None. A whole number is a number, and text may be given as a
    whole number. What is absent has the dataclass's default. A dataclass that is one of several
    kinds has a class method `from_plain` of its own.

    Args:
        kind: the dataclass.
        content: the mapping.
        key: where it stands in the whole, for messages.

    Raises:
        ValueError: with one line that names key, value and what is allowed.
    """
    own_way = getattr(kind, "from_plain", None)
    if own_way is not None:
        return own_way(content, key)
    hints = get_type_hints(kind)
    if not isinstance(content, dict):
        raise ValueError(f"{key}={shown(content)}: must be a mapping of {', '.join(hints)}")
    values = {}
    for name, value in content.items():
        place = below(key, name)
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, 1)
            allowed = f"did you mean {near[0]}?" if near else "must be one of " + ", ".join(hints)
            raise ValueError(f"{place}={shown(value)}: no such key; {allowed}")
        values[name] = typed(hints[name], value, place)
    return kind(**values)


def keep_tuples(settings: Any) -> None:
    """Make lists among the fields of a frozen dataclass tuples, also within lists."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, list | tuple):
            object.__setattr__(settings, field.name, _as_tuple(value))


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def to_plain(item: Any) -> Any:
    """The reverse of `from_plain`: a dataclass as mappings, lists and values."""
    if is_dataclass(item):
        return {name: to_plain(value) for _, name, value in entries(item)}
    if isinstance(item, dict):
        return {name: to_plain(value) for name, value in item.items()}
    return [to_plain(value) for value in item] if isinstance(item, list | tuple) else item


def entries(item: Any) -> Iterator[tuple[type, str, Any]]:
    """Keys of a dataclass in YAML: the class that says what each means, its name and its value."""
    for field in fields(item):
        value = getattr(item, field.name)
        if field.metadata != BESIDE:
            yield type(item), field.name, value
        elif value is not None:
            yield from entries(value)


def hints_of(kind: Any) -> dict[str, Any]:
    """Types of the keys that a dataclass may have in YAML, those of all kinds that it may be."""
    beside = {field.name for field in fields(kind) if field.metadata == BESIDE}
    hints: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        if name in beside:
            for part in filter(is_dataclass, get_args(hint) or (hint,)):
                hints |= hints_of(part)
        else:
            hints[name] = hint
    return hints


def below(key: str, name: object) -> str:
    """A key's full name, cut to a readable length."""
    text = str(name) if str(name).isprintable() else json.dumps(str(name))
    text = text if len(text) <= 60 else text[:60] + "..."
    return f"{key}.{text}" if key else text


def check_mappings(kind: Any, content: Any, key: str = "") -> None:
    """Refuse a mapping where a dataclass has none, and the reverse, before files are merged.

    Args:
        kind: type of the content, as `from_plain` knows them.
        content: plain data, of which parts may be missing.
        key: where it stands.

    Raises:
        ValueError: with one line that names key, value and what is allowed.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if NoneType in inner:
        check_mappings(inner[0], content, key)
        return
    named = origin in (dict, Mapping)
    holds = is_dataclass(kind) or named
    if isinstance(content, dict) and holds:
        hints = {} if named else hints_of(kind)
        for name, value in content.items():
            if named or name in hints:
                check_mappings(inner[1] if named else hints[name], value, below(key, name))
    elif isinstance(content, dict) or (isinstance(content, list) and holds):
        allowed = "a mapping" if holds else _NAMES[origin or kind]
        raise ValueError(f"{key}={shown(content)}: must be {allowed}")


def typed(kind: Any, value: Any, key: str) -> Any:
    """A value of a type, as `from_plain` knows them; `key` is where it stands."""
    origin, inner = get_origin(kind), get_args(kind)
    if NoneType in inner:
        return None if value is None else typed(inner[0], value, key)
    if isinstance(kind, type) and is_dataclass(kind):
        return from_plain(kind, value, key)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return origin(typed(inner[0], item, f"{key}[{n}]") for n, item in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {str(name): typed(inner[1], item, below(key, name))
                for name, item in value.items()}
    if isinstance(value, bool):  # which is an int to Python
        if kind is bool:
            return value
    elif kind is float and isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{key}={shown(value)}: must be a finite number") from None
    elif kind is int and (isinstance(value, int) or (isinstance(value, float)
                                                     and value.is_integer())):
        return int(value)
    elif kind is str and isinstance(value, str | int):
        return str(value)
    raise ValueError(f"{key}={shown(value)}: must be {_NAMES[origin or kind]}")
