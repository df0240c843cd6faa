"""Typed access to the JSON objects of model files: one place for their types and ranges."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["LARGEST", "Fields"]

LARGEST = 2**31 - 1
"""Upper bound of sizes and counts that have no tighter one."""

_REQUIRED: Any = object()
_SHOWN = 200


class Fields:
    """Reader of the keys of one JSON object, which tracks the keys that were never read.

    Every method takes a key and raises a one-line ValueError that names it, what was expected and what
    was found. An absent key gives ``default``; null does so only if ``default`` is None.

    Parameters
    ----------
    values : Mapping
    name : str, optional
        Name of the object, shown before its keys: ``"rope_scaling"`` for ``rope_scaling.factor``.
    """

    def __init__(self, values: Mapping[str, Any], name: str = "") -> None:
        self._values = values
        self._name = name
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __bool__(self) -> bool:
        return bool(self._values)

    def label(self, key: str) -> str:
        """Return the key with the object's name before it, printable on one line."""
        shown = key if key.isprintable() and len(key) <= _SHOWN else repr(key[:_SHOWN])
        return f"{self._name}.{shown}" if self._name else shown

    def integer(self, key: str, low: int, high: int = LARGEST, default: Any = _REQUIRED) -> Any:
        """An integer from ``low`` to ``high``; neither a float nor a boolean."""

        def fits(value: Any) -> bool:
            return type(value) is int and low <= value <= high

        return self._value(key, fits, f"an integer from {low} to {high}", default)

    def equal_integers(self, key: str, low: int, high: int, count: int, default: Any) -> Any:
        """An integer from ``low`` to ``high``, or a list of ``count`` equal ones."""
        if not _is_list(self._values.get(key)):
            return self.integer(key, low, high, default)

        def fits(value: Any) -> bool:
            first = value[0] if value else low - 1
            equal = all(type(item) is int and item == first for item in value)
            return len(value) == count and equal and low <= first <= high

        expected = f"an integer from {low} to {high}, or {count} that are equal"
        return self._value(key, fits, expected, default)[0]

    def number(self, key: str, low: float, high: float, default: Any = _REQUIRED) -> Any:
        """A finite number from ``low`` to ``high``, as float."""

        def fits(value: Any) -> bool:
            return type(value) in (int, float) and low <= value <= high  # false for NaN

        value = self._value(key, fits, f"a number from {low:g} to {high:g}", default)
        return None if value is None else float(value)

    def integers(
        self, key: str, low: int, length: int | None = None, default: Any = _REQUIRED
    ) -> Any:
        """A list of integers, each at least ``low``, of any length or of ``length``."""

        def fits(value: Any) -> bool:
            return _is_list(value, length) and all(
                type(item) is int and item >= low for item in value
            )

        count = "" if length is None else f"{length} "
        return self._value(key, fits, f"a list of {count}integers, {low} or more", default)

    def text(self, key: str) -> str:
        """A string."""
        return str(self._value(key, lambda value: isinstance(value, str), "a string", _REQUIRED))

    def numbers(
        self, key: str, length: int, low: float, high: float, default: Any = _REQUIRED
    ) -> list[float]:
        """A list of ``length`` numbers from ``low`` to ``high``; infinity in transformers' notation."""

        def fits(value: Any) -> bool:
            return _is_list(value, length) and all(
                type(item) in (int, float) and low <= item <= high for item in map(_number, value)
            )

        expected = f"{length} numbers from {low:g} to {high:g}"
        return [float(_number(item)) for item in self._value(key, fits, expected, default)]

    def flag(self, key: str, default: Any = _REQUIRED) -> Any:
        """``true`` or ``false``, not a number or a string."""
        return self._value(key, lambda value: type(value) is bool, "true or false", default)

    def choice(self, key: str, values: Sequence[Any], default: Any = _REQUIRED) -> Any:
        """One of ``values``, of the same type."""

        def fits(value: Any) -> bool:
            return any(type(value) is type(item) and value == item for item in values)

        names = [str(item) for item in dict.fromkeys(values)]  # shows 1 and 1.0 once
        expected = f"one of {', '.join(names)}" if names[1:] else names[0]
        return self._value(key, fits, expected, default)

    def texts(self, key: str, default: Any = _REQUIRED) -> Any:
        """A list of strings."""

        def fits(value: Any) -> bool:
            return _is_list(value) and all(isinstance(item, str) for item in value)

        return self._value(key, fits, "a list of strings", default)

    def object(self, key: str, default: Any = _REQUIRED) -> Any:
        """A nested object, as `Fields`."""
        value = self._value(key, lambda value: isinstance(value, Mapping), "an object", default)
        return value if value is None else Fields(value, self.label(key))

    def updated(self, other: Fields) -> Fields:
        """Return the object with the keys of another added, none marked as read."""
        return Fields({**self._values, **other._values}, self._name)

    def renamed(self, synonyms: Mapping[str, str]) -> Fields:
        """Return the object with synonyms replaced by their keys, none marked as read.

        Raises
        ------
        ValueError
            If it has both, with different values.
        """
        for key, name in synonyms.items():
            value = self._values.get(key)
            if key in self._values and self._values.get(name, value) != value:
                raise self.error(name, f"{reprlib.repr(value)}, as {key}")
        own = {synonyms.get(key, key): value for key, value in self._values.items()}
        return Fields(own, self._name)

    def nothing(self, *keys: str) -> None:
        """Refuse keys that are set: other than null, false or empty."""
        for key in keys:
            self._value(key, _says_nothing, "null, or no such key", None)

    def refuse_unread(self, harmless: Collection[str] = (), owner: str = "") -> None:
        """Refuse keys that were never read, unless they are ``harmless`` or unset."""
        for key, value in self._values.items():
            if key not in self._read and key not in harmless and not _says_nothing(value):
                raise ValueError(
                    f"{self.label(key)}: expected no key of this name{owner}, it is not understood; "
                    f"got {reprlib.repr(value)}"
                )

    def error(self, key: str, expected: str) -> ValueError:
        """Return the error for a key's invalid value."""
        found = f"got {reprlib.repr(self._values[key])}" if key in self._values else "found none"
        return ValueError(f"{self.label(key)}: expected {expected}, {found}")

    def _value(self, key: str, fits: Callable[[Any], bool], expected: str, default: Any) -> Any:
        self._read.add(key)
        value = self._values.get(key, default)
        if value is _REQUIRED or not (value is default or fits(value)):
            raise self.error(key, expected)
        return value


def _is_list(value: Any, length: int | None = None) -> bool:
    return isinstance(value, list | tuple) and length in (None, len(value))


def _says_nothing(value: Any) -> bool:
    """Return whether a value is null, false or empty, as writers mark unused options."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _number(item: Any) -> Any:
    """Decode a number in a list: transformers writes infinity, which JSON lacks, as an object."""
    return math.inf if item == {"__float__": "Infinity"} else item
