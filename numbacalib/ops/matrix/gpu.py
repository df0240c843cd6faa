"""GPU kernels for parts and multiples of matrices: one thread a column, blocks stride over the rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime import checks, device
from numbacalib.runtime.checks import rows_of
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.launch import MOST_BLOCKS, column_blocks, launch, row_threads

THREADS = device.sized(128, simulated=4)
RUN = device.sized(1 << 14, simulated=8)
"""Columns of a row that one block takes from another matrix."""


def to_host(array: Any) -> NDArray:
    """See `numbacalib.ops.matrix.to_host`."""
    return device.read(contiguous(array))


def start_to_host(array: Any) -> Callable[[], NDArray]:
    """See `numbacalib.ops.matrix.start_to_host`."""
    return device.start_reading(array)


def contiguous(array: Any) -> Any:
    """Return an array C-contiguous, as a copy only if necessary."""
    return array if array.is_c_contiguous() else _cast(array, array.dtype)


def from_host(array: NDArray) -> Any:
    """See `numbacalib.ops.matrix.from_host`."""
    return device.result(device.from_host(np.ascontiguousarray(array)))


def zeros(shape: tuple[int, ...]) -> Any:
    """See `numbacalib.ops.matrix.zeros`."""
    return device.result(device.zeros(shape, np.float32))


def copied(array: Any) -> Any:
    """See `numbacalib.ops.matrix.copied`."""
    target = device.empty(array.shape, array.dtype)
    device.copy(array, target)
    return device.result(target)


def cast(array: Any, dtype: np.dtype) -> Any:
    """See `numbacalib.ops.matrix.cast`."""
    return device.result(_cast(array, dtype))


def diagonals(matrices: Any) -> Any:
    """See `numbacalib.ops.matrix.diagonals`."""
    count, size, _ = matrices.shape
    found = device.empty((count, size), checks.result_dtype(matrices))
    launch(_diagonals, (-(-size // THREADS), count), THREADS, carrier(matrices), found)
    return found


def stacked_rows(stack: Any) -> Any:
    """See `numbacalib.ops.matrix.stacked_rows`."""
    count, rows, columns = stack.shape
    try:
        return stack.reshape(count * rows, columns)
    except ValueError:
        target = device.empty(stack.shape, stack.dtype)
        for e in range(count):
            copies = carrier(stack[e]), carrier(target[e])
            launch(_copy, _tiles(copies[-1]), THREADS, *copies)
        return target.reshape(count * rows, columns)


def reshaped(array: Any, shape: tuple[int, ...]) -> Any:
    """See `numbacalib.ops.matrix.reshaped`."""
    return device.result(array if array.shape == shape else array.reshape(*shape))


def split_rows(matrix: Any, lengths: Sequence[int]) -> list[Any]:
    """See `numbacalib.ops.matrix.split_rows`."""
    if len(lengths) == 1:
        return [device.result(matrix)]
    ends = itertools.accumulate(lengths)
    return [device.result(matrix[end - n : end]) for n, end in zip(lengths, ends, strict=True)]


def joined_rows(matrices: Sequence[Any]) -> Any:
    """See `numbacalib.ops.matrix.joined_rows`."""
    rows = sum(map(len, matrices))
    joined = device.empty((rows, matrices[0].shape[1]), matrices[0].dtype)
    top = 0
    for matrix in matrices:
        put_rows(joined, np.arange(top, top + len(matrix)), matrix)
        top += len(matrix)
    return joined


def take(matrix: Any, indices: Any, axis: int) -> Any:
    """See `numbacalib.ops.matrix.take`."""
    length = indices.shape[1] if len(indices.shape) == 2 else indices.shape[0]
    shape = (length, matrix.shape[1]) if axis == 0 else (len(matrix), length)
    taken = device.empty(shape, matrix.dtype)
    where = indices
    if isinstance(indices, np.ndarray):
        where = device.from_host(np.ascontiguousarray(indices))
    where = where.reshape(-1, length)
    launch(_take, *_runs(shape, matrix.shape[1]), carrier(matrix), where, axis, carrier(taken))
    return taken


def put_rows(target: Any, indices: NDArray[np.int64], rows: Any) -> None:
    """See `numbacalib.ops.matrix.put_rows`."""
    where = device.from_host(np.ascontiguousarray(indices))
    launch(_put_rows, _tiles(rows), THREADS, carrier(rows), where, carrier(target))


def add_rows(target: Any, indices: NDArray[np.int64], rows: Any, factors: Any) -> None:
    """See `numbacalib.ops.matrix.add_rows`."""
    where = device.from_host(np.ascontiguousarray(indices))
    launch(_add_rows, _tiles(rows), THREADS, carrier(rows), where, factors, target)


def live_columns(matrix: Any, dead: Any, order: Any) -> tuple[Any, Any]:
    """See `numbacalib.ops.matrix.live_columns`."""
    source = carrier(matrix)
    live = device.empty(matrix.shape, matrix.dtype)
    if order is None:
        launch(_live_columns, _tiles(live), THREADS, source, dead, carrier(live))
        return live, live
    placed = device.empty(matrix.shape, matrix.dtype)
    both = carrier(live), carrier(placed)
    launch(_place_live_columns, *_runs(live.shape, live.shape[1]), source, dead, order, *both)
    return live, placed


def scaled(array: Any, columns: Any, rows: Any) -> Any:
    """See `numbacalib.ops.matrix.scaled`."""
    if rows is None:
        rows = device.from_host(np.ones(1))
    product = device.empty(array.shape, checks.result_dtype(array))
    arguments = carrier(rows_of(array)), columns, rows, rows_of(product)
    launch(_scaled, _tiles(arguments[-1]), THREADS, *arguments)
    return device.result(product)


def weighted_sum(left: Any, right: Any, a: float, b: float, dtype: np.dtype) -> Any:
    """See `numbacalib.ops.matrix.weighted_sum`."""
    total = device.empty(left.shape, dtype)
    matrices = carrier(rows_of(left)), carrier(rows_of(right)), carrier(rows_of(total))
    real = checks.result_dtype(left, right).type
    factors = real(a), real(b)
    launch(_weighted_sum, _tiles(matrices[-1]), THREADS, *matrices, *factors)
    return device.result(total)


def add_scaled(target: Any, values: Any, factor: np.float32) -> None:
    """See `numbacalib.ops.matrix.add_scaled`."""
    matrices = rows_of(target), rows_of(values)
    launch(_add_scaled, _tiles(matrices[0]), THREADS, *matrices, factor)


def row_range(matrix: Any, begin: int, end: int) -> Any:
    """See `numbacalib.ops.matrix.row_range`."""
    return device.result(matrix[begin:end])


def column_range(array: Any, begin: int, end: int) -> Any:
    """See `numbacalib.ops.matrix.column_range`."""
    part = device.empty((*array.shape[:-1], end - begin), array.dtype)
    _put_columns(array, begin, part, 0, end - begin)
    return part


def put_columns(target: Any, begin: int, values: Any) -> None:
    """See `numbacalib.ops.matrix.put_columns`."""
    *_, count = values.shape
    _put_columns(values, 0, target, begin, count)


def joined_columns(left: Any, right: Any) -> Any:
    """See `numbacalib.ops.matrix.joined_columns`."""
    *heads, first = left.shape
    *_, second = right.shape
    joined = device.empty((*heads, first + second), left.dtype)
    _put_columns(left, 0, joined, 0, first)
    _put_columns(right, 0, joined, first, second)
    return joined


def _put_columns(source: Any, begin: int, target: Any, at: int, count: int) -> None:
    """Copy columns of vectors; if the target has more vectors, each goes to several in a row."""
    rows = carrier(rows_of(source)), carrier(rows_of(target))
    grid = column_blocks((rows[1].shape[0], count), THREADS)
    launch(_copy_columns, grid, THREADS, rows[0], begin, rows[1], at, count)


def larger(left: Any, right: Any) -> Any:
    """See `numbacalib.ops.matrix.larger`."""
    found = device.empty(left.shape, np.float32)
    matrices = rows_of(left), rows_of(right), rows_of(found)
    launch(_larger, _tiles(matrices[-1]), THREADS, *matrices)
    return device.result(found)


def _cast(array: Any, dtype: np.dtype) -> Any:
    target = device.empty(array.shape, dtype)
    matrices = carrier(rows_of(array)), carrier(rows_of(target))
    launch(_copy, _tiles(matrices[-1]), THREADS, *matrices)
    return target


def _tiles(matrix: Any) -> tuple[int, int]:
    return column_blocks(matrix.shape, THREADS)


def _runs(shape: tuple[int, int], width: int) -> tuple[tuple[int, int], int]:
    """Blocks and threads of a kernel that takes rows [M, N] from rows of `width` columns in any order."""
    rows, columns = shape
    return (-(-columns // RUN), min(rows, MOST_BLOCKS)), row_threads(width)


@cuda.jit
def _copy(source, target):
    j = cuda.grid(1)
    if j < target.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), target.shape[0], cuda.gridDim.y):
            target[i, j] = narrow(widen(source[i, j]), target[i, j])


@cuda.jit
def _diagonals(matrices, found):
    j = cuda.grid(1)
    if j < found.shape[1]:
        found[cuda.blockIdx.y, j] = widen(matrices[cuda.blockIdx.y, j, j])


@cuda.jit
def _take(matrix, indices, axis, taken):
    """Blocks stride over the rows, threads over a run of columns: a row stays in the L1 cache."""
    left = np.int64(cuda.blockIdx.x) * RUN
    right = min(left + RUN, taken.shape[1])
    run = taken.shape[0] // indices.shape[0]
    for i in range(np.int64(cuda.blockIdx.y), taken.shape[0], cuda.gridDim.y):
        row = indices[0, i] if axis == 0 else i
        order = indices[i // run if axis == 1 else 0]
        for j in range(left + cuda.threadIdx.x, right, cuda.blockDim.x):
            column = order[j] if axis == 1 else j
            if row < 0 or column < 0:
                taken[i, j] = 0
            else:
                taken[i, j] = matrix[row, column]


@cuda.jit
def _put_rows(rows, indices, target):
    j = cuda.grid(1)
    if j < rows.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), rows.shape[0], cuda.gridDim.y):
            target[indices[i], j] = rows[i, j]


@cuda.jit
def _add_rows(rows, indices, factors, target):
    j = cuda.grid(1)
    if j < rows.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), rows.shape[0], cuda.gridDim.y):
            target[indices[i], j] += factors[i] * np.float32(widen(rows[i, j]))


@cuda.jit
def _live_columns(matrix, dead, live):
    j = cuda.grid(1)
    run = live.shape[0] // dead.shape[0]
    if j < live.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), live.shape[0], cuda.gridDim.y):
            live[i, j] = 0
            if not dead[i // run, j]:
                live[i, j] = matrix[i, j]


@cuda.jit
def _place_live_columns(matrix, dead, order, live, placed):
    """Blocks stride over the rows, threads over a run of columns, as in `_take`."""
    left = np.int64(cuda.blockIdx.x) * RUN
    right = min(left + RUN, live.shape[1])
    run = live.shape[0] // dead.shape[0]
    for i in range(np.int64(cuda.blockIdx.y), live.shape[0], cuda.gridDim.y):
        e = i // run
        for j in range(left + cuda.threadIdx.x, right, cuda.blockDim.x):
            column = order[e, j]
            live[i, j] = 0
            placed[i, j] = 0
            if not dead[e, j]:
                live[i, j] = matrix[i, j]
            if not dead[e, column]:
                placed[i, j] = matrix[i, column]


@cuda.jit
def _scaled(matrix, columns, rows, product):
    real = product.dtype.type
    j = cuda.grid(1)
    if j < product.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), product.shape[0], cuda.gridDim.y):
            row = min(i, rows.shape[0] - 1)
            column = min(j, columns.shape[0] - 1)
            product[i, j] = widen(matrix[i, j]) * real(columns[column]) * real(rows[row])


@cuda.jit
def _weighted_sum(left, right, total, a, b):
    j = cuda.grid(1)
    if j < total.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), total.shape[0], cuda.gridDim.y):
            value = a * widen(left[i, j]) + b * widen(right[i, j])
            total[i, j] = narrow(value, total[i, j])


@cuda.jit
def _add_scaled(target, values, factor):
    j = cuda.grid(1)
    if j < target.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), target.shape[0], cuda.gridDim.y):
            target[i, j] += factor * values[i, j]


@cuda.jit
def _larger(left, right, found):
    j = cuda.grid(1)
    if j < found.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), found.shape[0], cuda.gridDim.y):
            found[i, j] = max(left[i, j], right[i, j])


@cuda.jit
def _copy_columns(source, begin, target, at, count):
    j = cuda.grid(1)
    share = target.shape[0] // source.shape[0]
    if j < count:
        for i in range(np.int64(cuda.blockIdx.y), target.shape[0], cuda.gridDim.y):
            target[i, at + j] = source[i // share, begin + j]
