"""Factors on the host: SciPy's LAPACK."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.linalg import TINY, HessianFactors
from numbacalib.runtime.blas import cholesky_lower, invert_triangle
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel
from numbacalib.runtime.strides import rows_view


def factor(hessians: NDArray, percdamps: Sequence[float], dtype: np.dtype) -> HessianFactors:
    """See `numbacalib.linalg.factor_hessians`."""
    diagonals = np.diagonal(hessians, axis1=1, axis2=2).astype(np.float64)
    means = diagonals.mean(axis=1)
    dampings = np.array(percdamps) * means
    dead = diagonals == 0
    uppers = np.empty(hessians.shape, dtype)
    minors = []
    for matrix, hessian, diagonal in zip(
        uppers, hessians, np.where(dead, 1.0, diagonals + dampings[:, None]), strict=True
    ):
        _load_reversed(rows_view(carrier(hessian)), matrix)
        np.fill_diagonal(matrix, diagonal[::-1])
        minors.append(cholesky_lower(matrix))
        _reverse_lower(matrix)
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
