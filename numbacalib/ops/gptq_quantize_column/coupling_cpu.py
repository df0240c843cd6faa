"""What compensates a panel of columns for those before it, prepared once for all rows of a weight."""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from numbacalib.runtime.blas import routine
from numbacalib.runtime.half import carrier, widen_block
from numbacalib.runtime.jit import kernel, scalar
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import (
    LEFT,
    LOWER,
    NORMAL,
    call_fortran,
    claim,
)

STRIP = 256
"""Rows that are a task."""
BLOCK = 128
"""Order of triangles that are inverted."""


def couple_panels(
    factor: NDArray, edges: NDArray[np.int64], dtype: np.dtype, *, inverse: bool
) -> NDArray:
    """Return for each panel p, of width w, ``[end, w]``, one after the other in flat memory.

    The rows before the panel are ``U_{<p, p}`` with `inverse`, else ``R_{<p, p} R_pp^-1``; its own are
    ``U_pp`` or ``R_pp^-1``. To be called where BLAS is single-threaded.
    """
    gemm, trmm, trtri = (routine(name, dtype) for name in ("gemm", "trmm", "trtri"))
    source = rows_view(carrier(factor))
    first = np.append(0, np.cumsum(-(-np.diff(edges) // BLOCK)))
    inverses = np.empty((0 if inverse else first[-1], BLOCK, BLOCK), dtype)
    if not inverse:
        _invert_blocks(trtri, source, edges, first, inverses)
    coupling = np.empty(int((edges[1:] * np.diff(edges)).sum()), dtype)
    counter = np.zeros(1, np.int64)
    _couple(get_num_threads(), gemm, trmm, source, edges, first, inverses, counter, coupling)
    return coupling


@scalar
def panel_coupling(coupling, edges, p):
    """View what couples panel p, of width w, to the columns up to its end: ``[end, w]``."""
    at = 0
    for q in range(p):
        at += edges[q + 1] * (edges[q + 1] - edges[q])
    begin, end = edges[p], edges[p + 1]
    return coupling[at : at + end * (end - begin)].reshape(end, end - begin)


@kernel
def _invert_blocks(trtri, factor, edges, first, inverses):
    """Invert the triangles on the diagonal of each ``R_pp``. Split: one task a panel."""
    for p in prange(len(edges) - 1):
        info = np.empty(1, np.int32)
        for begin in range(edges[p], edges[p + 1], BLOCK):
            size = min(BLOCK, edges[p + 1] - begin)
            inverse = inverses[first[p] + (begin - edges[p]) // BLOCK]
            widen_block(factor, begin, begin, inverse[:size, :size])
            # Column-major LAPACK sees the transpose, a lower triangle, and its inverse.
            call_fortran(trtri, (LOWER, NORMAL, size, inverse, BLOCK, info))


@kernel
def _couple(workers, gemm, trmm, factor, edges, first, inverses, counter, coupling):
    """Fill in the panels, and solve them where there are inverses.

    Split: workers claim strips of rows.
    """
    for _ in prange(workers):
        task = claim(counter)
        before = 0
        for p in range(len(edges) - 1):
            begin, end = edges[p], edges[p + 1]
            panel = panel_coupling(coupling, edges, p)
            strips = -(-end // STRIP)
            while task < before + strips:
                top = (task - before) * STRIP
                strip = panel[top : top + STRIP]
                if len(inverses) == 0:
                    widen_block(factor, top, begin, strip)
                else:
                    _begin_strip(factor, top, begin, strip)
                    own = inverses[first[p] : first[p + 1]]
                    _solve_strip(gemm, trmm, factor, begin, max(top - begin, 0), own, strip)
                task = claim(counter)
            before += strips


@scalar
def _begin_strip(factor, top, begin, strip):
    """Set rows to ``R_{<p, p}``, those of the panel's own columns to 1 on the diagonal."""
    above = min(max(begin - top, 0), len(strip))
    widen_block(factor, top, begin, strip[:above])
    for i in range(above, len(strip)):
        strip[i] = 0
        strip[i, top + i - begin] = 1


@scalar
def _solve_strip(gemm, trmm, factor, begin, zeros, inverses, strip):
    """Solve ``X R_pp = B`` in place, block by block: ``X_j = (B_j - X_{<j} R_{<j, j}) R_jj^-1``.

    The first `zeros` columns are 0. Column-major BLAS sees the transposes. Its own solutions are far
    slower than products.
    """
    rows, width = strip.shape
    one, step = strip.dtype.type(1), factor.shape[1]
    start = zeros // BLOCK
    left = start * BLOCK
    for block in range(start, len(inverses)):
        at = block * BLOCK
        here, size = strip[:, at:], min(BLOCK, width - at)
        if at > left:
            call_fortran(
                gemm,
                (
                    NORMAL, NORMAL, size, rows, at - left, -one, factor[begin + left :, begin + at :],
                    step, strip[:, left:], width, one, here, width,
                ),
            )  # fmt: skip
        call_fortran(
            trmm,
            (
                LEFT, LOWER, NORMAL, NORMAL, size, rows, one, inverses[block], BLOCK, here, width,
            ),
        )  # fmt: skip
