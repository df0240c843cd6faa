"""CPU kernel of the search of FP4 scales: tiles of rows, transposed, so that rows are lanes of a vector."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import scalar, task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.grid import E2M1, Grid, code_of, value_of
from numbacalib.spec.small_floats import BITS, Fp4, first_scale

TILE = 16
"""Rows that are searched together: one or two vector registers."""


class _Search(NamedTuple):
    """A search in the form that the kernel takes."""

    values: NDArray[np.float32]
    limits: NDArray[np.float32]
    one: int
    steps: NDArray[np.int64]
    divisor: np.float32
    blocks: bool
    """True if errors are weighted by blocks of the Hessian, False for the importance."""
    hessian: Any
    """The carrier of [K, K]."""
    importance: Any
    """The carrier of [1, K] or [M, K]."""


class _Tile(NamedTuple):
    """A group of a tile of rows: each [group_size, TILE]."""

    weights: NDArray[np.float32]
    factors: NDArray[np.float32]
    errors: NDArray[np.float32]


def search_fp4_scales(
    matrix: NDArray,
    form: Fp4,
    divisor: np.float32,
    steps: NDArray[np.int64],
    hessian: NDArray | None,
    importance: NDArray | None,
) -> NDArray:
    """See `numbacalib.ops.fp4_scales.search_fp4_scales`."""
    rows, channels = matrix.shape
    scales = np.empty((rows, channels // form.group_size), np.float32)
    factors = np.ones((1, channels), np.float32) if importance is None else importance
    blocks = np.zeros((1, 1), np.float32) if hessian is None else hessian
    weights = hessian is not None, rows_view(carrier(blocks)), rows_view(carrier(factors))
    found = form.scales
    search = _Search(found.values, found.limits, found.one, steps, divisor, *weights)
    bounds = Grid(BITS, symmetric=True, element=E2M1).bounds(np.dtype(np.float32))
    _search(-(-rows // TILE), rows_view(carrier(matrix)), form.group_size, search, bounds, scales)
    return scales


@task_kernel
def _search(counter, matrix, size, search, bounds, scales):
    """Split: workers take tiles of rows."""
    rows, groups = scales.shape
    weights = np.zeros((size, TILE), np.float32)
    tile = _Tile(weights, np.zeros((size, TILE), np.float32), np.empty((size, TILE), np.float32))
    found = np.empty(TILE, np.float32)
    first = fetch_add(counter) * TILE
    while first < rows:
        count = min(TILE, rows - first)
        for g in range(groups):
            begin = g * size
            for r in range(count):
                row = min(first + r, len(search.importance) - 1)
                for j in range(size):
                    tile.weights[j, r] = np.float32(widen(matrix[first + r, begin + j]))
                    tile.factors[j, r] = np.float32(widen(search.importance[row, begin + j]))
            _search_group(tile, begin, search, bounds, found)
            for r in range(count):
                scales[first + r, g] = found[r]
        first = fetch_add(counter) * TILE


@scalar
def _search_group(tile, begin, search, bounds, found):
    """Find each row's scale of the group that begins at a column."""
    first, largest = np.empty(TILE, np.int64), np.zeros(TILE, np.float32)
    scale, loss = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    best = np.full(TILE, np.float32(np.inf))
    for j in range(len(tile.weights)):
        for r in range(TILE):
            largest[r] = max(largest[r], abs(tile.weights[j, r]))
    for r in range(TILE):
        first[r] = first_scale(largest[r] * search.divisor, search.limits)
        if largest[r] == 0:
            first[r] = search.one
        found[r] = search.values[first[r]] / search.divisor
    for step in search.steps:
        for r in range(TILE):
            code = min(max(first[r] + step, 0), len(search.values) - 1)
            scale[r] = search.values[code] / search.divisor
            if scale[r] == 0:
                scale[r] = found[r]
        _lose(tile, begin, scale, search, bounds, loss)
        for r in range(TILE):
            if loss[r] < best[r]:
                best[r], found[r] = loss[r], scale[r]


@scalar
def _lose(tile, begin, scale, search, bounds, loss):
    """Sum each row's loss with a scale of its own."""
    zero = np.float32(0)
    loss[:] = 0
    for j in range(len(tile.weights)):
        for r in range(TILE):
            weight = tile.weights[j, r]
            point = code_of(weight, scale[r], zero, bounds)
            tile.errors[j, r] = value_of(point, scale[r], zero) - weight
    product = np.empty(TILE, np.float32)
    for j in range(len(tile.weights)):
        if search.blocks:
            product[:] = 0
            for k in range(len(tile.weights)):
                factor = np.float32(widen(search.hessian[begin + j, begin + k]))
                for r in range(TILE):
                    product[r] += factor * tile.errors[k, r]
        else:
            for r in range(TILE):
                product[r] = tile.factors[j, r] * tile.errors[j, r]
        for r in range(TILE):
            loss[r] += product[r] * tile.errors[j, r]
