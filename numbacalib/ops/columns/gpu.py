"""GPU kernels of the column reductions.

The rows are cut into segments, by the matrix's shape and type alone, so that the result has the same bits
on every device. A block reduces one segment of a strip of columns: each thread owns 16 bytes of
neighbouring columns (one element in the portable form) and every eighth row, and the block's partial
results are merged in order. The caller's last kernel merges the segments with `merger`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numbacalib.ops.columns.reductions_gpu import (
    MAGNITUDES,
    SQUARES,
    Reduction,
    add,
    float_of,
    larger,
    peaks,
    same,
    total_alone,
)
from numbacalib.runtime.device import HAS_PTX, address, cuda, empty, result, sized
from numbacalib.runtime.half import carrier, magnitude_bits
from numbacalib.runtime.launch import MOST_BLOCKS, launch

WIDE, TALL = sized(((256, 1), (32, 8)), simulated=((4, 1), (3, 2)))
"""Threads of a block along the columns and along the rows, for few rows and for many. The simulator
has few, for it makes each a Python thread."""
FEW_ROWS = sized(64, simulated=3)
SHORT, LONG = sized((256, 2048), simulated=(5, 10))
"""Rows of a segment, least and most: long ones leave less to merge, short ones make more blocks, and
no thread adds more than 256 numbers, which bounds the rounding error."""
BLOCKS = sized(1024, simulated=8)
"""Blocks that a grid is to have: what keeps a large device busy, and not more to merge than need be."""
FEW_SEGMENTS = sized(512, simulated=3)
"""Segments that a last kernel merges in less time than a launch takes."""


def power_means(matrix: Any, power: int, dtype: np.dtype, out: Any = None) -> Any:
    """See `numbacalib.ops.columns.power_means`."""
    reduction, count = SQUARES if power == 2 else MAGNITUDES, dtype.type(len(matrix))
    return result(column_sums(carrier(matrix), reduction, count, out))


def magnitude_max(matrix: Any, dtype: np.dtype) -> Any:
    """See `numbacalib.ops.columns.magnitude_max`."""
    found = magnitude_peaks(matrix)
    largest = empty((matrix.shape[1],), dtype)
    element: Any = carrier(matrix).dtype.type
    kernel = _largest(element, found.dtype.type)
    launch(kernel, -(-matrix.shape[1] // TALL[0]), TALL, found, largest)
    return result(largest)


def magnitude_peaks(matrix: Any) -> Any:
    """Bits of the largest magnitudes of a few segments, as integers [S, K], for `larger` to merge."""
    bits = magnitude_bits(matrix)
    how = plan(bits)
    integer = np.int64 if bits.dtype.itemsize == 8 else np.int32
    found = empty((how.grid[1], matrix.shape[1]), integer)
    reduce_rows(bits, how, peaks(bits.dtype), integer(1), found)
    return shortened(found, larger)


class Plan(NamedTuple):
    """Cut of a matrix into segments and strips."""

    threads: tuple[int, int]
    width: int
    """Columns that a thread loads at once."""
    load: Callable
    """Device function that loads them, as they travel in registers."""
    unpack: Callable
    """Device function that makes a tuple of elements of what was loaded."""
    grid: tuple[int, int]
    """Strips of columns, segments of rows."""
    segment_rows: int


def plan(matrix: Any) -> Plan:
    """Cut a matrix, or the carrier of one, into segments and strips."""
    rows, columns = matrix.shape
    threads = WIDE if rows <= FEW_ROWS else TALL
    width, load, unpack = 1, _load_element, _unpack_element
    if _has_vectors(matrix):
        from numbacalib.runtime.ptx import elements_of, load_words

        width, load, unpack = 16 // matrix.dtype.itemsize, load_words, elements_of
    strips = -(-columns // (threads[0] * width))
    wanted = min(-(-rows // SHORT), -(-BLOCKS // strips))
    segments = min(max(-(-rows // LONG), wanted), MOST_BLOCKS)  # beyond, segments are longer
    segment_rows = -(-rows // segments)
    grid = strips, -(-rows // segment_rows)
    return Plan(threads, width, load, unpack, grid, segment_rows)


def _has_vectors(matrix: Any) -> bool:
    """Return whether the rows of a matrix are whole runs of 16 bytes, each at a multiple of 16 bytes."""
    size = matrix.dtype.itemsize
    aligned = not (matrix.shape[1] * size % 16 or matrix.strides[0] % 16 or address(matrix) % 16)
    return aligned and matrix.strides[1] == size and HAS_PTX


def reduce_rows(
    matrix: Any, how: Plan, reduction: Reduction, divisor: np.generic, partial: Any
) -> None:
    """Set partial [S, K] to each segment's reduction."""
    kernel = _kernel(*how[:4], reduction, partial.dtype.type)
    launch(kernel, how.grid, how.threads, matrix, how.segment_rows, divisor, partial)


def shortened(partial: Any, merge: Callable) -> Any:
    """Merge the segments of partial results [S, K] until there are few."""
    while len(partial) > FEW_SEGMENTS:
        how = plan(partial)
        fewer = empty((how.grid[1], partial.shape[1]), partial.dtype)
        reduction = Reduction(same, merge, merge, total_alone)
        reduce_rows(partial, how, reduction, partial.dtype.type(1), fewer)
        partial = fewer
    return partial


def column_sums(matrix: Any, reduction: Reduction, divisor: np.floating, out: Any = None) -> Any:
    """Sum over the rows of a matrix over a divisor, [K] in the divisor's type.

    `reduction` is `SQUARES`, `MAGNITUDES` or `VALUES`.
    """
    columns = matrix.shape[1]
    real: Any = type(divisor)
    how = plan(matrix)
    out = empty((columns,), real) if out is None else out
    if how.grid[1] == 1:
        reduce_rows(matrix, how, reduction, divisor, out.reshape(1, columns))
        return out
    partial = empty((how.grid[1], columns), real)
    reduce_rows(matrix, how, reduction, real(1), partial)
    partial = shortened(partial, add)
    launch(_sums(real), -(-columns // TALL[0]), TALL, partial, divisor, out)
    return out


@functools.cache
def _sums(real: type) -> Any:
    merged = merger(add)
    shape = TALL[::-1]

    @cuda.jit
    def sums(partial, divisor, out):
        """Add the segments of each column. Threads: see `merger`."""
        shared = cuda.shared.array(shape, real)
        j = cuda.grid(2)[0]
        total = merged(partial, j, shared)
        if cuda.threadIdx.y == 0 and j < len(out):
            out[j] = total / divisor

    return sums


@functools.cache
def _kernel(
    threads: tuple[int, int],
    width: int,
    load: Callable,
    unpack: Callable,
    reduction: Reduction,
    real: type,
) -> Any:
    reduce_segment = segment_reducer(threads, width, load, unpack, reduction, real)
    shape = shared_shape(threads, width)

    @cuda.jit
    def reduce_all(matrix, segment_rows, divisor, partial):
        """Blocks: strip, segment. Threads: see `segment_reducer`."""
        shared = cuda.shared.array(shape, real)
        reduce_segment(matrix, np.int64(cuda.blockIdx.y), segment_rows, divisor, partial, shared)

    return reduce_all


@functools.cache
def _largest(element: type, integer: type) -> Any:
    merged = merger(larger)
    value = float_of(element)
    shape = TALL[::-1]

    @cuda.jit
    def finish(peaks, largest):
        """Merge the segments of each channel. Threads: see `merger`."""
        shared = cuda.shared.array(shape, integer)
        j = cuda.grid(2)[0]
        peak = merged(peaks, j, shared)
        if cuda.threadIdx.y == 0 and j < len(largest):
            largest[j] = value(peak)

    return finish


def shared_shape(threads: tuple[int, int], width: int) -> tuple[int, int, int]:
    """Shape of the shared array with which a block merges its threads' totals."""
    return threads[1], width, threads[0] + 1


@functools.cache
def segment_reducer(
    threads: tuple[int, int],
    width: int,
    load: Callable,
    unpack: Callable,
    reduction: Reduction,
    real: type,
) -> Callable:
    """Build the device function with which a block reduces one segment of its strip as `real`."""
    decode, accumulate, merge, finish = reduction
    lanes, thread_rows = threads
    columns = width * lanes

    @cuda.jit(device=True)
    def take(matrix, totals, loaded):
        elements = unpack(matrix, loaded)
        for i in range(width):
            totals[i] = accumulate(totals[i], real(decode(elements[i])))

    @cuda.jit(device=True)
    def take_four(matrix, totals, four):
        first, second, third, fourth = four
        take(matrix, totals, first)
        take(matrix, totals, second)
        take(matrix, totals, third)
        take(matrix, totals, fourth)

    @cuda.jit(device=True)
    def load_four(matrix, row, column):
        return (
            load(matrix, row, column),
            load(matrix, row + thread_rows, column),
            load(matrix, row + 2 * thread_rows, column),
            load(matrix, row + 3 * thread_rows, column),
        )

    @cuda.jit(device=True)
    def reduce_segment(matrix, segment, segment_rows, divisor, partial, shared):
        """Threads: x along the columns, `width` of them each; y along the rows of the segment."""
        totals = cuda.local.array(width, real)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        first = np.int64(cuda.blockIdx.x) * columns
        for i in range(width):
            totals[i] = real(0)
        if first + x * width < matrix.shape[1]:
            end = min((segment + 1) * segment_rows, matrix.shape[0])
            n = segment * segment_rows + y
            column = first + x * width
            if n + 3 * thread_rows < end:
                # the next loads are on their way while the last are added
                four = load_four(matrix, n, column)
                n += 4 * thread_rows
                while n + 3 * thread_rows < end:
                    next_four = load_four(matrix, n, column)
                    take_four(matrix, totals, four)
                    four = next_four
                    n += 4 * thread_rows
                take_four(matrix, totals, four)
            while n < end:
                take(matrix, totals, load(matrix, n, column))
                n += thread_rows
        for i in range(width):
            shared[y, i, x] = totals[i]
        cuda.syncthreads()
        for column in range(y * lanes + x, columns, lanes * thread_rows):
            if first + column < matrix.shape[1]:
                total = shared[0, column % width, column // width]
                for row in range(1, thread_rows):
                    total = merge(total, shared[row, column % width, column // width])
                partial[segment, first + column] = finish(total, divisor)

    return reduce_segment


@functools.cache
def merger(merge: Callable) -> Callable:
    """Build the device function that merges the segments of a column: see its docstring."""

    @cuda.jit(device=True)
    def merged(partial, column, shared):
        """Merge ``partial[:, column]`` in order; the result is for the threads whose y is 0.

        Every thread of a block of `TALL` calls this: x for a column, y for some of the segments.
        `shared` has that shape.
        """
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        total = partial.dtype.type(0)
        if column < partial.shape[1]:
            for segment in range(y, partial.shape[0], TALL[1]):
                total = merge(total, partial[segment, column])
        shared[y, x] = total
        cuda.syncthreads()
        if y == 0:
            for other in range(1, TALL[1]):
                total = merge(total, shared[other, x])
        return total

    return merged


@cuda.jit(device=True)
def _load_element(matrix, row, column):
    return (matrix[row, column],)


@cuda.jit(device=True)
def _unpack_element(_, loaded):
    return loaded
