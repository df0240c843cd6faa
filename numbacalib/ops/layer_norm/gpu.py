"""GPU kernel of LayerNorm."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.block_gpu import block_sum
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.launch import launch
from numbacalib.spec.decoder import inverse_rms

THREADS = device.sized(256, simulated=4)
"""A power of two, for the sum of the threads' parts."""


def layer_norm(x: Any, weight: Any, bias: Any, eps: np.float32, dtype: np.dtype) -> Any:
    """See `numbacalib.ops.layer_norm.layer_norm`; matrices."""
    result = device.empty(x.shape, dtype)
    if bias is None:
        bias = device.zeros((1, x.shape[1]), np.float32)
    launch(_normalize, x.shape[0], THREADS, carrier(x), weight, bias, eps, carrier(result))
    return result


@cuda.jit
def _normalize(x, weight, bias, eps, result):
    """One block a row, its threads every `THREADS`-th column."""
    parts = cuda.shared.array(THREADS, np.float32)
    i, thread = np.int64(cuda.blockIdx.x), cuda.threadIdx.x
    columns = x.shape[1]
    total = np.float32(0)
    for j in range(thread, columns, THREADS):
        total += np.float32(widen(x[i, j]))
    parts[thread] = total
    mean = block_sum(parts, thread) / np.float32(columns)
    cuda.syncthreads()  # all threads have read it before it is overwritten
    squares = np.float32(0)
    for j in range(thread, columns, THREADS):
        value = np.float32(widen(x[i, j])) - mean
        squares += value * value
    parts[thread] = squares
    inverse = inverse_rms(block_sum(parts, thread), columns, eps)
    row, other = i % weight.shape[0], i % bias.shape[0]
    for j in range(thread, columns, THREADS):
        value = (np.float32(widen(x[i, j])) - mean) * inverse * weight[row, j] + bias[other, j]
        result[i, j] = narrow(value, result[i, j])
