"""Checks of single values; each refuses with one line that names key, value and what is allowed."""

import json
from collections.abc import Sequence

LARGE = 1e6
"""More than any length [A], dose or angle in a microscope; far beyond it single precision fails."""


def shown(value: object, length: int = 60) -> str:
    """A value as the user would write it in YAML, cut to a readable length."""
    text = str(value)
    if not isinstance(value, float):
        text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= length else text[:length] + "..."


def check(ok: bool, key: str, value: object, allowed: str) -> None:
    """Refuse a value.

    Raises:
        ValueError: if it is not ok.
    """
    if not ok:
        raise ValueError(f"{key}={shown(value)}: must be {allowed}")


def positive(key: str, value: float | None, unit: str) -> None:
    """ValueError unless the value is above 0, and no more than LARGE; None is let through."""
    check(value is None or 0 < value <= LARGE, key, value, f"above 0, up to {LARGE:g} [{unit}]")


def not_negative(key: str, value: float | None, unit: str) -> None:
    """ValueError unless the value is from 0 to LARGE; None is let through."""
    check(value is None or 0 <= value <= LARGE, key, value, f"from 0 to {LARGE:g} [{unit}]")


def within(key: str, value: float, low: float, high: float, unit: str) -> None:
    """ValueError unless low <= value <= high."""
    check(low <= value <= high, key, value, f"from {low:g} to {high:g} [{unit}]")


def whole(key: str, value: int, low: int, high: int) -> None:
    """ValueError unless the value is a whole number from low to high."""
    check(low <= value <= high, key, value, f"a whole number from {low} to {high}")


def one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    """ValueError unless the value is one of those allowed."""
    check(value in allowed, key, value, "one of " + ", ".join(allowed))


def positives(key: str, values: Sequence[float] | None, count: int, unit: str) -> None:
    """ValueError unless there are `count` positive numbers; None is let through."""
    check(values is None or (len(values) == count and all(0 < value <= LARGE for value in values)),
          key, values, f"{count} positive numbers up to {LARGE:g} [{unit}]")


def rows(key: str, table: Sequence[Sequence[float]] | None, columns: int, unit: str) -> None:
    """ValueError unless every row has that many finite numbers; None is let through."""
    for n, row in enumerate(table or []):
        check(len(row) == columns and all(abs(value) <= LARGE for value in row), f"{key}[{n}]",
              row, f"{columns} numbers within {LARGE:g} of 0 [{unit}]")
