"""Factors on the device: damping and reversal of our own, Cholesky from `blas_gpu`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numbacalib.linalg import batch_gpu
from numbacalib.linalg.factors import TINY, HessianFactors
from numbacalib.runtime import blas_gpu, device
from numbacalib.runtime.device import cuda, sized
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import launch
from numbacalib.spec.damping import damped, is_dead

THREADS = sized(256, simulated=4)
TILE, TILE_ROWS = sized((32, 8), simulated=(4, 2))
"""Edge of a tile that is transposed in shared memory, and rows of it that threads take at once."""
PITCH = TILE + 1


def factor(hessians: Any, percdamps: Sequence[float], dtype: np.dtype) -> HessianFactors:
    """See `numbacalib.linalg.factor_hessians`."""
    count, size, _ = hessians.shape
    source = carrier(hessians)
    dead = device.empty((count, size), np.bool_)
    summary = device.empty((count, 5), np.float64)
    shares = device.from_host(np.array(percdamps, np.float64))
    launch(_damping, count, THREADS, source, shares, summary, dead)
    if count >= batch_gpu.LEAST and blas_gpu.has_libraries():
        upper = batch_gpu.factor(source, summary, dtype)
    else:
        upper = _factor_one_by_one(source, summary, dtype)
    launch(_smallest_pivots, count, THREADS, upper, dead, summary)
    return HessianFactors(upper, dead, summary)


def _factor_one_by_one(source: Any, summary: Any, dtype: np.dtype) -> Any:
    """Factor each matrix by LAPACK's routine, as ``J U^T J``; minors go to `summary`."""
    count, size, _ = source.shape
    matrix = device.empty(source.shape, dtype)
    upper = device.empty(source.shape, dtype)
    info = device.empty((count,), np.int32)
    tiles = -(-size // TILE), -(-size // TILE), count
    launch(_reverse_damped, tiles, (TILE, TILE_ROWS), source, summary, matrix)
    for e in range(count):
        blas_gpu.cholesky_upper(matrix[e], info[e : e + 1])
    launch(_reverse_transposed, tiles, (TILE, TILE_ROWS), matrix, info, upper, summary)
    return upper


def invert(upper: Any) -> Any:
    """Return the inverse of ``R``."""
    return device.result(blas_gpu.invert_upper(upper))


def solve_rows(upper: Any, rows: Any) -> Any:
    """See `numbacalib.linalg.solve_rows`."""
    found = device.empty(rows.shape, rows.dtype)
    device.copy(rows, found)
    blas_gpu.solve_triangle(upper, found, transposed=True)
    blas_gpu.solve_triangle(upper, found, transposed=False)
    return device.result(found)


@cuda.jit
def _damping(hessians, percdamps, summary, dead):
    """Mean and minimum of the diagonals, in one order. Blocks: matrix; threads stride over a diagonal."""
    sums = cuda.shared.array(THREADS, np.float64)
    least = cuda.shared.array(THREADS, np.float64)
    counts = cuda.shared.array(THREADS, np.int64)
    e, thread = cuda.blockIdx.x, cuda.threadIdx.x
    total = 0.0
    low = float(widen(hessians[e, 0, 0]))
    count = 0
    for j in range(thread, hessians.shape[1], THREADS):
        entry = float(widen(hessians[e, j, j]))
        dead[e, j] = is_dead(entry)
        total += entry
        low = min(low, entry)
        count += is_dead(entry)
    sums[thread], least[thread], counts[thread] = total, low, count
    cuda.syncthreads()
    if thread == 0:
        for other in range(1, THREADS):
            total += sums[other]
            low = min(low, least[other])
            count += counts[other]
        mean = total / hessians.shape[1]
        summary[e, 0] = percdamps[e] * mean
        summary[e, 1] = low
        summary[e, 2] = count
        summary[e, 3] = 0
        summary[e, 4] = mean


@cuda.jit
def _reverse_damped(hessians, summary, matrices):
    """Write the upper triangles of ``J (H + damping) J``, and zeros below, which libraries load too.

    Threads: x along a row, y along a column. Blocks: tile, tile, matrix.
    """
    e = cuda.blockIdx.z
    size = matrices.shape[1]
    j = np.int64(cuda.blockIdx.x) * TILE + cuda.threadIdx.x
    top = np.int64(cuda.blockIdx.y) * TILE
    for i in range(top + cuda.threadIdx.y, min(top + TILE, size), TILE_ROWS):
        if j < size:
            matrices[e, i, j] = 0
        if i < j and j < size:
            matrices[e, i, j] = widen(hessians[e, size - 1 - i, size - 1 - j])
        if i == j:
            entry = float(widen(hessians[e, size - 1 - i, size - 1 - i]))
            matrices[e, i, i] = damped(entry, summary[e, 0])


@cuda.jit
def _reverse_transposed(factors, infos, uppers, summary):
    """Write ``R = J U^T J``, and zeros below.

    Threads: x along a row, y along a column of a tile. Blocks: tile, tile, matrix.
    """
    tile = cuda.shared.array((TILE, PITCH), uppers.dtype)
    e = cuda.blockIdx.z
    size = uppers.shape[1]
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    top, left = np.int64(cuda.blockIdx.y) * TILE, np.int64(cuda.blockIdx.x) * TILE
    for k in range(y, TILE, TILE_ROWS):
        i, j = top + x, left + k
        if i <= j and j < size:
            tile[k, x] = factors[e, size - 1 - j, size - 1 - i]
        else:
            tile[k, x] = 0
    cuda.syncthreads()
    for k in range(y, TILE, TILE_ROWS):
        i, j = top + k, left + x
        if i < size and j < size:
            uppers[e, i, j] = tile[x, k]
        if i == 0 and j == 0:
            summary[e, 3] = infos[e]


@cuda.jit
def _smallest_pivots(uppers, dead, summary):
    """Least pivot of live channels, over the mean diagonal, which `summary` has in its place.

    Blocks: matrix; threads stride over a diagonal.
    """
    least = cuda.shared.array(THREADS, np.float64)
    e, thread = cuda.blockIdx.x, cuda.threadIdx.x
    low = np.inf
    for j in range(thread, uppers.shape[1], THREADS):
        root = float(uppers[e, j, j])
        if not dead[e, j]:
            low = min(low, root * root)
    least[thread] = low
    cuda.syncthreads()
    if thread == 0:
        for other in range(1, THREADS):
            low = min(low, least[other])
        summary[e, 4] = low / max(summary[e, 4], TINY) if low < np.inf else 0.0
