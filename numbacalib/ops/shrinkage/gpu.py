"""GPU kernels of the shrinkage."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.ops.columns import gpu as columns
from numbacalib.ops.columns.reductions_gpu import VALUES
from numbacalib.runtime import device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import column_blocks, launch

THREADS = device.sized(128, simulated=4)


def shrunk(hessians: Any, factors: np.ndarray) -> Any:
    """Multiply the entries off the diagonal of each H by a factor, in the factors' dtype."""
    count, size, _ = hessians.shape
    result = device.empty(hessians.shape, factors.dtype)
    blocks = *column_blocks((size, size), THREADS), count
    launch(_shrunk, blocks, THREADS, carrier(hessians), device.from_host(factors), result)
    return device.result(result)


def correlation_sums(hessian: Any) -> tuple[float, float]:
    """See `numbacalib.ops.shrinkage.correlation_sums`."""
    sums = device.empty((len(hessian), 2), np.float64)
    launch(_row_sums, len(hessian), THREADS, carrier(hessian), sums)
    totals = columns.column_sums(sums, VALUES, np.float64(1))
    noise, signal = device.read(totals).tolist()
    return noise, signal


@cuda.jit
def _shrunk(hessians, factors, result):
    """Threads: one a column, blocks stride over the rows; z: matrix."""
    e = cuda.blockIdx.z
    j = cuda.grid(1)
    if j < result.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), result.shape[1], cuda.gridDim.y):
            element = widen(hessians[e, i, j])
            result[e, i, j] = element if i == j else factors[e] * element


@cuda.jit
def _row_sums(hessian, sums):
    """Blocks: one a row, whose threads stride over the columns; added in order."""
    noises = cuda.shared.array(THREADS, np.float64)
    signals = cuda.shared.array(THREADS, np.float64)
    i, thread = np.int64(cuda.blockIdx.x), cuda.threadIdx.x
    own = float(widen(hessian[i, i]))
    noise = 0.0
    signal = 0.0
    for j in range(thread, hessian.shape[0], THREADS):
        other = float(widen(hessian[j, j]))
        if i != j and own > 0 and other > 0:
            square = float(widen(hessian[i, j])) ** 2 / (own * other)
            noise += (1 - square) * (1 - square)
            signal += square
    noises[thread], signals[thread] = noise, signal
    cuda.syncthreads()
    if thread == 0:
        for other_thread in range(1, THREADS):
            noise += noises[other_thread]
            signal += signals[other_thread]
        sums[i, 0], sums[i, 1] = noise, signal
