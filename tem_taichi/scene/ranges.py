"""What may vary from sample to sample of a data set: distributions of a scene's keys."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tem_taichi import checks
from tem_taichi.checks import shown
from tem_taichi.scene.typed import below, keep_tuples

_DIGITS = 6
"""Of a number that is drawn, so that tables say all of it."""


@dataclass(frozen=True)
class Range:
    """A distribution, by one of these words."""

    uniform: tuple[float, ...] | None = None
    """from and to"""
    log_uniform: tuple[float, ...] | None = None
    """from and to, both above 0; the logarithm is uniform"""
    normal: tuple[float, ...] | None = None
    """mean and standard deviation, drawn again beyond three of these"""
    integer: tuple[int, ...] | None = None
    """from and to, both may come"""
    choice: tuple[Any, ...] | None = None
    """one of these, each as likely: numbers, names, lists"""

    def __post_init__(self) -> None:
        keep_tuples(self)

    @classmethod
    def from_plain(cls, content: Any, key: str = "vary") -> "Range":
        """The distribution that a mapping of one word names.

        Raises:
            ValueError: with one line that names key, value and what is allowed.
        """
        words = [field.name for field in fields(cls)]
        if not isinstance(content, dict) or len(content) != 1 or next(iter(content)) not in words:
            raise ValueError(f"{key}={shown(content)}: must be one of {', '.join(words)} with its "
                             "values, as {uniform: [1, 2]}")
        (word, given), = content.items()
        place = below(key, word)
        if word == "choice":
            checks.check(isinstance(given, list) and len(given) > 0, place, given,
                         "a list of at least one value")
            return cls(choice=tuple(given))
        numbers = isinstance(given, list) and len(given) == 2 and all(
            isinstance(one, int | float) and not isinstance(one, bool) and np.isfinite(one)
            for one in given)
        checks.check(numbers, place, given, "two finite numbers")
        low, high = given
        if word == "normal":
            checks.check(high >= 0, place, given, "a mean and a standard deviation of at least 0")
        else:
            checks.check(low <= high, place, given, "from and to, the lower first")
        checks.check(word != "log_uniform" or low > 0, place, given, "above 0")
        if word == "integer":
            checks.check(all(float(one).is_integer() for one in given), place, given,
                         "two whole numbers")
            return cls(integer=(int(low), int(high)))
        ends = float(low), float(high)
        match word:
            case "uniform":
                return cls(uniform=ends)
            case "log_uniform":
                return cls(log_uniform=ends)
        return cls(normal=ends)

    def draw(self, numbers: np.random.Generator) -> Any:
        """A value, of six digits where it is a number between others."""
        if self.choice is not None:
            return self.choice[int(numbers.integers(len(self.choice)))]
        if self.integer is not None:
            return int(numbers.integers(self.integer[0], self.integer[1] + 1))
        return float(f"{self._number(numbers):.{_DIGITS}g}")

    def _number(self, numbers: np.random.Generator) -> float:
        if self.uniform is not None:
            low, high = self.uniform
            return numbers.uniform(low, high)
        if self.log_uniform is not None:
            low, high = np.log(self.log_uniform)
            return float(np.exp(numbers.uniform(low, high)))
        assert self.normal is not None
        mean, deviation = self.normal
        while abs(off := numbers.standard_normal()) > 3:
            pass
        return mean + deviation * off

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that a scene must allow for it to allow all: the ends, or each choice."""
        if self.normal is not None:
            mean, deviation = self.normal
            return mean - 3 * deviation, mean + 3 * deviation
        return self.choice or self.integer or self.uniform or self.log_uniform or ()


def flattened(content: Any, key: str = "vary") -> dict[str, Any]:
    """Mappings in mappings as one with dots in its keys, down to those that `Range` takes.

    Args:
        content: such as {optics: {defocus: {uniform: [1, 2]}}}.
        key: where it stands, for messages.

    Raises:
        ValueError: for what is no mapping.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{key}={shown(content)}: must be a mapping of a scene's keys")
    return dict(_flat(content, ""))


def _flat(content: Mapping[Any, Any], above: str) -> Iterator[tuple[str, Any]]:
    words = {field.name for field in fields(Range)}
    for name, value in content.items():
        place = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping) and value and not words & set(value):
            yield from _flat(value, place)
        else:
            yield place, value
