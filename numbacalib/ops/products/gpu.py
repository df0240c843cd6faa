"""Products on a GPU: cuBLAS, and a block a group for the dot products."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.ops.matrix.gpu import contiguous
from numbacalib.runtime import blas_gpu, device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import MOST_BLOCKS, launch
from numbacalib.runtime.pairs_gpu import Pair, add_products

THREADS = device.sized(128, simulated=4)
LARGE = 512
"""Rows, columns and summed elements from which a product repays splitting its operands."""


def product(left: Any, right: Any) -> Any:
    """See `numbacalib.ops.products.product`; on capability 9.0 large ones are of pairs of bfloat16."""
    left, right = contiguous(left), contiguous(right)
    shape = left.shape[0], right.shape[1]
    if repays_pairs(min(shape), len(right), left.dtype):
        result = device.zeros(shape, np.float32)
        add_products(Pair.of(left), Pair.of(right), result.reshape(1, *shape))
    else:
        result = device.empty(shape, left.dtype)
        blas_gpu.multiply(left, right, result)
    return device.result(result)


def repays_pairs(shorter: int, depth: int, dtype: np.dtype) -> bool:
    """Return whether a product is faster with pairs of bfloat16 than in float32.

    `shorter` is the smaller of its numbers of rows and columns, `depth` that of the elements it sums.
    """
    large = dtype == np.float32 and min(shorter, depth) >= LARGE
    return bool(large and blas_gpu.has_libraries() and device.has_capability_9_0())


def add_moment(target: Any, left: Any, right: Any, factor: float, keep: float) -> None:
    """See `numbacalib.ops.products.add_moment`; 16-bit ones on capability 9.0 by tiles of our own."""
    if left.dtype.itemsize == 2 and device.has_capability_9_0():
        from numbacalib.runtime.moments_gpu import add_moment

        x: Any = carrier(left)
        y: Any = carrier(right)
        add_moment(x, y, target, factor, keep)
        return
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
