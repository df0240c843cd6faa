"""Coordinate descent on a GPU: a block a row. All its threads decide the same, and divide the pulls."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.ops.matrix.gpu import contiguous
from numbacalib.runtime import device
from numbacalib.runtime.blas_gpu import multiply
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import launch
from numbacalib.spec.code_descent import better_code
from numbacalib.spec.grid import Grid, value_of

THREADS = device.sized(128, simulated=4)


def descended_codes(
    codes: Any,
    scales: Any,
    zeros: Any,
    errors: Any,
    hessian: Any,
    group_of: np.ndarray,
    grid: Grid,
    damping: float,
) -> Any:
    """See `numbacalib.ops.code_descent.descended_codes`."""
    hessian, errors = contiguous(hessian), contiguous(errors)
    pulls = device.empty(errors.shape, errors.dtype)
    multiply(errors, hessian, pulls)
    found = device.empty(codes.shape, np.uint8)
    group = device.from_host(group_of)
    arguments = carrier(scales), zeros, group, grid.bounds(errors.dtype), errors, hessian
    wide = errors.dtype.type(damping)
    launch(_descend, codes.shape[0], THREADS, codes, *arguments, wide, pulls, found)
    return device.result(found)


@cuda.jit
def _descend(codes, scales, zeros, group_of, bounds, errors, hessian, damping, pulls, found):
    """Blocks: row. Threads stride over its columns; each of them walks through all codes."""
    i, thread = np.int64(cuda.blockIdx.x), cuda.threadIdx.x
    channels = codes.shape[1]
    for k in range(thread, channels, THREADS):
        pulls[i, k] += damping * errors[i, k]
    cuda.syncthreads()
    for j in range(channels):
        g = group_of[j]
        scale = pulls.dtype.type(widen(scales[i, g]))
        zero, code = pulls.dtype.type(zeros[i, g]), pulls.dtype.type(codes[i, j])
        curvature = hessian[j, j] + damping
        best = code
        if curvature > 0:
            best = better_code(code, pulls[i, j], curvature, scale, zero, bounds)
        if thread == 0:
            found[i, j] = np.uint8(best)
        if best != code:  # the same in all threads
            step = value_of(best, scale, zero) - value_of(code, scale, zero)
            cuda.syncthreads()  # all have read what they write now
            for k in range(j + 1 + thread, channels, THREADS):
                pulls[i, k] -= step * hessian[j, k]
            cuda.syncthreads()
