"""Tiles of the weight on the GPU, and GPTQ's matrix products of them.

A thread block owns a tile of a few rows by one block of columns; in a product thread t owns neighbouring
columns of neighbouring rows.

Inside a block columns have positions. A group starts at a multiple of `STEP`, so a group whose size is
not a multiple is followed by empty positions: weight 0, no coupling, nothing stored.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np

from numbacalib.runtime.device import cuda, sized
from numbacalib.runtime.half import widen
from numbacalib.runtime.triangles_gpu import at

BLOCK = sized(128, simulated=12)
"""Positions of a block: the recurrence stays in shared memory."""
STEP = sized(8, simulated=4)
"""Positions that a thread walks in registers."""
STEPS = BLOCK // STEP
STAGE = STEP * BLOCK
"""Coefficients that a step needs: of each of its positions with each of the block's."""
THREADS, ACROSS = sized((128, 32), simulated=(4, 2))
DOWN = THREADS // ACROSS
FETCHED = STAGE // THREADS
"""Numbers of a stage that a thread fetches."""
COLUMNS = BLOCK // ACROSS
"""Positions that a thread owns in a product."""
DEPTH = sized(16, simulated=4)
"""Rows of the right operand that a product holds in shared memory at a time."""
RIGHT = DEPTH * BLOCK
ALIGNMENT = sized(16, simulated=None)
"""Bytes to which shared arrays that are read 16 bytes at a time are aligned."""
EMPTY = np.int64(-1)
"""Column of an empty position."""


@functools.cache
def tile_rows(real: type) -> int:
    """Rows of a tile: as many as shared memory and registers hold."""
    return sized(32 if real == np.float32 else 16, simulated=2)


def tile_count(height: int, factors: int, real: type) -> int:
    """Tiles of all rows, which are runs of equal length, one for each factor."""
    return factors * -(-(height // factors) // tile_rows(real))


@functools.cache
def row_tile(real: type) -> Any:
    """Build the device function that locates a block's tile of rows."""
    rows = tile_rows(real)

    @cuda.jit(device=True)
    def place(height, factors):
        """Factor of the tile, its first row, and the row past the last of its run."""
        run = height // factors
        tiles = -(-run // rows)
        e = np.int64(cuda.blockIdx.x) // tiles
        return at(e), e * run + np.int64(cuda.blockIdx.x) % tiles * rows, (e + 1) * run

    return place


@cuda.jit(device=True)
def clear(sums):
    """Set a thread's sums to zero."""
    for i in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            sums[i, j] = 0


@cuda.jit(device=True)
def keep(ahead, stages, stage):
    """Write the part of a stage that the thread has fetched to shared memory."""
    for n in range(FETCHED):
        stages[at(stage + cuda.threadIdx.x + n * THREADS)] = ahead[n]


@cuda.jit(device=True)
def stored(_, history, row, column):
    """Element of a product's left operand: that in memory."""
    return history[row, column]


@cuda.jit(device=True)
def difference(weight, compensated, row, column):
    """Element of a product's left operand: the weight less the compensated one."""
    return widen(weight[row, column]) - compensated[row, column]


@functools.cache
def product_adder(load: Any, real: type) -> Any:
    """Build the device function that adds a product to a tile: see its docstring."""
    rows = tile_rows(real)
    own_rows = rows // DOWN
    left_loads, right_columns = DEPTH * rows // THREADS, BLOCK // THREADS

    @cuda.jit(device=True)
    def fetch_left(weight, left, top, k, k_end, ahead):
        """Prefetch the next columns of the tile's rows."""
        for n in range(left_loads):
            index = cuda.threadIdx.x + n * THREADS
            row, column = top + index // DEPTH, k + index % DEPTH
            inside = column < k_end and row < left.shape[0]
            # a conditional load would wait for those before: load anyway, then select
            row, column = min(row, left.shape[0] - 1), min(column, k_end - 1)
            element = load(weight, left, at(row), at(column))
            ahead[n] = element if inside else real(0)

    @cuda.jit(device=True)
    def fetch_right(right, row, row_end, columns, ahead):
        """Prefetch the next rows of the thread's columns."""
        for q in range(right_columns):
            column = columns[q]
            if row + DEPTH <= row_end:
                for n in range(DEPTH):
                    ahead[n, q] = right[at(row + n), at(column)]
            else:
                for n in range(DEPTH):
                    element = right[at(min(row + n, row_end - 1)), at(column)]
                    ahead[n, q] = element if row + n < row_end else real(0)

    @cuda.jit(device=True)
    def add_product(sums, weight, left, top, k, k_end, right, first, columns, a, b):
        """Add ``left[top:top + rows, k:k_end] @ right[k - first:k_end - first, columns]`` to `sums`.

        `a` and `b` are shared memory, `b` flat. Every thread of the block calls this. Rows past the
        end of `left` count as zero; the sums of empty columns are undefined.
        """
        if k >= k_end:
            return
        left_ahead = cuda.local.array(left_loads, real)
        right_ahead = cuda.local.array((DEPTH, right_columns), real)
        own_columns = cuda.local.array(right_columns, np.int64)
        thread = cuda.threadIdx.x
        down, across = thread // ACROSS, thread % ACROSS
        for q in range(right_columns):
            # the first column stands in for empty ones: right of the diagonal, it is set
            own_columns[q] = max(columns[at(thread + q * THREADS)], columns[0])
        fetch_left(weight, left, top, k, k_end, left_ahead)
        fetch_right(right, k - first, k_end - first, own_columns, right_ahead)
        while k < k_end:
            for n in range(left_loads):
                index = thread + n * THREADS
                a[at(index % DEPTH), at(index // DEPTH)] = left_ahead[n]
            for n in range(DEPTH):
                for q in range(right_columns):
                    b[at(n * BLOCK + thread + q * THREADS)] = right_ahead[n, q]
            cuda.syncthreads()
            k += DEPTH
            if k < k_end:
                fetch_left(weight, left, top, k, k_end, left_ahead)
                fetch_right(right, k - first, k_end - first, own_columns, right_ahead)
            for pair in range(0, DEPTH, 2):
                for i in range(2):  # unrolled, so that the loads of two rows overlap
                    for r in range(own_rows):
                        for c in range(COLUMNS):
                            x = a[at(pair + i), at(down * own_rows + r)]
                            y = b[at((pair + i) * BLOCK + across * COLUMNS + c)]
                            sums[r, c] += x * y
            cuda.syncthreads()

    return add_product


@functools.cache
def product_kernels(real: type) -> SimpleNamespace:
    """Build the kernels around the recurrence, which compute in `real`."""
    rows = tile_rows(real)
    own_rows = rows // DOWN
    pitch = rows + 4
    place = row_tile(real)
    add_history = product_adder(stored, real)
    add_difference = product_adder(difference, real)

    @cuda.jit
    def start(weight, history, losses):
        """Fill the history with the weight. Threads: one a column, blocks stride over the rows."""
        j = cuda.grid(1)
        for i in range(np.int64(cuda.blockIdx.y), history.shape[0], cuda.gridDim.y):
            if j < history.shape[1]:
                history[i, j] = widen(weight[i, j])
            if j == 0:
                losses[i] = 0

    @cuda.jit
    def couple(factors, inverses, starts, couplings):
        """Set ``C = R blockdiag(R_bb)^-1`` above the blocks of the diagonal.

        Blocks: row tile, block, factor.
        """
        a = cuda.shared.array((DEPTH, pitch), real, ALIGNMENT)
        b = cuda.shared.array(RIGHT, real, ALIGNMENT)
        columns = cuda.shared.array(BLOCK, np.int64)
        sums = cuda.local.array((own_rows, COLUMNS), real)
        top = np.int64(cuda.blockIdx.x) * rows
        block, e = cuda.blockIdx.y, at(cuda.blockIdx.z)
        factor, inverse, coupling = factors[e], inverses[e, block], couplings[e]
        begin, end = starts[block], starts[block + 1]
        if top >= begin:
            return
        for p in range(cuda.threadIdx.x, BLOCK, THREADS):
            columns[p] = p if p < end - begin else EMPTY
        cuda.syncthreads()
        clear(sums)
        add_history(sums, factor, factor, top, begin, end, inverse, begin, columns, a, b)
        down, across = cuda.threadIdx.x // ACROSS, cuda.threadIdx.x % ACROSS
        for i in range(own_rows):
            for j in range(COLUMNS):
                row, column = top + down * own_rows + i, begin + across * COLUMNS + j
                if row < begin and column < end:
                    coupling[row, column] = sums[i, j]

    @cuda.jit
    def compensate(couplings, begin, end, history):
        """Add ``S_{<p} C_{<p, p}`` to the weights of panel p. Blocks: row tile, tile of columns."""
        a = cuda.shared.array((DEPTH, pitch), real, ALIGNMENT)
        b = cuda.shared.array(RIGHT, real, ALIGNMENT)
        columns = cuda.shared.array(BLOCK, np.int64)
        sums = cuda.local.array((own_rows, COLUMNS), real)
        e, top, height = place(history.shape[0], couplings.shape[0])
        coupling = couplings[e]
        first = begin + np.int64(cuda.blockIdx.y) * BLOCK
        for p in range(cuda.threadIdx.x, BLOCK, THREADS):
            columns[p] = first + p if first + p < end else EMPTY
        cuda.syncthreads()
        clear(sums)
        add_history(sums, history, history, top, 0, begin, coupling, 0, columns, a, b)
        down, across = cuda.threadIdx.x // ACROSS, cuda.threadIdx.x % ACROSS
        for i in range(own_rows):
            for j in range(COLUMNS):
                row, column = top + down * own_rows + i, first + across * COLUMNS + j
                if row < height and column < end:
                    history[row, column] += sums[i, j]

    @cuda.jit
    def look_ahead(weight, couplings, starts, first, last, history, ahead):
        """Compensate a panel as if its own columns could be stored exactly, for the group's scale.

        Then their errors e are 0 and ``W - W'`` stands for ``W - Q``. Blocks: row tile.
        """
        a = cuda.shared.array((DEPTH, pitch), real, ALIGNMENT)
        b = cuda.shared.array(RIGHT, real, ALIGNMENT)
        columns = cuda.shared.array(BLOCK, np.int64)
        sums = cuda.local.array((own_rows, COLUMNS), real)
        e, top, height = place(history.shape[0], couplings.shape[0])
        coupling = couplings[e]
        down, across = cuda.threadIdx.x // ACROSS, cuda.threadIdx.x % ACROSS
        for block in range(first, last):
            begin, end = starts[block], starts[block + 1]
            for p in range(cuda.threadIdx.x, BLOCK, THREADS):
                columns[p] = begin + p if begin + p < end else EMPTY
            cuda.syncthreads()
            clear(sums)
            add_difference(
                sums, weight, ahead, top, starts[first], begin, coupling, 0, columns, a, b
            )
            for i in range(own_rows):
                for j in range(COLUMNS):
                    row, column = top + down * own_rows + i, begin + across * COLUMNS + j
                    if row < height and column < end:
                        ahead[row, column] = history[row, column] + sums[i, j]
            cuda.syncthreads()

    return SimpleNamespace(start=start, couple=couple, compensate=compensate, look_ahead=look_ahead)
