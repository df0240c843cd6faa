"""GPU kernels for the blocks of the diagonal of a factor, and the look at a factor that came."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numbacalib.ops.gptq_quantize_column.tiles_gpu import BLOCK, STEP, THREADS, at
from numbacalib.runtime.device import SIMULATED, cuda
from numbacalib.runtime.half import widen

SMALL_TILE = 2 if SIMULATED else 16
"""Edge of the tiles in which blocks of the diagonal are inverted, an element a thread."""


@cuda.jit
def diagonal_blocks(factors, starts, inverses):
    """Copy the blocks of the diagonal. Threads: one a column. Blocks: the same, factor."""
    block, e = cuda.blockIdx.x, cuda.blockIdx.y
    begin, end = starts[block], starts[block + 1]
    for j in range(cuda.threadIdx.x, end - begin, THREADS):
        for i in range(j + 1):
            inverses[e, block, i, j] = factors[e, begin + i, begin + j]


@functools.cache
def invert_blocks(real: type) -> Any:
    """Build the kernel that inverts the upper triangular blocks of the diagonal."""

    @cuda.jit
    def invert(factors, starts, inverses):
        """Solve ``R X = I`` for `SMALL_TILE` columns of X, a tile of rows at a time from the last up.

        ``X_ij = R_ii^-1 (I_ij - sum_{i < k <= j} R_ik X_kj)`` for tiles i of rows and j of columns.
        Blocks: block, tile of columns, factor. Threads: an element of the tile each.
        """
        x = cuda.shared.array((BLOCK, SMALL_TILE), real)
        tile = cuda.shared.array((SMALL_TILE, SMALL_TILE), real)
        small = cuda.shared.array((SMALL_TILE, SMALL_TILE), real)
        right = cuda.shared.array((SMALL_TILE, SMALL_TILE), real)
        block, e = cuda.blockIdx.x, at(cuda.blockIdx.z)
        factor, inverse = factors[e], inverses[e]
        begin, end = starts[block], starts[block + 1]
        width = end - begin
        r, c = cuda.threadIdx.x // SMALL_TILE, cuda.threadIdx.x % SMALL_TILE
        left = np.int64(cuda.blockIdx.y) * SMALL_TILE
        for i in range(left + SMALL_TILE, BLOCK, SMALL_TILE):
            x[at(i + r), at(c)] = real(0)
        for i in range(left, -1, -SMALL_TILE):
            total = real(i + r == left + c)
            row = begin + min(i + r, width - 1)
            for m in range(i + SMALL_TILE, min(left + SMALL_TILE, width)):
                total -= factor[at(row), at(begin + m)] * x[at(m), at(c)]
            right[at(r), at(c)] = total
            inside = i + r < width and i + c < width
            row, column = begin + min(i + r, width - 1), begin + min(i + c, width - 1)
            element = factor[at(row), at(column)]
            tile[at(r), at(c)] = element if inside else real(r == c)
            cuda.syncthreads()
            if r == 0:
                invert_tile(tile, small, c)
            cuda.syncthreads()
            total = real(0)
            for m in range(SMALL_TILE):
                total += small[at(r), at(m)] * right[at(m), at(c)]
            x[at(i + r), at(c)] = total
            cuda.syncthreads()
        for i in range(r, BLOCK, SMALL_TILE):
            inverse[block, at(i), at(left + c)] = x[at(i), at(c)]

    @cuda.jit(device=True)
    def invert_tile(tile, small, c):
        """Find column c of the inverse of an upper triangular tile, from the last row up."""
        for i in range(SMALL_TILE - 1, -1, -1):
            total = real(i == c)
            for m in range(i + 1, SMALL_TILE):
                total -= tile[at(i), at(m)] * small[at(m), at(c)]
            small[at(i), at(c)] = total / tile[at(i), at(i)]

    return invert


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
                    element = 1 / inverses[e, block, i, j]
            factors[e, block, step, p * STEP + k] = element


@cuda.jit
def inspect_factor(source, factor, findings):
    """Copy a factor and look at it: first diagonal entry not positive, anything below the diagonal.

    Threads: one a column, blocks stride over the rows. Integer extrema have one result in any order.
    """
    j = cuda.grid(1)
    if j < source.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), source.shape[0], cuda.gridDim.y):
            factor[i, j] = widen(source[i, j])
            if i > j and factor[i, j] != 0:
                findings[1] = 1
            if i == j:
                if factor[i, j] > 0:
                    cuda.atomic.max(findings, 2, np.float64(factor[i, j]).view(np.int64))
                else:
                    cuda.atomic.min(findings, 0, j)


@cuda.jit
def measure_asymmetry(factor, findings):
    """Bits of the largest ``|A[i, j] - A[j, i]|``. Threads: one a column, blocks stride over rows."""
    j = cuda.grid(1)
    if j < factor.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), j, cuda.gridDim.y):
            difference = abs(np.float64(factor[i, j]) - np.float64(factor[j, i]))
            cuda.atomic.max(findings, 3, difference.view(np.int64))
