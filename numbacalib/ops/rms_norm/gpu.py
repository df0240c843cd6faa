"""GPU kernel of RMSNorm."""

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
BATCH = device.sized(8, simulated=2)
"""Columns that a thread reads before it writes the first, so that its reads overlap."""


def rms_norm(x: Any, weight: Any, eps: np.float32, dtype: np.dtype) -> Any:
    """See `numbacalib.ops.rms_norm.rms_norm`."""
    result = device.empty(x.shape, dtype)
    launch(_normalize, x.shape[0], THREADS, carrier(x), weight, eps, carrier(result))
    return result


@cuda.jit
def _normalize(x, weight, eps, result):
    """One block a row, its threads every `THREADS`-th column."""
    parts = cuda.shared.array(THREADS, np.float32)
    i, thread = np.int64(cuda.blockIdx.x), cuda.threadIdx.x
    columns = x.shape[1]
    squares = np.float32(0)
    for j in range(thread, columns, THREADS):
        value = np.float32(widen(x[i, j]))
        squares += value * value
    parts[thread] = squares
    inverse = inverse_rms(block_sum(parts, thread), columns, eps)
    values = cuda.local.array(BATCH, np.float32)
    for first in range(thread, columns, BATCH * THREADS):
        for k in range(BATCH):
            j = min(first + k * THREADS, columns - 1)
            values[k] = np.float32(widen(x[i, j])) * inverse * weight[j]
        for k in range(BATCH):
            j = first + k * THREADS
            if j < columns:
                result[i, j] = narrow(values[k], result[i, j])
