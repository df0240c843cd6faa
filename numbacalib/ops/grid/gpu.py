"""GPU kernels of the grid: formulas from `spec.grid`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from numbacalib.runtime import checks, device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.finite_gpu import FirstIndex, note_index
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.launch import column_blocks, launch
from numbacalib.runtime.not_finite import not_finite
from numbacalib.spec.grid import Grid, code_of, is_clipped, signed, stored_grid, unsigned, value_of

THREADS = device.sized(128, simulated=4)


def find_scales(matrix: Any, group_size: int, grid: Grid) -> tuple[Any, Any]:
    """See `numbacalib.ops.grid.grid_scales`."""
    rows, channels = matrix.shape
    dtype = checks.result_dtype(matrix)
    scales = device.empty((rows, channels // group_size), dtype)
    zeros = device.empty(scales.shape, dtype)
    find_scales_into(matrix, grid, scales, zeros)
    return scales, zeros


def find_scales_into(matrix: Any, grid: Grid, scales: Any, zeros: Any) -> None:
    """Write the scales and zero points of equal runs of columns into two arrays [M, G]."""
    rows, groups = scales.shape
    arguments = carrier(matrix), grid.bounds(scales.dtype), scales, zeros
    launch(_find_scales, -(-rows * groups // THREADS), THREADS, *arguments)


def encode(matrix: Any, scales: Any, zeros: Any, group_of: np.ndarray, grid: Grid) -> Any:
    """See `numbacalib.ops.grid.grid_codes`."""
    codes = device.empty(matrix.shape, np.uint8)
    group = device.from_host(group_of)
    arguments = carrier(matrix), scales, zeros, group, grid.bounds(scales.dtype), codes
    launch(_encode, _tiles(codes), THREADS, *arguments)
    return device.result(codes)


def stored_arrays(
    scales: Any, zeros: Any, dtype: np.dtype, grid: Grid, name: str
) -> tuple[Any, Any, Callable[[], None]]:
    """See `numbacalib.ops.grid.stored_arrays`; `name` stands for the scales in errors."""
    stored = device.empty(scales.shape, dtype)
    unsigned = device.empty(zeros.shape, np.uint8)
    found = FirstIndex()
    offset = zeros.dtype.type(grid.offset)
    arrays = scales, zeros, offset, carrier(stored), unsigned, found.array
    launch(_store, _tiles(stored), THREADS, *arrays)
    found.copy()

    def require() -> None:
        (index,) = found.read()
        if index is not None:
            raise not_finite(name, np.inf, index, stored.shape)

    return stored, unsigned, require


def shifted(array: Any, offset: int, dtype: np.dtype, out: Any) -> Any:
    """See `numbacalib.ops.grid.shifted`."""
    out = device.empty(array.shape, dtype) if out is None else out
    launch(_shift, _tiles(out), THREADS, carrier(array), np.int64(offset), carrier(out))
    return device.result(out)


def decode(
    codes: Any, scales: Any, zeros: Any, group_of: np.ndarray, grid: Grid, out: Any = None
) -> Any:
    """See `numbacalib.ops.grid.grid_values`; codes are unsigned, zeros are the grid's own."""
    out = device.empty(codes.shape, scales.dtype) if out is None else out
    bounds = grid.bounds(scales.dtype)
    group = device.from_host(group_of)
    launch(_decode, _tiles(codes), THREADS, codes, scales, zeros, group, bounds, out)
    return device.result(out)


def start_counting_clipped(
    matrix: Any, scales: Any, zeros: Any, group_of: np.ndarray, grid: Grid
) -> Callable[[], int]:
    """See `numbacalib.ops.grid.start_counting_clipped`."""
    count = device.zeros((1,), np.int64)
    group = device.from_host(group_of)
    arguments = carrier(matrix), scales, zeros, group, grid.bounds(scales.dtype), count
    launch(_count_clipped, _tiles(matrix), THREADS, *arguments)
    found = device.start_reading(count)
    return lambda: int(found()[0])


def _tiles(matrix: Any) -> tuple[int, int]:
    return column_blocks(matrix.shape, THREADS)


@cuda.jit
def _find_scales(matrix, bounds, scales, zeros):
    """Threads: one a group."""
    index = cuda.grid(1)
    if index >= scales.size:
        return
    i, g = index // scales.shape[1], index % scales.shape[1]
    group_size = matrix.shape[1] // scales.shape[1]
    lo = bounds.levels - bounds.levels
    hi = bounds.levels - bounds.levels
    for j in range(g * group_size, (g + 1) * group_size):
        weight = widen(matrix[i, j])
        lo = min(lo, weight)
        hi = max(hi, weight)
    scales[i, g], zeros[i, g] = stored_grid(lo, hi, bounds)


@cuda.jit
def _encode(matrix, scales, zeros, group_of, bounds, codes):
    """Threads: one a column, blocks stride over the rows."""
    j = cuda.grid(1)
    if j < codes.shape[1]:
        g = group_of[j]
        for i in range(np.int64(cuda.blockIdx.y), codes.shape[0], cuda.gridDim.y):
            code = code_of(widen(matrix[i, j]), scales[i, g], zeros[i, g], bounds)
            codes[i, j] = unsigned(code, bounds)


@cuda.jit
def _decode(codes, scales, zeros, group_of, bounds, out):
    """Threads: one a column, blocks stride over the rows."""
    j = cuda.grid(1)
    if j < codes.shape[1]:
        g = group_of[j]
        for i in range(np.int64(cuda.blockIdx.y), codes.shape[0], cuda.gridDim.y):
            zero = scales.dtype.type(zeros[i, g])
            out[i, j] = value_of(signed(codes[i, j], bounds), scales[i, g], zero)


@cuda.jit
def _store(scales, zeros, offset, narrow_scales, unsigned, first):
    """Threads: one a column, blocks stride over the rows."""
    j = cuda.grid(1)
    if j < scales.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), scales.shape[0], cuda.gridDim.y):
            unsigned[i, j] = np.uint8(zeros[i, j] - offset)
            stored = narrow(scales[i, j], narrow_scales[i, j])
            narrow_scales[i, j] = stored
            if not math.isfinite(widen(stored)):
                note_index(first, i * scales.shape[1] + j)


@cuda.jit
def _shift(source, offset, target):
    """Threads: one a column, blocks stride over the rows."""
    j = cuda.grid(1)
    if j < target.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), target.shape[0], cuda.gridDim.y):
            target[i, j] = source[i, j] + offset


@cuda.jit
def _count_clipped(matrix, scales, zeros, group_of, bounds, count):
    """Threads: one a column, blocks stride over the rows. Integers add up to one sum in any order."""
    j = cuda.grid(1)
    if j < matrix.shape[1]:
        g = group_of[j]
        own = np.int64(0)
        for i in range(np.int64(cuda.blockIdx.y), matrix.shape[0], cuda.gridDim.y):
            zero = scales.dtype.type(zeros[i, g])
            weight = scales.dtype.type(widen(matrix[i, j]))
            own += is_clipped(weight, scales[i, g], zero, bounds)
        if own > 0:
            cuda.atomic.add(count, 0, own)
