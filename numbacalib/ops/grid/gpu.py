"""GPU kernels of the grid: formulas from `spec.grid`."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import checks, device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import launch
from numbacalib.spec.grid import Grid, code_of, group_scale, group_zero, stored_scale, value_of

THREADS = 4 if device.SIMULATED else 128


def find_scales(matrix: Any, group_size: int, grid: Grid) -> tuple[Any, Any]:
    """See `numbacalib.ops.grid.grid_scales`."""
    rows, channels = matrix.shape
    dtype = checks.result_dtype(matrix)
    scales = device.empty((rows, channels // group_size), dtype)
    zeros = device.empty(scales.shape, dtype)
    find_scales_into(matrix, grid, scales, zeros)
    return device.result(scales), device.result(zeros)


def find_scales_into(matrix: Any, grid: Grid, scales: Any, zeros: Any) -> None:
    """Write the scales and zero points of equal runs of columns into two arrays [M, G]."""
    rows, groups = scales.shape
    levels = grid.bounds(scales.dtype)[2]
    blocks = -(-rows * groups // THREADS)
    launch(
        _find_scales,
        blocks,
        THREADS,
        carrier(matrix),
        levels,
        grid.symmetric,
        grid.storage,
        scales,
        zeros,
    )


def encode(matrix: Any, scales: Any, zeros: Any, group_of: np.ndarray, grid: Grid) -> Any:
    """See `numbacalib.ops.grid.grid_codes`."""
    codes = device.empty(matrix.shape, np.uint8)
    low, high, _ = grid.bounds(scales.dtype)
    group = device.from_host(group_of)
    arguments = carrier(matrix), scales, zeros, group, low, high, codes
    launch(_encode, _tiles(codes), THREADS, *arguments)
    return device.result(codes)


def decode(codes: Any, scales: Any, zeros: Any, group_of: np.ndarray, grid: Grid, out: Any) -> Any:
    """See `numbacalib.ops.grid.grid_values`."""
    low = grid.bounds(scales.dtype)[0]
    group = device.from_host(group_of)
    launch(_decode, _tiles(codes), THREADS, codes, scales, zeros, group, low, out)
    return device.result(out)


def _tiles(matrix: Any) -> tuple[int, int]:
    """Blocks along the columns and along the rows, of which a grid has at most 65535."""
    return -(-matrix.shape[1] // THREADS), min(matrix.shape[0], 65535)


@cuda.jit
def _find_scales(matrix, levels, symmetric, storage, scales, zeros):
    """Threads: one a group."""
    index = cuda.grid(1)
    if index >= scales.size:
        return
    i, g = index // scales.shape[1], index % scales.shape[1]
    group_size = matrix.shape[1] // scales.shape[1]
    lo = levels - levels
    hi = levels - levels
    for j in range(g * group_size, (g + 1) * group_size):
        weight = widen(matrix[i, j])
        lo = min(lo, weight)
        hi = max(hi, weight)
    scale = stored_scale(group_scale(lo, hi, levels, symmetric), storage)
    scales[i, g] = scale
    zeros[i, g] = group_zero(lo, scale, levels, symmetric)


@cuda.jit
def _encode(matrix, scales, zeros, group_of, low, high, codes):
    """Threads: one a column, blocks stride over the rows."""
    j = cuda.grid(1)
    if j < codes.shape[1]:
        g = group_of[j]
        for i in range(np.int64(cuda.blockIdx.y), codes.shape[0], cuda.gridDim.y):
            code = code_of(widen(matrix[i, j]), scales[i, g], zeros[i, g], low, high)
            codes[i, j] = np.uint8(code - low)


@cuda.jit
def _decode(codes, scales, zeros, group_of, low, out):
    """Threads: one a column, blocks stride over the rows."""
    j = cuda.grid(1)
    if j < codes.shape[1]:
        g = group_of[j]
        for i in range(np.int64(cuda.blockIdx.y), codes.shape[0], cuda.gridDim.y):
            out[i, j] = value_of(codes[i, j] + low, scales[i, g], zeros[i, g])
