"""Factors on the device: damping and reversal of our own, Cholesky from `blas_gpu`."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.linalg import HessianFactor, require_positive_definite
from numbacalib.runtime import blas_gpu, device
from numbacalib.runtime.device import SIMULATED, cuda
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import launch

THREADS = 4 if SIMULATED else 256
TILE, TILE_ROWS = (4, 2) if SIMULATED else (32, 8)
"""Edge of a tile that is transposed in shared memory, and rows of it that threads take at once."""
PITCH = TILE + 1


def factor(hessian: Any, percdamp: float, dtype: np.dtype) -> HessianFactor:
    """See `numbacalib.linalg.factor_hessian`."""
    size = len(hessian)
    source = carrier(hessian)
    dead = device.empty((size,), np.bool_)
    summary = device.empty((4,), np.float64)
    matrix = device.empty((size, size), dtype)
    upper = device.empty((size, size), dtype)
    tiles = -(-size // TILE), -(-size // TILE)
    launch(_damping, 1, THREADS, source, percdamp, summary, dead)
    launch(_reverse_damped, tiles, (TILE, TILE_ROWS), source, summary, dead, matrix)
    info = blas_gpu.cholesky_upper(matrix)
    launch(_reverse_transposed, tiles, (TILE, TILE_ROWS), matrix, info, upper, summary)
    damping, least, dead_count, minor = device.read(summary).tolist()
    require_positive_definite(int(minor), size, percdamp, damping, least)
    return HessianFactor(device.result(upper), device.result(dead), int(dead_count), damping)


def invert(upper: Any) -> Any:
    """Return the inverse of ``R``."""
    return device.result(blas_gpu.invert_upper(upper))


@cuda.jit
def _damping(hessian, percdamp, summary, dead):
    """Mean and minimum of the diagonal, in one order. Threads: one block strides over the diagonal."""
    sums = cuda.shared.array(THREADS, np.float64)
    least = cuda.shared.array(THREADS, np.float64)
    counts = cuda.shared.array(THREADS, np.int64)
    thread = cuda.threadIdx.x
    total = 0.0
    low = float(widen(hessian[0, 0]))
    count = 0
    for j in range(thread, hessian.shape[0], THREADS):
        entry = float(widen(hessian[j, j]))
        dead[j] = entry == 0
        total += entry
        low = min(low, entry)
        count += entry == 0
    sums[thread], least[thread], counts[thread] = total, low, count
    cuda.syncthreads()
    if thread == 0:
        for other in range(1, THREADS):
            total += sums[other]
            low = min(low, least[other])
            count += counts[other]
        summary[0] = percdamp * (total / hessian.shape[0])
        summary[1] = low
        summary[2] = count


@cuda.jit
def _reverse_damped(hessian, summary, dead, matrix):
    """Write the upper triangle of ``J (H + damping) J``. Threads: x along a row, y along a column."""
    size = matrix.shape[0]
    j = np.int64(cuda.blockIdx.x) * TILE + cuda.threadIdx.x
    top = np.int64(cuda.blockIdx.y) * TILE
    for i in range(top + cuda.threadIdx.y, min(top + TILE, size), TILE_ROWS):
        if i < j and j < size:
            matrix[i, j] = widen(hessian[size - 1 - i, size - 1 - j])
        if i == j:
            diagonal = widen(hessian[size - 1 - i, size - 1 - i]) + summary[0]
            matrix[i, i] = 1.0 if dead[size - 1 - i] else diagonal


@cuda.jit
def _reverse_transposed(factor, info, upper, summary):
    """Write ``R = J U^T J``, and zeros below. Threads: x along a row, y along a column of a tile."""
    tile = cuda.shared.array((TILE, PITCH), upper.dtype)
    size = upper.shape[0]
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    top, left = np.int64(cuda.blockIdx.y) * TILE, np.int64(cuda.blockIdx.x) * TILE
    for k in range(y, TILE, TILE_ROWS):
        i, j = top + x, left + k
        if i <= j and j < size:
            tile[k, x] = factor[size - 1 - j, size - 1 - i]
        else:
            tile[k, x] = 0
    cuda.syncthreads()
    for k in range(y, TILE, TILE_ROWS):
        i, j = top + k, left + x
        if i < size and j < size:
            upper[i, j] = tile[x, k]
        if i == 0 and j == 0:
            summary[3] = info[0]
