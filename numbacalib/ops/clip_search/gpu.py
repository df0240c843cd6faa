"""GPU kernels of the search of the clipping: a pass over the matrix for each share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.proxy_loss.gpu import group_losses
from numbacalib.runtime import checks, device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import column_blocks, launch
from numbacalib.spec.grid import Grid, clipped_grid, code_of, value_of

THREADS = device.sized(128, simulated=4)


def clip_scales(
    matrix: Any, hessian: Any, group_size: int, grid: Grid, shares: NDArray
) -> tuple[Any, Any]:
    """See `numbacalib.ops.clip_search.clip_scales`."""
    rows, channels = matrix.shape
    dtype = checks.result_dtype(matrix)
    lo, hi, scales, zeros = (device.empty((rows, channels // group_size), dtype) for _ in range(4))
    least = device.empty(scales.shape, np.float64)
    errors = device.empty(matrix.shape, dtype)
    bounds = grid.bounds(dtype)
    source = carrier(matrix)
    each_group = -(-scales.size // THREADS), THREADS
    each_weight = column_blocks((rows, channels), THREADS), THREADS
    launch(_ranges, *each_group, source, lo, hi, least)
    for share in shares:
        launch(_errors, *each_weight, source, lo, hi, share, bounds, errors)
        losses = group_losses(errors, hessian, group_size)
        launch(_keep, *each_group, losses, lo, hi, share, bounds, least, scales, zeros)
    return device.result(scales), device.result(zeros)


@cuda.jit
def _ranges(matrix, lo, hi, least):
    """Ends of each group's range, 0 included; no loss yet. Threads: one a group."""
    index = cuda.grid(1)
    if index < lo.size:
        i, g = index // lo.shape[1], index % lo.shape[1]
        size = matrix.shape[1] // lo.shape[1]
        low = lo.dtype.type(0)
        high = lo.dtype.type(0)
        for j in range(g * size, (g + 1) * size):
            low = min(low, widen(matrix[i, j]))
            high = max(high, widen(matrix[i, j]))
        lo[i, g], hi[i, g] = low, high
        least[i, g] = np.inf


@cuda.jit
def _errors(matrix, lo, hi, share, bounds, errors):
    """Errors on the grid of one share. Threads: one a column, blocks stride over the rows."""
    j = cuda.grid(1)
    if j < errors.shape[1]:
        g = j // (errors.shape[1] // lo.shape[1])
        for i in range(np.int64(cuda.blockIdx.y), errors.shape[0], cuda.gridDim.y):
            scale, zero = clipped_grid(lo[i, g], hi[i, g], share, bounds)
            weight = widen(matrix[i, j])
            errors[i, j] = value_of(code_of(weight, scale, zero, bounds), scale, zero) - weight


@cuda.jit
def _keep(losses, lo, hi, share, bounds, least, scales, zeros):
    """Keep the grids that lose less. Threads: one a group."""
    index = cuda.grid(1)
    if index < scales.size:
        i, g = index // scales.shape[1], index % scales.shape[1]
        strips = losses.shape[1] // scales.shape[1]
        loss = 0.0
        for strip in range(g * strips, (g + 1) * strips):
            loss += losses[i, strip]
        if loss < least[i, g]:
            least[i, g] = loss
            scales[i, g], zeros[i, g] = clipped_grid(lo[i, g], hi[i, g], share, bounds)
