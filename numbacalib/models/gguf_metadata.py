"""Metadata of a GGUF file, by key and type."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["Metadata"]


class Metadata:
    """Typed access to the metadata values of a GGUF file.

    A value of another type raises a `ValueError` that names the key, what was expected and what was found;
    an absent key gives the default.

    Parameters
    ----------
    values : mapping of str to bool, int, float, str, list of str, or 1-D array of numbers
    prefix : str
        Prefix of every key that is read.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix

    def under(self, prefix: str) -> Metadata:
        """Return the same metadata, restricted to keys that begin with `prefix`."""
        return Metadata(self._values, prefix)

    def __iter__(self) -> Iterator[str]:
        """Yield the keys under the prefix, without it."""
        for key in self._values:
            if key.startswith(self._prefix):
                yield key.removeprefix(self._prefix)

    def __contains__(self, key: str) -> bool:
        return self._prefix + key in self._values

    @overload
    def string(self, key: str, default: str) -> str: ...
    @overload
    def string(self, key: str, default: None = None) -> str | None: ...
    def string(self, key: str, default: str | None = None) -> str | None:
        """A string."""
        value = self._values.get(self._prefix + key, default)
        if value is not default and not isinstance(value, str):
            raise self.error(key, "text")
        return value

    @overload
    def integer(self, key: str, default: int) -> int: ...
    @overload
    def integer(self, key: str, default: None = None) -> int | None: ...
    def integer(self, key: str, default: int | None = None) -> int | None:
        """An integer of any width."""
        value = self._values.get(self._prefix + key, default)
        if value is not default and (not isinstance(value, int) or isinstance(value, bool)):
            raise self.error(key, "an integer")
        return value

    @overload
    def number(self, key: str, default: float) -> float: ...
    @overload
    def number(self, key: str, default: None = None) -> float | None: ...
    def number(self, key: str, default: float | None = None) -> float | None:
        """A finite number of any type; a float32 becomes its shortest decimal, such as 1e-05."""
        value = self._values.get(self._prefix + key, default)
        if value is default:
            return default
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not math.isfinite(value)
        ):
            raise self.error(key, "a finite number")
        short = float(str(np.float32(value))) if abs(value) < np.finfo(np.float32).max else value
        return short if value in (short, float(np.float32(short))) else float(value)

    @overload
    def boolean(self, key: str, default: bool) -> bool: ...
    @overload
    def boolean(self, key: str, default: None = None) -> bool | None: ...
    def boolean(self, key: str, default: bool | None = None) -> bool | None:
        """True or false."""
        value = self._values.get(self._prefix + key, default)
        if value is not default and not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def strings(self, key: str) -> list[str]:
        """An array of strings, required."""
        value = self._values.get(self._prefix + key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, "an array of text")
        return value

    def integers(self, key: str) -> NDArray[Any]:
        """An array of integers [N], required."""
        return self._array(key, "iu", "an array of integers")

    def flags(self, key: str) -> list[bool]:
        """An array of booleans, required."""
        return [bool(flag) for flag in self._array(key, "b", "an array of true and false")]

    def is_list(self, key: str) -> bool:
        """Return whether the key's value is an array."""
        return isinstance(self._values.get(self._prefix + key), list | np.ndarray)

    def floats(self, key: str) -> NDArray[Any]:
        """An array of finite floating-point numbers [N], required."""
        values = self._array(key, "f", "an array of finite numbers")
        if not np.isfinite(values).all():
            raise self.error(key, "an array of finite numbers")
        return values

    def required(self, key: str) -> int:
        """An integer, required."""
        value = self.integer(key)
        if value is None:
            raise self.error(key, "an integer")
        return value

    def by_layer(self, key: str, count: int, least: int = 1) -> list[int]:
        """An integer for each of `count` layers, at least `least`, required: one for all, or an array."""
        if self.is_list(key):
            numbers = [int(number) for number in self.integers(key)]
        else:
            numbers = [self.required(key)] * count
        if len(numbers) != count or min(numbers, default=least) < least:
            kind = "a positive number" if least else "a non-negative number"
            raise self.error(key, f"{kind} for each of {count} blocks")
        return numbers

    def label(self, key: str) -> str:
        """Return the key with the prefix before it."""
        return self._prefix + key

    def error(self, key: str, expected: str) -> ValueError:
        """Return the error for a key's invalid value."""
        value = self._values.get(self._prefix + key)
        if value is None:
            found = "none"
        elif isinstance(value, list | np.ndarray):
            found = f"an array of {len(value)}"
        else:
            found = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]} ..."
        return ValueError(f"{self._prefix}{key}: expected {expected}, got {found}")

    def _array(self, key: str, kinds: str, expected: str) -> NDArray[Any]:
        value = self._values.get(self._prefix + key)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
            raise self.error(key, expected)
        return value
