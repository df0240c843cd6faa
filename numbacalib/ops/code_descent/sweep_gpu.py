"""The GPU kernel that chooses the codes of a panel again: see `gpu`.

Thread t owns row ``t % rows`` of the tile, together with a few other threads: all of them walk the next
`STEP` columns in registers, redundantly, and then divide the following pulls among themselves.
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
    stored,
    tile_rows,
)
from numbacalib.runtime.device import cuda
from numbacalib.runtime.triangles_gpu import at
from numbacalib.spec.code_descent import better_code, steps_of_pull
from numbacalib.spec.grid import value_of


@functools.cache
def descent_kernel(real: type) -> Any:
    """Build the kernel that walks a panel: see its docstring."""
    rows = tile_rows(real)
    own_rows, own = rows // DOWN, STEP // (THREADS // rows)
    pitch, code_pitch, tile_pitch = rows + 4, rows + 4, rows + 1
    buffer = max(RIGHT, 2 * STAGE)
    add_moves = product_adder(stored, real)

    @cuda.jit
    def descend(
        pulls, first, hessian, damping, group_of, scales, zeros, bounds, moves, errors, codes
    ):
        """Walk a panel of columns, the first of them `first`. Blocks: row tile.

        `pulls` [M, P] are those before the panel, without the damping's; `scales` and `zeros` are [G, M].
        `moves` [M, P] get the changes of the values; `errors` and `codes` [M, K] are updated.
        """
        a = cuda.shared.array((DEPTH, pitch), real, ALIGNMENT)
        stages = cuda.shared.array(buffer, real, ALIGNMENT)
        columns = cuda.shared.array(BLOCK, np.int64)
        groups = cuda.shared.array(BLOCK, np.int64)
        curvatures = cuda.shared.array(BLOCK, real)
        tile = cuda.shared.array((BLOCK, tile_pitch), real)
        code = cuda.shared.array((BLOCK, code_pitch), np.uint8)
        sums = cuda.local.array((own_rows, COLUMNS), real)
        height, width = pulls.shape
        top = np.int64(cuda.blockIdx.x) * rows
        down, across = cuda.threadIdx.x // ACROSS, cuda.threadIdx.x % ACROSS
        for begin in range(0, width, BLOCK):
            for p in range(cuda.threadIdx.x, BLOCK, THREADS):
                inside = begin + p < width
                column = first + begin + p if inside else EMPTY
                columns[p] = column
                groups[p] = group_of[max(column, 0)]
                # an empty position has no curvature, and so no code to choose
                entry = hessian[at(max(column, 0)), at(max(column, 0))] + damping
                curvatures[p] = entry if inside else real(0)
            cuda.syncthreads()
            clear(sums)
            add_moves(sums, moves, moves, top, 0, begin, hessian, -first, columns, a, stages)
            for i in range(own_rows):
                for j in range(COLUMNS):
                    r, p = down * own_rows + i, across * COLUMNS + j
                    row, column = at(min(top + r, height - 1)), at(max(columns[p], 0))
                    pull = pulls[row, at(min(begin + p, width - 1))]
                    tile[at(p), at(r)] = pull + damping * errors[row, column] - sums[i, j]
                    code[at(p), at(r)] = codes[row, column]
            walk(
                tile, code, stages, hessian, columns, groups, curvatures, top, scales, zeros, bounds
            )
            for i in range(own_rows):
                for j in range(COLUMNS):
                    # neighbouring threads, neighbouring columns
                    r, p = down + i * DOWN, across + j * ACROSS
                    row, column = top + r, columns[at(p)]
                    if row < height and column >= 0:
                        move = tile[at(p), at(r)]
                        moves[at(row), at(begin + p)] = move
                        errors[at(row), at(column)] -= move
                        codes[at(row), at(column)] = code[at(p), at(r)]
            cuda.syncthreads()

    @cuda.jit(device=True)
    def walk(tile, code, stages, hessian, columns, groups, curvatures, top, scales, zeros, bounds):
        """Choose the tile's codes in order, and replace its pulls with the moves of the values."""
        r, s = cuda.threadIdx.x % rows, cuda.threadIdx.x // rows
        row = at(min(top + r, scales.shape[1] - 1))
        pull = cuda.local.array(STEP, real)
        best = cuda.local.array(STEP, real)
        move = cuda.local.array(STEP, real)
        scale = cuda.local.array(STEP, real)
        zero = cuda.local.array(STEP, real)
        steps = cuda.local.array(STEP, real)
        ahead = cuda.local.array(FETCHED, real)
        fetch(hessian, columns, 0, ahead)
        keep(ahead, stages, 0)
        for t in range(STEPS):
            position = t * STEP
            stage = t % 2 * STAGE
            cuda.syncthreads()
            if t + 1 < STEPS:
                fetch(hessian, columns, position + STEP, ahead)
            for i in range(STEP):
                group = at(groups[at(position + i)])
                scale[i], zero[i] = scales[group, row], zeros[group, row]
                pull[i], best[i] = tile[at(position + i), at(r)], code[at(position + i), at(r)]
                steps[i] = steps_of_pull(curvatures[at(position + i)], scale[i], bounds)
            for i in range(STEP):
                before = value_of(best[i], scale[i], zero[i])
                best[i] = better_code(best[i], pull[i], steps[i], zero[i], bounds)
                move[i] = value_of(best[i], scale[i], zero[i]) - before
                for k in range(i + 1, STEP):
                    pull[k] -= move[i] * stages[at(stage + i * BLOCK + position + k)]
            cuda.syncthreads()
            for i in range(STEP):
                if i // own == s:
                    tile[at(position + i), at(r)] = move[i]
                    code[at(position + i), at(r)] = np.uint8(best[i])
            for later in range(t + 1, STEPS):
                mine = later * STEP + s * own
                update(tile, stages, stage + mine, move, mine, r)
            if t + 1 < STEPS:
                keep(ahead, stages, STAGE - stage)
        cuda.syncthreads()

    @cuda.jit(device=True)
    def update(tile, stages, stage, move, position, r):
        """Subtract the effect of a step's moves from the pulls of `own` positions."""
        totals = cuda.local.array(own, real)
        for k in range(own):
            totals[k] = tile[at(position + k), at(r)]
        for i in range(STEP):
            for k in range(own):
                totals[k] -= move[i] * stages[at(stage + i * BLOCK + k)]
        for k in range(own):
            tile[at(position + k), at(r)] = totals[k]

    @cuda.jit(device=True)
    def fetch(hessian, columns, position, ahead):
        """Prefetch a step's rows of the Hessian."""
        for n in range(FETCHED):
            index = cuda.threadIdx.x + n * THREADS
            above, p = columns[at(position + index // BLOCK)], columns[at(index % BLOCK)]
            # conditional loads would wait for each other: load anyway, the values are not used
            ahead[n] = hessian[at(max(above, 0)), at(max(p, 0))]

    return descend
