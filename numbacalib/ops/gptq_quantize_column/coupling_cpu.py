"""Coupling of each panel of columns to those before it, prepared once for all rows of a weight."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from numbacalib.runtime.blas import routine, single_threaded
from numbacalib.runtime.half import carrier, widen_block
from numbacalib.runtime.jit import inlined, scalar, task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import (
    LEFT,
    LOWER,
    NORMAL,
    call_fortran,
    fetch_add,
)
from numbacalib.runtime.tile_product import COLUMNS

ROWS = 256
"""Rows of a task."""
TRIANGLE = 128
"""Order of triangles that are inverted."""


class Coupling(NamedTuple):
    """Coefficients that compensate panels, packed as products read them; see `packed_columns`."""

    packed: Any
    """Flat memory of packed column panels."""
    starts: Any
    """Start of each panel in it, and the end."""
    corners: Any
    """Coefficients among the columns of each block, and zeros: [blocks, length, length + COLUMNS]."""


def couple_panels(
    factor: NDArray, edges: NDArray[np.int64], length: int, dtype: np.dtype, *, inverse: bool
) -> Coupling:
    """Couple each panel p, of width w, to all columns up to its end: ``[end, w]``.

    The rows before the panel are ``U_{<p, p}`` with `inverse`, else ``R_{<p, p} R_pp^-1``; its own are
    ``U_pp`` or ``R_pp^-1``. `length` is that of the panels' blocks.
    """
    gemm, trmm, trtri = (routine(name, dtype) for name in ("gemm", "trmm", "trtri"))
    source = rows_view(carrier(factor))
    widths = np.diff(edges)
    first = np.append(0, np.cumsum(-(-widths // TRIANGLE)))
    inverses = np.empty((0 if inverse else first[-1], TRIANGLE, TRIANGLE), dtype)
    counts = widths // length * packed_count(length) + packed_count(widths % length)
    starts = np.append(0, np.cumsum(COLUMNS * counts * edges[1:]))
    blocks = int((-(-widths // length)).sum())
    corners = np.zeros((blocks, length, length + COLUMNS), dtype)
    coupling = Coupling(np.empty(starts[-1], dtype), starts, corners)
    with single_threaded():
        if not inverse:
            _invert_blocks(len(edges) - 1, trtri, source, edges, first, inverses)
        tasks = int((-(-edges[1:] // ROWS)).sum())
        _couple(tasks, (gemm, trmm), source, edges, length, (first, inverses), coupling)
    return coupling


@register_jitable
def packed_count(length):
    """Return the number of packed column panels of a block: the last is padded with zeros."""
    return -(-length // COLUMNS)


@register_jitable
def packed_columns(coupling, edges, p):
    """View the coupling of panel p, packed block by block: column panels ``[n, end, COLUMNS]``."""
    flat = coupling.packed[coupling.starts[p] : coupling.starts[p + 1]]
    return flat.reshape(-1, edges[p + 1], COLUMNS)


@register_jitable
def block_of(packed, start, length):
    """View the packed columns of the block of a panel that starts at its column `start`."""
    count = packed_count(length)
    return packed[start // length * count : (start // length + 1) * count]


@register_jitable
def panel_corners(coupling, edges, p):
    """View the coupling among the columns of each block of panel p: [blocks, length, ...]."""
    count = -(-edges[1] // coupling.corners.shape[1])
    return coupling.corners[p * count : (p + 1) * count]


@task_kernel
def _invert_blocks(counter, trtri, factor, edges, first, inverses):
    """Invert the triangles on the diagonal of each ``R_pp``. Split: workers take panels."""
    info = np.empty(1, np.int32)
    p = fetch_add(counter)
    while p < len(edges) - 1:
        for block in range(first[p], first[p + 1]):
            at = edges[p] + (block - first[p]) * TRIANGLE
            size, inverse = min(TRIANGLE, edges[p + 1] - at), inverses[block]
            widen_block(factor, at, at, inverse[:size, :size])
            # Column-major LAPACK sees the transpose, a lower triangle, and its inverse.
            call_fortran(trtri, (LOWER, NORMAL, size, inverse, TRIANGLE, info))
        p = fetch_add(counter)


@task_kernel
def _couple(counter, routines, factor, edges, length, blocks, coupling):
    """Fill in the panels, solved for if `blocks` has each panel's first inverse and the inverses.

    Split: workers take runs of rows.
    """
    (gemm, trmm), (first, inverses) = routines, blocks
    memory = np.empty(ROWS * edges[1], coupling.packed.dtype)
    task = fetch_add(counter)
    before = 0
    for p in range(len(edges) - 1):
        begin, end = edges[p], edges[p + 1]
        packed = packed_columns(coupling, edges, p)
        tasks = -(-end // ROWS)
        while task < before + tasks:
            top = (task - before) * ROWS
            rows = memory[: min(ROWS, end - top) * (end - begin)].reshape(-1, end - begin)
            if len(inverses) == 0:
                widen_block(factor, top, begin, rows)
            else:
                _begin_rows(factor, top, begin, rows)
                own = inverses[first[p] : first[p + 1]]
                _solve_rows(gemm, trmm, factor, begin, max(top - begin, 0), own, rows)
            _keep_corners(rows, top, begin, panel_corners(coupling, edges, p))
            _pack(rows, length, top, packed)
            task = fetch_add(counter)
        before += tasks


@inlined
def _begin_rows(factor, top, begin, rows):
    """Set rows to ``R_{<p, p}``, those of the panel's own columns to 1 on the diagonal."""
    above = min(max(begin - top, 0), len(rows))
    widen_block(factor, top, begin, rows[:above])
    for i in range(above, len(rows)):
        rows[i] = 0
        rows[i, top + i - begin] = 1


@scalar
def _solve_rows(gemm, trmm, factor, begin, zeros, inverses, rows):
    """Solve ``X R_pp = B`` in place, block by block: ``X_j = (B_j - X_{<j} R_{<j, j}) R_jj^-1``.

    The first `zeros` columns are 0. Column-major BLAS sees the transposes. Its own triangular solves are
    far slower than products.
    """
    count, width = rows.shape
    one, step = rows.dtype.type(1), factor.shape[1]
    start = zeros // TRIANGLE
    left = start * TRIANGLE
    for block in range(start, len(inverses)):
        at = block * TRIANGLE
        here, size = rows[:, at:], min(TRIANGLE, width - at)
        if at > left:
            call_fortran(
                gemm,
                (
                    NORMAL, NORMAL, size, count, at - left, -one, factor[begin + left :, begin + at :],
                    step, rows[:, left:], width, one, here, width,
                ),
            )  # fmt: skip
        call_fortran(
            trmm,
            (
                LEFT, LOWER, NORMAL, NORMAL, size, count, one, inverses[block], TRIANGLE, here, width,
            ),
        )  # fmt: skip


@scalar
def _keep_corners(rows, top, begin, corners):
    """Copy from rows [n, w], `top` on, the parts in the diagonal blocks of a panel from `begin` on."""
    length = corners.shape[1]
    for i in range(max(begin - top, 0), len(rows)):
        block, j = divmod(top + i - begin, length)
        given, taken = rows[i, block * length : (block + 1) * length], corners[block, j]
        for k in range(len(given)):
            taken[k] = given[k]


@scalar
def _pack(rows, length, top, packed):
    """Pack rows [n, w] of a panel as column panels, from its row `top` on."""
    width, per_block = rows.shape[1], packed_count(length)
    for s in range(len(packed)):
        block = s // per_block * length
        first = block + s % per_block * COLUMNS
        count = min(COLUMNS, block + length - first, width - first)
        for i in range(len(rows)):
            given, taken = rows[i, first : first + count], packed[s, top + i]
            if count == COLUMNS:
                for c in range(COLUMNS):
                    taken[c] = given[c]
            else:
                for c in range(COLUMNS):
                    taken[c] = given[c] if c < count else 0
