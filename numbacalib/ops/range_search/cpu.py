"""CPU kernel of the range search: tiles of rows, transposed, so that rows are the lanes of a vector."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime import checks
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel, scalar
from numbacalib.runtime.strides import rows_view
from numbacalib.spec.grid import Grid, code_of, stored_grid, value_of
from numbacalib.spec.range_search import RangeSearch, power

TILE = 16
"""Rows that are searched together: one or two vector registers."""
STRIP = 32
"""Columns after which a candidate that is worse in every row is given up."""


def search_scales(
    matrix: NDArray, group_size: int, grid: Grid, search: RangeSearch, importance: NDArray | None
) -> tuple[NDArray, NDArray]:
    """See `numbacalib.ops.range_search.search_scales`."""
    dtype = checks.result_dtype(matrix)
    if importance is None:
        importance = np.ones((1, matrix.shape[1]), dtype)
    scales = np.empty((len(matrix), matrix.shape[1] // group_size), dtype)
    zeros = np.empty_like(scales)
    _search(
        rows_view(carrier(matrix)),
        rows_view(carrier(importance)),
        group_size,
        search.shares(dtype),
        np.float32(search.norm),
        *grid.bounds(dtype),
        grid.symmetric,
        grid.storage,
        scales,
        zeros,
    )
    return scales, zeros


@kernel
def _search(
    matrix,
    importance,
    group_size,
    shares,
    norm,
    low,
    high,
    levels,
    symmetric,
    storage,
    scales,
    zeros,
):
    """Split: one task a tile of rows."""
    rows, groups = scales.shape
    for tile in prange(-(-rows // TILE)):
        first = tile * TILE
        count = min(TILE, rows - first)
        weights = np.zeros((group_size, TILE), scales.dtype)
        factors = np.zeros((group_size, TILE), scales.dtype)
        scale = np.ones(TILE, scales.dtype)
        zero = np.zeros(TILE, scales.dtype)
        for g in range(groups):
            for r in range(count):
                for j in range(group_size):
                    weights[j, r] = widen(matrix[first + r, g * group_size + j])
            load_factors(importance, first, count, g * group_size, factors)
            search_tile(
                weights, factors, shares, norm, low, high, levels, symmetric, storage, scale, zero
            )
            for r in range(count):
                scales[first + r, g], zeros[first + r, g] = scale[r], zero[r]


@scalar
def load_factors(importance, first, count, left, factors):
    """Transpose importance [1, K] or [M, K] of `count` rows, from column `left`, into a tile."""
    for r in range(count):
        row = min(first + r, len(importance) - 1)
        for j in range(len(factors)):
            factors[j, r] = widen(importance[row, left + j])


@scalar
def search_tile(weights, factors, shares, norm, low, high, levels, symmetric, storage, scale, zero):
    """Find scale and zero point of each row of a transposed tile [group_size, TILE]."""
    real = scale.dtype.type
    lo, hi = np.zeros(TILE, scale.dtype), np.zeros(TILE, scale.dtype)
    tried, offset = np.empty(TILE, scale.dtype), np.empty(TILE, scale.dtype)
    best, error = np.full(TILE, real(np.inf)), np.empty(TILE, scale.dtype)
    for j in range(len(weights)):
        for r in range(TILE):
            lo[r] = min(lo[r], weights[j, r])
            hi[r] = max(hi[r], weights[j, r])
    for share in shares:
        for r in range(TILE):
            tried[r], offset[r] = stored_grid(
                share * lo[r], share * hi[r], levels, symmetric, storage
            )
        _errors(weights, factors, tried, offset, low, high, norm, best, error)
        for r in range(TILE):
            # the full range stays where every error is beyond the type
            if error[r] < best[r] or share == shares[0]:
                best[r] = error[r]
                scale[r] = tried[r]
                zero[r] = offset[r]


@scalar
def _errors(weights, factors, scale, zero, low, high, norm, best, error):
    """Sum each row's errors into `error`; stop early where all rows are past their best."""
    error[:] = 0
    for begin in range(0, len(weights), STRIP):
        end = min(begin + STRIP, len(weights))
        if norm == 2:
            for j in range(begin, end):
                for r in range(TILE):
                    code = code_of(weights[j, r], scale[r], zero[r], low, high)
                    e = value_of(code, scale[r], zero[r]) - weights[j, r]
                    error[r] += factors[j, r] * (e * e)
        else:
            for j in range(begin, end):
                for r in range(TILE):
                    code = code_of(weights[j, r], scale[r], zero[r], low, high)
                    e = value_of(code, scale[r], zero[r]) - weights[j, r]
                    error[r] += factors[j, r] * power(abs(e), norm)
        hopeful = False
        for r in range(TILE):
            hopeful |= error[r] < best[r]
        if not hopeful:
            return
