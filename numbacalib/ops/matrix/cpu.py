"""Parts, multiples and copies of matrices by NumPy; see `numbacalib.ops.matrix`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime import checks


def to_host(array: NDArray) -> NDArray:
    """See `numbacalib.ops.matrix.to_host`."""
    return array


def start_to_host(array: NDArray) -> Callable[[], NDArray]:
    """See `numbacalib.ops.matrix.start_to_host`."""
    return lambda: array


def from_host(array: NDArray) -> NDArray:
    """See `numbacalib.ops.matrix.from_host`."""
    return array


def zeros(shape: tuple[int, ...]) -> NDArray:
    """See `numbacalib.ops.matrix.zeros`."""
    return np.zeros(shape, np.float32)


def copied(array: NDArray) -> NDArray:
    """See `numbacalib.ops.matrix.copied`."""
    return array.copy()


def cast(array: NDArray, dtype: np.dtype) -> NDArray:
    """See `numbacalib.ops.matrix.cast`."""
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def diagonals(matrices: NDArray) -> NDArray:
    """See `numbacalib.ops.matrix.diagonals`."""
    return np.diagonal(matrices, axis1=1, axis2=2).astype(checks.result_dtype(matrices))


def stacked_rows(stack: NDArray) -> NDArray:
    """See `numbacalib.ops.matrix.stacked_rows`."""
    return stack.reshape(-1, stack.shape[-1])


def reshaped(array: NDArray, shape: tuple[int, ...]) -> NDArray:
    """See `numbacalib.ops.matrix.reshaped`."""
    return array if array.shape == shape else array.reshape(shape)


def split_rows(matrix: NDArray, lengths: Sequence[int]) -> list[NDArray]:
    """See `numbacalib.ops.matrix.split_rows`."""
    return np.split(matrix, np.cumsum(lengths)[:-1])


def joined_rows(matrices: Sequence[NDArray]) -> NDArray:
    """See `numbacalib.ops.matrix.joined_rows`."""
    return np.concatenate(matrices)


def take(matrix: NDArray, indices: NDArray[np.int64], axis: int) -> NDArray:
    """See `numbacalib.ops.matrix.take`."""
    if indices.ndim == 2:
        runs = np.split(matrix, len(indices))
        parts = [take(run, own, axis) for run, own in zip(runs, indices, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    taken: NDArray = matrix.take(indices, axis)
    if (indices < 0).any():
        taken[indices < 0 if axis == 0 else (slice(None), indices < 0)] = 0
    return taken


def put_rows(target: NDArray, indices: NDArray[np.int64], rows: NDArray) -> None:
    """See `numbacalib.ops.matrix.put_rows`."""
    target[indices] = rows


def add_rows(target: NDArray, indices: NDArray[np.int64], rows: NDArray, factors: NDArray) -> None:
    """See `numbacalib.ops.matrix.add_rows`."""
    target[indices] += rows.astype(target.dtype, copy=False) * factors[:, None]


def live_columns(matrix: NDArray, dead: NDArray, order: NDArray | None) -> tuple[NDArray, NDArray]:
    """See `numbacalib.ops.matrix.live_columns`; the same array if no column is dead."""
    if dead.any():
        matrix = take(matrix, np.where(dead, -1, np.arange(matrix.shape[1])), 1)
    return matrix, matrix if order is None else take(matrix, order, 1)


def scaled(array: NDArray, columns: NDArray, rows: NDArray | None) -> NDArray:
    """See `numbacalib.ops.matrix.scaled`."""
    dtype = checks.result_dtype(array)
    product: NDArray = array * columns.astype(dtype, copy=False)
    if rows is not None:
        product *= rows.astype(dtype, copy=False)[:, None]
    return product


def weighted_sum(left: NDArray, right: NDArray, a: float, b: float, dtype: np.dtype) -> NDArray:
    """See `numbacalib.ops.matrix.weighted_sum`."""
    real = checks.result_dtype(left, right)
    total: NDArray = left.astype(real, copy=False) * real.type(a)
    total += right.astype(real, copy=False) * real.type(b)
    return total if dtype == real else cast(total, dtype)


def add_scaled(target: NDArray, values: NDArray, factor: np.float32) -> None:
    """See `numbacalib.ops.matrix.add_scaled`."""
    target += values if factor == 1 else factor * values


def row_range(matrix: NDArray, begin: int, end: int) -> NDArray:
    """See `numbacalib.ops.matrix.row_range`."""
    return matrix[begin:end]


def column_range(array: NDArray, begin: int, end: int) -> NDArray:
    """See `numbacalib.ops.matrix.column_range`."""
    return array[..., begin:end].copy()


def put_columns(target: NDArray, begin: int, values: NDArray) -> None:
    """See `numbacalib.ops.matrix.put_columns`."""
    target[..., begin : begin + values.shape[-1]] = values


def joined_columns(left: NDArray, right: NDArray) -> NDArray:
    """See `numbacalib.ops.matrix.joined_columns`."""
    following = right.repeat(left.shape[-2] // right.shape[-2], axis=-2)
    return np.concatenate([left, following], axis=-1)


def larger(left: NDArray, right: NDArray) -> NDArray:
    """See `numbacalib.ops.matrix.larger`."""
    return np.maximum(left, right)
