"""GPTQ's recurrence inside a block of columns, on a tile of rows whose block lies in the first-level cache.

Everything here lies transposed, ``[columns, TILE]``, so that the rows are the lanes of vectors; it comes
and goes as tiles of `LANES` rows, as products read them. Lanes past the last row hold zeros or what came
before: no row ever reads another's lane.
"""

from __future__ import annotations

import numpy as np

from numbacalib.ops.range_search import cpu as range_search
from numbacalib.runtime.jit import scalar
from numbacalib.runtime.tile_product import COLUMNS, LANES, add_tile
from numbacalib.spec.grid import code_of, stored_grid, value_of

BLOCK = 128
"""Columns that are walked with one tile of rows in the first-level cache."""
TILE = 2 * LANES
"""Rows that are walked together: several vectors of float32."""
STEP = 8
"""Columns whose errors reach the rest of a block in one pass."""


@scalar
def find_scales(
    tiles,
    index,
    first,
    count,
    shares,
    norm,
    importance,
    low,
    high,
    levels,
    symmetric,
    storage,
    scales,
    zeros,
):
    """Find the grids of a whole group, `index`, of `count` rows from `first`, and store them.

    They span the group, `tiles` [TILE // LANES, n, LANES], or are searched for where there are `shares`.
    """
    group = np.empty((tiles.shape[1], TILE), scales.dtype)
    _gather(tiles, group)
    if not len(shares):
        scale, zero = np.empty(TILE, scales.dtype), np.empty(TILE, scales.dtype)
        _span(group, levels, symmetric, storage, scale, zero)
        _store(scale, zero, first, count, index, scales, zeros)
        return
    lanes = range_search.TILE
    scale, zero = np.ones(lanes, scales.dtype), np.zeros(lanes, scales.dtype)
    factors = np.zeros((len(group), lanes), scales.dtype)
    weights = np.empty((len(group), lanes), scales.dtype)
    for lane in range(0, count, lanes):
        row, some = first + lane, min(lanes, count - lane)
        for j in range(len(group)):
            for r in range(lanes):
                weights[j, r] = group[j, lane + r]
        range_search.load_factors(importance, row, some, index * len(group), factors)
        range_search.search_tile(
            weights, factors, shares, norm, low, high, levels, symmetric, storage, scale, zero
        )
        _store(scale, zero, row, some, index, scales, zeros)


@scalar
def quantize_block(
    panel,
    errors,
    history,
    inverse,
    corner,
    start,
    stop,
    begin,
    first,
    count,
    group_of,
    find,
    low,
    high,
    levels,
    symmetric,
    storage,
    scales,
    zeros,
    codes,
    losses,
):
    """Quantize columns `start` to `stop` of a panel from column `begin`, in `count` rows from `first`.

    `panel` [TILE // LANES, w, LANES] holds compensated weights, `errors` receives ``-e``; `history`,
    [TILE // LANES, K, LANES], holds weights as they came and receives ``-e`` with `inverse`, else what
    rounding took from them. `corner` couples the block's columns, and has zeros behind them. Columns go in
    steps: compensation reaches the rest of the step at once and the rest of the block step by step, `STEP`
    columns in one pass over it. With `find`, a step ends where a group does, so that a group's scale is
    found from fully compensated weights.
    """
    width = stop - start
    block = np.empty((width + COLUMNS, TILE), panel.dtype)
    block[width:] = 0  # products may reach behind the block
    error = np.empty((width, TILE), panel.dtype)
    unsigned = np.empty((width, TILE), np.uint8)
    scale = np.ones(TILE, panel.dtype)
    zero = np.zeros(TILE, panel.dtype)
    loss = np.zeros(TILE, panel.dtype)
    _gather(panel[:, start:stop], block[:width])
    step = 0
    while step < width:
        group = group_of[begin + start + step]
        end = step + 1
        while end < min(step + STEP, width) and (
            not find or group_of[begin + start + end] == group
        ):
            end += 1
        if find and (step == 0 or group != group_of[begin + start + step - 1]):
            last = end
            while last < width and group_of[begin + start + last] == group:
                last += 1
            _span(block[step:last], levels, symmetric, storage, scale, zero)
            _store(scale, zero, first, count, group, scales, zeros)
        for j in range(step, end):
            group = group_of[begin + start + j]
            if not find and (j == 0 or group != group_of[begin + start + j - 1]):
                for r in range(count):
                    scale[r], zero[r] = scales[first + r, group], zeros[first + r, group]
            pivot = corner[j, j]
            _quantize_lanes(block[j], scale, zero, low, high, pivot, error[j], unsigned[j], loss)
            for k in range(j + 1, end):
                _compensate(block[k], error[j], corner[j, k])
        _compensate_rest(block, error, corner, step, end, width)
        step = end
    kept = history[:, begin + start : begin + stop]
    if inverse:
        _distribute(error, kept)
    else:
        _take_away(block, kept)
    if stop < errors.shape[1]:
        _distribute(error, errors[:, start:stop])
    for r in range(count):
        losses[first + r] += loss[r]
        row = codes[first + r, begin + start : begin + stop]
        for j in range(width):
            row[j] = unsigned[j, r]


@scalar
def _gather(tiles, block):
    """Bring tiles [TILE // LANES, n, LANES] side by side, to [n, TILE]."""
    for t in range(TILE // LANES):
        for j in range(len(block)):
            given, taken = tiles[t, j], block[j, t * LANES : (t + 1) * LANES]
            for r in range(LANES):
                taken[r] = given[r]


@scalar
def _distribute(block, tiles):
    """Undo `_gather`."""
    for t in range(TILE // LANES):
        for j in range(len(block)):
            given, taken = block[j, t * LANES : (t + 1) * LANES], tiles[t, j]
            for r in range(LANES):
                taken[r] = given[r]


@scalar
def _take_away(block, tiles):
    """Subtract what `_distribute` would store."""
    for t in range(TILE // LANES):
        for j in range(tiles.shape[1]):
            taken, left = block[j, t * LANES : (t + 1) * LANES], tiles[t, j]
            for r in range(LANES):
                left[r] -= taken[r]


@scalar
def _store(scale, zero, first, count, group, scales, zeros):
    """Store the grids of one group of `count` rows."""
    for r in range(count):
        scales[first + r, group], zeros[first + r, group] = scale[r], zero[r]


@scalar
def _span(group, levels, symmetric, storage, scale, zero):
    """Find each row's scale and zero point from a group's columns of a transposed tile.

    Four columns at a time: each pass over the ends waits for the one before it.
    """
    lo, hi = np.zeros(TILE, scale.dtype), np.zeros(TILE, scale.dtype)
    last = len(group) - 1
    for j in range(0, last + 1, 4):
        a, b = group[j], group[min(j + 1, last)]
        c, d = group[min(j + 2, last)], group[min(j + 3, last)]
        for r in range(TILE):
            lo[r] = min(lo[r], min(min(a[r], b[r]), min(c[r], d[r])))
        for r in range(TILE):
            hi[r] = max(hi[r], max(max(a[r], b[r]), max(c[r], d[r])))
    for r in range(TILE):
        scale[r], zero[r] = stored_grid(lo[r], hi[r], levels, symmetric, storage)


@scalar
def _quantize_lanes(weights, scale, zero, low, high, pivot, error, unsigned, loss):
    """Replace a column of a tile by its values; store its codes and errors, add to the losses."""
    for r in range(TILE):
        code = code_of(weights[r], scale[r], zero[r], low, high)
        value = value_of(code, scale[r], zero[r])
        e = (value - weights[r]) / pivot
        weights[r] = value
        error[r] = e
        loss[r] += e * e
        unsigned[r] = np.uint8(code - low)


@scalar
def _compensate(weights, error, u):
    """Add one column's error, weighted, to another column of a tile."""
    for r in range(TILE):
        weights[r] += error[r] * u


@scalar
def _compensate_rest(block, error, corner, step, end, width):
    """Add the errors of columns `step` to `end` to all columns after them."""
    for k in range(end, width, COLUMNS):
        for lane in range(0, TILE, LANES):
            add_tile(error, (step, lane), corner, (step, k), end - step, block, (k, lane))
