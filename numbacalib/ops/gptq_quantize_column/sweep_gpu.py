"""The GPU kernel that walks the columns: see `gpu` for the algebra and `tiles_gpu` for the tiles.

Thread t owns row ``t % rows`` of the tile, together with a few other threads: all of them walk the next
`STEP` columns in registers, redundantly, and then divide the following columns among themselves. That
takes two barriers a step.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numbacalib.ops.gptq_quantize_column.tiles_gpu import (
    ACROSS,
    ALIGNMENT,
    BLOCK,
    COLUMNS,
    DEPTH,
    DOWN,
    EMPTY,
    FETCHED,
    RIGHT,
    STAGE,
    STEP,
    STEPS,
    THREADS,
    clear,
    keep,
    product_adder,
    row_tile,
    stored,
    tile_rows,
)
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import widen
from numbacalib.runtime.triangles_gpu import at
from numbacalib.spec.gptq import column_error, compensated
from numbacalib.spec.grid import code_at, stored_grid, unsigned, value_of

SMALL, LARGE, HUGE = 2.0**-100, 2.0**100, 2.0**120
"""Scales between the first two leave room for exact remainders; the third scales others into that range."""


@functools.cache
def quantize_kernel(real: type, find: bool, direct: bool) -> Any:
    """Build the kernel that walks a panel: see its docstring."""
    rows = tile_rows(real)
    own_rows, share = rows // DOWN, THREADS // rows
    own = STEP // share
    pitch, code_pitch = rows + 4, rows + 4
    tile_pitch = rows + 1
    buffer = max(RIGHT, 2 * STAGE)
    scratch = (2, share, rows) if find else (3, STEP, rows)
    place = row_tile(real)
    add_history = product_adder(stored, real)

    @cuda.jit
    def quantize(
        weight,
        couplings,
        factors,
        starts,
        first,
        last,
        groups,
        bounds,
        scales,
        zeros,
        codes,
        history,
        losses,
    ):
        """Quantize blocks `first` to `last`, a panel, from left to right. Blocks: row tile.

        `groups` is the size of a group, and the same up to a multiple of `STEP`, if scales are found
        here; else the group of each column, for each of the factors, and `scales` and `zeros` come as
        [G, M], so that the threads of a warp read neighbours.
        """
        a = cuda.shared.array((DEPTH, pitch), real, ALIGNMENT)
        stages = cuda.shared.array(buffer, real, ALIGNMENT)
        columns = cuda.shared.array(BLOCK, np.int64)
        tile = cuda.shared.array((BLOCK, tile_pitch), real)
        code = cuda.shared.array((BLOCK, code_pitch), np.uint8)
        grids = cuda.shared.array(scratch, real)
        own_groups = cuda.shared.array(1 if find else BLOCK, np.int64)
        sums = cuda.local.array((own_rows, COLUMNS), real)
        e, top, height = place(history.shape[0], couplings.shape[0])
        coupling, blocks = couplings[e], factors[e]
        group_of = groups
        if not find:
            group_of = groups[e]
        down, across = cuda.threadIdx.x // ACROSS, cuda.threadIdx.x % ACROSS
        loss = 0.0
        for block in range(first, last):
            begin, end = starts[block], starts[block + 1]
            for p in range(cuda.threadIdx.x, BLOCK, THREADS):
                columns[p] = column_at(p, begin, end, group_of)
                if not find:
                    own_groups[p] = group_of[columns[p]] if columns[p] >= 0 else EMPTY
            cuda.syncthreads()
            clear(sums)
            add_history(
                sums, history, history, top, starts[first], begin, coupling, 0, columns, a, stages
            )
            for i in range(own_rows):
                for j in range(COLUMNS):
                    r, p = down * own_rows + i, across * COLUMNS + j
                    # conditional loads would wait for each other: load anyway, then select
                    weight_there = history[at(min(top + r, height - 1)), at(max(columns[p], 0))]
                    sums[i, j] += weight_there
                    inside = top + r < height and columns[p] >= 0
                    tile[at(p), at(r)] = sums[i, j] if inside else real(0)
            loss += walk(
                tile,
                code,
                grids,
                stages,
                blocks[block],
                columns,
                own_groups,
                top,
                height,
                group_of,
                bounds,
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
    def walk(
        tile,
        code,
        grids,
        stages,
        factors,
        columns,
        own_groups,
        top,
        height,
        groups,
        bounds,
        scales,
        zeros,
    ):
        """Quantize the tile's columns in order and return the loss of the thread's row.

        `grids` is scratch that the threads of a row share: extremes of a group, or the scales, zero points
        and reciprocals of a step. On return the tile holds values if `direct`, else
        ``(value - weight) / diag``.
        """
        r, s = cuda.threadIdx.x % rows, cuda.threadIdx.x // rows
        row = top + r
        w = cuda.local.array(STEP, real)
        errors = cuda.local.array(STEP, real)
        scale = cuda.local.array(STEP, real)
        zero = cuda.local.array(STEP, real)
        shift = cuda.local.array(STEP, real)
        reciprocal = cuda.local.array(STEP, real)
        ahead = cuda.local.array(FETCHED, real)
        scale_ahead = cuda.local.array(own, real)
        zero_ahead = cuda.local.array(own, real)
        found = real(1)
        zero_found = real(0)
        found_shift = found_reciprocal = real(1)
        loss = 0.0
        fetch(factors[0], ahead)
        keep(ahead, stages, 0)
        if not find:
            near = min(row, height - 1)
            fetch_grid(own_groups, s * own, near, scales, zeros, scale_ahead, zero_ahead)
            keep_grid(scale_ahead, zero_ahead, grids, s * own, r)
        for t in range(STEPS):
            position = t * STEP
            stage = t % 2 * STAGE
            cuda.syncthreads()
            if find:
                padded = groups[1]
                if position % padded == 0 and position + padded <= BLOCK:
                    found, zero_found = find_scale(tile, grids, r, s, position, padded, bounds)
                    found_shift = shift_of(found)
                    found_reciprocal = real(1) / (found * found_shift)
                    column = columns[position]
                    if s == 0 and row < height and column >= 0:
                        scales[row, column // groups[0]] = found
                        zeros[row, column // groups[0]] = zero_found
            if t + 1 < STEPS:
                fetch(factors[t + 1], ahead)
                if not find:
                    following = position + STEP + s * own
                    fetch_grid(own_groups, following, near, scales, zeros, scale_ahead, zero_ahead)
            for i in range(STEP):
                w[i] = tile[at(position + i), at(r)]
                scale[i] = found
                zero[i] = zero_found
                shift[i] = found_shift
                reciprocal[i] = found_reciprocal
                if not find:
                    scale[i] = grids[0, i, at(r)]
                    zero[i] = grids[1, i, at(r)]
                    reciprocal[i] = grids[2, i, at(r)]
                    shift[i] = shift_of(scale[i])
            squares = real(0)
            for i in range(STEP):
                quotient = divide(w[i] * shift[i], scale[i] * shift[i], reciprocal[i])
                chosen = code_at(quotient, zero[i], bounds)
                value = value_of(chosen, scale[i], zero[i])
                factor = stages[at(stage + (position + i) * STEP + i)]
                errors[i] = column_error(w[i], value, factor)
                w[i] = value
                squares += errors[i] * errors[i]
                for k in range(i + 1, STEP):
                    coupling = stages[at(stage + (position + k) * STEP + i)]
                    w[k] = compensated(w[k], errors[i], coupling)
                if i // own == s:
                    code[at(position + i), at(r)] = unsigned(chosen, bounds)
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
                if not find:
                    keep_grid(scale_ahead, zero_ahead, grids, s * own, r)
        cuda.syncthreads()
        return loss

    @cuda.jit(device=True)
    def shift_of(scale):
        """A power of two that makes a scale neither tiny nor huge."""
        shift = real(1)
        if abs(scale) < SMALL:
            shift = real(HUGE)
        if abs(scale) > LARGE:
            shift = real(1 / HUGE)
        return shift

    @cuda.jit(device=True)
    def divide(dividend, divisor, reciprocal):
        """Correctly rounded quotient in three operations; a division takes a dozen.

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
                coupling = stages[at(stage + k * STEP + i)]
                totals[k] = compensated(totals[k], errors[i], coupling)
        for k in range(own):
            tile[at(position + k), at(r)] = totals[k]

    @cuda.jit(device=True)
    def find_scale(tile, extremes, r, s, position, padded, bounds):
        """Scale and zero point of a row's group, which starts at `position`."""
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
        return stored_grid(lo, hi, bounds)

    @cuda.jit(device=True)
    def fetch_grid(own_groups, position, row, scales, zeros, scale_ahead, zero_ahead):
        """Prefetch scales and zero points of the thread's `own` positions."""
        for k in range(own):
            group = own_groups[at(position + k)]
            exists = group != EMPTY
            # conditional loads would wait for each other: load anyway, then select
            there = at(max(group, 0))
            scale, zero = scales[there, at(row)], zeros[there, at(row)]
            scale_ahead[k] = scale if exists else real(1)
            zero_ahead[k] = zero if exists else real(0)

    @cuda.jit(device=True)
    def keep_grid(scale_ahead, zero_ahead, grids, first, r):
        """Share prefetched grids, and the reciprocals of the scales, with the threads of the row."""
        for k in range(own):
            scale = scale_ahead[k]
            grids[0, at(first + k), at(r)] = scale
            grids[1, at(first + k), at(r)] = zero_ahead[k]
            grids[2, at(first + k), at(r)] = real(1) / (scale * shift_of(scale))

    @cuda.jit(device=True)
    def fetch(factors, ahead):
        """Prefetch a step's factors."""
        for i in range(FETCHED):
            ahead[i] = factors[at(cuda.threadIdx.x + i * THREADS)]

    return quantize
