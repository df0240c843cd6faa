"""CPU kernels of the grid: one task a row, formulas from `spec.grid`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime import checks
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel
from numbacalib.runtime.not_finite import not_finite
from numbacalib.runtime.strides import rows_view
from numbacalib.spec.grid import Grid, code_of, is_clipped, signed, stored_grid, unsigned, value_of


def find_scales(matrix: NDArray, group_size: int, grid: Grid) -> tuple[NDArray, NDArray]:
    """See `numbacalib.ops.grid.grid_scales`."""
    dtype = checks.result_dtype(matrix)
    scales = np.empty((len(matrix), matrix.shape[1] // group_size), dtype)
    zeros = np.empty_like(scales)
    source = rows_view(carrier(matrix))
    _find_scales(source, group_size, grid.bounds(dtype), scales, zeros)
    return scales, zeros


def encode(
    matrix: NDArray, scales: NDArray, zeros: NDArray, group_of: NDArray, grid: Grid
) -> NDArray:
    """See `numbacalib.ops.grid.grid_codes`."""
    codes = np.empty(matrix.shape, np.uint8)
    source = rows_view(carrier(matrix))
    _encode(source, scales, zeros, group_of, grid.bounds(scales.dtype), codes)
    return codes


def stored_arrays(
    scales: NDArray, zeros: NDArray, dtype: np.dtype, grid: Grid, name: str
) -> tuple[NDArray, NDArray, Callable[[], None]]:
    """See `numbacalib.ops.grid.stored_arrays`; `name` stands for the scales in errors."""
    with np.errstate(over="ignore"):
        narrow = scales.astype(dtype)
    unsigned = (zeros - zeros.dtype.type(grid.offset)).astype(np.uint8)
    return narrow, unsigned, partial(_require_finite, name, narrow)


def shifted(array: NDArray, offset: int, dtype: np.dtype, out: NDArray | None) -> NDArray:
    """See `numbacalib.ops.grid.shifted`."""
    if out is None:
        out = np.empty(array.shape, dtype)
    # sums of integers wrap around to the right ones of the other dtype
    terms = dtype if dtype.kind == "f" else array.dtype
    number = np.array(offset).astype(terms)
    np.add(array.astype(terms, copy=False), number, out=out, casting="unsafe")
    return out


def _require_finite(name: str, scales: NDArray) -> None:
    """Raise a ValueError that names the first infinity; scales are few, and need no kernel."""
    finite = np.isfinite(scales)
    if not finite.all():
        index = int(np.argmin(finite))
        raise not_finite(name, scales.flat[index], index, scales.shape)


def decode(
    codes: NDArray,
    scales: NDArray,
    zeros: NDArray,
    group_of: NDArray,
    grid: Grid,
    out: NDArray | None = None,
) -> NDArray:
    """See `numbacalib.ops.grid.grid_values`; codes are unsigned, zeros are the grid's own."""
    if out is None:
        out = np.empty(codes.shape, scales.dtype)
    if not scales.flags.writeable:  # as read from files: Numba would compile another form
        scales = scales.copy()
    _decode(codes, scales, zeros, group_of, grid.bounds(scales.dtype), out)
    return out


def start_counting_clipped(
    matrix: NDArray, scales: NDArray, zeros: NDArray, group_of: NDArray, grid: Grid
) -> Callable[[], int]:
    """See `numbacalib.ops.grid.start_counting_clipped`."""
    counts = np.empty(len(matrix), np.int64)
    source = rows_view(carrier(matrix))
    _count_clipped(source, scales, zeros, group_of, grid.bounds(scales.dtype), counts)
    return lambda: int(counts.sum())


@kernel
def _find_scales(matrix, group_size, bounds, scales, zeros):
    """Split: one task a row."""
    for i in prange(len(scales)):
        for g in range(scales.shape[1]):
            lo = bounds.levels - bounds.levels
            hi = bounds.levels - bounds.levels
            for j in range(g * group_size, (g + 1) * group_size):
                weight = widen(matrix[i, j])
                lo = min(lo, weight)
                hi = max(hi, weight)
            scales[i, g], zeros[i, g] = stored_grid(lo, hi, bounds)


@kernel
def _encode(matrix, scales, zeros, group_of, bounds, codes):
    """Split: one task a row."""
    for i in prange(len(codes)):
        for j in range(codes.shape[1]):
            g = group_of[j]
            code = code_of(widen(matrix[i, j]), scales[i, g], zeros[i, g], bounds)
            codes[i, j] = unsigned(code, bounds)


@kernel
def _decode(codes, scales, zeros, group_of, bounds, out):
    """Split: one task a row."""
    for i in prange(len(codes)):
        for j in range(codes.shape[1]):
            g = group_of[j]
            zero = scales.dtype.type(zeros[i, g])
            out[i, j] = value_of(signed(codes[i, j], bounds), scales[i, g], zero)


@kernel
def _count_clipped(matrix, scales, zeros, group_of, bounds, counts):
    """Split: one task a row."""
    for i in prange(len(matrix)):
        count = 0
        for j in range(len(group_of)):
            g = group_of[j]
            zero = scales.dtype.type(zeros[i, g])
            weight = scales.dtype.type(widen(matrix[i, j]))
            count += is_clipped(weight, scales[i, g], zero, bounds)
        counts[i] = count
