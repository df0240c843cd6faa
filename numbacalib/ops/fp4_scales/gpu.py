"""GPU kernel of the search of FP4 scales: a thread a row's group; a block's threads read one block of H."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime import device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import MOST_BLOCKS, launch
from numbacalib.spec.grid import E2M1, Grid, code_of, value_of
from numbacalib.spec.small_floats import BITS, Fp4, first_scale

THREADS = device.sized(128, simulated=4)


def search_fp4_scales(
    matrix: Any,
    form: Fp4,
    divisor: np.float32,
    steps: NDArray[np.int64],
    hessian: Any,
    importance: Any,
) -> Any:
    """See `numbacalib.ops.fp4_scales.search_fp4_scales`."""
    rows, channels = matrix.shape
    groups = channels // form.group_size
    scales = device.empty((rows, groups), np.float32)
    if importance is None:
        importance = device.from_host(np.ones((1, channels), np.float32))
    weighs_blocks = hessian is not None
    if not weighs_blocks:
        hessian = device.from_host(np.zeros((1, 1), np.float32))
    found = form.scales
    tables = [device.from_host(table) for table in (found.values, found.limits, steps)]
    bounds = Grid(BITS, symmetric=True, element=E2M1).bounds(np.dtype(np.float32))
    weights = carrier(hessian), weighs_blocks, carrier(importance)
    launch(
        _search(form.group_size),
        (-(-rows // THREADS), min(groups, MOST_BLOCKS)),
        THREADS,
        carrier(matrix),
        *weights,
        *tables,
        found.one,
        divisor,
        bounds,
        scales,
    )
    return device.result(scales)


@functools.cache
def _search(size: int) -> Any:
    """Build the kernel for groups of `size` weights, which threads hold in registers."""

    @cuda.jit
    def search(
        matrix,
        hessian,
        weighs_blocks,
        importance,
        values,
        limits,
        steps,
        one,
        divisor,
        bounds,
        scales,
    ):
        """Threads: one a row. Blocks: rows, groups that stride."""
        weights = cuda.local.array(size, np.float32)
        errors = cuda.local.array(size, np.float32)
        i = cuda.grid(1)
        if i < scales.shape[0]:
            row = min(i, importance.shape[0] - 1)
            zero = np.float32(0)
            for g in range(np.int64(cuda.blockIdx.y), scales.shape[1], cuda.gridDim.y):
                begin = g * size
                largest = np.float32(0)
                for j in range(size):
                    weights[j] = np.float32(widen(matrix[i, begin + j]))
                    largest = max(largest, abs(weights[j]))
                first = first_scale(largest * divisor, limits)
                if largest == 0:
                    first = one
                found = values[first] / divisor
                best = np.float32(np.inf)
                for step in steps:
                    code = min(max(first + step, 0), len(values) - 1)
                    scale = values[code] / divisor
                    if scale == 0:
                        scale = found
                    for j in range(size):
                        point = code_of(weights[j], scale, zero, bounds)
                        errors[j] = value_of(point, scale, zero) - weights[j]
                    loss = np.float32(0)
                    for j in range(size):
                        if weighs_blocks:
                            product = np.float32(0)
                            for k in range(size):
                                factor = np.float32(widen(hessian[begin + j, begin + k]))
                                product += factor * errors[k]
                        else:
                            factor = np.float32(widen(importance[row, begin + j]))
                            product = factor * errors[j]
                        loss += product * errors[j]
                    if loss < best:
                        best = loss
                        found = scale
                scales[i, g] = found

    return search
