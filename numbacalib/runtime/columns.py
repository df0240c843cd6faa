"""Reductions along the rows of a matrix, one result a column, in a fixed order.

The rows are cut into segments and the columns into tiles, both by the matrix's shape alone; each task
reduces one tile of one segment, and the segments are combined in order. So the result has the same
bits at any number of threads. A task's partial sums stay in the first-level cache; sums are
restarted every `CHUNK` rows, which bounds the rounding error by the chunk, not the column.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, magnitude_bits, widen
from numbacalib.runtime.jit import kernel
from numbacalib.runtime.strides import is_column_major, rows_view

TILE = 4096
"""Columns of a task: 16 KiB of float32 partial sums."""
CHUNK = 256
"""Rows after which a partial sum is added to its total."""
LANES = 64
"""Partial sums along a contiguous column, so that its additions vectorise."""
TASKS = 64
"""Tasks that the segments aim at: enough to balance threads, few enough to combine."""


def column_power_sums(matrix: NDArray, power: int, dtype: np.dtype) -> NDArray:
    """Return ``sum_n |matrix[n, j]| ** power`` for power 1 or 2, accumulated in `dtype`, ``[K]``."""
    width = matrix.shape[1]
    zero = dtype.type(0)
    if is_column_major(matrix):
        columns = rows_view(carrier(matrix).T)
        partial = np.empty((_segments(matrix.shape[0], width), width), dtype)
        _power_sums_of_columns(columns, matrix.shape[0], power == 2, zero, partial)
    else:
        rows = rows_view(carrier(matrix))
        partial = np.empty((_segments(matrix.shape[0], -(-width // TILE)), width), dtype)
        _power_sums_of_rows(rows, power == 2, zero, partial)
    return partial.sum(axis=0, dtype=dtype) if len(partial) > 1 else partial[0]


def column_magnitude_max(matrix: NDArray) -> NDArray:
    """Return ``max_n |matrix[n, j]|`` in the matrix's own dtype, ``[K]``; NaN where one is NaN."""
    width = matrix.shape[1]
    bits = magnitude_bits(matrix)
    mask = np.iinfo(bits.dtype).max
    if is_column_major(matrix):
        columns = rows_view(bits.T)
        partial = np.empty((_segments(matrix.shape[0], width), width), bits.dtype)
        _magnitude_max_of_columns(columns, matrix.shape[0], bits.dtype.type(mask), partial)
    else:
        rows = rows_view(bits)
        partial = np.empty((_segments(matrix.shape[0], -(-width // TILE)), width), bits.dtype)
        _magnitude_max_of_rows(rows, bits.dtype.type(mask), partial)
    return partial.max(axis=0).view(matrix.dtype)


def _segments(rows: int, tasks_across: int) -> int:
    """How many segments to cut the rows into, given how many tasks the columns make already."""
    return max(1, min(-(-TASKS // tasks_across), rows // CHUNK))


@kernel
def _power_sums_of_rows(rows, square, zero, partial):
    """Split: one task a (segment, column tile); the inner loop runs along a row."""
    segments, width = partial.shape
    tiles = -(-width // TILE)
    for task in prange(segments * tiles):
        segment, tile = task // tiles, task % tiles
        left, right = tile * TILE, min((tile + 1) * TILE, width)
        begin = segment * len(rows) // segments
        end = (segment + 1) * len(rows) // segments
        total = np.zeros(right - left, partial.dtype)
        chunk = np.empty(right - left, partial.dtype)
        for first in range(begin, end, CHUNK):
            chunk[:] = zero
            for n in range(first, min(first + CHUNK, end)):
                for j in range(left, right):
                    x = abs(widen(rows[n, j]))
                    chunk[j - left] += x * x if square else x
            for j in range(right - left):
                total[j] += chunk[j]
        partial[segment, left:right] = total


@kernel
def _power_sums_of_columns(columns, height, square, zero, partial):
    """Split: one task a (segment, column); the inner loop runs along the column, in lanes."""
    segments, width = partial.shape
    for task in prange(segments * width):
        segment, j = task // width, task % width
        begin, end = segment * height // segments, (segment + 1) * height // segments
        lanes = np.zeros(LANES, partial.dtype)
        chunk = np.empty(LANES, partial.dtype)
        for first in range(begin, end, LANES * CHUNK):
            chunk[:] = zero
            for strip in range(first, min(first + LANES * CHUNK, end), LANES):
                for lane in range(min(LANES, end - strip)):
                    x = abs(widen(columns[j, strip + lane]))
                    chunk[lane] += x * x if square else x
            for lane in range(LANES):
                lanes[lane] += chunk[lane]
        total = zero
        for lane in range(LANES):
            total += lanes[lane]
        partial[segment, j] = total


@kernel
def _magnitude_max_of_rows(rows, mask, partial):
    """Split: one task a (segment, column tile); the inner loop runs along a row."""
    segments, width = partial.shape
    tiles = -(-width // TILE)
    for task in prange(segments * tiles):
        segment, tile = task // tiles, task % tiles
        left, right = tile * TILE, min((tile + 1) * TILE, width)
        largest = np.zeros(right - left, partial.dtype)
        for n in range(segment * len(rows) // segments, (segment + 1) * len(rows) // segments):
            for j in range(left, right):
                largest[j - left] = max(largest[j - left], rows[n, j] & mask)
        partial[segment, left:right] = largest


@kernel
def _magnitude_max_of_columns(columns, height, mask, partial):
    """Split: one task a (segment, column); the inner loop runs along the column."""
    segments, width = partial.shape
    for task in prange(segments * width):
        segment, j = task // width, task % width
        largest = partial.dtype.type(0)
        for n in range(segment * height // segments, (segment + 1) * height // segments):
            largest = max(largest, columns[j, n] & mask)
        partial[segment, j] = largest
