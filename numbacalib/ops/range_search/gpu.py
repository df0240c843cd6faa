"""GPU kernel of the range search: a thread block a group, a thread a candidate."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numbacalib.runtime import checks, device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import MOST_BLOCKS, launch
from numbacalib.spec.grid import Grid, code_of, stored_grid, value_of
from numbacalib.spec.range_search import RangeSearch, weighted_cost

THREADS = device.sized(128, simulated=4)


def search_scales(
    matrix: Any, group_size: int, grid: Grid, search: RangeSearch, importance: Any
) -> tuple[Any, Any]:
    """See `numbacalib.ops.range_search.search_scales`."""
    rows, channels = matrix.shape
    dtype = checks.result_dtype(matrix)
    scales = device.empty((rows, channels // group_size), dtype)
    zeros = device.empty(scales.shape, dtype)
    search_scales_into(matrix, grid, search, importance, scales, zeros)
    return device.result(scales), device.result(zeros)


def search_scales_into(
    matrix: Any, grid: Grid, search: RangeSearch, importance: Any, scales: Any, zeros: Any
) -> None:
    """Write the scales and zero points of equal runs of columns into two arrays [M, G]."""
    rows, groups = scales.shape
    dtype = scales.dtype
    if importance is None:
        importance = device.from_host(np.ones((1, matrix.shape[1]), dtype))
    shares = device.from_host(search.shares(dtype))
    norm = np.float32(search.norm)
    bounds = grid.bounds(dtype)
    arguments = carrier(matrix), carrier(importance), shares, norm, bounds, scales, zeros
    launch(_search(dtype.type), (rows, min(groups, MOST_BLOCKS)), THREADS, *arguments)


@functools.cache
def _search(real: type) -> Any:
    @cuda.jit
    def search(matrix, importance, shares, norm, bounds, scales, zeros):
        """Blocks: row, groups that stride. Threads: columns for the range, then candidates."""
        least = cuda.shared.array(THREADS, real)
        most = cuda.shared.array(THREADS, real)
        errors = cuda.shared.array(THREADS, real)
        found = cuda.shared.array(THREADS, np.int32)
        size = matrix.shape[1] // scales.shape[1]
        i, thread = np.int64(cuda.blockIdx.x), cuda.threadIdx.x
        row = min(i, importance.shape[0] - 1)
        for g in range(np.int64(cuda.blockIdx.y), scales.shape[1], cuda.gridDim.y):
            begin, end = g * size, (g + 1) * size
            lo = real(0)
            hi = real(0)
            for j in range(begin + thread, end, THREADS):
                lo = min(lo, widen(matrix[i, j]))
                hi = max(hi, widen(matrix[i, j]))
            least[thread], most[thread] = lo, hi
            cuda.syncthreads()
            for other in range(THREADS):
                lo = min(lo, least[other])
                hi = max(hi, most[other])
            best = real(np.inf)
            index = np.int32(len(shares))
            for candidate in range(thread, len(shares), THREADS):
                share = shares[candidate]
                scale, zero = stored_grid(share * lo, share * hi, bounds)
                error = real(0)
                for j in range(begin, end):
                    weight = widen(matrix[i, j])
                    e = value_of(code_of(weight, scale, zero, bounds), scale, zero) - weight
                    error += weighted_cost(e, norm, real(widen(importance[row, j])))
                if error < best:
                    best = error
                    index = np.int32(candidate)
            errors[thread], found[thread] = best, index
            cuda.syncthreads()
            if thread == 0:
                # of equal losses the widest range: the least index
                for other in range(1, THREADS):
                    nearer = errors[other] == best and found[other] < index
                    if errors[other] < best or nearer:
                        best, index = errors[other], found[other]
                # the full range where every error is beyond the type
                share = shares[index if index < len(shares) else 0]
                scale, zero = stored_grid(share * lo, share * hi, bounds)
                scales[i, g] = scale
                zeros[i, g] = zero
            cuda.syncthreads()

    return search
