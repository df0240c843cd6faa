"""Cholesky factors of many Hessians at once, from the last block of columns to the first.

LAPACK's routine for one matrix leaves most of the device idle at the sizes of a model's experts; here
each product is one call for all of them. With S_jp the part of H + damping in rows j and columns p that
is left by the columns k after p, ``S_jp = H_jp - sum_k R_jk R_pk^T``, the factor is ``R_pp R_pp^T = S_pp``
and ``R_jp = S_jp R_pp^-T``: no matrix is reversed. On capability 9.0 the products subtracted from float32
matrices are those of pairs of bfloat16, which keep 16 bits.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numbacalib.runtime import blas_gpu, device
from numbacalib.runtime.device import cuda, sized
from numbacalib.runtime.launch import launch
from numbacalib.runtime.pairs_gpu import Pair, add_products
from numbacalib.runtime.triangles_gpu import SMALL_TILE, at, invert_blocks

BLOCK = sized(128, simulated=12)
"""Columns that are factored together."""
LEAST = 4
"""Least number of matrices for a batch: fewer are faster one after the other."""
THREADS, ACROSS = 1024, 32
DOWN = THREADS // ACROSS
PITCH = BLOCK + 1


def factor(rest: Any, summary: Any) -> Any:
    """Return ``R`` [E, K, K] of damped Hessians, which are overwritten; `summary` gets the minors."""
    count, size, _ = rest.shape
    dtype = rest.dtype
    real: Any = dtype.type
    upper = device.zeros(rest.shape, dtype)
    inverse = device.empty((count, 1, BLOCK, BLOCK), dtype)
    pairs = dtype == np.float32 and device.has_capability_9_0()
    solved_pairs = Pair.empty(rest.shape) if pairs else None
    begins = range(0, size, BLOCK)
    starts = device.constant((*begins, size))
    factor_block, shared_bytes = _factor_block(real), PITCH * BLOCK * dtype.itemsize
    for p in reversed(range(len(begins))):
        begin = begins[p]
        end = min(begin + BLOCK, size)
        target = rest[:, :end, begin:end]
        if solved_pairs is not None and end < size:
            after = solved_pairs.columns(end, size)
            operands = after.rows(0, end), after.rows(begin, end)
            add_products(*operands, target, factor=-1.0, transposed=True)
        elif end < size:
            rows, columns = upper[:, :end, end:], upper[:, begin:end, end:]
            blas_gpu.add_products(rows, columns, target, factor=-1.0, transposed=True)
        launch(
            factor_block,
            count,
            THREADS,
            rest,
            begin,
            end,
            upper,
            summary,
            shared_bytes=shared_bytes,
        )
        if begin:
            threads = SMALL_TILE * SMALL_TILE
            grid = 1, BLOCK // SMALL_TILE, count
            launch(invert_blocks(real, BLOCK), grid, threads, upper, starts[p : p + 2], inverse)
            solved = inverse[:, 0, : end - begin, : end - begin]
            left, target = rest[:, :begin, begin:end], upper[:, :begin, begin:end]
            blas_gpu.add_products(left, solved, target, transposed=True)
        if solved_pairs is not None and begin:
            solved_pairs.rows(0, end).columns(begin, end).fill(upper[:, :end, begin:end])
    return upper


@functools.cache
def _factor_block(real: type) -> Any:
    @cuda.jit
    def factor_block(rest, begin, end, upper, summary):
        """Factor a block of the diagonal, ``S = R R^T``, column by column from the last.

        Blocks: matrix. Threads: every 32nd row and column of the part left to update.
        """
        s = cuda.shared.array(0, real)
        e, thread = cuda.blockIdx.x, cuda.threadIdx.x
        down, across = thread // ACROSS, thread % ACROSS
        width = end - begin
        for index in range(thread, width * width, THREADS):
            i, j = index // width, index % width
            s[at(i * PITCH + j)] = rest[e, begin + i, begin + j]
        cuda.syncthreads()
        for j in range(width - 1, -1, -1):
            pivot = s[at(j * PITCH + j)]
            scale = real(1) / math.sqrt(pivot)
            if thread == 0 and not pivot > 0 and summary[e, 3] == 0:
                summary[e, 3] = upper.shape[1] - begin - j
            for i in range(down, j, DOWN):
                left = s[at(i * PITCH + j)] * scale
                for k in range(i + (across - i) % ACROSS, j, ACROSS):
                    s[at(i * PITCH + k)] -= left * (s[at(k * PITCH + j)] * scale)
            cuda.syncthreads()
            # no thread reads this column any more
            for i in range(thread, j + 1, THREADS):
                s[at(i * PITCH + j)] *= scale
        cuda.syncthreads()
        for index in range(thread, width * width, THREADS):
            i, j = index // width, index % width
            if i <= j:
                upper[e, begin + i, begin + j] = s[at(i * PITCH + j)]

    return factor_block
