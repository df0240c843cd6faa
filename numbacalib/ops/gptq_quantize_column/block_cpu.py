"""GPTQ's recurrence inside a block of columns, on a tile of rows whose block lies in the first-level cache.

Arrays are transposed, ``[columns, TILE]``, so that the rows are the lanes of vectors; inputs and results
are packed row panels of `LANES` rows, as products read them. Lanes past the last row hold zeros or old
values: no row ever reads another's lane.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.range_search import cpu as range_search
from numbacalib.runtime.jit import inlined, scalar
from numbacalib.runtime.tile_product import COLUMNS, LANES, add_microtile
from numbacalib.spec.gptq import column_error, compensated, reciprocal
from numbacalib.spec.grid import code_of, stored_grid, unsigned, value_of

BLOCK = 128
"""Columns that are walked with one tile of rows in the first-level cache."""
TILE = 2 * LANES
"""Rows that are walked together: several vectors of float32."""
STEP = 8
"""Columns whose errors reach the rest of a block in one pass."""


class Columns(NamedTuple):
    """Cut of the columns into panels and blocks."""

    edges: NDArray[np.int64]
    """First column of each panel, and the end."""
    length: int
    """Columns of a block."""
    group_of: NDArray[np.int64]
    """Group of each column."""
    group_size: int
    """0 if scales are given."""
    within: bool
    """True if scales are found from groups that lie within blocks; else from a whole group first."""
    inverse: bool
    """True for the factor of the inverse Hessian, False for that of the Hessian."""


class Rows(NamedTuple):
    """Packed row panels of a chunk of rows, or of a tile of it: ``[panels, columns, LANES]`` each."""

    history: Any
    """All columns: ``-E`` or ``D`` of those so far, the weights of those to come."""
    panel: Any
    """Compensated weights."""
    errors: Any
    """``-e`` of the panel's columns."""


@scalar
def find_scales(row_panels, rows, index, search, bounds, found):
    """Find the grids of a whole group, `index`, of `rows` (first, count), and store them.

    They span the group, `row_panels` [TILE // LANES, n, LANES], or are searched for with a `search`.
    """
    first, count = rows
    group = np.empty((row_panels.shape[1], TILE), row_panels.dtype)
    _gather(row_panels, group)
    if search is None:
        scale, zero = np.empty(TILE, row_panels.dtype), np.empty(TILE, row_panels.dtype)
        _span(group, bounds, scale, zero)
        _store(scale, zero, rows, index, found)
    else:
        lanes = range_search.TILE
        scale, zero = np.ones(lanes, row_panels.dtype), np.zeros(lanes, row_panels.dtype)
        factors = np.zeros((len(group), lanes), row_panels.dtype)
        weights = np.empty((len(group), lanes), row_panels.dtype)
        for lane in range(0, count, lanes):
            row, some = first + lane, min(lanes, count - lane)
            for j in range(len(group)):
                for r in range(lanes):
                    weights[j, r] = group[j, lane + r]
            range_search.load_factors(search.importance, row, some, index * len(group), factors)
            range_search.search_tile(weights, factors, search, bounds, scale, zero)
            _store(scale, zero, (row, some), index, found)


@scalar
def quantize_block(tile, corner, begin, start, stop, rows, columns, bounds, found):
    """Quantize columns `start` to `stop` of the panel from column `begin`, in `rows` (first, count).

    `tile` is `Rows`: the panel holds compensated weights, the errors receive ``-e``; the history receives
    ``-e`` with the inverse's factor, else ``W - Q``. `corner` couples the block's columns, and has zeros
    behind them. Columns go in steps: compensation reaches the rest of the step at once and the rest of the
    block step by step, `STEP` columns in one pass over it. A step ends where a group within the block
    does, so that its scale is found from fully compensated weights.
    """
    real, width = tile.panel.dtype, stop - start
    block = np.empty((width + COLUMNS, TILE), real)
    block[width:] = 0  # products may reach past the block
    error = np.empty((width, TILE), real)
    code = np.empty((width, TILE), np.uint8)
    scale, zero = np.ones(TILE, real), np.zeros(TILE, real)
    loss = np.zeros(TILE, real)
    group_of = columns.group_of[begin + start : begin + stop]
    _gather(tile.panel[:, start:stop], block[:width])
    step = np.int64(0)  # a literal would get a compiled form of its own
    while step < width:
        end = min(step + STEP, width)
        if columns.within:
            end = min(end, _group_end(group_of, step))
            if step == 0 or group_of[step] != group_of[step - 1]:
                _span(block[step : _group_end(group_of, step)], bounds, scale, zero)
                _store(scale, zero, rows, group_of[step], found)
        for j in range(step, end):
            if not columns.within and (j == 0 or group_of[j] != group_of[j - 1]):
                _recall(scale, zero, rows, group_of[j], found)
            factor = reciprocal(corner[j, j])
            _quantize_lanes(block[j], scale, zero, bounds, factor, error[j], code[j], loss)
            for k in range(j + 1, end):
                _compensate(block[k], error[j], corner[j, k])
        _compensate_rest(block, error, corner, step, end, width)
        step = end
    kept = tile.history[:, begin + start : begin + stop]
    if columns.inverse:
        _distribute(error, kept)
    else:
        _subtract(block, kept)
    if stop < tile.errors.shape[1]:
        _distribute(error, tile.errors[:, start:stop])
    _keep_codes(code, loss, rows, begin + start, found)


@scalar
def _group_end(group_of, first):
    """Column of a block at which the group of column `first` ends."""
    last = first + 1
    while last < len(group_of) and group_of[last] == group_of[first]:
        last += 1
    return last


@scalar
def _gather(row_panels, block):
    """Put packed row panels [TILE // LANES, n, LANES] side by side, [n, TILE]."""
    for t in range(TILE // LANES):
        for j in range(len(block)):
            given, taken = row_panels[t, j], block[j, t * LANES : (t + 1) * LANES]
            for r in range(LANES):
                taken[r] = given[r]


@scalar
def _distribute(block, row_panels):
    """Undo `_gather`."""
    for t in range(TILE // LANES):
        for j in range(len(block)):
            given, taken = block[j, t * LANES : (t + 1) * LANES], row_panels[t, j]
            for r in range(LANES):
                taken[r] = given[r]


@scalar
def _subtract(block, row_panels):
    """Subtract the block that `_distribute` would store."""
    for t in range(TILE // LANES):
        for j in range(row_panels.shape[1]):
            taken, left = block[j, t * LANES : (t + 1) * LANES], row_panels[t, j]
            for r in range(LANES):
                left[r] -= taken[r]


@scalar
def _store(scale, zero, rows, group, found):
    """Store the grids of one group of `rows`."""
    first, count = rows
    for r in range(count):
        found.scales[first + r, group], found.zeros[first + r, group] = scale[r], zero[r]


@inlined
def _recall(scale, zero, rows, group, found):
    """Undo `_store`."""
    first, count = rows
    for r in range(count):
        scale[r], zero[r] = found.scales[first + r, group], found.zeros[first + r, group]


@inlined
def _keep_codes(code, loss, rows, left, found):
    """Store the codes of a block [w, TILE] from column `left` on, and add to the losses of `rows`."""
    first, count = rows
    for r in range(count):
        found.losses[first + r] += loss[r]
        row = found.codes[first + r, left : left + len(code)]
        for j in range(len(code)):
            row[j] = code[j, r]


@scalar
def _span(group, bounds, scale, zero):
    """Find each row's scale and zero point from a group's columns of a transposed tile.

    Four columns at a time, since each pass over the ends depends on the one before it.
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
        scale[r], zero[r] = stored_grid(lo[r], hi[r], bounds)


@scalar
def _quantize_lanes(weights, scale, zero, bounds, factor, error, code, loss):
    """Replace a column of a tile by its values; store its codes and errors, add to the losses."""
    for r in range(TILE):
        chosen = code_of(weights[r], scale[r], zero[r], bounds)
        value = value_of(chosen, scale[r], zero[r])
        e = column_error(weights[r], value, factor)
        weights[r] = value
        error[r] = e
        loss[r] += e * e
        code[r] = unsigned(chosen, bounds)


@inlined
def _compensate(weights, error, coupling):
    """Compensate a column of a tile for another's errors."""
    for r in range(TILE):
        weights[r] = compensated(weights[r], error[r], coupling)


@scalar
def _compensate_rest(block, error, corner, step, end, width):
    """Add the errors of columns `step` to `end` to all columns after them."""
    for k in range(end, width, COLUMNS):
        for lane in range(0, TILE, LANES):
            add_microtile(error, (step, lane), corner, (step, k), end - step, block, (k, lane))
