"""Factors on the host: products of our own, and SciPy's LAPACK for the blocks on the diagonal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from numbacalib.linalg.factors import TINY, HessianFactors
from numbacalib.runtime.blas import cholesky_lower, invert_triangle
from numbacalib.runtime.blas_tiles import solve_rows as solve
from numbacalib.runtime.half import carrier, widen, widen_block
from numbacalib.runtime.jit import kernel, scalar, task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import fetch_add
from numbacalib.runtime.tile_product import COLUMNS, LANES, add_product, add_tile, load_tile
from numbacalib.spec.damping import damped

PANEL = 192
"""Columns that are factored together: whole tiles and whole strips."""
GROUP = 8
"""Most tiles of a task: they share what they read of the strips."""
SHARE = 8
"""Tasks of a worker, where there are tiles enough."""
SLICE = 128
"""Columns that are brought into another order at a time."""
TURN = math.lcm(LANES, COLUMNS)
"""Rows that are whole tiles and whole strips."""


def factor(hessians: NDArray, percdamps: Sequence[float], dtype: np.dtype) -> HessianFactors:
    """See `numbacalib.linalg.factor_hessians`."""
    diagonals = np.diagonal(hessians, axis1=1, axis2=2).astype(np.float64)
    means = diagonals.mean(axis=1)
    dampings = np.array(percdamps) * means
    dead = diagonals == 0
    size = hessians.shape[1]
    # the last rows of a matrix make a whole tile, which may end behind them
    memory = np.empty(hessians.size + LANES * size, dtype)
    uppers = memory[: hessians.size].reshape(hessians.shape)
    minors = [
        _factor(hessian, dampings[e], memory[e * size * size :], uppers[e])
        for e, hessian in enumerate(hessians)
    ]
    roots = np.diagonal(uppers, axis1=1, axis2=2).astype(np.float64)
    with np.errstate(all="ignore"):  # values that are not finite are named later
        pivots = np.where(dead, np.inf, roots**2).min(axis=1) / np.maximum(means, TINY)
    pivots[dead.all(axis=1)] = 0
    figures = dampings, diagonals.min(axis=1), dead.sum(axis=1), minors, pivots
    return HessianFactors(uppers, dead, np.stack(figures, axis=1).astype(np.float64))


def invert(upper: NDArray) -> NDArray:
    """Overwrite ``R`` by its inverse and return it."""
    invert_triangle(upper, lower=False)
    return upper


def solve_rows(upper: NDArray, rows: NDArray) -> NDArray:
    """See `numbacalib.linalg.solve_rows`."""
    found = np.ascontiguousarray(rows).copy()
    solve(upper, found, transposed=True)
    solve(upper, found, transposed=False)
    return found


def _factor(hessian: NDArray, damping: float, memory: NDArray, upper: NDArray) -> int:
    """Set `upper` to ``R``, ``H + damping = R R^T``.

    Returns 0, or the order of the minor, counted from the end, that is not positive definite. From the
    last panel of columns to the first, each is compensated for all behind it, and its rows above are
    multiplied by an inverse: all by products, of operands that lie as `add_product` reads them. LAPACK
    would need both axes reversed, solves triangular systems, which is slower, and copies what it
    multiplies into such an order at each product. Tiles lie in `memory`, where `upper` begins, too.
    """
    size, source, workers = len(upper), rows_view(carrier(hessian)), get_num_threads()
    count = -(-size // LANES)
    tiles = memory[: count * LANES * size].reshape(count, size, LANES)
    flat = np.empty(PANEL * size, upper.dtype)
    for begin in range((size - 1) // PANEL * PANEL, -1, -PANEL):
        end = min(begin + PANEL, size)
        behind = size - end
        strips = flat[: behind * PANEL].reshape(PANEL // COLUMNS, behind, COLUMNS)
        own = np.empty((end - begin, end - begin), upper.dtype)
        counters = np.zeros((3, 1), np.int64)
        _begin_panel(workers, source, damping, begin, strips, tiles, counters, own)
        if minor := cholesky_lower(own):
            upper[:] = 0
            return behind + minor
        own = np.tril(own)[::-1, ::-1].copy()
        inverse = own.copy()
        if begin:  # else no rows wait for it
            invert_triangle(inverse, lower=False)
        group = min(GROUP, max(1, begin // (LANES * workers * SHARE)))
        _finish_panel(workers, source, own, inverse, group, strips, tiles, counters[2])
    _store_rows(workers, tiles, np.zeros(1, np.int64), upper)
    return 0


@kernel
def _begin_panel(workers, source, damping, begin, strips, tiles, counters, own):
    """Lay out a panel's own rows as strips, and compensate the block on its diagonal.

    Sets the lower triangle of `own` to the block, with both axes reversed. Split: workers take columns
    of the strips, then tiles.
    """
    for _ in prange(workers):
        _lay_out_columns(tiles, begin, len(own), counters[0], strips)
    for _ in prange(workers):
        _begin_tiles(source, damping, begin, strips, tiles, counters[1], own)


@scalar
def _lay_out_columns(tiles, begin, width, counter, strips):
    """Take columns of a panel's own rows, and lay them out."""
    behind = strips.shape[1]
    rows = tiles[begin // LANES :, begin + width :]
    first = fetch_add(counter) * SLICE
    while first < behind:
        _lay_out(rows, first, min(first + SLICE, behind), strips)
        first = fetch_add(counter) * SLICE


@scalar
def _begin_tiles(source, damping, begin, strips, tiles, counter, own):
    """Take tiles of the block on the diagonal, damp and compensate them."""
    width, behind = len(own), strips.shape[1]
    end = begin + width
    rows = np.zeros((LANES, width), own.dtype)
    top = fetch_add(counter) * LANES
    while top < width:
        count, t = min(LANES, width - top), (begin + top) // LANES
        tile = tiles[t : t + 1]
        load_tile(source, begin + top, count, begin, rows, tile[0, begin:])
        for r in range(count):
            i = begin + top + r
            tile[0, i, r] = damped(np.float64(widen(source[i, i])), damping)
        if behind:
            skip = top // COLUMNS
            left = begin + skip * COLUMNS
            add_product(tile[:, end:], strips[skip:], np.int64(0), tile[:, left:])
        for r in range(count):
            row = own[width - 1 - top - r]
            for j in range(top + r, width):
                row[width - 1 - j] = tile[0, begin + j, r]
        top = fetch_add(counter) * LANES


@kernel
def _finish_panel(workers, source, own, inverse, group, strips, tiles, counter):
    """Compensate the rows before a panel's own, and multiply them by ``R_pp^-T``.

    `own` is ``R_pp``, which is stored, and `inverse` its inverse. Split: workers take groups of tiles.
    """
    factors = _store_block(own, inverse, tiles, tiles.shape[1] - strips.shape[1])
    for _ in prange(workers):
        _finish_tiles(source, factors, group, strips, tiles, counter)


@scalar
def _store_block(own, inverse, tiles, end):
    """Store ``R_pp``, whose columns end at `end`, and return its inverse's transpose as strips."""
    width = len(own)
    begin = end - width
    factors = np.zeros((-(-width // COLUMNS), width, COLUMNS), own.dtype)
    for i in range(width):
        tile, lane = tiles[(begin + i) // LANES], i % LANES
        for j in range(i, width):
            tile[begin + j, lane] = own[i, j]
            factors[i // COLUMNS, j, i % COLUMNS] = inverse[i, j]
    return factors


@scalar
def _finish_tiles(source, factors, group, strips, tiles, counter):
    """Take groups of tiles before a panel's own rows, compensate and multiply them.

    A strip's last columns may lie behind the matrix: what is added there is 0, to columns of the next
    tile that lie below the diagonal.
    """
    width, behind = factors.shape[1], strips.shape[1]
    end = tiles.shape[1] - behind
    begin = end - width
    rows, given = np.zeros((LANES, width), tiles.dtype), np.empty((width, LANES), tiles.dtype)
    first = fetch_add(counter) * group
    while first * LANES < begin:
        last = min(first + group, begin // LANES)
        for t in range(first, last):
            load_tile(source, t * LANES, np.int64(LANES), begin, rows, tiles[t, begin:])
        if behind:
            add_product(tiles[first:last, end:], strips, np.int64(0), tiles[first:, begin:])
        for t in range(first, last):
            tile = tiles[t]
            widen_block(tile, begin, 0, given)
            tile[begin:end] = 0
            for s in range(len(factors)):
                at = s * COLUMNS
                add_tile(given, (at, 0), factors[s], (at, 0), width - at, tile, (begin + at, 0))
        first = fetch_add(counter) * group


@task_kernel
def _store_rows(tiles, counter, upper):
    """Turn tiles into the rows whose memory they fill, with 0 below the diagonal.

    Split: workers take tiles.
    """
    size = len(upper)
    copy = np.empty((size, LANES), upper.dtype)
    t = fetch_add(counter)
    while t < len(tiles):
        top = t * LANES
        widen_block(tiles[t], top, 0, copy[top:])
        rows = upper[top : top + LANES]
        for r in range(len(rows)):
            rows[r, :top] = 0
        for left in range(top, size, SLICE):
            for r in range(len(rows)):
                row = rows[r]
                for j in range(left, min(left + SLICE, size)):
                    row[j] = copy[j, r] if j >= top + r else 0
        t = fetch_add(counter)


@scalar
def _lay_out(tiles, first, last, strips):
    """Negate a panel's own rows into strips, columns `first` to `last`: `TURN` rows at a time."""
    rows = np.empty(TURN, strips.dtype)
    for turn in range(len(strips) * COLUMNS // TURN):
        tile, strip = turn * (TURN // LANES), turn * (TURN // COLUMNS)
        for k in range(first, last):
            for t in range(TURN // LANES):
                given = tiles[tile + t, k]
                for r in range(LANES):
                    rows[t * LANES + r] = -given[r]
            for s in range(TURN // COLUMNS):
                taken = strips[strip + s, k]
                for c in range(COLUMNS):
                    taken[c] = rows[s * COLUMNS + c]
