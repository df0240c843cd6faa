"""Falling order on a GPU: each column counts those before it, which takes no time at a layer's widths."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.launch import launch

THREADS = device.sized(256, simulated=4)
LARGEST = np.int64(0x7FFFFFFFFFFFFFFF)


def falling_order(values: Any, group_size: int) -> tuple[Any, Any, Any]:
    """See `numbacalib.ops.falling_order.falling_order`."""
    count, size = values.shape
    memory = device.empty((3, count, size), np.int64)
    found = memory[0], memory[1], memory[2]
    launch(_order, (-(-size // THREADS), count), THREADS, values, np.int64(group_size), *found)
    return found


@cuda.jit
def _order(values, group_size, order, place, group):
    """Threads: one a column. Blocks: columns, row. Shared memory holds the keys of some columns."""
    keys = cuda.shared.array(THREADS, np.int64)
    e, thread = cuda.blockIdx.y, cuda.threadIdx.x
    size = values.shape[1]
    j = np.int64(cuda.blockIdx.x) * THREADS + thread
    own = sort_key(values[e, min(j, size - 1)])
    before = np.int64(0)
    for first in range(0, size, THREADS):
        keys[thread] = sort_key(values[e, min(first + thread, size - 1)])
        cuda.syncthreads()
        for k in range(min(THREADS, size - first)):
            other = keys[k]
            if other > own or (other == own and first + k < j):
                before += 1
        cuda.syncthreads()
    if j < size:
        order[e, before] = j
        place[e, j] = before
        group[e, before] = j // group_size


@cuda.jit(device=True)
def sort_key(value):
    """Return an integer that orders floats as they are, zeros of either sign alike, NaNs at the ends."""
    bits = (np.float64(value) + np.float64(0)).view(np.int64)
    return bits if bits >= 0 else bits ^ LARGEST
