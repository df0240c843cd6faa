"""GPU kernel of attention, the portable form: tiles in shared memory, products without tensor cores."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.launch import launch
from numbacalib.spec.decoder import LOWEST, capped, first_key, weight_of

EDGE = device.sized(8, simulated=2)
"""A block is EDGE x EDGE threads."""
SHARED_BYTES = 48 << 10
"""Shared memory that a block may use."""


def attention(
    queries: Any, keys: Any, values: Any, window: int, scale: float, cap: float, sinks: Any
) -> Any:
    """See `numbacalib.ops.attention.attention`; a window of 0 means none."""
    sequences, length, heads, size = queries.shape
    width = values.shape[3]
    if not cap and _suits_tensor_cores(queries.dtype, size, width):
        from numbacalib.ops.attention import tensor_cores

        return tensor_cores.attention(queries, keys, values, window, scale, sinks)
    context = device.empty((*queries.shape[:3], width), queries.dtype)
    share = _rows_of_a_thread(size, width)
    grid = -(-length // (EDGE * share)), heads, sequences
    arrays = (carrier(array) for array in (queries, keys, values, context))
    has_sinks = sinks is not None
    if sinks is None:
        sinks = device.zeros((heads,), np.float32)
    options = window, np.float32(scale), np.float32(cap), sinks, has_sinks
    launch(_kernel(size, width, share), grid, (EDGE, EDGE), *arrays, *options)
    return context


def _suits_tensor_cores(dtype: np.dtype, size: int, width: int) -> bool:
    """Return whether `tensor_cores` supports these heads: 16-bit floats in rows aligned to 16 bytes.

    It does not cap scores: models with caps use the portable form. Its registers hold at most 192 numbers
    of a query and 128 of a value, as in latent attention.
    """
    fits = dtype.itemsize == 2 and not (size % 8 or width % 8) and size <= 192 and width <= 128
    return fits and device.capability(device.current_device()) >= (8, 0)


def _rows_of_a_thread(size: int, width: int) -> int:
    """Return the number of queries, and of keys of a tile, of a row of threads, by the shared memory."""
    for share in (4, 2):
        rows = EDGE * share
        if 4 * rows * (size + 1 + max(size, width) + 1 + rows + 3) <= SHARED_BYTES:
            return share
    return 1


@functools.cache
def _kernel(size: int, width: int, share: int) -> Any:
    rows = EDGE * share
    columns = -(-width // EDGE)
    padded, widest = size + 1, max(size, width) + 1

    @cuda.jit
    def attend(queries, keys, values, context, window, scale, cap, sinks, has_sinks):
        """One block a tile of queries of a head; a thread every EDGE-th row and column of it."""
        mine = cuda.shared.array((rows, padded), np.float32)
        theirs = cuda.shared.array((rows, widest), np.float32)
        weights = cuda.shared.array((rows, rows), np.float32)
        largest = cuda.shared.array(rows, np.float32)
        totals = cuda.shared.array(rows, np.float32)
        factors = cuda.shared.array(rows, np.float32)
        sums = cuda.local.array((share, columns), np.float32)
        scores = cuda.local.array((share, share), np.float32)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        thread = ty * EDGE + tx
        length = queries.shape[1]
        start, head, s = cuda.blockIdx.x * rows, cuda.blockIdx.y, cuda.blockIdx.z
        source = head // (queries.shape[2] // keys.shape[2])
        for index in range(thread, rows * size, EDGE * EDGE):
            r, d = index // size, index % size
            value = np.float32(0)
            if start + r < length:
                value = np.float32(widen(queries[s, start + r, head, d])) * scale
            mine[r, d] = value
        peak = sinks[head] if has_sinks else LOWEST
        total = np.float32(1) if has_sinks else np.float32(0)
        for r in range(thread, rows, EDGE * EDGE):
            largest[r], totals[r] = peak, total
        for i in range(share):
            for c in range(columns):
                sums[i, c] = np.float32(0)
        stop = min(start + rows, length)
        for first in range(first_key(start, window), stop, rows):
            cuda.syncthreads()
            for index in range(thread, rows * size, EDGE * EDGE):
                r, d = index // size, index % size
                value = np.float32(0)
                if first + r < stop:
                    value = np.float32(widen(keys[s, first + r, source, d]))
                theirs[r, d] = value
            cuda.syncthreads()
            for i in range(share):
                for j in range(share):
                    scores[i, j] = np.float32(0)
            for d in range(size):
                for i in range(share):
                    for j in range(share):
                        scores[i, j] += mine[ty + EDGE * i, d] * theirs[tx + EDGE * j, d]
            for i in range(share):
                for j in range(share):
                    weights[ty + EDGE * i, tx + EDGE * j] = capped(scores[i, j], cap)
            cuda.syncthreads()
            for r in range(thread, rows, EDGE * EDGE):
                query = start + r
                low = max(first_key(query, window) - first, 0)
                high = min(query + 1, stop) - first
                peak = largest[r]
                for j in range(low, min(high, rows)):
                    peak = max(peak, weights[r, j])
                factors[r] = weight_of(largest[r], peak)
                total = totals[r] * factors[r]
                for j in range(rows):
                    weight = np.float32(0)
                    if low <= j and j < high:
                        weight = weight_of(weights[r, j], peak)
                    weights[r, j] = weight
                    total += weight
                largest[r], totals[r] = peak, total
            for index in range(thread, rows * width, EDGE * EDGE):
                r, d = index // width, index % width
                value = np.float32(0)
                if first + r < stop:
                    value = np.float32(widen(values[s, first + r, source, d]))
                theirs[r, d] = value
            cuda.syncthreads()
            for i in range(share):
                for c in range(columns):
                    sums[i, c] *= factors[ty + EDGE * i]
            for j in range(rows):
                for i in range(share):
                    for c in range(columns):
                        d = min(tx + EDGE * c, width - 1)
                        sums[i, c] += weights[ty + EDGE * i, j] * theirs[j, d]
        for i in range(share):
            query = start + ty + EDGE * i
            if query < length:
                for c in range(columns):
                    d = tx + EDGE * c
                    if d < width:
                        value = sums[i, c] / totals[ty + EDGE * i]
                        context[s, query, head, d] = narrow(value, context[s, query, head, d])

    return attend
