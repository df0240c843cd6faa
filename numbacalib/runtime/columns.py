"""Reductions along the rows of a matrix, one result a column, in a fixed order.

The rows are cut into segments and the columns into tiles, both by the matrix's shape alone; each
task reduces one tile of one segment, and the segments are combined in order. So the result has the
same bits at any number of threads. A tile's partial results stay in the first-level cache; sums are
restarted every `CHUNK` rows, which bounds their rounding error by the chunk, not by the column.

A contiguous column is reduced as a matrix of its own, `LANES` wide: the same inner loops run on
both memory orders, along contiguous memory, and the lanes are combined in order at the end.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, magnitude_bits, widen
from numbacalib.runtime.jit import kernel, scalar
from numbacalib.spec.scalars import larger_magnitude

TILE = 4096
"""Columns of a task: 16 KiB of float32 partial sums."""
CHUNK = 256
"""Rows after which a partial sum is added to its total."""
LANES = 64
"""Partial results along a contiguous column."""
TASKS = 64
"""Tasks that the segments aim at: enough to balance threads, few enough to combine."""


def column_power_sums(matrix: NDArray, power: int, dtype: np.dtype) -> NDArray:
    """Return ``sum_n |matrix[n, j]| ** power`` for power 1 or 2, accumulated in `dtype`, ``[K]``."""
    height, width = matrix.shape
    memory, leading, by_columns = _contiguous_runs(carrier(matrix))
    across = width if by_columns else -(-width // TILE)
    partial = np.empty((_segments(height, across), width), dtype)
    reduce = _power_sums_of_columns if by_columns else _power_sums_of_rows
    reduce(memory, leading, height, power == 2, partial)
    return partial.sum(axis=0, dtype=dtype) if len(partial) > 1 else partial[0]


def column_magnitude_max(matrix: NDArray) -> NDArray:
    """Return ``max_n |matrix[n, j]|`` in the matrix's own dtype, ``[K]``; NaN where one is NaN."""
    height, width = matrix.shape
    memory, leading, by_columns = _contiguous_runs(magnitude_bits(matrix))
    across = width if by_columns else -(-width // TILE)
    partial = np.empty((_segments(height, across), width), memory.dtype)
    reduce = _magnitude_max_of_columns if by_columns else _magnitude_max_of_rows
    reduce(memory, leading, height, partial)
    return partial.max(axis=0).view(matrix.dtype)


def _contiguous_runs(matrix: NDArray) -> tuple[NDArray, int, bool]:
    """Present a matrix as flat memory with contiguous rows, or contiguous columns, without a copy.

    Returns the memory, one-dimensional and read-only, the distance between the beginnings of two
    rows (columns), and whether it is the columns that are contiguous. Only a matrix with neither
    contiguous is copied, in its own dtype.
    """
    step, (height, width) = matrix.itemsize, matrix.shape
    between_rows, between_columns = matrix.strides
    if width == 1 and between_rows == step:
        by_columns, leading = True, height
    elif (between_columns == step or width == 1) and between_rows > 0 and not between_rows % step:
        by_columns, leading = False, between_rows // step
    elif (
        (between_rows == step or height == 1) and between_columns > 0 and not between_columns % step
    ):
        by_columns, leading = True, between_columns // step
    else:
        matrix = np.ascontiguousarray(matrix)
        by_columns, leading = False, width
    runs, length = (width, height) if by_columns else (height, width)
    size = (runs - 1) * leading + length
    return as_strided(matrix, (size,), (step,), writeable=False), leading, by_columns


def _segments(height: int, tasks_across: int) -> int:
    """How many segments to cut the rows into, given how many tasks the columns make already."""
    return max(1, min(-(-TASKS // tasks_across), height // CHUNK))


@kernel
def _power_sums_of_rows(memory, leading, height, square, partial):
    """Split: one task a (segment, column tile)."""
    segments, width = partial.shape
    tiles = -(-width // TILE)
    for task in prange(segments * tiles):
        segment, left = task // tiles, task % tiles * TILE
        begin, end = segment * height // segments, (segment + 1) * height // segments
        count = min(TILE, width - left)
        total = np.zeros(count, partial.dtype)
        for first in range(begin, end, CHUNK):
            runs = min(CHUNK, end - first)
            _add_powers(memory, first * leading + left, leading, runs, square, total)
        partial[segment, left : left + count] = total


@kernel
def _power_sums_of_columns(memory, leading, height, square, partial):
    """Split: one task a (segment, column)."""
    segments, width = partial.shape
    for task in prange(segments * width):
        segment, j = task // width, task % width
        begin, end = segment * height // segments, (segment + 1) * height // segments
        lanes = np.zeros(LANES, partial.dtype)
        for first in range(begin, end, LANES * CHUNK):
            count = min(LANES * CHUNK, end - first)
            at, whole = j * leading + first, count // LANES
            _add_powers(memory, at, LANES, whole, square, lanes)
            _add_powers(memory, at + whole * LANES, 0, 1, square, lanes[: count % LANES])
        total = partial.dtype.type(0)
        for lane in range(LANES):
            total += lanes[lane]
        partial[segment, j] = total


@scalar
def _add_powers(memory, at, leading, runs, square, total):
    """Add ``|x|`` or ``x ** 2`` of `runs` runs of memory to `total`, by a partial sum of their own.

    Four runs at a time, so that a partial sum is loaded and stored once for four elements.
    """
    width, real = len(total), total.dtype.type
    chunk = np.zeros_like(total)
    for run in range(0, runs - 3, 4):
        a, b, c, d = _four_runs(memory, at + run * leading, leading, width)
        for j in range(width):
            w, x = abs(real(widen(a[j]))), abs(real(widen(b[j])))
            y, z = abs(real(widen(c[j]))), abs(real(widen(d[j])))
            if square:
                chunk[j] += (w * w + x * x) + (y * y + z * z)
            else:
                chunk[j] += (w + x) + (y + z)
    for run in range(runs - runs % 4, runs):
        a = memory[at + run * leading :][:width]
        for j in range(width):
            x = abs(real(widen(a[j])))
            chunk[j] += x * x if square else x
    for j in range(width):
        total[j] += chunk[j]


@scalar
def _four_runs(memory, at, leading, width):
    """Views of four runs: an index from `range` needs no check for being negative, a sum does."""
    return (
        memory[at : at + width],
        memory[at + leading : at + leading + width],
        memory[at + 2 * leading : at + 2 * leading + width],
        memory[at + 3 * leading : at + 3 * leading + width],
    )


@kernel
def _magnitude_max_of_rows(memory, leading, height, partial):
    """Split: one task a (segment, column tile)."""
    segments, width = partial.shape
    tiles = -(-width // TILE)
    for task in prange(segments * tiles):
        segment, left = task // tiles, task % tiles * TILE
        begin, end = segment * height // segments, (segment + 1) * height // segments
        count = min(TILE, width - left)
        largest = np.zeros(count, partial.dtype)
        _raise_to_magnitudes(memory, begin * leading + left, leading, end - begin, largest)
        partial[segment, left : left + count] = largest


@kernel
def _magnitude_max_of_columns(memory, leading, height, partial):
    """Split: one task a (segment, column)."""
    segments, width = partial.shape
    for task in prange(segments * width):
        segment, j = task // width, task % width
        begin, end = segment * height // segments, (segment + 1) * height // segments
        lanes = np.zeros(LANES, partial.dtype)
        at, whole = j * leading + begin, (end - begin) // LANES
        _raise_to_magnitudes(memory, at, LANES, whole, lanes)
        rest = (end - begin) % LANES
        _raise_to_magnitudes(memory, at + whole * LANES, 0, 1, lanes[:rest])
        largest = lanes[0]
        for lane in range(1, LANES):
            largest = larger_magnitude(largest, lanes[lane])
        partial[segment, j] = largest


@scalar
def _raise_to_magnitudes(memory, at, leading, runs, largest):
    """Raise `largest` to the magnitudes of `runs` runs of memory, four at a time."""
    width = len(largest)
    for run in range(0, runs - 3, 4):
        a, b, c, d = _four_runs(memory, at + run * leading, leading, width)
        for j in range(width):
            most = larger_magnitude(larger_magnitude(largest[j], a[j]), b[j])
            largest[j] = larger_magnitude(larger_magnitude(most, c[j]), d[j])
    for run in range(runs - runs % 4, runs):
        a = memory[at + run * leading :][:width]
        for j in range(width):
            largest[j] = larger_magnitude(largest[j], a[j])
