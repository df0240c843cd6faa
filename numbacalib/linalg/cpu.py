"""Factors on the host: SciPy's LAPACK."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from numbacalib.linalg import TINY, HessianFactors
from numbacalib.runtime.blas import (
    cholesky_lower,
    invert_triangle,
    routine,
    single_threaded,
)
from numbacalib.runtime.half import carrier, widen_block
from numbacalib.runtime.jit import kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import (
    LEFT,
    LOWER,
    NORMAL,
    TRANSPOSED,
    call_fortran,
    claim,
)

PANEL = 256
"""Columns that are factored together."""
STRIP = 256
"""Rows of a panel that are a task."""


def factor(hessians: NDArray, percdamps: Sequence[float], dtype: np.dtype) -> HessianFactors:
    """See `numbacalib.linalg.factor_hessians`."""
    diagonals = np.diagonal(hessians, axis1=1, axis2=2).astype(np.float64)
    means = diagonals.mean(axis=1)
    dampings = np.array(percdamps) * means
    dead = diagonals == 0
    damped = np.where(dead, 1.0, diagonals + dampings[:, None]).astype(dtype)
    uppers = np.zeros(hessians.shape, dtype)
    minors = [_factor(*arrays) for arrays in zip(hessians, damped, uppers, strict=True)]
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


def _factor(hessian: NDArray, diagonal: NDArray, upper: NDArray) -> int:
    """Set the upper triangle to ``R``, ``H = R R^T``, of a Hessian with another diagonal.

    Returns 0, or the order of the minor, counted from the end, that is not positive definite. From the
    last panel of columns to the first, each is compensated for all behind it, and its rows above are
    multiplied by an inverse: all by products. LAPACK solves triangular systems, which is slower, and
    would need both axes reversed.
    """
    size, source, workers = len(upper), rows_view(carrier(hessian)), get_num_threads()
    gemm, trmm, trtri = (routine(name, upper.dtype) for name in ("gemm", "trmm", "trtri"))
    with single_threaded():
        for end in range(size, 0, -PANEL):
            begin = max(end - PANEL, 0)
            counters = np.zeros((2, 1), np.int64)
            _compensate(workers, gemm, source, diagonal, begin, end, counters[0], upper)
            own = upper[begin:end, begin:end]
            reverse = own[::-1, ::-1].copy()
            if minor := cholesky_lower(reverse):
                return size - end + minor
            own[:] = np.tril(reverse)[::-1, ::-1]
            if begin:
                _solve(workers, trtri, trmm, begin, end, counters[1], upper)
    return 0


@kernel
def _compensate(workers, gemm, source, diagonal, begin, end, counter, upper):
    """Set panel p down to its last row to ``H_p - R_{>p} R_{p, >p}^T``.

    Split: workers claim strips of rows.
    """
    strips = -(-end // (STRIP * workers)) * workers  # as many for each
    for _ in prange(workers):
        task = claim(counter)
        while task < strips:
            top, stop = task * end // strips, (task + 1) * end // strips
            strip = upper[top:stop, begin:end]
            widen_block(source, top, begin, strip)
            for j in range(max(top, begin), stop):
                strip[j - top, j - begin] = diagonal[j]
            inner, step = len(upper) - end, len(upper)
            if inner:
                one = upper.dtype.type(1)
                # Column-major BLAS sees the transposes.
                call_fortran(
                    gemm,
                    (
                        TRANSPOSED, NORMAL, end - begin, len(strip), inner, -one, upper[begin:, end:],
                        step, upper[top:, end:], step, one, strip, step,
                    ),
                )  # fmt: skip
            task = claim(counter)


@kernel
def _solve(workers, trtri, trmm, begin, end, counter, upper):
    """Multiply the rows before a panel's own by ``R_pp^-T``, which each worker finds for itself.

    Split: workers claim strips of rows.
    """
    for _ in prange(workers):
        inverse, info = upper[begin:end, begin:end].copy(), np.empty(1, np.int32)
        # Column-major LAPACK sees the transpose, a lower triangle, and its inverse.
        call_fortran(trtri, (LOWER, NORMAL, end - begin, inverse, end - begin, info))
        top = claim(counter) * STRIP
        while top < begin:
            strip = upper[top : min(top + STRIP, begin), begin:end]
            call_fortran(
                trmm,
                (
                    LEFT, LOWER, TRANSPOSED, NORMAL, end - begin, len(strip), upper.dtype.type(1),
                    inverse, end - begin, strip, len(upper),
                ),
            )  # fmt: skip
            top = claim(counter) * STRIP
