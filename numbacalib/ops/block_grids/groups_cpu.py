"""Fits of one group of a block grid: the real scale and minimum of each row's values.

Rows are the lanes of a vector: arrays are ``[values, TILE]`` and ``[TILE]``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numbacalib.runtime.jit import scalar
from numbacalib.spec.grid import code_of, value_of

TILE = 16
"""Rows that are searched together: one or two vector registers."""


class Tile(NamedTuple):
    """A block of `TILE` rows: ``[values, TILE]``."""

    weights: Any
    factors: Any


@scalar
def zero_of(scale, minimum, grid):
    """Zero point of a grid with a real minimum, or with none."""
    return minimum / scale if grid.minima else grid.half


@scalar
def fit_group(group, grid, scale, minimum):
    """Find each row's real scale and minimum of one group."""
    lo, hi = np.zeros(TILE, np.float32), np.zeros(TILE, np.float32)
    for j in range(len(group.weights)):
        for r in range(TILE):
            lo[r] = min(lo[r], group.weights[j, r])
            hi[r] = max(hi[r], group.weights[j, r])
    tried, offset = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    best = np.full(TILE, np.float32(np.inf))
    tiny = np.float32(2.0**-24)
    for share in grid.shares:
        if grid.minima:
            # clip above, on both sides, or below
            for below in (np.float32(0), np.float32(0.5), np.float32(1)):
                for r in range(TILE):
                    tried[r] = max(share * ((hi[r] - lo[r]) / grid.bounds.levels), tiny)
                    offset[r] = -(lo[r] + below * (1 - share) * (hi[r] - lo[r]))
                _refine(group, grid, tried, offset, best, scale, minimum)
        else:
            # the grid's longer side takes the larger weight; the other sign is tried too
            for sign in (np.float32(1), np.float32(-1)):
                for r in range(TILE):
                    longer = -lo[r] if -lo[r] > hi[r] else -hi[r]
                    tried[r] = sign * share * longer / grid.half
                    if abs(tried[r]) < tiny:
                        tried[r] = tiny
                _refine(group, grid, tried, offset, best, scale, minimum)
    for _ in range(2):
        for r in range(TILE):
            tried[r], offset[r] = scale[r], minimum[r]
        _refine(group, grid, tried, offset, best, scale, minimum)


@scalar
def _refine(group, grid, tried, offset, best, scale, minimum):
    """Solve for scale and minimum with the codes of those tried; keep them where they are better."""
    _least_squares(group, grid, tried, offset)
    zero, error = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for r in range(TILE):
        zero[r] = zero_of(tried[r], offset[r], grid)
    sum_errors(group, tried, zero, grid, error)
    for r in range(TILE):
        if error[r] < best[r]:
            best[r], scale[r], minimum[r] = error[r], tried[r], offset[r]


@scalar
def _least_squares(group, grid, scale, offset):
    """Replace scale and minimum with those of the least error for the same codes."""
    zero = np.empty(TILE, np.float32)
    for r in range(TILE):
        zero[r] = zero_of(scale[r], offset[r], grid)
    # rows of one array: vectorized loops need no test of whether these overlap
    ones, q, qq, x, xq = np.zeros((5, TILE), np.float32)
    for j in range(len(group.weights)):
        for r in range(TILE):
            weight, factor = group.weights[j, r], group.factors[j, r]
            code = code_of(weight, scale[r], zero[r], grid.bounds)
            if not grid.minima:
                code -= grid.half
            ones[r] += factor
            q[r] += factor * code
            qq[r] += factor * (code * code)
            x[r] += factor * weight
            xq[r] += factor * (weight * code)
    for r in range(TILE):
        if grid.minima:
            spread = ones[r] * qq[r] - q[r] * q[r]
            solved = (ones[r] * xq[r] - q[r] * x[r]) / spread
            lowest = (solved * q[r] - x[r]) / ones[r]
            if not lowest >= 0:
                solved, lowest = xq[r] / qq[r], np.float32(0)
            if solved > scale[r] / 8 and solved < scale[r] * 8:
                scale[r], offset[r] = solved, lowest
        elif qq[r] > 0 and xq[r] != 0:
            scale[r] = xq[r] / qq[r]


@scalar
def sum_errors(group, scale, zero, grid, error):
    """Sum the weighted squared errors of one group's nearest values."""
    error[:] = 0
    for j in range(len(group.weights)):
        for r in range(TILE):
            code = code_of(group.weights[j, r], scale[r], zero[r], grid.bounds)
            e = value_of(code, scale[r], zero[r]) - group.weights[j, r]
            error[r] += group.factors[j, r] * (e * e)
