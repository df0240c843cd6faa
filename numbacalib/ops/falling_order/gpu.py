"""Falling order on a GPU: each column counts those before it, quickly enough at a layer's widths."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import launch

COLUMNS, SLICES = device.sized((32, 8), simulated=(2, 2))
"""Columns of a block, and slices of all columns that its threads compare them with."""
THREADS = COLUMNS * SLICES
LARGEST = np.int64(0x7FFFFFFFFFFFFFFF)


def falling_order(matrices: Any, group_size: int) -> tuple[Any, Any, Any]:
    """See `numbacalib.ops.falling_order.falling_order`."""
    count, size, _ = matrices.shape
    memory = device.empty((3, count, size), np.int64)
    found = memory[0], memory[1], memory[2]
    grid = -(-size // COLUMNS), count
    launch(_order, grid, THREADS, carrier(matrices), np.int64(group_size), *found)
    return found


@cuda.jit
def _order(matrices, group_size, order, place, group):
    """Blocks: columns, row. Threads: a column and slice each; together they load a key each at a time."""
    keys = cuda.shared.array(THREADS, np.int64)
    counts = cuda.shared.array(THREADS, np.int64)
    e, thread = cuda.blockIdx.y, cuda.threadIdx.x
    x, y = thread % COLUMNS, thread // COLUMNS
    size = matrices.shape[1]
    j = np.int64(cuda.blockIdx.x) * COLUMNS + x
    own = sort_key(matrices, e, min(j, size - 1))
    before = np.int64(0)
    for first in range(0, size, THREADS):
        keys[thread] = sort_key(matrices, e, min(first + thread, size - 1))
        cuda.syncthreads()
        for k in range(y * COLUMNS, (y + 1) * COLUMNS):
            i, other = first + k, keys[k]
            if i < size and (other > own or (other == own and i < j)):
                before += 1
        cuda.syncthreads()
    counts[thread] = before
    cuda.syncthreads()
    if y == 0 and j < size:
        for other_slice in range(1, SLICES):
            before += counts[other_slice * COLUMNS + x]
        order[e, before] = j
        place[e, j] = before
        group[e, before] = j // group_size


@cuda.jit(device=True)
def sort_key(matrices, e, j):
    """Return an integer with the order of a diagonal, zeros of either sign equal, NaNs at the ends."""
    bits = (np.float64(widen(matrices[e, j, j])) + np.float64(0)).view(np.int64)
    return bits if bits >= 0 else bits ^ LARGEST
