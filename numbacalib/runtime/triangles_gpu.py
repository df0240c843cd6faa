"""GPU kernel that inverts triangular blocks on the diagonal of a factor."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numbacalib.runtime.device import cuda, sized
from numbacalib.runtime.jit import scalar

SMALL_TILE = sized(16, simulated=2)
"""Edge of the tiles in which blocks are inverted, one thread per element."""


@scalar
def at(index):
    """Return an unsigned index: for signed ones, Numba's wraparound costs several instructions per load."""
    return np.uint64(index)


@functools.cache
def invert_blocks(real: type, length: int) -> Any:
    """Build the kernel that inverts upper triangular blocks of a diagonal, of order at most `length`."""

    @cuda.jit
    def invert(factors, starts, inverses):
        """Solve ``R X = I`` for `SMALL_TILE` columns of X, a tile of rows at a time from the last up.

        ``X_ij = R_ii^-1 (I_ij - sum_{i < k <= j} R_ik X_kj)`` for tiles i of rows and j of columns.
        Blocks: block, tile of columns, factor. Threads: one per element of the tile.
        """
        x = cuda.shared.array((length, SMALL_TILE), real)
        tile = cuda.shared.array((SMALL_TILE, SMALL_TILE), real)
        small = cuda.shared.array((SMALL_TILE, SMALL_TILE), real)
        right = cuda.shared.array((SMALL_TILE, SMALL_TILE), real)
        block, e = cuda.blockIdx.x, at(cuda.blockIdx.z)
        factor, inverse = factors[e], inverses[e]
        begin, end = starts[block], starts[block + 1]
        width = end - begin
        r, c = cuda.threadIdx.x // SMALL_TILE, cuda.threadIdx.x % SMALL_TILE
        left = np.int64(cuda.blockIdx.y) * SMALL_TILE
        for i in range(left + SMALL_TILE, length, SMALL_TILE):
            x[at(i + r), at(c)] = real(0)
        for i in range(left, -1, -SMALL_TILE):
            total = real(i + r == left + c)
            row = begin + min(i + r, width - 1)
            for first in range(i + SMALL_TILE, left + SMALL_TILE, SMALL_TILE):
                for k in range(SMALL_TILE):  # unrolled, so that loads overlap
                    m = first + k
                    total -= factor[at(row), at(begin + min(m, width - 1))] * x[at(m), at(c)]
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
        for i in range(r, length, SMALL_TILE):
            inverse[block, at(i), at(left + c)] = x[at(i), at(c)]

    @cuda.jit(device=True)
    def invert_tile(tile, small, c):
        """Find column c of the inverse of an upper triangular tile, from the last row up.

        The updates of the elements above do not wait for each other.
        """
        column = cuda.local.array(SMALL_TILE, real)
        for i in range(SMALL_TILE):
            column[i] = real(i == c)
        for i in range(SMALL_TILE - 1, -1, -1):
            column[i] /= tile[at(i), at(i)]
            for above in range(i):
                column[above] -= tile[at(above), at(i)] * column[i]
        for i in range(SMALL_TILE):
            small[at(i), at(c)] = column[i]

    return invert
