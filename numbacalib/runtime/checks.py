"""Checks of arguments: each error names the argument, the expected value and the given one.

They look only at shape and dtype attributes, so they serve NumPy and CUDA arrays alike.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from numbacalib.runtime.half import bfloat16

FLOAT_NAMES = ("float16", "bfloat16", "float32", "float64")


def matrix(name: str, array: Any, shape: tuple[int | str, int | str]) -> tuple[int, int]:
    """Check that `array` is a non-empty 2-D float array and return its shape.

    `shape` holds a number where the size is fixed and a letter where it is free.
    """
    rows, columns = _shaped(name, array, shape)
    return rows, columns


def square(name: str, array: Any) -> int:
    """Check that `array` is a non-empty square float matrix and return its size."""
    size, _ = matrix(name, array, ("K", "K"))
    matrix(name, array, (size, size))
    return size


def stack(
    name: str, array: Any, shape: tuple[int | str, int | str, int | str]
) -> tuple[int, int, int]:
    """Check that `array` is a non-empty 3-D float array and return its shape; see `matrix`."""
    count, rows, columns = _shaped(name, array, shape)
    return count, rows, columns


def vector(name: str, array: Any, size: int) -> None:
    """Check that `array` is a 1-D float array of length `size`."""
    _shaped(name, array, (size,))


def _shaped(name: str, array: Any, shape: tuple[int | str, ...]) -> tuple[int, ...]:
    floats(name, array)
    fits = len(array.shape) == len(shape) and all(
        isinstance(want, str) or want == size
        for want, size in zip(shape, array.shape, strict=False)
    )
    if not fits:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name}: expected shape [{expected}], got {list(array.shape)}")
    if 0 in array.shape:
        raise ValueError(f"{name}: expected non-empty axes, got shape {list(array.shape)}")
    return tuple(int(size) for size in array.shape)


def rows_of(array: Any) -> Any:
    """Present an array of any number of axes as a matrix, the last axis as columns."""
    *leading, width = array.shape  # shapes in the simulator take no index from the end
    return array if len(leading) == 1 else array.reshape(-1, width)


def stack_of_one(matrix: Any) -> Any:
    """Present a matrix as a stack [1, M, K]."""
    return matrix.reshape(1, *matrix.shape)


def tokens(name: str, array: Any, shape: tuple[int | str, int | str]) -> Any:
    """Check a matrix, which may have leading axes, and return it with these merged into its rows.

    `shape` is that of the last two axes; see `matrix`.
    """
    floats(name, array)
    lengths = _shaped(name, array, ("...",) * (len(array.shape) - 2) + shape)
    return array if len(lengths) == 2 else viewed(name, array, lengths[-1])


def samples(name: str, array: Any) -> tuple[int, ...]:
    """Check that `array` is a non-empty float array of samples [N, P], P on any axes; return its shape."""
    floats(name, array)
    return _shaped(name, array, ("N", "P") + ("...",) * (len(array.shape) - 2))


def viewed(name: str, array: Any, width: int) -> Any:
    """Return an array as a matrix of rows of `width`; copied if a NumPy array's strides require it."""
    try:
        return array.reshape(-1, width)
    except ValueError:
        strides = list(array.strides)
        raise ValueError(
            f"{name}: expected strides that make rows of {width}, got {strides} bytes of shape "
            f"{list(array.shape)}: make it contiguous"
        ) from None


def floats(name: str, array: Any) -> None:
    """Check that `array` has one of the four dtypes, in the machine's byte order."""
    if array is None:
        raise TypeError(f"{name}: expected an array, got None")
    dtype = np.dtype(array.dtype)
    if not _is_float(dtype):
        raise TypeError(
            f"{name}: expected dtype {', '.join(FLOAT_NAMES[:-1])} or {FLOAT_NAMES[-1]} in native "
            f"byte order, got {dtype.str if not dtype.isnative else dtype.name}"
        )


@functools.cache
def _is_float(dtype: np.dtype) -> bool:
    return dtype.name in FLOAT_NAMES and dtype.isnative


def float_dtype(name: str, value: Any, names: Sequence[str] = FLOAT_NAMES) -> np.dtype:
    """Return one of the float dtypes `names`, given as a dtype of NumPy, ml_dtypes or torch, or by name."""
    word = str(value).removeprefix("torch.")
    dtype = None
    if word == "bfloat16":
        dtype = bfloat16()
    elif word in names:
        dtype = np.dtype(word)
    elif isinstance(value, (np.dtype, type, str)):
        with suppress(TypeError):  # NumPy does not know it
            dtype = np.dtype(value)
    if dtype is None or dtype.name not in names or not dtype.isnative:
        raise TypeError(f"{name}: expected {', '.join(names[:-1])} or {names[-1]}, got {value}")
    return dtype


def result_dtype(*arrays: Any) -> np.dtype:
    """Return float64 if any input is float64, else float32: the dtype of accumulators and results."""
    wide = any(np.dtype(array.dtype) == np.float64 for array in arrays if array is not None)
    return np.dtype(np.float64 if wide else np.float32)


def output(name: str, out: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Check a preallocated result: exact shape and dtype, C-contiguous, writable.

    `numbacalib.runtime.backend.call` checks that it shares no memory with other arrays.
    """
    if tuple(out.shape) != shape or np.dtype(out.dtype) != dtype:
        raise ValueError(
            f"{name}: expected shape {list(shape)} and dtype {dtype}, "
            f"got {list(out.shape)} and {out.dtype}"
        )
    contiguous(name, out)


def contiguous(name: str, out: Any) -> None:
    """Check that an array is writable and C-contiguous."""
    if isinstance(out, np.ndarray):
        fits = out.flags.c_contiguous and out.flags.writeable
    else:
        fits = out.is_c_contiguous() and getattr(out, "writable", True)
    if not fits:
        raise ValueError(f"{name}: expected a writable C-contiguous array")


def boolean(name: str, value: Any) -> bool:
    """Check that `value` is True or False, not only truthy or falsy, and return it as bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return bool(value)


def integer(name: str, value: Any, low: int, high: int) -> int:
    """Check that `value` is an integer in ``[low, high]`` and return it as int."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {value}")
    return int(value)


def group_size(value: int | None, channels: int) -> int:
    """Return the number of channels that share a scale, a divisor of all; all of them for None."""
    if value is None:
        return channels
    size = integer("group_size", value, 1, channels)
    if channels % size:
        raise ValueError(f"group_size: expected a divisor of K = {channels}, got {size}")
    return size


def share(name: str, value: Any) -> None:
    """Check that a setting is a number from 0 to 1."""
    if not 0 <= finite_number(name, value) <= 1:
        raise ValueError(f"{name}: expected 0 to 1, got {value}")


def finite_number(name: str, value: Any) -> float:
    """Check that `value` is a finite real number and return it as float."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not np.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return float(value)


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Check that a setting is one of the `allowed` words."""
    if value not in allowed:
        *others, last = allowed
        raise ValueError(f"{name}: expected {', '.join(others)} or {last}, got {value!r}")
