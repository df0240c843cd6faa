"""Check for non-finite values on the device, which returns the first index."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.checks import rows_of
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, limit_bits, magnitude_bits, magnitude_mask, widen
from numbacalib.runtime.launch import column_blocks, launch
from numbacalib.runtime.not_finite import not_finite

THREADS = device.sized(256, simulated=4)
ROWS = 32
"""Rows that a block takes at a time: each thread checks one column of them."""
NONE = np.int64(0x7F7F7F7F7F7F7F7F)
"""Index for none, if all values are finite: above every index, and all bytes equal for a memset."""


def start_search(kernel: Any, matrix: Any) -> Callable[[], bool]:
    """Start `first_negative` or `first_zero` on a matrix; return a function that waits for the result."""
    found = FirstIndex()
    rows, columns = matrix.shape
    grid = -(-columns // THREADS), -(-rows // ROWS)
    launch(kernel, grid, THREADS, carrier(matrix), found.array)
    found.copy()
    return lambda: found.read() is not None


class FirstIndex:
    """Least index at which kernels on the current stream find a value.

    Attributes
    ----------
    array : device array [1], int64
        Initially `NONE`; kernels lower it by ``cuda.atomic.min``.
    """

    def __init__(self) -> None:
        self.array = device.filled((1,), np.int64, int(NONE) & 0xFF)

    def copy(self) -> None:
        """Start to copy the result to the host; kernels launched later do not count."""
        self._word = device.start_reading(self.array)

    def read(self) -> int | None:
        """Wait for the copy only; return the index, or None."""
        found = int(self._word()[0])
        return None if found == NONE else found


class FiniteCheck:
    """Running check of a matrix, or a stack of them, on the current stream.

    Kernels launched before `require` must do nothing if ``first[0] < NONE``, or their results must not be
    used. So the device has work while the host waits for the check.

    Attributes
    ----------
    first : device array [1], int64
        Row-major index of the first value that is not finite, or `NONE`.
    """

    def __init__(
        self, name: str, array: Any, *, upper: bool = False, limit: float = math.inf
    ) -> None:
        """Start the check; with `upper`, only of the elements on and above the diagonal.

        Values that reach the `limit` are bad too.
        """
        self._name, self._shape, self._limit = name, array.shape, limit
        self._matrix = rows_of(array)
        rows, columns = self._matrix.shape
        bits = magnitude_bits(self._matrix)
        mask = magnitude_mask(bits.dtype)
        least_bad = limit_bits(limit, array.dtype)
        grid = column_blocks((-(-rows // ROWS), columns), THREADS)
        self._found = FirstIndex()
        self.first = self._found.array
        launch(_first_non_finite, grid, THREADS, bits, mask, least_bad, upper, self.first)
        self._found.copy()

    def require(self) -> None:
        """Wait for the check only; raise a ValueError that names the first bad value."""
        found = self._found.read()
        if found is None:
            return
        row, column = divmod(found, self._matrix.shape[1])
        value = device.empty((1,), np.float64)
        launch(_widen_one, 1, 1, carrier(self._matrix), row, column, value)
        raise not_finite(self._name, device.read(value)[0], found, self._shape, self._limit)


@cuda.jit
def _first_non_finite(bits, mask, least_bad, upper, first):
    """Threads: one per column, blocks stride over runs of `ROWS` rows.

    An integer minimum is the same in any order.
    """
    j = cuda.grid(1)
    if j < bits.shape[1]:
        last = min(bits.shape[0], j + 1) if upper else bits.shape[0]
        for top in range(np.int64(cuda.blockIdx.y) * ROWS, last, cuda.gridDim.y * ROWS):
            end = min(top + ROWS, last)
            largest = mask & ~mask
            for i in range(top, end):
                largest = max(largest, bits[i, j] & mask)
            if largest >= least_bad:
                for i in range(top, end):
                    if bits[i, j] & mask >= least_bad:
                        cuda.atomic.min(first, 0, i * bits.shape[1] + j)


@cuda.jit
def first_negative(matrix, first):
    """Find an element below 0 of a finite matrix. Threads: one per column and `ROWS` rows."""
    j = cuda.grid(1)
    if j < matrix.shape[1]:
        top = np.int64(cuda.blockIdx.y) * ROWS
        for i in range(top, min(top + ROWS, matrix.shape[0])):
            if widen(matrix[i, j]) < 0:
                cuda.atomic.min(first, 0, i * matrix.shape[1] + j)


@cuda.jit
def first_zero(matrix, first):
    """Find an element that is 0. Threads: one per column and `ROWS` rows."""
    j = cuda.grid(1)
    if j < matrix.shape[1]:
        top = np.int64(cuda.blockIdx.y) * ROWS
        for i in range(top, min(top + ROWS, matrix.shape[0])):
            if widen(matrix[i, j]) == 0:
                cuda.atomic.min(first, 0, i * matrix.shape[1] + j)


@cuda.jit
def _widen_one(matrix, i, j, value):
    value[0] = widen(matrix[i, j])
