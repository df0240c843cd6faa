"""CPU kernel of the range search: tiles of rows, transposed, so that rows are the lanes of a vector."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime import checks
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import inlined, scalar, task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.grid import Grid, code_of, stored_grid, value_of
from numbacalib.spec.range_search import RangeSearch, weighted_cost

TILE = 16
"""Rows that are searched together: one or two vector registers."""
STRIP = 32
"""Columns after which a candidate that is worse in every row is given up."""


class Search(NamedTuple):
    """A search in the form that kernels take."""

    shares: NDArray
    """Shares of the full range to try."""
    norm: np.float32
    importance: NDArray
    """The carrier of [1, K] or [M, K]."""

    @classmethod
    def of(cls, search: RangeSearch, importance: NDArray | None, width: int, dtype: np.dtype):
        """Return a search of groups of a matrix with `width` columns."""
        if importance is None:
            importance = np.ones((1, width), dtype)
        shares, norm = search.shares(dtype), np.float32(search.norm)
        return cls(shares, norm, rows_view(carrier(importance)))


def search_scales(
    matrix: NDArray, group_size: int, grid: Grid, search: RangeSearch, importance: NDArray | None
) -> tuple[NDArray, NDArray]:
    """See `numbacalib.ops.range_search.search_scales`."""
    rows, channels = matrix.shape
    dtype = checks.result_dtype(matrix)
    scales = np.empty((rows, channels // group_size), dtype)
    zeros = np.empty_like(scales)
    settings = Search.of(search, importance, channels, dtype)
    source = rows_view(carrier(matrix))
    _search(-(-rows // TILE), source, group_size, settings, grid.bounds(dtype), (scales, zeros))
    return scales, zeros


@task_kernel
def _search(counter, matrix, group_size, search, bounds, found):
    """Split: workers take tiles of rows."""
    scales, zeros = found
    first = fetch_add(counter) * TILE
    while first < len(scales):
        _search_rows(matrix, first, group_size, search, bounds, scales, zeros)
        first = fetch_add(counter) * TILE


@inlined
def _search_rows(matrix, first, group_size, search, bounds, scales, zeros):
    """Find the grids of all groups of a tile of rows."""
    count = min(TILE, len(scales) - first)
    weights = np.zeros((group_size, TILE), scales.dtype)
    factors = np.zeros((group_size, TILE), scales.dtype)
    scale, zero = np.ones(TILE, scales.dtype), np.zeros(TILE, scales.dtype)
    for g in range(scales.shape[1]):
        for r in range(count):
            for j in range(group_size):
                weights[j, r] = widen(matrix[first + r, g * group_size + j])
        load_factors(search.importance, first, count, g * group_size, factors)
        search_tile(weights, factors, search, bounds, scale, zero)
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
def search_tile(weights, factors, search, bounds, scale, zero):
    """Find scale and zero point of each row of a transposed tile [group_size, TILE]."""
    real = scale.dtype.type
    lo, hi = np.zeros(TILE, scale.dtype), np.zeros(TILE, scale.dtype)
    tried, offset = np.empty(TILE, scale.dtype), np.empty(TILE, scale.dtype)
    best, error = np.full(TILE, real(np.inf)), np.empty(TILE, scale.dtype)
    for j in range(len(weights)):
        for r in range(TILE):
            lo[r] = min(lo[r], weights[j, r])
            hi[r] = max(hi[r], weights[j, r])
    for share in search.shares:
        for r in range(TILE):
            tried[r], offset[r] = stored_grid(share * lo[r], share * hi[r], bounds)
        _errors(weights, factors, tried, offset, bounds, search.norm, best, error)
        for r in range(TILE):
            # the full range stays where every error is beyond the type
            if error[r] < best[r] or share == search.shares[0]:
                best[r] = error[r]
                scale[r] = tried[r]
                zero[r] = offset[r]


@scalar
def _errors(weights, factors, scale, zero, bounds, norm, best, error):
    """Sum each row's errors into `error`; stop early once every row is past its best."""
    error[:] = 0
    for begin in range(0, len(weights), STRIP):
        for j in range(begin, min(begin + STRIP, len(weights))):
            for r in range(TILE):
                code = code_of(weights[j, r], scale[r], zero[r], bounds)
                e = value_of(code, scale[r], zero[r]) - weights[j, r]
                error[r] += weighted_cost(e, norm, factors[j, r])
        hopeful = False
        for r in range(TILE):
            hopeful |= error[r] < best[r]
        if not hopeful:
            return
