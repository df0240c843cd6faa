"""GPU kernels of GPTQ: see `gpu` for the algebra.

A thread block owns a tile of a few rows by one block of columns. In matrix products thread t owns
neighbouring columns of neighbouring rows. Where columns depend on each other it owns row ``t % rows``,
together with a few other threads: all of them walk the next `STEP` columns in registers, each for
itself, and then they share out the columns that follow. That takes two barriers a step.

Inside a tile columns have positions. A group starts at a multiple of `STEP`, so a group whose size is
no such multiple is followed by empty positions: weight 0, no coupling, nothing stored.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np

from numbacalib.runtime.device import SIMULATED, cuda
from numbacalib.runtime.half import widen
from numbacalib.runtime.jit import scalar
from numbacalib.spec.grid import code_at, group_scale, group_zero, stored_scale, value_of

BLOCK = 12 if SIMULATED else 128
"""Positions of a block: the recurrence stays in shared memory."""
STEP = 4 if SIMULATED else 8
"""Positions that a thread walks in registers."""
STEPS = BLOCK // STEP
THREADS, ACROSS = (4, 2) if SIMULATED else (128, 32)
DOWN = THREADS // ACROSS
COLUMNS = BLOCK // ACROSS
"""Positions that a thread owns in a product."""
DEPTH = 4 if SIMULATED else 16
"""Rows of the right operand that a product holds in shared memory at a time."""
RIGHT = DEPTH * BLOCK
STAGE = BLOCK * STEP
"""Factors that a step needs: of each position with each of the step's."""
SMALL, LARGE, HUGE = 2.0**-100, 2.0**100, 2.0**120
"""Scales between the first two leave room for exact remainders; the third brings others there."""
ALIGNMENT = None if SIMULATED else 16
"""Of shared arrays that are read 16 bytes at a time."""
SMALL_TILE = 2 if SIMULATED else 16
"""Edge of the tiles in which blocks of the diagonal are inverted, an element a thread."""
EMPTY = np.int64(-1)
"""Column of an empty position."""


@scalar
def at(index):
    """An index that is never negative: Numba wraps signed ones around, several instructions a load."""
    return np.uint64(index)


@functools.cache
def tile_rows(real: type) -> int:
    """Rows of a tile: as many as shared memory and registers hold."""
    if SIMULATED:
        return 2
    return 32 if real == np.float32 else 16


@functools.cache
def product_kernels(real: type) -> SimpleNamespace:
    """Kernels around the recurrence, which compute in `real`."""
    rows = tile_rows(real)
    own_rows = rows // DOWN
    pitch = rows + 4
    add_history = _add_product(_stored, real)
    add_difference = _add_product(_difference, real)

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
    def couple(factor, inverse, starts, coupling):
        """Set ``C = R blockdiag(R_bb)^-1`` above the blocks of the diagonal. Blocks: row tile, block."""
        a = cuda.shared.array((DEPTH, pitch), real, ALIGNMENT)
        b = cuda.shared.array(RIGHT, real, ALIGNMENT)
        columns = cuda.shared.array(BLOCK, np.int64)
        sums = cuda.local.array((own_rows, COLUMNS), real)
        top = np.int64(cuda.blockIdx.x) * rows
        block = cuda.blockIdx.y
        begin, end = starts[block], starts[block + 1]
        if top >= begin:
            return
        for p in range(cuda.threadIdx.x, BLOCK, THREADS):
            columns[p] = p if p < end - begin else EMPTY
        cuda.syncthreads()
        _clear(sums)
        add_history(sums, factor, factor, top, begin, end, inverse[block], begin, columns, a, b)
        down, across = cuda.threadIdx.x // ACROSS, cuda.threadIdx.x % ACROSS
        for i in range(own_rows):
            for j in range(COLUMNS):
                row, column = top + down * own_rows + i, begin + across * COLUMNS + j
                if row < begin and column < end:
                    coupling[row, column] = sums[i, j]

    @cuda.jit
    def compensate(coupling, begin, end, history):
        """Add ``S_{<p} C_{<p, p}`` to the weights of panel p. Blocks: row tile, tile of columns."""
        a = cuda.shared.array((DEPTH, pitch), real, ALIGNMENT)
        b = cuda.shared.array(RIGHT, real, ALIGNMENT)
        columns = cuda.shared.array(BLOCK, np.int64)
        sums = cuda.local.array((own_rows, COLUMNS), real)
        top = np.int64(cuda.blockIdx.x) * rows
        first = begin + np.int64(cuda.blockIdx.y) * BLOCK
        for p in range(cuda.threadIdx.x, BLOCK, THREADS):
            columns[p] = first + p if first + p < end else EMPTY
        cuda.syncthreads()
        _clear(sums)
        add_history(sums, history, history, top, 0, begin, coupling, 0, columns, a, b)
        down, across = cuda.threadIdx.x // ACROSS, cuda.threadIdx.x % ACROSS
        for i in range(own_rows):
            for j in range(COLUMNS):
                row, column = top + down * own_rows + i, first + across * COLUMNS + j
                if row < history.shape[0] and column < end:
                    history[row, column] += sums[i, j]

    @cuda.jit
    def look_ahead(weight, coupling, starts, first, last, history, ahead):
        """Compensate a panel as if its own columns could be stored exactly, for the group's scale.

        Then their errors e are 0 and ``W - W'`` stands for ``W - Q``. Blocks: row tile.
        """
        a = cuda.shared.array((DEPTH, pitch), real, ALIGNMENT)
        b = cuda.shared.array(RIGHT, real, ALIGNMENT)
        columns = cuda.shared.array(BLOCK, np.int64)
        sums = cuda.local.array((own_rows, COLUMNS), real)
        top = np.int64(cuda.blockIdx.x) * rows
        down, across = cuda.threadIdx.x // ACROSS, cuda.threadIdx.x % ACROSS
        for block in range(first, last):
            begin, end = starts[block], starts[block + 1]
            for p in range(cuda.threadIdx.x, BLOCK, THREADS):
                columns[p] = begin + p if begin + p < end else EMPTY
            cuda.syncthreads()
            _clear(sums)
            add_difference(
                sums, weight, ahead, top, starts[first], begin, coupling, 0, columns, a, b
            )
            for i in range(own_rows):
                for j in range(COLUMNS):
                    row, column = top + down * own_rows + i, begin + across * COLUMNS + j
                    if row < history.shape[0] and column < end:
                        ahead[row, column] = history[row, column] + sums[i, j]
            cuda.syncthreads()

    return SimpleNamespace(start=start, couple=couple, compensate=compensate, look_ahead=look_ahead)


@functools.cache
def quantize_kernel(real: type, find: bool, direct: bool) -> Any:
    """Build the kernel that walks a panel: see its docstring."""
    rows = tile_rows(real)
    own_rows, share = rows // DOWN, THREADS // rows
    own = STEP // share
    pitch, code_pitch = rows + 4, rows + 4
    tile_pitch = rows + 1
    fetched = STAGE // THREADS
    buffer = max(RIGHT, 2 * STAGE)
    add_history = _add_product(_stored, real)

    @cuda.jit
    def quantize(
        weight,
        coupling,
        factors,
        starts,
        first,
        last,
        groups,
        grid,
        scales,
        zeros,
        codes,
        history,
        losses,
    ):
        """Quantize blocks `first` to `last`, a panel, from left to right. Blocks: row tile.

        `groups` is the size of a group, and the same up to a multiple of `STEP`, if scales are found
        here; else the group of each column.
        """
        a = cuda.shared.array((DEPTH, pitch), real, ALIGNMENT)
        stages = cuda.shared.array(buffer, real, ALIGNMENT)
        columns = cuda.shared.array(BLOCK, np.int64)
        tile = cuda.shared.array((BLOCK, tile_pitch), real)
        code = cuda.shared.array((BLOCK, code_pitch), np.uint8)
        extremes = cuda.shared.array((2, share, rows), real)
        sums = cuda.local.array((own_rows, COLUMNS), real)
        top = np.int64(cuda.blockIdx.x) * rows
        down, across = cuda.threadIdx.x // ACROSS, cuda.threadIdx.x % ACROSS
        height = history.shape[0]
        loss = 0.0
        for block in range(first, last):
            begin, end = starts[block], starts[block + 1]
            for p in range(cuda.threadIdx.x, BLOCK, THREADS):
                columns[p] = column_at(p, begin, end, groups)
            cuda.syncthreads()
            _clear(sums)
            add_history(
                sums, history, history, top, starts[first], begin, coupling, 0, columns, a, stages
            )
            for i in range(own_rows):
                for j in range(COLUMNS):
                    r, p = down * own_rows + i, across * COLUMNS + j
                    # loads under a condition would wait for each other: load anyway, then choose
                    weight_there = history[at(min(top + r, height - 1)), at(max(columns[p], 0))]
                    sums[i, j] += weight_there
                    inside = top + r < height and columns[p] >= 0
                    tile[at(p), at(r)] = sums[i, j] if inside else real(0)
            loss += walk(
                tile,
                code,
                extremes,
                stages,
                factors[block],
                columns,
                top,
                groups,
                grid,
                scales,
                zeros,
            )
            for i in range(own_rows):
                for j in range(COLUMNS):
                    # neighbouring threads, neighbouring columns
                    r, p = down + i * DOWN, across + j * ACROSS
                    row, column = top + r, columns[at(p)]
                    sums[i, j] = tile[at(p), at(r)]
                    if direct:
                        there = weight[at(min(row, height - 1)), at(max(column, 0))]
                        sums[i, j] = widen(there) - sums[i, j]
            for i in range(own_rows):
                for j in range(COLUMNS):
                    r, p = down + i * DOWN, across + j * ACROSS
                    row, column = top + r, columns[at(p)]
                    if row < height and column >= 0:
                        codes[at(row), at(column)] = code[at(p), at(r)]
                        history[at(row), at(column)] = sums[i, j]
            cuda.syncthreads()
        row = top + cuda.threadIdx.x
        if cuda.threadIdx.x < rows and row < height:
            losses[row] += loss

    @cuda.jit(device=True)
    def column_at(position, begin, end, groups):
        if find:
            size, padded = groups
            column = begin + position // padded * size + position % padded
            return column if position % padded < size and column < end else EMPTY
        return begin + position if begin + position < end else EMPTY

    @cuda.jit(device=True)
    def walk(tile, code, extremes, stages, factors, columns, top, groups, grid, scales, zeros):
        """Quantize the tile's columns in order and return the loss of the thread's row.

        On return the tile holds values if `direct`, else ``(value - weight) / diag``.
        """
        low, high, _, _, _ = grid
        r, s = cuda.threadIdx.x % rows, cuda.threadIdx.x // rows
        row = top + r
        w = cuda.local.array(STEP, real)
        errors = cuda.local.array(STEP, real)
        scale = cuda.local.array(STEP, real)
        zero = cuda.local.array(STEP, real)
        shift = cuda.local.array(STEP, real)
        reciprocal = cuda.local.array(STEP, real)
        ahead = cuda.local.array(fetched, real)
        found = real(1)
        zero_found = real(0)
        found_shift = found_reciprocal = real(1)
        loss = 0.0
        fetch(factors[0], ahead)
        keep(ahead, stages, 0)
        for t in range(STEPS):
            position = t * STEP
            stage = t % 2 * STAGE
            cuda.syncthreads()
            if find:
                padded = groups[1]
                if position % padded == 0 and position + padded <= BLOCK:
                    found, zero_found = find_scale(tile, extremes, r, s, position, padded, grid)
                    found_shift, found_reciprocal = divisor(found)
                    column = columns[position]
                    if s == 0 and row < scales.shape[0] and column >= 0:
                        scales[row, column // groups[0]] = found
                        zeros[row, column // groups[0]] = zero_found
            if t + 1 < STEPS:
                fetch(factors[t + 1], ahead)
            for i in range(STEP):
                w[i] = tile[at(position + i), at(r)]
                scale[i] = found
                zero[i] = zero_found
                shift[i] = found_shift
                reciprocal[i] = found_reciprocal
                if not find:
                    column = columns[position + i]
                    if row < scales.shape[0] and column >= 0:
                        scale[i] = scales[row, groups[column]]
                        zero[i] = zeros[row, groups[column]]
                    shift[i], reciprocal[i] = divisor(scale[i])
            squares = real(0)
            for i in range(STEP):
                quotient = divide(w[i] * shift[i], scale[i] * shift[i], reciprocal[i])
                chosen = code_at(quotient, zero[i], low, high)
                value = value_of(chosen, scale[i], zero[i])
                errors[i] = (value - w[i]) * stages[at(stage + (position + i) * STEP + i)]
                w[i] = value
                squares += errors[i] * errors[i]
                for k in range(i + 1, STEP):
                    w[k] += errors[i] * stages[at(stage + (position + k) * STEP + i)]
                if i // own == s:
                    code[at(position + i), at(r)] = np.uint8(chosen - low)
            loss += squares
            cuda.syncthreads()
            for i in range(STEP):
                if i // own == s:
                    tile[at(position + i), at(r)] = w[i] if direct else errors[i]
            for later in range(t + 1, STEPS):
                mine = later * STEP + s * own
                update(tile, stages, stage + mine * STEP, errors, mine, r)
            if t + 1 < STEPS:
                keep(ahead, stages, STAGE - stage)
        cuda.syncthreads()
        return loss

    @cuda.jit(device=True)
    def divisor(scale):
        """A power of two that makes a scale neither tiny nor huge, and the reciprocal of the product."""
        shift = real(1)
        if scale < SMALL:
            shift = real(HUGE)
        if scale > LARGE:
            shift = real(1 / HUGE)
        return shift, real(1) / (scale * shift)

    @cuda.jit(device=True)
    def divide(dividend, divisor, reciprocal):
        """Quotient, rounded correctly, in three operations where a division takes a dozen.

        Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor" (1990):
        one Newton step with the exact remainder, from the correctly rounded reciprocal.
        """
        estimate = dividend * reciprocal
        return cuda.fma(cuda.fma(-estimate, divisor, dividend), reciprocal, estimate)

    @cuda.jit(device=True)
    def update(tile, stages, stage, errors, position, r):
        """Compensate `own` positions for the errors of a step."""
        totals = cuda.local.array(own, real)
        for k in range(own):
            totals[k] = tile[at(position + k), at(r)]
        for i in range(STEP):
            for k in range(own):
                totals[k] += errors[i] * stages[at(stage + k * STEP + i)]
        for k in range(own):
            tile[at(position + k), at(r)] = totals[k]

    @cuda.jit(device=True)
    def find_scale(tile, extremes, r, s, position, padded, grid):
        """Scale and zero point of a row's group, which starts at `position`."""
        _, _, levels, symmetric, storage = grid
        lo = real(0)
        hi = real(0)
        for p in range(position + s, position + padded, share):
            lo = min(lo, tile[at(p), at(r)])
            hi = max(hi, tile[at(p), at(r)])
        extremes[0, s, r] = lo
        extremes[1, s, r] = hi
        cuda.syncthreads()
        for other in range(share):
            lo = min(lo, extremes[0, other, r])
            hi = max(hi, extremes[1, other, r])
        scale = stored_scale(group_scale(lo, hi, levels, symmetric), storage)
        return scale, group_zero(lo, scale, levels, symmetric)

    @cuda.jit(device=True)
    def fetch(factors, ahead):
        """Load a step's factors; they are not needed yet."""
        for i in range(fetched):
            ahead[i] = factors[at(cuda.threadIdx.x + i * THREADS)]

    @cuda.jit(device=True)
    def keep(ahead, stages, stage):
        for i in range(fetched):
            stages[at(stage + cuda.threadIdx.x + i * THREADS)] = ahead[i]

    return quantize


@cuda.jit(device=True)
def _clear(sums):
    for i in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            sums[i, j] = 0


@cuda.jit(device=True)
def _stored(_, history, row, column):
    return history[row, column]


@cuda.jit(device=True)
def _difference(weight, compensated, row, column):
    return widen(weight[row, column]) - compensated[row, column]


@functools.cache
def _add_product(load: Any, real: type) -> Any:
    rows = tile_rows(real)
    own_rows = rows // DOWN
    left_loads, right_columns = DEPTH * rows // THREADS, BLOCK // THREADS

    @cuda.jit(device=True)
    def fetch_left(weight, left, top, k, k_end, ahead):
        """Load the next columns of the tile's rows; they are not needed yet."""
        for n in range(left_loads):
            index = cuda.threadIdx.x + n * THREADS
            row, column = top + index // DEPTH, k + index % DEPTH
            inside = column < k_end and row < left.shape[0]
            # a load under a condition would wait for those before: load anyway, then choose
            row, column = min(row, left.shape[0] - 1), min(column, k_end - 1)
            element = load(weight, left, at(row), at(column))
            ahead[n] = element if inside else real(0)

    @cuda.jit(device=True)
    def fetch_right(right, row, row_end, columns, ahead):
        """Load the next rows of the thread's columns; they are not needed yet."""
        for q in range(right_columns):
            column = max(columns[q], 0)
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
        end of `left` count as zero; the sums of empty columns mean nothing.
        """
        if k >= k_end:
            return
        left_ahead = cuda.local.array(left_loads, real)
        right_ahead = cuda.local.array((DEPTH, right_columns), real)
        own_columns = cuda.local.array(right_columns, np.int64)
        thread = cuda.threadIdx.x
        down, across = thread // ACROSS, thread % ACROSS
        for q in range(right_columns):
            own_columns[q] = columns[at(thread + q * THREADS)]
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
                for i in range(2):  # unrolled, so that the loads of two rows wait together
                    for r in range(own_rows):
                        for c in range(COLUMNS):
                            x = a[at(pair + i), at(down * own_rows + r)]
                            y = b[at((pair + i) * BLOCK + across * COLUMNS + c)]
                            sums[r, c] += x * y
            cuda.syncthreads()

    return add_product


@cuda.jit
def diagonal_blocks(factor, starts, inverse):
    """Copy the blocks of the diagonal. Threads: one a column; blocks: the same."""
    block = cuda.blockIdx.x
    begin, end = starts[block], starts[block + 1]
    for j in range(cuda.threadIdx.x, end - begin, THREADS):
        for i in range(j + 1):
            inverse[block, i, j] = factor[begin + i, begin + j]


@functools.cache
def invert_blocks(real: type) -> Any:
    """Build the kernel that inverts the upper triangular blocks of the diagonal."""

    @cuda.jit
    def invert(factor, starts, inverse):
        """Solve ``R X = I`` for `SMALL_TILE` columns of X, a tile of rows at a time from the last up.

        ``X_ij = R_ii^-1 (I_ij - sum_{i < k <= j} R_ik X_kj)`` for tiles i of rows and j of columns.
        Blocks: block, tile of columns. Threads: an element of the tile each.
        """
        x = cuda.shared.array((BLOCK, SMALL_TILE), real)
        tile = cuda.shared.array((SMALL_TILE, SMALL_TILE), real)
        small = cuda.shared.array((SMALL_TILE, SMALL_TILE), real)
        right = cuda.shared.array((SMALL_TILE, SMALL_TILE), real)
        block = cuda.blockIdx.x
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
def arrange(inverse, starts, size, padded, factors):
    """Lay out each block's ``U_bb`` as `walk` reads it: step, position, position within the step.

    The diagonal holds reciprocals. `size` and `padded` are a group's positions in a block without and
    with the empty ones. Blocks: block, step. Threads: one a position.
    """
    block, step = cuda.blockIdx.x, cuda.blockIdx.y
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
                    element = inverse[block, i, j]
                if q == p:
                    element = 1 / inverse[block, i, j]
            factors[block, step, p * STEP + k] = element


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
