"""References of a scene to its own keys, `${seed}`; nothing else may stand in `${}`.

OmegaConf's own interpolation also reads environment variables and the clock, and whatever a
program registers, which would make a scene's result depend on where it runs and put secrets into
outputs. So it never sees a reference: `hidden` takes them out of its sight.
"""

import re
from typing import Any

from tem_taichi.checks import shown

_OPEN, _HIDDEN = "${", "\ue000{"
_REFERENCE = re.compile(r"\$\{(\.*)([^${}:\s]+)\}")
_LONGEST = 1_000_000
"""Characters and values that all references together may copy."""


def hidden(content: Any) -> Any:
    """The same data with every `${` replaced, for `resolved` to find."""
    if isinstance(content, dict):
        return {hidden(key): hidden(value) for key, value in content.items()}
    if isinstance(content, list):
        return [hidden(item) for item in content]
    return content.replace(_OPEN, _HIDDEN) if isinstance(content, str) else content


def resolved(content: dict[Any, Any]) -> dict[Any, Any]:
    """Plain data from `hidden` in which each reference is the value of the key it names.

    `${optics.defocus}` names a key from the top, `${.count}` one beside it, `${..count}` one a
    level higher; items of lists are `${shape.0}` or `${shape[0]}`. Within text it becomes text.

    Raises:
        ValueError: for anything else in `${}`, an unknown key, or references in a circle.
    """
    copied = 0

    def found(path: tuple[str, ...], dots: str, name: str, said: str) -> tuple[tuple, Any]:
        up = path[:len(path) - len(dots)] if dots else ()
        target = (*up, *(part for part in re.split(r"[.\[\]]+", name) if part))
        value: Any = content
        for part in target:
            inside = (dict(enumerate(value)) if isinstance(value, list) else value)
            names = {str(key): one for key, one in inside.items()} if isinstance(
                inside, dict) else {}
            if part not in names:
                raise ValueError(f"{said}: there is no key {name}")
            value = names[part]
        return target, value

    def plain(value: Any, path: tuple[str, ...], chain: tuple) -> Any:
        nonlocal copied
        if chain:
            copied += len(value) if isinstance(value, str) else 1
        if isinstance(value, dict):
            return {plain(key, (), ()) if isinstance(key, str) else key:
                    plain(one, (*path, str(key)), chain) for key, one in value.items()}
        if isinstance(value, list):
            return [plain(one, (*path, str(n)), chain) for n, one in enumerate(value)]
        if not isinstance(value, str) or _HIDDEN not in value:
            return value
        value = value.replace(_HIDDEN, _OPEN)
        said = f"{'.'.join(path)}={shown(value)}"
        if _OPEN in _REFERENCE.sub("", value) or not path:
            raise ValueError(f"{said}: must be a value, or another key of the scene as ${{seed}}; "
                             "nothing else can stand in ${}")
        if path in chain or len(chain) > 20 or copied > _LONGEST:
            raise ValueError(f"{said}: refers to itself, or to too much")

        def one(match: re.Match) -> Any:
            target, there = found(path, match[1], match[2], said)
            return plain(there, target, (*chain, path))

        whole = _REFERENCE.fullmatch(value)
        return one(whole) if whole else _REFERENCE.sub(lambda match: str(one(match)), value)

    return {key: plain(value, (str(key),), ()) for key, value in content.items()}
