"""GPU kernels for the diagonal blocks of a factor, and for the checks of a given factor."""

from __future__ import annotations

import numpy as np

from numbacalib.ops.gptq_quantize_column.tiles_gpu import BLOCK, STEP, THREADS
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import widen
from numbacalib.spec.gptq import reciprocal


@cuda.jit
def diagonal_blocks(factors, starts, inverses):
    """Copy the diagonal blocks. Threads: one a column. Blocks: diagonal block, factor."""
    block, e = cuda.blockIdx.x, cuda.blockIdx.y
    begin, end = starts[block], starts[block + 1]
    for j in range(cuda.threadIdx.x, end - begin, THREADS):
        for i in range(j + 1):
            inverses[e, block, i, j] = factors[e, begin + i, begin + j]


@cuda.jit
def arrange(inverses, starts, size, padded, factors):
    """Lay out each block's ``U_bb`` as `walk` reads it: step, position, position within the step.

    The diagonal holds reciprocals. `size` and `padded` are a group's positions in a block without and
    with the empty ones. Blocks: block, step, factor. Threads: one a position.
    """
    block, step, e = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
    width = starts[block + 1] - starts[block]
    for p in range(cuda.threadIdx.x, BLOCK, THREADS):
        j = p // padded * size + p % padded
        exists = p % padded < size and j < width
        for k in range(STEP):
            q = step * STEP + k
            i = q // padded * size + q % padded
            element = factors.dtype.type(q == p)
            if exists and q % padded < size and i < width:
                if q < p:
                    element = inverses[e, block, i, j]
                if q == p:
                    element = reciprocal(inverses[e, block, i, j])
            factors[e, block, step, p * STEP + k] = element


@cuda.jit
def transpose(scales, zeros, turned_scales, turned_zeros):
    """Transpose two narrow matrices. Threads: one a row. Blocks: rows, column."""
    i, j = cuda.grid(1), cuda.blockIdx.y
    if i < scales.shape[0]:
        turned_scales[j, i] = widen(scales[i, j])
        turned_zeros[j, i] = zeros[i, j]


@cuda.jit
def inspect(source, least, factor, findings):
    """Copy a factor, and find its first diagonal entry below `least` and anything below the diagonal.

    Threads: one a column, blocks stride over the rows. Integer extrema have one result in any order.
    """
    j = cuda.grid(1)
    if j < source.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), source.shape[0], cuda.gridDim.y):
            factor[i, j] = widen(source[i, j])
            if i > j and factor[i, j] != 0:
                findings[1] = 1
            if i == j and not factor[i, j] >= least:
                cuda.atomic.min(findings, 0, j)


@cuda.jit
def measure_asymmetry(factor, findings):
    """Bits of the largest diagonal entry and of the largest ``|A[i, j] - A[j, i]|``.

    Threads: one a column, blocks stride over the rows.
    """
    j = cuda.grid(1)
    if j < factor.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), j + 1, cuda.gridDim.y):
            difference = abs(np.float64(factor[i, j]) - np.float64(factor[j, i]))
            cuda.atomic.max(findings, 1, difference.view(np.int64))
            if i == j:
                cuda.atomic.max(findings, 0, np.float64(factor[j, j]).view(np.int64))
