"""A linear layer's product on a GPU: cuBLAS, on tensor cores for 16-bit floats."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.blas_gpu import add_linear
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.launch import column_blocks, launch

THREADS = device.sized(256, simulated=4)


def product(x: Any, weight: Any, bias: Any, dtype: np.dtype) -> Any:
    """See `numbacalib.ops.linear.linear`."""
    result = device.empty((x.shape[0], weight.shape[0]), dtype)
    if bias is not None:
        launch(_fill, column_blocks(result.shape, THREADS), THREADS, bias, carrier(result))
    add_linear(x, weight, result, keep=bias is not None)
    return result


def add_product(x: Any, weight: Any, bias: Any, target: Any) -> None:
    """Add the product to `target` [N, M]."""
    if bias is not None:
        launch(_add, column_blocks(target.shape, THREADS), THREADS, bias, target)
    add_linear(x, weight, target, keep=True)


@cuda.jit
def _fill(bias, target):
    """Set each row to the bias. Threads: one a column, blocks stride over the rows."""
    j = cuda.grid(1)
    if j < target.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), target.shape[0], cuda.gridDim.y):
            target[i, j] = narrow(widen(bias[j]), target[i, j])


@cuda.jit
def _add(bias, target):
    """Add the bias to each row. Threads: one a column, blocks stride over the rows."""
    j = cuda.grid(1)
    if j < target.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), target.shape[0], cuda.gridDim.y):
            target[i, j] += bias[j]
