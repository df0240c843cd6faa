"""Tensor-core form of the Hessian update, for compute capability 9.0.

float32 blocks are split into two float16 matrices, whose products `runtime.moments_gpu` adds up.
"""

from __future__ import annotations

import numpy as np
from numba.cuda import types

from numbacalib.ops.gptq_hessian_update import operands
from numbacalib.runtime.device import DeviceArray, cuda
from numbacalib.runtime.finite_gpu import NONE
from numbacalib.runtime.half import widen
from numbacalib.runtime.launch import launch
from numbacalib.runtime.moments_gpu import CHUNK_ROWS, Operand, Target, add_square, aligned
from numbacalib.runtime.product import ROWS

CHUNK_BYTES = 256 << 20
"""Bound on the two halves of a float32 block; longer blocks are taken in chunks of rows."""


def rank_update(
    hessian: DeviceArray,
    x: DeviceArray,
    alpha: float,
    beta: float,
    out: DeviceArray,
    first_bad: DeviceArray,
) -> None:
    """Set `out` to ``beta * hessian + alpha * x^T x``; x in float32 or as a 16-bit carrier.

    Nothing is written if `first_bad` of a `FiniteCheck` holds an index.
    """
    rows, columns = x.shape
    if hessian.address != out.address and not (
        hessian.dtype == out.dtype and hessian.is_c_contiguous()
    ):
        grid = -(-columns // 256), min(columns, 32768)
        launch(_widen, grid, 256, hessian, out, first_bad)
        hessian = out
    halves = x.dtype.itemsize == 2
    length = CHUNK_ROWS if halves else max(ROWS, CHUNK_BYTES // (4 * columns) // ROWS * ROWS)
    for first in range(0, rows, length):
        chunk = x[first : first + length]
        target = Target(hessian, out, alpha, beta, first_bad)
        if halves:
            add_square(Operand([aligned(chunk)]), target)
        else:
            *parts, scales = operands.split(chunk)
            add_square(Operand(parts, scales), target)
            factor = np.float32(alpha)
            launch(_add_nonfinite, columns, 256, chunk, scales, out, factor, first_bad)
        hessian, beta = out, 1.0


@cuda.jit
def _widen(hessian, out, first_bad):
    """Copy a matrix of any type and strides. One thread a column, blocks stride over the rows."""
    column = cuda.grid(1)
    if column < out.shape[1] and first_bad[0] == NONE:
        for row in range(types.int64(cuda.blockIdx.y), out.shape[0], cuda.gridDim.y):
            out[row, column] = widen(hessian[row, column])


@cuda.jit
def _add_nonfinite(x, scales, out, alpha, first_bad):
    """Add the products of columns that hold a NaN or infinity. One block a column, nearly all idle."""
    i = types.int64(cuda.blockIdx.x)
    if scales[i] != 0 or first_bad[0] < NONE:
        return
    for j in range(cuda.threadIdx.x, x.shape[1], cuda.blockDim.x):
        if scales[j] == 0 and j < i:
            continue
        total = np.float32(0)
        for row in range(x.shape[0]):
            total += x[row, i] * x[row, j]
        value = out[i, j] + alpha * total
        out[i, j] = value
        out[j, i] = value
