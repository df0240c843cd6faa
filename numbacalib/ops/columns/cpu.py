"""CPU kernels of the column reductions.

The rows are cut into segments and the columns into tiles, both by the matrix's shape alone; each
task reduces one tile of one segment, and the segments are combined in order. So the result has the
same bits at any number of threads. Memory is read fastest in long runs, so a tile is as wide as its
partial results may be for the second-level cache, and rows that follow each other in memory are folded
into one run of about that length. Sums are restarted every `CHUNK` runs, which bounds their rounding
error by the chunk, not by the column.

A contiguous column is reduced as a matrix of its own, `LANES` wide: the same inner loops run on both
memory orders, along contiguous memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core.extending import overload
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, magnitude_bits, widen
from numbacalib.runtime.jit import inlined, scalar, task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.awq import channel_score, magnitude
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


class _Sum(NamedTuple):
    """Reduction to a sum over a divisor. Kernels are compiled for the type of a reduction."""

    divisor: Any

    @staticmethod
    def merged(total, other, how):
        return total + other

    @staticmethod
    def finish(total, left, how, target):
        for j in range(len(target)):
            target[j] = total[j] / how.divisor


class Squares(_Sum):
    """The sum of ``x ** 2`` over a divisor."""

    @staticmethod
    def term(x, how):
        return squared(type(how.divisor)(widen(x)))


class Magnitudes(_Sum):
    """The sum of ``|x|`` over a divisor."""

    @staticmethod
    def term(x, how):
        return magnitude(type(how.divisor)(widen(x)))


class Scores(NamedTuple):
    """The mean of ``|x|``, a sum over a divisor, times a factor of its column, elements of a carrier."""

    divisor: Any
    factors: Any

    @staticmethod
    def term(x, how):
        return magnitude(type(how.divisor)(widen(x)))

    @staticmethod
    def merged(total, other, how):
        return total + other

    @staticmethod
    def finish(total, left, how, target):
        factors = how.factors[left : left + len(target)]
        for j in range(len(target)):
            factor = type(how.divisor)(widen(factors[j]))
            target[j] = channel_score(factor, total[j] / how.divisor)


class Largest(NamedTuple):
    """Reduction of the bits of floats, as signed integers, to those of the largest magnitude."""

    least: Any

    @staticmethod
    def term(x, how):
        return larger_magnitude(how.least, x)

    @staticmethod
    def merged(total, other, how):
        return larger_magnitude(total, other)

    @staticmethod
    def finish(total, left, how, target):
        for j in range(len(target)):
            target[j] = larger_magnitude(how.least, total[j])


class Runs(NamedTuple):
    """A matrix as flat memory with contiguous rows, or contiguous columns."""

    memory: NDArray
    height: int
    leading: int
    """Elements between the beginnings of two rows (columns)."""
    by_columns: bool
    """True where the columns are contiguous, False where the rows are."""


class Cut(NamedTuple):
    """Cut of a matrix into segments and tiles."""

    fold: int
    """Rows of a run."""
    tile: int
    """Columns of a task."""
    segments: int


def power_means(
    matrix: NDArray, power: int, dtype: np.dtype, out: NDArray | None = None
) -> NDArray:
    """See `numbacalib.ops.columns.power_means`."""
    return _means(matrix, Squares if power == 2 else Magnitudes, dtype, out)


def scaled_means(
    matrix: NDArray, factors: NDArray, dtype: np.dtype, out: NDArray | None
) -> NDArray:
    """Return ``factors[j] mean_n |matrix[n, j]|``, accumulated in `dtype`, [K]."""
    return _means(matrix, Magnitudes, dtype, out, factors)


def _means(
    matrix: NDArray, kind: Any, dtype: np.dtype, out: NDArray | None, factors: NDArray | None = None
) -> NDArray:
    """Return the means of a kind of sum, times factors of the columns."""
    height, width = matrix.shape
    runs = _contiguous_runs(carrier(matrix))
    cut = _split(runs, width, dtype.itemsize)
    divisor = dtype.type(height)
    if out is None:
        out = np.empty(width, dtype)
    if cut.segments == 1:
        how = kind(divisor) if factors is None else Scores(divisor, carrier(factors))
        _reduce(runs, cut, how, out[None])
        return out
    partial = np.empty((cut.segments, width), dtype)
    _reduce(runs, cut, kind(dtype.type(1)), partial)
    np.divide(partial.sum(axis=0, dtype=dtype), divisor, out=out)
    if factors is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            out[:] = channel_score(factors.astype(dtype, copy=False), out)
    return out


def magnitude_max(matrix: NDArray, dtype: np.dtype) -> NDArray:
    """See `numbacalib.ops.columns.magnitude_max`."""
    return largest_magnitudes(matrix).astype(dtype, copy=False)


def largest_magnitudes(matrix: NDArray) -> NDArray:
    """Return ``max_n |matrix[n, j]|`` in the matrix's own dtype, [K]; NaN where one is NaN."""
    runs = _contiguous_runs(magnitude_bits(matrix))
    cut = _split(runs, matrix.shape[1], matrix.itemsize)
    partial = np.empty((cut.segments, matrix.shape[1]), runs.memory.dtype)
    _reduce(runs, cut, Largest(partial.dtype.type(0)), partial)
    largest = partial.max(axis=0) if cut.segments > 1 else partial[0]
    return largest.view(matrix.dtype)


def _contiguous_runs(matrix: NDArray) -> Runs:
    """Present a matrix as flat, read-only memory, without a copy.

    Only a matrix with neither rows nor columns contiguous is copied, in its own dtype.
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
    count, length = (width, height) if by_columns else (height, width)
    size = (count - 1) * leading + length
    memory = as_strided(matrix, (size,), (step,), writeable=False)
    return Runs(memory, height, leading, by_columns)


def _split(runs: Runs, width: int, itemsize: int) -> Cut:
    """Cut a matrix of `width` columns; `itemsize` is that of the partial results."""
    if runs.by_columns:
        fold, tile = LANES, COLUMNS
    else:
        fold = max(1, min(RUN // width, runs.height)) if runs.leading == width else 1
        tile = min(TILE_BYTES // itemsize, max(RUN, -(-width // TASKS)))
        tile = -(-width // -(-width // tile))
    tiles = -(-width // tile)
    return Cut(fold, tile, max(1, min(-(-TASKS // tiles), runs.height // fold // SEGMENT)))


def _reduce(runs: Runs, cut: Cut, how: Any, partial: NDArray) -> None:
    """Reduce the rows of each segment to a row of `partial`, on all threads."""
    segments, width = partial.shape
    tasks = segments * -(-width // cut.tile)
    memory, height, leading, by_columns = runs
    if by_columns:
        _reduce_columns(tasks, memory, height, leading, how, partial)
    else:
        lengths = cut.fold, cut.tile
        _reduce_rows(tasks, memory, height, leading, lengths, how, partial)


@task_kernel
def _reduce_rows(counter, memory, height, leading, lengths, how, partial):
    """Reduce columns of contiguous rows. Split: workers take a (segment, tile of columns)."""
    (fold, tile), (segments, width) = lengths, partial.shape
    tiles, runs, step = -(-width // tile), height // fold, fold * leading
    lanes = np.empty(fold * tile, partial.dtype)
    task = fetch_add(counter)
    while task < segments * tiles:
        segment, left = task // tiles, task % tiles * tile
        begin, end = segment * runs // segments, (segment + 1) * runs // segments
        count = min(tile, width - left)
        total = lanes[: fold * count]
        total[:] = 0
        at = begin * step + left
        _reduce_runs(memory, at, step, fold * count, end - begin, how, total)
        if segment == segments - 1:
            rest = (height - runs * fold) * count
            _take_runs(memory, runs * step + left, step, rest, np.int64(1), how, total)
        _fold(total, count, how)
        _finish(total, left, how, partial[segment, left : left + count])
        task = fetch_add(counter)


@task_kernel
def _reduce_columns(counter, memory, height, leading, how, partial):
    """Reduce contiguous columns. Split: workers take a (segment, `COLUMNS` columns)."""
    segments, width = partial.shape
    tiles = -(-width // COLUMNS)
    lanes = np.empty(LANES, partial.dtype)  # as many as a constant: loops over them are unrolled
    task = fetch_add(counter)
    while task < segments * tiles:
        segment, left = task // tiles, task % tiles * COLUMNS
        begin, end = segment * height // segments, (segment + 1) * height // segments
        runs, rest = (end - begin) // LANES, (end - begin) % LANES
        for j in range(left, min(left + COLUMNS, width)):
            at = j * leading + begin
            if runs:
                lanes[:] = 0
                _reduce_runs(memory, at, LANES, LANES, runs, how, lanes)
                _take_runs(memory, at + runs * LANES, LANES, rest, 1, how, lanes)
                _fold(lanes, 1, how)
            else:
                lanes[0] = _reduce_few(memory[at : at + rest], partial.dtype.type(0), how)
            _finish(lanes, j, how, partial[segment, j : j + 1])
        task = fetch_add(counter)


@scalar
def _reduce_few(run, total, how):
    """Reduce a few elements, in order."""
    for i in range(len(run)):
        total = _merged(total, _term(run[i], how), how)
    return total


@scalar
def _reduce_runs(memory, at, step, width, runs, how, total):
    """Take runs of memory, in chunks with partial results of their own."""
    if runs <= CHUNK:
        _take_runs(memory, at, step, width, runs, how, total)
        return
    chunk = np.empty_like(total)
    for first in range(0, runs, CHUNK):
        chunk[:] = 0
        count = min(CHUNK, runs - first)
        _take_runs(memory, at + first * step, step, width, count, how, chunk)
        for j in range(width):
            total[j] = _merged(total[j], chunk[j], how)


@scalar
def _take_runs(memory, at, step, width, runs, how, total):
    """Take runs of memory eight at a time, so that a partial result is loaded and stored once for eight."""
    for run in range(0, runs - 7, 8):
        a, b, c, d = _four_runs(memory, at + run * step, step, width)
        e, f, g, h = _four_runs(memory, at + (run + 4) * step, step, width)
        for j in range(width):
            p = _merged(_term(a[j], how), _term(b[j], how), how)
            q = _merged(_term(c[j], how), _term(d[j], how), how)
            r = _merged(_term(e[j], how), _term(f[j], how), how)
            s = _merged(_term(g[j], how), _term(h[j], how), how)
            four, other = _merged(p, q, how), _merged(r, s, how)
            total[j] = _merged(total[j], _merged(four, other, how), how)
    for run in range(runs - runs % 8, runs):
        a = memory[at + run * step : at + run * step + width]
        for j in range(width):
            total[j] = _merged(total[j], _term(a[j], how), how)


@inlined
def _four_runs(memory, at, step, width):
    """Views of four runs: an index from `range` needs no check for being negative, a sum does."""
    return (
        memory[at : at + width],
        memory[at + step : at + step + width],
        memory[at + 2 * step : at + 2 * step + width],
        memory[at + 3 * step : at + 3 * step + width],
    )


@scalar
def _fold(total, count, how):
    """Merge the rows of a flat matrix in halves, down to its first `count` elements."""
    rows = len(total) // count
    while rows > 1:
        half = rows // 2
        rows -= half
        other = total[rows * count : (rows + half) * count]
        for j in range(len(other)):
            total[j] = _merged(total[j], other[j], how)


def _term(x, how):
    """Return what an element adds."""
    return how.term(x, how)


def _merged(total, other, how):
    """Merge two partial results."""
    return how.merged(total, other, how)


def _finish(total, left, how, target):
    """Set `target` to the results of as many columns, of which `left` is the first."""
    how.finish(total, left, how, target)


@overload(_term)
def _compiled_term(x, how):
    return how.instance_class.term


@overload(_merged)
def _compiled_merged(total, other, how):
    return how.instance_class.merged


@overload(_finish)
def _compiled_finish(total, left, how, target):
    return how.instance_class.finish
