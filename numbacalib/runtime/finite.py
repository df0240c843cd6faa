"""Checks that read every element: non-finite weights and matrices are reported, not used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.backend import arrays_of_one_device, is_cuda_array
from numbacalib.runtime.checks import rows_of
from numbacalib.runtime.half import infinity_bits, limit_bits, magnitude_bits
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.not_finite import not_finite
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import fetch_add

RUN = 1 << 16
"""Elements of a task: enough to make the cost of the counter negligible."""


def require_finite(name: str, array: Any, limit: float = math.inf) -> None:
    """Raise a ValueError that names the first NaN or infinity of a matrix, or of a stack of them.

    The first is in row-major order. An array whose leading axes do not merge into rows is copied. With a
    `limit`, see `square_limit`, finite values that reach it are reported too.
    """
    start_finite_check({name: array}, limit)()


def start_finite_check(arrays: Mapping[str, Any], limit: float = math.inf) -> Callable[[], None]:
    """Start `require_finite` of arrays by name; return a function that waits for it and raises its error.

    On a GPU, kernels may be launched in between, but their results must not be used before the wait.
    """
    if any(map(is_cuda_array, arrays.values())):
        from numbacalib.runtime import finite_gpu

        with arrays_of_one_device(**arrays) as taken:
            named = dict(zip(arrays, taken, strict=True))
            return finite_gpu.FiniteCheck(named, limit=limit).require
    for name, array in arrays.items():
        _require_finite(name, array, limit)
    return _nothing


def _require_finite(name: str, array: NDArray, limit: float) -> None:
    """See `require_finite`."""
    matrix = rows_of(array)
    bits = magnitude_bits(matrix)
    least_bad = limit_bits(limit, matrix.dtype)
    clean = _rows_below(least_bad, bits, np.iinfo(bits.dtype).max)
    if not clean.all():
        row = int(np.argmin(clean))
        magnitudes = bits[row] & np.iinfo(bits.dtype).max
        column = int(np.argmax(magnitudes >= least_bad))
        index = row * matrix.shape[1] + column
        raise not_finite(name, matrix[row, column], index, array.shape, limit)


def square_limit(count: int) -> float:
    """Magnitude below which float32 holds twice the sum of the squares of `count` values."""
    return math.sqrt(float(np.finfo(np.float32).max) / (2 * count))


def _rows_below(limit: np.integer, bits: NDArray, mask: int) -> NDArray:
    """Return for each row whether all its integers, masked, are below a limit."""
    rows, columns = bits.shape
    clean = np.empty(rows, np.bool_)
    run = -(-RUN // max(columns, 1))
    numbers = limit, bits.dtype.type(mask)
    _find_rows_below(-(-rows // run), numbers, rows_view(bits), columns, run, clean)
    return clean


def _nothing() -> None:
    """Wait for a check that is complete already."""


def require_non_negative(name: str, matrix: Any) -> None:
    """Raise a ValueError if a matrix holds a value that is not finite, or one below 0."""
    start_non_negative_check(name, matrix)()


def start_non_negative_check(name: str, matrix: Any) -> Callable[[], None]:
    """Start the check of `require_non_negative`, see `start_finite_check`."""
    message = f"{name}: expected finite values not below 0"
    if is_cuda_array(matrix):
        from numbacalib.runtime.finite_gpu import first_negative

        return _start_search(first_negative, name, matrix, message)
    # as unsigned integers, values with the sign bit set are above infinity, -0 included
    unsigned = np.dtype(f"u{matrix.itemsize}")
    limit, bits = infinity_bits(matrix.dtype).view(unsigned), matrix.view(unsigned)
    if not _rows_below(limit, bits, np.iinfo(unsigned).max).all():
        require_finite(name, matrix)
        if (matrix < 0).any():
            raise ValueError(message)
    return _nothing


def start_non_zero_check(name: str, matrix: Any) -> Callable[[], None]:
    """Start a search for a value that is 0 or not finite; return a function that waits and raises."""
    message = f"{name}: expected numbers other than 0, got 0"
    if is_cuda_array(matrix):
        from numbacalib.runtime.finite_gpu import first_zero

        return _start_search(first_zero, name, matrix, message)
    require_finite(name, matrix)
    if not (matrix != 0).all():
        raise ValueError(message)
    return _nothing


def _start_search(kernel: Any, name: str, matrix: Any, message: str) -> Callable[[], None]:
    """Start a search for values that are not finite, and for those that a kernel finds."""
    from numbacalib.runtime import finite_gpu

    with arrays_of_one_device(matrix=matrix) as (matrix,):
        finite = start_finite_check({name: matrix})
        found = finite_gpu.start_search(kernel, matrix)

    def require() -> None:
        finite()
        if found():
            raise ValueError(message)

    return require


@task_kernel
def _find_rows_below(counter, numbers, bits, columns, run, clean):
    """Find the rows that are below a limit, under a mask. Split: workers take runs of rows."""
    limit, mask = numbers
    first = fetch_add(counter) * run
    while first < len(clean):
        rows, found = bits[first : first + run], clean[first : first + run]
        for i in range(len(found)):
            largest = mask & ~mask
            for j in range(columns):
                largest = max(largest, rows[i, j] & mask)
            found[i] = largest < limit
        first = fetch_add(counter) * run
