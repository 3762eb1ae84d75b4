"""Options that make no sense are refused in one sentence, and what makes sense is stored as plain Python.

So that options compare, hash and become JSON, whether their values came from Python, NumPy or a file. It does not know
which options there are.
"""

import operator
import reprlib
from collections.abc import Callable, Collection, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

_Value = TypeVar("_Value")


class Rule(NamedTuple):
    """What one option may be."""

    expected: str
    """In words that follow "must be"."""
    read: Callable[[Any], Any]
    """The value as it is stored; raises `TypeError`, `ValueError` or `OverflowError` on what is not as expected."""


def check(options: object, rules: Mapping[str, Rule]) -> None:
    """Hold a frozen dataclass's values against the rules. Raises `ValueError`."""
    for name, rule in rules.items():
        value = getattr(options, name)
        try:
            object.__setattr__(options, name, rule.read(value))
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{name} must be {rule.expected}, not {_shown(value)}") from None


def expect(name: str, value: object, *kinds: type[Any]) -> None:
    """Raise `TypeError` if a value is of none of these kinds, in a sentence that names them."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {' or '.join(kind.__name__ for kind in kinds)}, not {_shown(value)}")


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "one of so many digits"


def whole(low: int, high: int) -> Rule:
    """Any integer of these, both ends among them."""

    def read(value: Any) -> int:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return _within(operator.index(value), low, high)

    return Rule(f"a whole number from {low} to {high}", read)


def number(low: float, high: float) -> Rule:
    """Any real number of these, both ends among them; NaN is none."""

    def read(value: Any) -> float:
        if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
            raise TypeError
        return _within(float(value), low, high)

    return Rule(f"a number from {low} to {high}", read)


def flag() -> Rule:
    """True or False, and nothing that only counts as one: of "no" the opposite is meant."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise TypeError
        return bool(value)

    return Rule("True or False", read)


def choice(names: Collection[str]) -> Rule:
    """One of some names."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError
        return str(value)

    return Rule(f"one of {', '.join(names)}", read)


def directory() -> Rule:
    """A path that is not empty, there or not."""

    def read(value: Any) -> Path:
        if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
            raise TypeError
        return Path(value)

    return Rule("a directory", read)


def or_none(rule: Rule) -> Rule:
    """The same, or None."""
    return Rule(f"{rule.expected}, or None", lambda value: None if value is None else rule.read(value))


def _within(value: _Value, low: Any, high: Any) -> _Value:
    if not low <= value <= high:
        raise ValueError
    return value
