"""Products on a GPU: cuBLAS, and a block a group for the dot products."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.ops.matrix.gpu import contiguous
from numbacalib.runtime import blas_gpu, device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import MOST_BLOCKS, launch

THREADS = device.sized(128, simulated=4)


def product(left: Any, right: Any) -> Any:
    """See `numbacalib.ops.products.product`."""
    result = device.empty((left.shape[0], right.shape[1]), left.dtype)
    blas_gpu.multiply(contiguous(left), contiguous(right), result)
    return device.result(result)


def add_moment(target: Any, left: Any, right: Any, factor: float, keep: float) -> None:
    """See `numbacalib.ops.products.add_moment`."""
    operands = contiguous(left), contiguous(right)
    blas_gpu.add_moment(*operands, target, factor=factor, keep=keep)


def group_dots(left: Any, right: Any, group_size: int) -> Any:
    """See `numbacalib.ops.products.group_dots`."""
    rows, channels = left.shape
    dots = device.empty((rows, channels // group_size), np.float64)
    blocks = rows, min(dots.shape[1], MOST_BLOCKS)
    launch(_group_dots, blocks, THREADS, carrier(left), carrier(right), group_size, dots)
    return device.result(dots)


@cuda.jit
def _group_dots(left, right, group_size, dots):
    """Blocks: row, groups that stride. Threads stride over a group's columns; sums in one order."""
    sums = cuda.shared.array(THREADS, np.float64)
    i, thread = np.int64(cuda.blockIdx.x), cuda.threadIdx.x
    for g in range(np.int64(cuda.blockIdx.y), dots.shape[1], cuda.gridDim.y):
        total = 0.0
        for j in range(g * group_size + thread, (g + 1) * group_size, THREADS):
            total += float(widen(left[i, j])) * float(widen(right[i, j]))
        sums[thread] = total
        cuda.syncthreads()
        if thread == 0:
            for other in range(1, THREADS):
                total += sums[other]
            dots[i, g] = total
        cuda.syncthreads()
