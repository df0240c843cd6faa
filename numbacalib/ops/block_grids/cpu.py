"""CPU kernel of the search of block grids: tiles of rows, transposed, so that rows are a vector's lanes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.block_grids.groups_cpu import TILE, Tile, fit_group, sum_errors, zero_of
from numbacalib.runtime.jit import scalar, task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.block_grid import LEAST_SHARE, BlockGrid, BlockScales
from numbacalib.spec.grid import SCALE_FLOAT16, Grid, code_of, stored_scale

ROUNDS = 2
"""Rounds that try integers next to the groups' and solve for the block's numbers again."""
STEPS = 5
"""Block scales that are tried, half a step of the largest group's integer apart."""


CHUNK = 1 << 22
"""Weights that are converted to float32 at a time, so that the search has one compiled form."""


class _Search(NamedTuple):
    """A search on one grid, in the form that kernels take."""

    bounds: Any
    shares: NDArray
    groups: int
    minima: bool
    half: np.float32
    low: np.float32
    """Least integer of a group."""
    high: np.float32


class _Found(NamedTuple):
    """Numbers that were found for a block of `TILE` rows."""

    scale: Any
    """[TILE], of the block."""
    minimum: Any
    scales: Any
    """Integers of the groups, [groups, TILE]."""
    minima: Any
    errors: Any
    """[groups, TILE]."""


def search_block_grids(matrix: NDArray, grid: BlockGrid, importance: NDArray) -> BlockScales:
    """See `numbacalib.ops.block_grids.search_block_grids`."""
    rows, channels = matrix.shape
    blocks = channels // grid.values
    real = np.float32
    bounds = Grid(grid.bits, symmetric=False).bounds(np.dtype(real))
    ends = real(grid.half), *map(real, grid.scale_range)
    search = _Search(bounds, grid.shares(), grid.groups, grid.minima, *ends)
    scale, minimum = np.empty((rows, blocks), real), np.empty((rows, blocks), real)
    scales = np.empty((rows, blocks * grid.groups), np.int8)
    minima = np.empty(scales.shape, np.uint8)
    step = max(1, CHUNK // (channels * TILE)) * TILE
    for first in range(0, rows, step):
        own = slice(first, first + step)
        with np.errstate(over="ignore"):
            source = rows_view(np.ascontiguousarray(matrix[own], real))
        factors = rows_view(importance if len(importance) == 1 else importance[own])
        numbers = scale[own], minimum[own], scales[own], minima[own]
        _search(-(-len(source) // TILE) * blocks, source, factors, search, numbers)
    with np.errstate(over="ignore"):
        return BlockScales(scale.astype(np.float16), minimum.astype(np.float16), scales, minima)


@task_kernel
def _search(counter, matrix, importance, grid, numbers):
    """Split: workers take a (tile of rows, block)."""
    scale, minimum, scales, minima = numbers
    rows, blocks = scale.shape
    values = matrix.shape[1] // blocks
    weights, factors = np.empty((values, TILE), np.float32), np.empty((values, TILE), np.float32)
    task = fetch_add(counter)
    while task < -(-rows // TILE) * blocks:
        first, b = task // blocks * TILE, task % blocks
        _load(matrix, importance, first, b * values, weights, factors)
        _add_magnitudes(weights, factors)
        found = _search_block(Tile(weights, factors), grid)
        for r in range(min(TILE, rows - first)):
            scale[first + r, b], minimum[first + r, b] = found.scale[r], found.minimum[r]
            for g in range(grid.groups):
                scales[first + r, b * grid.groups + g] = np.int8(found.scales[g, r])
                minima[first + r, b * grid.groups + g] = np.uint8(found.minima[g, r])
        task = fetch_add(counter)


@scalar
def _load(matrix, importance, first, left, weights, factors):
    """Transpose a tile of rows; those past the last one hold zeros."""
    for r in range(TILE):
        row = first + r
        if row < len(matrix):
            given, weighs = matrix[row], importance[min(row, len(importance) - 1)]
            for j in range(len(weights)):
                weights[j, r], factors[j, r] = given[left + j], weighs[left + j]
        else:
            for j in range(len(weights)):
                weights[j, r], factors[j, r] = np.float32(0), np.float32(1)


@scalar
def _add_magnitudes(weights, factors):
    """Multiply weights of errors by ``sqrt(2 s + w**2)``, over ``sqrt(2 s)``, s being the mean square."""
    for r in range(TILE):
        spread = np.float32(2.0**-100)
        for j in range(len(weights)):
            spread += weights[j, r] * weights[j, r] / np.float32(len(weights) / 2)
        for j in range(len(weights)):
            factors[j, r] *= np.sqrt((spread + weights[j, r] * weights[j, r]) / spread)


@scalar
def _search_block(tile, grid):
    """Find a block's numbers and integers, for each row separately."""
    shape = grid.groups, TILE
    scales, minima = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for g in range(grid.groups):
        fit_group(_group(tile, g, grid), grid, scales[g], minima[g])
    found = _empty(grid)
    if grid.groups == 1:
        for r in range(TILE):
            found.scale[r] = _stored(scales[0, r])
            found.minimum[r] = _stored(minima[0, r]) if grid.minima else np.float32(0)
            found.scales[0, r] = found.minima[0, r] = np.float32(1)
            if grid.minima:
                found.scale[r] = _long_enough(found.scale[r], found.minimum[r], np.float32(1))
        return found
    _divide(tile, scales, minima, grid, found)
    for _ in range(ROUNDS):
        for g in range(grid.groups):
            _try_neighbours(_group(tile, g, grid), g, grid, found)
        _solve(tile, grid, found)
    return found


@scalar
def _empty(grid):
    shape = grid.groups, TILE
    return _Found(
        np.empty(TILE, np.float32),
        np.zeros(TILE, np.float32),
        np.empty(shape, np.float32),
        np.zeros(shape, np.float32),
        np.empty(shape, np.float32),
    )


@scalar
def _group(tile, g, grid):
    """Values of one group of a block."""
    size = len(tile.weights) // grid.groups
    return Tile(tile.weights[g * size : (g + 1) * size], tile.factors[g * size : (g + 1) * size])


@scalar
def _stored(number):
    """Round a number of either sign to float16, never to 0."""
    rounded = stored_scale(abs(number), SCALE_FLOAT16)
    return -rounded if number < 0 else rounded


@scalar
def _long_enough(scale, minimum, integer):
    """Raise a stored scale to at least `LEAST_SHARE` of `integer` times the minimum."""
    return max(scale, _stored(abs(minimum) * integer * np.float32(LEAST_SHARE)))


@scalar
def _divide(tile, scales, minima, grid, found):
    """Choose the block's numbers and the groups' integers for real scales and minima."""
    tried = _empty(grid)
    best = np.full(TILE, np.float32(np.inf))
    for step in range(STEPS):
        shift = np.float32(0.5) * np.float32(step - STEPS // 2)
        for r in range(TILE):
            largest, deepest = scales[0, r], minima[0, r]
            for g in range(1, grid.groups):
                if abs(scales[g, r]) > abs(largest):
                    largest = scales[g, r]
                deepest = max(deepest, minima[g, r])
            reach = grid.high if grid.minima else grid.low
            tried.scale[r] = _stored(largest / (reach + (shift if grid.minima else -shift)))
            if grid.minima:
                tried.minimum[r] = _stored(deepest / grid.high)
                tried.scale[r] = _long_enough(tried.scale[r], tried.minimum[r], grid.high)
            for g in range(grid.groups):
                tried.scales[g, r] = _integer(scales[g, r] / tried.scale[r], grid)
                if grid.minima:
                    whole = np.rint(minima[g, r] / tried.minimum[r])
                    tried.minima[g, r] = min(max(whole, np.float32(0)), grid.high)
        _keep_better(tile, grid, tried, best, found)


@scalar
def _integer(quotient, grid):
    """Nearest integer that a group's scale may be, except 0."""
    whole = min(max(np.rint(quotient), grid.low), grid.high)
    if whole == 0:
        return np.float32(-1) if quotient < 0 and not grid.minima else np.float32(1)
    return whole


@scalar
def _keep_better(tile, grid, tried, best, found):
    """Keep the tried numbers in each row where their error is below the `best` so far."""
    total = np.zeros(TILE, np.float32)
    for g in range(grid.groups):
        _group_errors(_group(tile, g, grid), g, grid, tried, tried.errors[g])
        for r in range(TILE):
            total[r] += tried.errors[g, r]
    for r in range(TILE):
        if total[r] < best[r]:
            best[r] = total[r]
            found.scale[r], found.minimum[r] = tried.scale[r], tried.minimum[r]
            for g in range(grid.groups):
                found.scales[g, r], found.minima[g, r] = tried.scales[g, r], tried.minima[g, r]
                found.errors[g, r] = tried.errors[g, r]


@scalar
def _group_errors(group, g, grid, found, error):
    """Errors of group g with the block's numbers and the group's integers."""
    scale, zero = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for r in range(TILE):
        scale[r] = found.scale[r] * found.scales[g, r]
        zero[r] = zero_of(scale[r], found.minimum[r] * found.minima[g, r], grid)
    sum_errors(group, scale, zero, grid, error)


@scalar
def _try_neighbours(group, g, grid, found):
    """Try integers next to those of group g."""
    scale, minimum = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    best_scale, best_minimum = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    error, best = np.empty(TILE, np.float32), found.errors[g]
    for r in range(TILE):
        scale[r] = best_scale[r] = found.scales[g, r]
        minimum[r] = best_minimum[r] = found.minima[g, r]
    reach = 1 if grid.minima else 0
    for up in range(-1, 2):
        for deeper in range(-reach, reach + 1):
            if up == 0 and deeper == 0:
                continue
            for r in range(TILE):
                moved = min(max(scale[r] + np.float32(up), grid.low), grid.high)
                found.scales[g, r] = moved if moved != 0 else scale[r]
                moved = minimum[r] + np.float32(deeper)
                found.minima[g, r] = min(max(moved, np.float32(0)), grid.high)
            _group_errors(group, g, grid, found, error)
            for r in range(TILE):
                if error[r] < best[r]:
                    best[r] = error[r]
                    best_scale[r], best_minimum[r] = found.scales[g, r], found.minima[g, r]
    for r in range(TILE):
        found.scales[g, r], found.minima[g, r] = best_scale[r], best_minimum[r]


@scalar
def _solve(tile, grid, found):
    """Solve for the block's numbers with all integers fixed; keep them where they are better."""
    aa, ab, bb, ax, bx = np.zeros((5, TILE), np.float32)
    for g in range(grid.groups):
        group = _group(tile, g, grid)
        for j in range(len(group.weights)):
            for r in range(TILE):
                weight, factor = group.weights[j, r], group.factors[j, r]
                scale = found.scale[r] * found.scales[g, r]
                zero = zero_of(scale, found.minimum[r] * found.minima[g, r], grid)
                code = code_of(weight, scale, zero, grid.bounds)
                if not grid.minima:
                    code -= grid.half
                a, b = code * found.scales[g, r], found.minima[g, r]
                aa[r] += factor * (a * a)
                ab[r] += factor * (a * b)
                bb[r] += factor * (b * b)
                ax[r] += factor * (a * weight)
                bx[r] += factor * (b * weight)
    tried = _empty(grid)
    best = np.zeros(TILE, np.float32)
    for r in range(TILE):
        for g in range(grid.groups):
            tried.scales[g, r], tried.minima[g, r] = found.scales[g, r], found.minima[g, r]
            best[r] += found.errors[g, r]
        scale, minimum = found.scale[r], found.minimum[r]
        spread = aa[r] * bb[r] - ab[r] * ab[r]
        if grid.minima and spread > 0:
            scale = (ax[r] * bb[r] - bx[r] * ab[r]) / spread
            minimum = max((ax[r] * ab[r] - bx[r] * aa[r]) / spread, np.float32(0))
        elif aa[r] > 0:
            scale = ax[r] / aa[r]
        if not (abs(scale) < np.inf and (scale > 0 or not grid.minima)):
            scale, minimum = found.scale[r], found.minimum[r]
        tried.scale[r], tried.minimum[r] = _stored(scale), minimum
        if grid.minima:
            tried.minimum[r] = _stored(minimum)
            tried.scale[r] = _long_enough(tried.scale[r], tried.minimum[r], grid.high)
    _keep_better(tile, grid, tried, best, found)
