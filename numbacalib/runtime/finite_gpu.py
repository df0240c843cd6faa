"""Check for non-finite values on the device, which returns the first index."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
NONE = np.int64(0)
"""Stands for no index."""
LEAST = -(np.int64(1) << np.int64(62))
"""Stands for index 0, and the numbers above it for the others: all are below `NONE`."""


def start_search(kernel: Any, matrix: Any) -> Callable[[], bool]:
    """Start `first_negative` or `first_zero` on a matrix; return a function that waits for the result."""
    found = FirstIndex()
    rows, columns = matrix.shape
    grid = -(-columns // THREADS), -(-rows // ROWS)
    launch(kernel, grid, THREADS, carrier(matrix), found.array)
    found.copy()
    return lambda: found.read() != [None]


class FirstIndex:
    """Least index at which kernels on the current stream find a value, in each of several searches.

    Attributes
    ----------
    array : device array [searches], int64
        `NONE`, or an index above `LEAST`: kernels lower it by `note_index`.
    """

    def __init__(self, searches: int = 1) -> None:
        self.array = device.zeros((searches,), np.int64)

    def copy(self) -> None:
        """Start to copy the result to the host; kernels launched later do not count."""
        self._words = device.start_reading(self.array)

    def read(self) -> list[int | None]:
        """Wait for the copy only; return the index, or None, of each search."""
        return [int(found - LEAST) if found < NONE else None for found in self._words()]


class FiniteCheck:
    """Running check of matrices, or stacks of them, by their names in errors, on the current stream.

    Kernels launched before `require` must do nothing if ``first[0] < NONE``, or their results must not be
    used. So the device has work while the host waits for the check.

    Attributes
    ----------
    first : device array [arrays], int64
        As of `FirstIndex`: row-major index of the first value of each that is not finite.
    """

    def __init__(
        self, arrays: Mapping[str, Any], *, upper: bool = False, limit: float = math.inf
    ) -> None:
        """Start the check; with `upper`, only of the elements on and above the diagonal.

        Values that reach the `limit` are bad too.
        """
        self._arrays, self._limit = arrays, limit
        self._found = FirstIndex(len(arrays))
        self.first = self._found.array
        for place, array in enumerate(arrays.values()):
            matrix = rows_of(array)
            rows, columns = matrix.shape
            bits = magnitude_bits(matrix)
            numbers = magnitude_mask(bits.dtype), limit_bits(limit, array.dtype)
            grid = column_blocks((-(-rows // ROWS), columns), THREADS)
            first = self.first[place : place + 1]
            launch(_first_non_finite, grid, THREADS, bits, *numbers, upper, first)
        self._found.copy()

    def require(self) -> None:
        """Wait for the check only; raise a ValueError that names the first bad value."""
        for (name, array), found in zip(self._arrays.items(), self._found.read(), strict=True):
            if found is None:
                continue
            matrix = rows_of(array)
            row, column = divmod(found, matrix.shape[1])
            value = device.empty((1,), np.float64)
            launch(_widen_one, 1, 1, carrier(matrix), row, column, value)
            raise not_finite(name, device.read(value)[0], found, array.shape, self._limit)


@cuda.jit(device=True)
def note_index(first, index):
    """Lower what stands for an index in an element of a `FirstIndex`. A minimum is one in any order."""
    cuda.atomic.min(first, 0, index + LEAST)


@cuda.jit
def _first_non_finite(bits, mask, least_bad, upper, first):
    """Threads: one per column, blocks stride over runs of `ROWS` rows."""
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
                        note_index(first, i * bits.shape[1] + j)


@cuda.jit
def first_negative(matrix, first):
    """Find an element below 0 of a finite matrix. Threads: one per column and `ROWS` rows."""
    j = cuda.grid(1)
    if j < matrix.shape[1]:
        top = np.int64(cuda.blockIdx.y) * ROWS
        for i in range(top, min(top + ROWS, matrix.shape[0])):
            if widen(matrix[i, j]) < 0:
                note_index(first, i * matrix.shape[1] + j)


@cuda.jit
def first_zero(matrix, first):
    """Find an element that is 0. Threads: one per column and `ROWS` rows."""
    j = cuda.grid(1)
    if j < matrix.shape[1]:
        top = np.int64(cuda.blockIdx.y) * ROWS
        for i in range(top, min(top + ROWS, matrix.shape[0])):
            if widen(matrix[i, j]) == 0:
                note_index(first, i * matrix.shape[1] + j)


@cuda.jit
def _widen_one(matrix, i, j, value):
    value[0] = widen(matrix[i, j])
