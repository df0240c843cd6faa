"""CPU kernels of the column reductions.

The rows are cut into segments and the columns into tiles, both by the matrix's shape alone; each
task reduces one tile of one segment, and the segments are combined in order. So the result has the
same bits at any number of threads. Memory is read fastest in long runs, so a tile is as wide as its
partial results may be for the second-level cache, and rows that follow each other in memory are folded
into one run of about that length. Sums are restarted every `CHUNK` runs, which bounds their rounding
error by the chunk, not by the column.

A contiguous column is reduced as a matrix of its own, `LANES` wide: the same inner loops run on
both memory orders, along contiguous memory.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, magnitude_bits, widen
from numbacalib.runtime.jit import inlined, kernel, scalar
from numbacalib.spec.awq import magnitude
from numbacalib.spec.fisher import squared
from numbacalib.spec.scalars import larger_magnitude

RUN = 32768
"""Elements that rows are folded into: a long run, and many tasks of a small matrix."""
TILE_BYTES = 1 << 19
"""Partial results of a task where the rows are long: half of a second-level cache."""
CHUNK = 256
"""Runs after which a partial sum is added to its total."""
SEGMENT = 64
"""Least runs of a segment: its partial results cost little beside them."""
LANES = 64
"""Partial results along a contiguous column."""
TASKS = 32
"""Tasks that the segments aim at: enough to balance threads, few enough to combine."""
COLUMNS = 256
"""Contiguous columns of a task."""


def power_means(
    matrix: NDArray, power: int, dtype: np.dtype, out: NDArray | None = None
) -> NDArray:
    """See `numbacalib.ops.columns.power_means`."""
    height, width = matrix.shape
    memory, leading, by_columns = _contiguous_runs(carrier(matrix))
    fold, tile, segments = _split(matrix.shape, leading, by_columns, dtype.itemsize)
    if out is None:
        out = np.empty(width, dtype)
    whole = segments == 1
    partial = out[None] if whole else np.empty((segments, width), dtype)
    divisor = dtype.type(height if whole else 1)
    if by_columns:
        _power_sums_of_columns(memory, leading, height, power == 2, divisor, partial)
    else:
        _power_sums_of_rows(memory, leading, height, fold, tile, power == 2, divisor, partial)
    if not whole:
        np.divide(partial.sum(axis=0, dtype=dtype), dtype.type(height), out=out)
    return out


def magnitude_max(matrix: NDArray, dtype: np.dtype) -> NDArray:
    """See `numbacalib.ops.columns.magnitude_max`."""
    memory, leading, by_columns = _contiguous_runs(magnitude_bits(matrix))
    fold, tile, segments = _split(matrix.shape, leading, by_columns, matrix.itemsize)
    partial = np.empty((segments, matrix.shape[1]), memory.dtype)
    if by_columns:
        _magnitude_max_of_columns(memory, leading, len(matrix), partial)
    else:
        _magnitude_max_of_rows(memory, leading, len(matrix), fold, tile, partial)
    largest = partial.max(axis=0) if segments > 1 else partial[0]
    return largest.view(matrix.dtype).astype(dtype, copy=False)


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


def _split(
    shape: tuple[int, int], leading: int, by_columns: bool, itemsize: int
) -> tuple[int, int, int]:
    """Return how many rows to fold into a run, how many columns a tile has, and the segments.

    `itemsize` is that of the partial results.
    """
    height, width = shape
    if by_columns:
        fold, tile, runs = 1, COLUMNS, height // LANES
    else:
        fold = max(1, min(RUN // width, height)) if leading == width else 1
        runs = height // fold
        tile = min(TILE_BYTES // itemsize, max(RUN, -(-width // TASKS)))
        tile = -(-width // -(-width // tile))
    tiles = -(-width // tile)
    return fold, tile, max(1, min(-(-TASKS // tiles), runs // SEGMENT))


@kernel
def _power_sums_of_rows(memory, leading, height, fold, tile, square, divisor, partial):
    """Split: one task a (segment, column tile)."""
    segments, width = partial.shape
    for task in prange(segments * -(-width // tile)):
        _sum_tile(np.int64(task), memory, leading, height, fold, tile, square, divisor, partial)


@scalar
def _sum_tile(task, memory, leading, height, fold, tile, square, divisor, partial):
    """Sum the rows of one segment of a tile of columns."""
    segments, width = partial.shape
    tiles = -(-width // tile)
    segment, left = task // tiles, task % tiles * tile
    runs, count = height // fold, min(tile, width - left)
    begin, end = segment * runs // segments, (segment + 1) * runs // segments
    total = np.zeros(fold * count, partial.dtype)
    step = fold * leading
    _add_powers(memory, begin * step + left, step, end - begin, square, total)
    if segment == segments - 1:
        rest = total[: (height - runs * fold) * count]
        _add_powers(memory, runs * step + left, 0, 1, square, rest)
    _fold_sums(total, count)
    for j in range(count):
        partial[segment, left + j] = total[j] / divisor


@kernel
def _power_sums_of_columns(memory, leading, height, square, divisor, partial):
    """Split: one task a (segment, `COLUMNS` columns)."""
    segments, width = partial.shape
    for task in prange(segments * -(-width // COLUMNS)):
        _sum_columns(np.int64(task), memory, leading, height, square, divisor, partial)


@scalar
def _sum_columns(task, memory, leading, height, square, divisor, partial):
    """Sum one segment of a few contiguous columns."""
    segments, width = partial.shape
    tiles = -(-width // COLUMNS)
    segment, left = task // tiles, task % tiles * COLUMNS
    begin, end = segment * height // segments, (segment + 1) * height // segments
    whole, rest = (end - begin) // LANES, (end - begin) % LANES
    lanes = np.empty(LANES, partial.dtype)
    for j in range(left, min(left + COLUMNS, width)):
        at = j * leading + begin
        if not whole:
            total = _short_power_sum(memory, at, rest, square, partial.dtype.type(0))
            partial[segment, j] = total / divisor
            continue
        lanes[:] = 0
        _add_powers(memory, at, LANES, whole, square, lanes)
        _add_powers(memory, at + whole * LANES, 0, 1, square, lanes[:rest])
        _fold_sums(lanes, 1)
        partial[segment, j] = lanes[0] / divisor


@scalar
def _term(x, square):
    """What an element adds: ``x ** 2``, or ``|x|``."""
    return squared(x) if square else magnitude(x)


@scalar
def _add_powers(memory, at, leading, runs, square, total):
    """Add ``|x|`` or ``x ** 2`` of `runs` runs of memory to `total`, by partial sums of their own."""
    if runs <= CHUNK:
        _add_powers_of_chunk(memory, at, leading, runs, square, total)
        return
    chunk = np.empty_like(total)
    for first in range(0, runs, CHUNK):
        chunk[:] = 0
        count = min(CHUNK, runs - first)
        _add_powers_of_chunk(memory, at + first * leading, leading, count, square, chunk)
        for j in range(len(total)):
            total[j] += chunk[j]


@scalar
def _add_powers_of_chunk(memory, at, leading, runs, square, chunk):
    """Add runs eight at a time, so that a partial sum is loaded and stored once for eight elements."""
    width = len(chunk)
    for run in range(0, runs - 7, 8):
        first = _four_runs(memory, at + run * leading, leading, width)
        second = _four_runs(memory, at + (run + 4) * leading, leading, width)
        if square:  # the loops decide nothing
            _add_eight(first, second, True, chunk)
        else:
            _add_eight(first, second, False, chunk)
    real = chunk.dtype.type
    for run in range(runs - runs % 8, runs):
        a = memory[at + run * leading : at + run * leading + width]
        for j in range(width):
            chunk[j] += _term(real(widen(a[j])), square)


@inlined
def _add_eight(first, second, square, chunk):
    """Add twice four runs to partial sums."""
    real = chunk.dtype.type
    a, b, c, d = first
    e, f, g, h = second
    for j in range(len(chunk)):
        p, q = _term(real(widen(a[j])), square), _term(real(widen(b[j])), square)
        r, s = _term(real(widen(c[j])), square), _term(real(widen(d[j])), square)
        t, u = _term(real(widen(e[j])), square), _term(real(widen(f[j])), square)
        v, w = _term(real(widen(g[j])), square), _term(real(widen(h[j])), square)
        chunk[j] += ((p + q) + (r + s)) + ((t + u) + (v + w))


@scalar
def _short_power_sum(memory, at, count, square, total):
    """Add ``|x|`` or ``x ** 2`` of a few elements to a number."""
    run, real = memory[at : at + count], type(total)
    for i in range(count):
        total += _term(real(widen(run[i])), square)
    return total


@scalar
def _fold_sums(total, width):
    """Add the rows of a flat matrix in halves, down to its first `width` elements."""
    rows = len(total) // width
    while rows > 1:
        half = rows // 2
        rows -= half
        upper = total[rows * width : (rows + half) * width]
        for j in range(len(upper)):
            total[j] += upper[j]


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
def _magnitude_max_of_rows(memory, leading, height, fold, tile, partial):
    """Split: one task a (segment, column tile)."""
    segments, width = partial.shape
    for task in prange(segments * -(-width // tile)):
        _largest_of_tile(np.int64(task), memory, leading, height, fold, tile, partial)


@scalar
def _largest_of_tile(task, memory, leading, height, fold, tile, partial):
    """Find the largest magnitudes of one segment of a tile of columns."""
    segments, width = partial.shape
    tiles = -(-width // tile)
    segment, left = task // tiles, task % tiles * tile
    runs, count = height // fold, min(tile, width - left)
    begin, end = segment * runs // segments, (segment + 1) * runs // segments
    largest = np.zeros(fold * count, partial.dtype)
    step = fold * leading
    _raise_to_magnitudes(memory, begin * step + left, step, end - begin, largest)
    if segment == segments - 1:
        rest = largest[: (height - runs * fold) * count]
        _raise_to_magnitudes(memory, runs * step + left, 0, 1, rest)
    _fold_magnitudes(largest, count)
    for j in range(count):
        partial[segment, left + j] = largest[j]


@kernel
def _magnitude_max_of_columns(memory, leading, height, partial):
    """Split: one task a (segment, `COLUMNS` columns)."""
    segments, width = partial.shape
    for task in prange(segments * -(-width // COLUMNS)):
        _largest_of_columns(np.int64(task), memory, leading, height, partial)


@scalar
def _largest_of_columns(task, memory, leading, height, partial):
    """Find the largest magnitudes of one segment of a few contiguous columns."""
    segments, width = partial.shape
    tiles = -(-width // COLUMNS)
    segment, left = task // tiles, task % tiles * COLUMNS
    begin, end = segment * height // segments, (segment + 1) * height // segments
    whole, rest = (end - begin) // LANES, (end - begin) % LANES
    lanes = np.empty(LANES, partial.dtype)
    for j in range(left, min(left + COLUMNS, width)):
        at = j * leading + begin
        if not whole:
            partial[segment, j] = _short_magnitude_max(memory, at, rest)
            continue
        lanes[:] = 0
        _raise_to_magnitudes(memory, at, LANES, whole, lanes)
        _raise_to_magnitudes(memory, at + whole * LANES, 0, 1, lanes[:rest])
        _fold_magnitudes(lanes, 1)
        partial[segment, j] = lanes[0]


@scalar
def _raise_to_magnitudes(memory, at, leading, runs, largest):
    """Raise `largest` to the magnitudes of `runs` runs of memory, eight at a time."""
    width = len(largest)
    for run in range(0, runs - 7, 8):
        a, b, c, d = _four_runs(memory, at + run * leading, leading, width)
        e, f, g, h = _four_runs(memory, at + (run + 4) * leading, leading, width)
        for j in range(width):
            most = larger_magnitude(larger_magnitude(largest[j], a[j]), b[j])
            most = larger_magnitude(larger_magnitude(most, c[j]), d[j])
            most = larger_magnitude(larger_magnitude(most, e[j]), f[j])
            largest[j] = larger_magnitude(larger_magnitude(most, g[j]), h[j])
    for run in range(runs - runs % 8, runs):
        a = memory[at + run * leading : at + run * leading + width]
        for j in range(width):
            largest[j] = larger_magnitude(largest[j], a[j])


@scalar
def _short_magnitude_max(memory, at, count):
    """Return the largest magnitude of a few elements."""
    run = memory[at : at + count]
    largest = memory.dtype.type(0)
    for i in range(count):
        largest = larger_magnitude(largest, run[i])
    return largest


@scalar
def _fold_magnitudes(largest, width):
    """Raise the first `width` elements of a flat matrix to those below them."""
    for row in range(1, len(largest) // width):
        below = largest[row * width : (row + 1) * width]
        for j in range(width):
            largest[j] = larger_magnitude(largest[j], below[j])
