"""Factors on the device: the package's own damping and reversal, Cholesky by a library or in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numbacalib.linalg import batch_gpu, panels_gpu
from numbacalib.linalg.factors import FIGURES, TINY, HessianFactors
from numbacalib.runtime import blas_gpu, device
from numbacalib.runtime.device import cuda, sized
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import launch, row_threads
from numbacalib.spec.damping import damped, is_dead

THREADS = sized(256, simulated=4)
TILE, TILE_ROWS = sized((32, 8), simulated=(4, 2))
"""Edge of a tile that is transposed in shared memory, and its rows that threads copy at once."""
PITCH = TILE + 1
LARGE = 8192
"""Channels from which a float32 matrix is factored in panels, on tensor cores."""


def factor(
    hessians: Any,
    orders: Any,
    percdamps: Sequence[float],
    dtype: np.dtype,
) -> HessianFactors:
    """See `numbacalib.linalg.factor_hessians`."""
    count, size, _ = hessians.shape
    source = carrier(hessians)
    dead = device.empty((count, size), np.bool_)
    summary = device.empty((count, FIGURES + 2 * size), np.float64)
    launch(_damping, count, THREADS, source, _shares(percdamps), summary, dead)
    batched = count >= batch_gpu.LEAST and blas_gpu.has_libraries()
    channels = device.from_host(np.arange(size)[None]) if orders is None else orders
    matrices = device.empty(hessians.shape, dtype)
    arguments = source, channels, not batched, summary, matrices
    launch(_put_in_order, (size, count), row_threads(size), *arguments)
    upper = (batch_gpu.factor if batched else _factor_one_by_one)(matrices, summary)
    launch(_finish_summary, count, THREADS, source, upper, channels, dead, summary)
    return HessianFactors(upper, dead, device.start_reading(summary), orders)


def _shares(percdamps: Sequence[float]) -> Any:
    """Dampings, as shares of the mean diagonals, on the device: one if they are equal, as most are."""
    if len(set(percdamps)) == 1:
        return device.constant((percdamps[0],), np.float64)
    return device.from_host(np.array(percdamps, np.float64))


def _factor_one_by_one(matrices: Any, summary: Any) -> Any:
    """Factor each of ``J (H + damping) J`` as ``J U^T J``; minors go to `summary`."""
    count, size, _ = matrices.shape
    upper = device.empty(matrices.shape, matrices.dtype)
    in_panels = _goes_in_panels(matrices[0], LARGE)
    rows = panels_gpu.PANEL if in_panels else size
    infos = device.empty((count, -(-size // rows)), np.int32)
    for e in range(count):
        if in_panels:
            panels_gpu.factor_upper(matrices[e], infos[e])
        else:
            blas_gpu.cholesky_upper(matrices[e], infos[e])
    tiles = -(-size // TILE), -(-size // TILE), count
    threads = TILE, TILE_ROWS
    launch(_reverse_transposed, tiles, threads, matrices, infos, rows, upper, summary)
    return upper


def invert(upper: Any) -> Any:
    """Return the inverse of ``R``."""
    return device.result(blas_gpu.invert_upper(upper))


def solve_rows(upper: Any, rows: Any) -> Any:
    """See `numbacalib.linalg.solve_rows`."""
    found = device.empty(rows.shape, rows.dtype)
    device.copy(rows, found)
    if _goes_in_panels(upper, 2 * panels_gpu.PANEL):
        panels_gpu.solve_rows(upper, found)
    else:
        blas_gpu.solve_triangle(upper, found, transposed=True)
        blas_gpu.solve_triangle(upper, found, transposed=False)
    return device.result(found)


def _goes_in_panels(matrix: Any, least: int) -> bool:
    """Return whether a matrix, float32 and of size `least` or more, goes in panels on tensor cores."""
    large = len(matrix) >= least and matrix.dtype == np.float32
    return large and blas_gpu.has_libraries() and device.has_capability_9_0()


@cuda.jit
def _damping(hessians, percdamps, summary, dead):
    """Mean and minimum of the diagonals, summed in a fixed order.

    Blocks: matrix; threads stride over a diagonal.
    """
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
        summary[e, 0] = percdamps[min(e, percdamps.shape[0] - 1)] * mean
        summary[e, 1] = low
        summary[e, 2] = count
        summary[e, 3] = 0
        summary[e, 4] = mean


@cuda.jit
def _put_in_order(hessians, channels, reverse, summary, matrices):
    """Write the upper triangles of damped Hessians, and zeros below, which libraries load too.

    Rows and columns are in the order of `channels` [E or 1, K], from the last with `reverse`.
    Blocks: row, matrix; threads stride over the columns.
    """
    i, e = np.int64(cuda.blockIdx.x), np.int64(cuda.blockIdx.y)
    size = matrices.shape[1]
    order = channels[min(e, channels.shape[0] - 1)]
    last = size - 1 if reverse else 0
    row = order[abs(last - i)]
    for j in range(np.int64(cuda.threadIdx.x), size, cuda.blockDim.x):
        if j < i:
            matrices[e, i, j] = 0
        elif j > i:
            matrices[e, i, j] = widen(hessians[e, row, order[abs(last - j)]])
        else:
            matrices[e, i, i] = damped(float(widen(hessians[e, row, row])), summary[e, 0])


@cuda.jit
def _reverse_transposed(factors, infos, rows, uppers, summary):
    """Write ``R = J U^T J``, and zeros below; and the minor, from those of panels of `rows` rows.

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
            for panel in range(infos.shape[1] - 1, -1, -1):
                if infos[e, panel] > 0:
                    summary[e, 3] = panel * rows + infos[e, panel]


@cuda.jit
def _finish_summary(hessians, uppers, channels, dead, summary):
    """Diagonals, and the least pivot of live channels over the mean, which it replaces in `summary`.

    Blocks: matrix; threads stride over a diagonal.
    """
    least = cuda.shared.array(THREADS, np.float64)
    e, thread = cuda.blockIdx.x, cuda.threadIdx.x
    low = np.inf
    size = uppers.shape[1]
    order = channels[min(e, channels.shape[0] - 1)]
    for j in range(thread, size, THREADS):
        root = float(uppers[e, j, j])
        summary[e, FIGURES + j] = widen(hessians[e, order[j], order[j]])
        summary[e, FIGURES + size + j] = root
        if not dead[e, order[j]]:
            low = min(low, root * root)
    least[thread] = low
    cuda.syncthreads()
    if thread == 0:
        for other in range(1, THREADS):
            low = min(low, least[other])
        summary[e, 4] = low / max(summary[e, 4], TINY) if low < np.inf else 0.0
