"""Factors on the host: the package's own products, and SciPy's LAPACK for the blocks on the diagonal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from numbacalib.linalg.factors import TINY, HessianFactors
from numbacalib.runtime.blas import cholesky_lower, invert_triangle
from numbacalib.runtime.blas_rows import solve_rows as solve
from numbacalib.runtime.half import carrier, widen, widen_block
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import fetch_add
from numbacalib.runtime.threads import thread_count
from numbacalib.runtime.tile_product import COLUMNS, LANES, add_microtile, add_product, pack_rows
from numbacalib.spec.damping import damped, is_dead

PANEL = 192
"""Columns that are factored together: whole packed row panels and whole packed column panels."""
GROUP = 8
"""Largest number of row panels of a task: they share what they read of the column panels."""
SHARE = 8
"""Tasks of a worker, if there are enough row panels."""
SLICE = 128
"""Columns that are packed or unpacked at a time."""
TURN = math.lcm(LANES, COLUMNS)
"""Rows that are whole row panels and whole column panels."""


def factor(
    hessians: NDArray,
    orders: NDArray[np.int64] | None,
    percdamps: Sequence[float],
    dtype: np.dtype,
) -> HessianFactors:
    """See `numbacalib.linalg.factor_hessians`."""
    diagonals = np.diagonal(hessians, axis1=1, axis2=2).astype(np.float64)
    means = diagonals.mean(axis=1)
    dampings = np.array(percdamps) * means
    dead = is_dead.py_func(diagonals)
    size = hessians.shape[1]
    live, ordered = ~dead, diagonals
    if orders is not None:
        live, ordered = (np.take_along_axis(array, orders, 1) for array in (live, diagonals))
        hessians = _in_order(hessians, orders)
    # the last row panel of a matrix may extend past its end
    memory = np.empty(hessians.size + LANES * size, dtype)
    uppers = memory[: hessians.size].reshape(hessians.shape)
    minors = [
        _factor(hessian, dampings[e], memory[e * size * size :], uppers[e])
        for e, hessian in enumerate(hessians)
    ]
    roots = np.diagonal(uppers, axis1=1, axis2=2).astype(np.float64)
    with np.errstate(all="ignore"):  # values that are not finite are named later
        pivots = np.where(live, roots**2, np.inf).min(axis=1) / np.maximum(means, TINY)
    pivots[dead.all(axis=1)] = 0
    figures = dampings, diagonals.min(axis=1), dead.sum(axis=1), minors, pivots
    summary = np.concatenate([np.stack(figures, axis=1), ordered, roots], axis=1, dtype=np.float64)
    return HessianFactors(uppers, dead, summary, orders)


def _in_order(hessians: NDArray, orders: NDArray[np.int64]) -> NDArray:
    """Return the Hessians, each with its channels in the order of its row of [E, K]."""
    moved = np.empty_like(hessians, order="C")
    for hessian, order, target in zip(hessians, orders, moved, strict=True):
        np.take(hessian.take(order, 0), order, 1, out=target, mode="clip")
    return moved


def invert(upper: NDArray) -> NDArray:
    """Overwrite ``R`` with its inverse and return it."""
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
    multiplied by an inverse, both as products of packed operands (`add_product`). LAPACK would need both
    axes reversed, would solve triangular systems, which is slower, and would pack the operands of each
    product. The row panels lie in `memory`, which starts where `upper` does.
    """
    size, source = len(upper), rows_view(carrier(hessian))
    row_panels = memory[: -(-size // LANES) * LANES * size].reshape(-1, size, LANES)
    flat = np.empty(PANEL * size, upper.dtype)
    for begin in range((size - 1) // PANEL * PANEL, -1, -PANEL):
        end = min(begin + PANEL, size)
        behind, top = size - end, begin // LANES
        column_panels = flat[: behind * PANEL].reshape(PANEL // COLUMNS, behind, COLUMNS)
        own = np.empty((end - begin, end - begin), upper.dtype)
        _pack_negated(-(-behind // SLICE), row_panels[top:, end:], column_panels)
        row_tasks = -(-len(own) // LANES)
        _begin_rows(row_tasks, source, damping, begin, column_panels, row_panels, own)
        if minor := cholesky_lower(own):
            upper[:] = 0
            return behind + minor
        own = np.tril(own)[::-1, ::-1]
        packed = _packed(own, LANES)
        row_panels[top : top + len(packed), begin:end] = packed
        if begin:
            inverse = own.copy()
            invert_triangle(inverse, lower=False)
            factors = np.ascontiguousarray(_packed(inverse, COLUMNS))
            group = min(GROUP, max(1, begin // (LANES * thread_count() * SHARE)))
            tasks = -(-begin // (group * LANES))
            _finish_rows(tasks, source, factors, group, column_panels, row_panels)
    _store_rows(len(row_panels), row_panels, upper)
    return 0


def _packed(rows: NDArray, lanes: int) -> NDArray:
    """Return a matrix [n, w] as panels [-, w, lanes] of its rows, with zeros behind the last one."""
    count, width = -(-len(rows) // lanes), rows.shape[1]
    padded = np.zeros((count * lanes, width), rows.dtype)
    padded[: len(rows)] = rows
    return padded.reshape(count, lanes, width).swapaxes(1, 2)


@task_kernel
def _pack_negated(counter, rows, column_panels):
    """Negate and pack a panel's own rows as column panels. Split: workers take columns."""
    behind = column_panels.shape[1]
    turn = np.empty(TURN, column_panels.dtype)
    first = fetch_add(counter) * SLICE
    while first < behind:
        last = min(first + SLICE, behind)
        for n in range(len(column_panels) * COLUMNS // TURN):
            top, left = n * (TURN // LANES), n * (TURN // COLUMNS)
            for k in range(first, last):
                for t in range(TURN // LANES):
                    given = rows[top + t, k]
                    for r in range(LANES):
                        turn[t * LANES + r] = -given[r]
                for s in range(TURN // COLUMNS):
                    taken = column_panels[left + s, k]
                    for c in range(COLUMNS):
                        taken[c] = turn[s * COLUMNS + c]
        first = fetch_add(counter) * SLICE


@task_kernel
def _begin_rows(counter, source, damping, begin, column_panels, row_panels, own):
    """Damp and compensate the block on the diagonal of a panel.

    Sets the lower triangle of `own` to the block, with both axes reversed. Split: workers take row panels.
    """
    width, behind = len(own), column_panels.shape[1]
    end = begin + width
    rows = np.zeros((LANES, width), own.dtype)
    top = fetch_add(counter) * LANES
    while top < width:
        count, t = min(LANES, width - top), (begin + top) // LANES
        row_panel = row_panels[t : t + 1]
        pack_rows(source, begin + top, count, begin, rows, row_panel[0, begin:])
        for r in range(count):
            i = begin + top + r
            row_panel[0, i, r] = damped(np.float64(widen(source[i, i])), damping)
        if behind:
            skip = top // COLUMNS
            left = begin + skip * COLUMNS
            add_product(row_panel[:, end:], column_panels[skip:], np.int64(0), row_panel[:, left:])
        for r in range(count):
            row = own[width - 1 - top - r]
            for j in range(top + r, width):
                row[width - 1 - j] = row_panel[0, begin + j, r]
        top = fetch_add(counter) * LANES


@task_kernel
def _finish_rows(counter, source, factors, group, column_panels, row_panels):
    """Compensate the rows before a panel's own, and multiply them by ``R_pp^-T``.

    `factors` is ``R_pp^-T``, packed as column panels; the last of them may reach behind the matrix: what
    is added there is 0, to columns of the next row panel that lie below the diagonal. Split: workers take
    groups of row panels.
    """
    width, behind = factors.shape[1], column_panels.shape[1]
    end = row_panels.shape[1] - behind
    begin = end - width
    rows = np.zeros((LANES, width), row_panels.dtype)
    given = np.empty((width, LANES), row_panels.dtype)
    first = fetch_add(counter) * group
    while first * LANES < begin:
        last = min(first + group, begin // LANES)
        for t in range(first, last):
            pack_rows(source, t * LANES, np.int64(LANES), begin, rows, row_panels[t, begin:])
        if behind:
            left = row_panels[first:last, end:]
            add_product(left, column_panels, np.int64(0), row_panels[first:, begin:])
        for t in range(first, last):
            target = row_panels[t]
            widen_block(target, begin, 0, given)
            target[begin:end] = 0
            for s in range(len(factors)):
                at = s * COLUMNS
                depth, corner = width - at, (begin + at, 0)
                add_microtile(given, (at, 0), factors[s], (at, 0), depth, target, corner)
        first = fetch_add(counter) * group


@task_kernel
def _store_rows(counter, row_panels, upper):
    """Unpack row panels into the rows whose memory they fill, with 0 below the diagonal.

    Split: workers take row panels.
    """
    size = len(upper)
    copy = np.empty((size, LANES), upper.dtype)
    t = fetch_add(counter)
    while t < len(row_panels):
        top = t * LANES
        widen_block(row_panels[t], top, 0, copy[top:])
        rows = upper[top : top + LANES]
        for r in range(len(rows)):
            rows[r, :top] = 0
        for left in range(top, size, SLICE):
            for r in range(len(rows)):
                row = rows[r]
                for j in range(left, min(left + SLICE, size)):
                    row[j] = copy[j, r] if j >= top + r else 0
        t = fetch_add(counter)
