"""Factors on the host: SciPy's LAPACK."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.linalg import HessianFactor, require_positive_definite
from numbacalib.runtime.blas import cholesky_lower, invert_triangle
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel
from numbacalib.runtime.strides import rows_view


def factor(hessian: NDArray, percdamp: float, dtype: np.dtype) -> HessianFactor:
    """See `numbacalib.linalg.factor_hessian`."""
    diagonal = np.diagonal(hessian).astype(np.float64)
    damping = percdamp * float(diagonal.mean())
    dead = diagonal == 0
    matrix = np.empty(hessian.shape, dtype)
    _load_reversed(rows_view(carrier(hessian)), matrix)
    np.fill_diagonal(matrix, np.where(dead, 1.0, diagonal + damping)[::-1])
    require_positive_definite(
        cholesky_lower(matrix), len(matrix), percdamp, damping, diagonal.min()
    )
    _reverse_lower(matrix)
    return HessianFactor(matrix, dead, int(dead.sum()), damping)


def invert(upper: NDArray) -> NDArray:
    """Overwrite ``R`` by its inverse and return it."""
    invert_triangle(upper, lower=False)
    return upper


@kernel
def _load_reversed(source, matrix):
    """Reverse both axes of the upper triangle of `source` into a lower one. Split: one task a row."""
    last = len(matrix) - 1
    for i in prange(len(matrix)):
        row, given = matrix[i, : i + 1], source[last - i, last - i :]
        for j in range(i + 1):
            row[j] = widen(given[i - j])


@kernel
def _reverse_lower(matrix):
    """Reverse both axes of a lower triangular matrix in place and clear the other triangle.

    Row i becomes row K-1-i read from right to left: rows trade places in pairs. Split: one task a
    pair.
    """
    size = len(matrix)
    for i in prange((size + 1) // 2):
        k = size - 1 - i
        row, other = matrix[i, : i + 1].copy(), matrix[k, : k + 1].copy()
        matrix[i, :i] = 0
        matrix[i, i:] = other[::-1]
        matrix[k, :k] = 0
        matrix[k, k:] = row[::-1]
