"""GPU kernels of the Fisher information: one column reduction."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numbacalib.runtime import columns_gpu, device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier
from numbacalib.runtime.launch import launch

SHARED = columns_gpu.TALL[::-1]


def mean_squares(gradients: Any, dtype: np.dtype, out: Any) -> Any:
    """See `numbacalib.fisher_information`."""
    samples, parameters = gradients.shape
    source = carrier(gradients)
    how = columns_gpu.plan(source)
    out = device.empty((parameters,), dtype) if out is None else out
    segments = how.grid[1]
    if segments == 1:
        means = out.reshape(1, parameters)
        columns_gpu.reduce_rows(source, how, columns_gpu.SQUARES, dtype.type(samples), means)
        return device.result(out)
    partial = device.empty((segments, parameters), dtype)
    columns_gpu.reduce_rows(source, how, columns_gpu.SQUARES, dtype.type(1), partial)
    partial = columns_gpu.shortened(partial, columns_gpu.add)
    blocks = -(-parameters // columns_gpu.TALL[0])
    real: Any = dtype.type
    launch(_mean(real), blocks, columns_gpu.TALL, partial, dtype.type(samples), out)
    return device.result(out)


@functools.cache
def _mean(real: type) -> Any:
    merged = columns_gpu.merger(columns_gpu.add)

    @cuda.jit
    def mean(partial, samples, out):
        """Add the segments of each column. Threads: see `columns_gpu.merger`."""
        shared = cuda.shared.array(SHARED, real)
        i = cuda.grid(2)[0]
        total = merged(partial, i, shared)
        if cuda.threadIdx.y == 0 and i < len(out):
            out[i] = total / samples

    return mean
