"""Parts, multiples and copies of matrices: the NumPy functions that methods need, on either device.

Arguments ``[..., K]`` may be vectors, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.ops.matrix import cpu
from numbacalib.runtime import checks
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.matrix import gpu

    return gpu


def to_host(array: Any) -> NDArray:
    """Copy a CUDA array to the host; a NumPy array is returned as it is."""
    with call(cpu, _gpu, array=array) as (kernels, array):
        return kernels.to_host(array)


def start_to_host(array: Any) -> Callable[[], NDArray]:
    """Start `to_host` of a C-contiguous array; return a function that waits for its values."""
    with call(cpu, _gpu, array=array) as (kernels, array):
        return kernels.start_to_host(array)


def from_host(array: NDArray, like: Any) -> Any:
    """Return a NumPy array as one on the device of `like`."""
    with call(cpu, _gpu, like=like) as (kernels, _):
        return kernels.from_host(array)


def zeros(shape: tuple[int, ...], like: Any) -> Any:
    """Return float32 zeros on the device of `like`."""
    with call(cpu, _gpu, like=like) as (kernels, _):
        return kernels.zeros(shape)


def copied(array: Any) -> Any:
    """Return a copy of a C-contiguous array."""
    with call(cpu, _gpu, array=array) as (kernels, array):
        return kernels.copied(array)


def cast(array: Any, dtype: DTypeLike) -> Any:
    """Round floats [..., K] to the nearest of another float dtype; no copy if the dtype is the same."""
    if array.dtype == dtype:
        return array
    with call(cpu, _gpu, array=array) as (kernels, array):
        return kernels.cast(array, np.dtype(dtype))


def diagonals(matrices: Any) -> Any:
    """``matrices[e, j, j]``, [E, K] in the accumulators' dtype."""
    with call(cpu, _gpu, matrices=matrices) as (kernels, matrices):
        return kernels.diagonals(matrices)


def diagonal(matrix: Any) -> Any:
    """``matrix[j, j]``, [K] in the accumulators' dtype."""
    with call(cpu, _gpu, matrix=matrix) as (kernels, matrix):
        return kernels.diagonals(matrix.reshape(1, *matrix.shape)).reshape(len(matrix))


def stacked_rows(stack: Any) -> Any:
    """[E, M, K] as [E * M, K]: a view if the strides allow, else a copy."""
    with call(cpu, _gpu, stack=stack) as (kernels, stack):
        return kernels.stacked_rows(stack)


def reshaped(array: Any, shape: tuple[int, ...]) -> Any:
    """Return a view of a C-contiguous array in another shape, of the type that users get."""
    with call(cpu, _gpu, array=array) as (kernels, array):
        return kernels.reshaped(array, shape)


def split_rows(matrices: Sequence[Any], lengths: Sequence[int]) -> list[tuple[Any, ...]]:
    """Return, for each run of rows, the views of it in all matrices, of the type that users get."""
    named = {f"matrices[{i}]": matrix for i, matrix in enumerate(matrices)}
    with call(cpu, _gpu, **named) as (kernels, *matrices):
        runs = [kernels.split_rows(matrix, lengths) for matrix in matrices]
    return list(zip(*runs, strict=True))


def joined_rows(matrices: Sequence[Any]) -> Any:
    """Return matrices [M_i, K] of one dtype, one below the other: a copy, unless there is only one."""
    named = {f"matrices[{i}]": matrix for i, matrix in enumerate(matrices)}
    with call(cpu, _gpu, **named) as (kernels, *matrices):
        return matrices[0] if len(matrices) == 1 else kernels.joined_rows(matrices)


def take(matrix: Any, indices: Any, axis: int) -> Any:
    """Rows (axis 0) or columns (axis 1) of a matrix of any dtype; zeros where an index is -1.

    Indices, int64, are on the host or where the matrix is. Those of columns [E, L] are for each of E equal
    runs of rows.
    """
    with call(cpu, _gpu, matrix=matrix) as (kernels, matrix):
        return kernels.take(matrix, indices, axis)


def put_rows(target: Any, indices: NDArray[np.int64], rows: Any) -> None:
    """Set ``target[indices]`` to rows of the same dtype, in place."""
    with call(cpu, _gpu, target=target, rows=rows) as (kernels, target, rows):
        kernels.put_rows(target, indices, rows)


def add_rows(target: Any, indices: NDArray[np.int64], rows: Any, factors: Any) -> None:
    """Add ``factors[i] * rows[i]`` to ``target[indices[i]]``, in place.

    Parameters
    ----------
    target : float32 array [N, M]
    indices : int64 array [n] on the host
        Without duplicates.
    rows : array [n, M], float16, bfloat16 or float32
    factors : float32 array [n]
    """
    with call(cpu, _gpu, target=target, rows=rows, factors=factors) as (kernels, *arrays):
        kernels.add_rows(arrays[0], indices, *arrays[1:])


def live_columns(matrix: Any, dead: Any, order: Any = None) -> tuple[Any, Any]:
    """Return a matrix whose `dead` columns are 0, and the same with its columns in an order.

    `dead`, bool, and `order`, int64 on the matrix's device, are [E, K] for E equal runs of rows. Without an
    order both are one array.
    """
    with call(cpu, _gpu, matrix=matrix, dead=dead, order=order) as (kernels, *arrays):
        return kernels.live_columns(*arrays)


def scaled(array: Any, columns: Any, rows: Any = None) -> Any:
    """``array[..., i, j] * columns[j] * rows[i]`` in the accumulators' dtype of the array.

    `columns` may be a number; `rows` is for a matrix.
    """
    if isinstance(columns, float):
        columns = from_host(np.array([columns]), array)
    with call(cpu, _gpu, array=array, columns=columns, rows=rows) as (
        kernels,
        array,
        columns,
        rows,
    ):
        return kernels.scaled(array, columns, rows)


def blended(left: Any, right: Any, share: float) -> Any:
    """``share * left + (1 - share) * right``, float32 [..., K]."""
    return weighted_sum(left, right, share, 1 - share)


def weighted_sum(left: Any, right: Any, a: float, b: float, dtype: DTypeLike | None = None) -> Any:
    """``a * left + b * right`` of arrays [..., K], of any float dtypes.

    Sums are of the accumulators' dtype, and rounded to `dtype` if it is given.
    """
    with call(cpu, _gpu, left=left, right=right) as (kernels, left, right):
        dtype = checks.result_dtype(left, right) if dtype is None else np.dtype(dtype)
        return kernels.weighted_sum(left, right, a, b, dtype)


def add_scaled(target: Any, values: Any, factor: float) -> None:
    """Add ``factor * values`` to `target`, in place; float32 [..., K], C-contiguous."""
    with call(cpu, _gpu, target=target, values=values) as (kernels, target, values):
        kernels.add_scaled(target, values, np.float32(factor))


def row_range(matrix: Any, begin: int, end: int) -> Any:
    """View of rows `begin` to `end` of a matrix, or of numbers of a vector."""
    with call(cpu, _gpu, matrix=matrix) as (kernels, matrix):
        return kernels.row_range(matrix, begin, end)


def column_range(array: Any, begin: int, end: int) -> Any:
    """Copy numbers `begin` to `end` of the vectors of an array [..., K], C-contiguous, of any dtype."""
    with call(cpu, _gpu, array=array) as (kernels, array):
        return kernels.column_range(array, begin, end)


def put_columns(target: Any, begin: int, values: Any) -> None:
    """Set columns of `target` [..., K] from `begin` on to `values` [..., k] of its dtype, in place."""
    with call(cpu, _gpu, target=target, values=values) as (kernels, target, values):
        kernels.put_columns(target, begin, values)


def joined_columns(left: Any, right: Any) -> Any:
    """Return vectors [..., H, A + B]: those of `left` [..., H, A] before those of `right` [..., G, B].

    G divides H: each vector of `right` follows as many of `left`. Both are C-contiguous, of one dtype.
    """
    with call(cpu, _gpu, left=left, right=right) as (kernels, left, right):
        return kernels.joined_columns(left, right)


def larger(left: Any, right: Any) -> Any:
    """The larger of each two elements, float32 [..., K]."""
    with call(cpu, _gpu, left=left, right=right) as (kernels, left, right):
        return kernels.larger(left, right)
