"""CPU form of GPTQ: each thread walks all columns of a chunk of rows, and waits for no other thread.

Rows depend on the factor alone. So the coupling of the panels of columns is prepared once, and each chunk
goes from left to right on its own: a panel is compensated for every column before it by one product,
block by block inside the panel by small ones, and column by column inside a block by `quantize_block`.
A group's scale is found once all columns before it have been compensated for: groups up to a block long
lie within one, longer ones are a panel each.

A chunk is packed as row panels, as `numbacalib.runtime.tile_product` reads them: its rows are the lanes of
vectors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.gptq_quantize_column.block_cpu import (
    BLOCK,
    TILE,
    Columns,
    Rows,
    find_scales,
    quantize_block,
)
from numbacalib.ops.gptq_quantize_column.coupling_cpu import (
    block_of,
    couple_panels,
    packed_columns,
    panel_corners,
)
from numbacalib.ops.grid import cpu as grid_kernels
from numbacalib.ops.range_search.cpu import Search
from numbacalib.runtime import checks
from numbacalib.runtime.blas import cholesky_lower
from numbacalib.runtime.half import carrier
from numbacalib.runtime.jit import inlined, task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import fetch_add
from numbacalib.runtime.threads import thread_count
from numbacalib.runtime.tile_product import COLUMNS, LANES, add_product, pack_rows
from numbacalib.spec.gptq import ColumnGrids, FactorLook, GroupedCodes
from numbacalib.spec.grid import Grid, group_indices
from numbacalib.spec.range_search import RangeSearch

CHUNK = 256
"""Approximate rows of a chunk, which read a panel's coupling while it lies in the second-level cache."""
CHUNKS = 8
"""Least number of chunks, of at least a `TILE`: fewer would leave threads waiting for the last."""
STRIP = 256
"""Rows that are checked together for zeros below the diagonal."""


def quantize_columns(
    weight: NDArray,
    factor: NDArray,
    grid: Grid,
    group_size: int,
    dtype: np.dtype,
    out: tuple[NDArray, NDArray, NDArray] | None,
) -> tuple[NDArray, NDArray, NDArray]:
    """See `numbacalib.gptq_quantize_column`; `factor` is ``U``, finite as the weight is."""
    group_of = group_indices(weight.shape[1], group_size)
    found = sweep(weight, factor, ColumnGrids(grid, group_of[None]), inverse=True)
    if out is None:
        out = np.empty(weight.shape, dtype), found.scales, found.zeros
    else:
        np.copyto(out[1], found.scales)
        np.copyto(out[2], found.zeros)
    grid_kernels.decode(found.codes, found.scales, found.zeros, group_of, grid, out[0])
    return out


def inspect_factor(matrix: NDArray, dtype: np.dtype) -> FactorLook:
    """See `numbacalib.ops.gptq_quantize_column.factor.upper_factor`."""
    diagonal = np.diagonal(matrix).astype(dtype)
    good = diagonal >= np.finfo(dtype).tiny
    bad = None if good.all() else int(np.argmin(good))
    entry = None if bad is None else diagonal[bad]
    strips = range(0, len(matrix), STRIP)
    triangular = bad is None and not any(_below_diagonal(matrix, i).any() for i in strips)
    return FactorLook(matrix, bad, entry, triangular)


def asymmetry(look: FactorLook) -> float:
    """See `numbacalib.ops.gptq_quantize_column.factor.upper_factor`."""
    matrix = look.matrix
    return float(np.abs(matrix - matrix.T).max()) / float(np.diagonal(matrix).max())


def cholesky(look: FactorLook, dtype: np.dtype) -> tuple[NDArray, int]:
    """See `numbacalib.ops.gptq_quantize_column.factor.upper_factor`."""
    lower = np.array(look.matrix, dtype, order="C")
    minor = cholesky_lower(lower)
    return np.ascontiguousarray(np.tril(lower).T), minor


def _below_diagonal(matrix: NDArray, first: int) -> NDArray:
    """Return a strip of rows up to the diagonal, with zeros from there on."""
    return np.tril(matrix[first : first + STRIP, : first + STRIP], first - 1)


def sweep_runs(weight: NDArray, factors: NDArray, grids: ColumnGrids) -> GroupedCodes:
    """See `numbacalib.ops.gptq_quantize_column.quantize_direct`: one run of rows after the other."""
    rows, count = len(weight), len(factors)
    if count == 1:
        return sweep(weight, factors[0], grids, inverse=False)

    def rows_of(array: NDArray | None, run: slice) -> NDArray | None:
        return array if array is None or len(array) == 1 else array[run]

    found = []
    for e, factor in enumerate(factors):
        run = slice(e * rows // count, (e + 1) * rows // count)
        own = grids._replace(
            group_of=grids.group_of[e : e + 1],
            scales=rows_of(grids.scales, run),
            zeros=rows_of(grids.zeros, run),
            importance=rows_of(grids.importance, run),
        )
        found.append(sweep(weight[run], factor, own, inverse=False))
    return GroupedCodes(*map(np.concatenate, zip(*found, strict=True)))


def sweep(weight: NDArray, factor: NDArray, grids: ColumnGrids, *, inverse: bool) -> GroupedCodes:
    """Walk the columns from left to right.

    With `inverse`, `factor` is ``U`` of the inverse Hessian and a panel p is compensated by
    ``E_{<p} U_{<p, p}``; else it is ``R`` of the Hessian and the panel is compensated by
    ``D_{<p} (R_{<p, p} R_pp^-1)``.
    """
    rows, channels = weight.shape
    dtype = checks.result_dtype(weight, factor)
    group_of, search = grids.group_of[0], grids.search
    given = grids.scales is not None
    if given:
        scales, zeros = (each.astype(dtype, copy=False) for each in (grids.scales, grids.zeros))
    else:
        scales = np.empty((rows, int(group_of[-1]) + 1), dtype)
        zeros = np.empty_like(scales)
    found = GroupedCodes(np.empty(weight.shape, np.uint8), scales, zeros, np.empty(rows))
    columns = _cut(channels, group_of, 0 if given else channels // scales.shape[1], search, inverse)
    coupling = couple_panels(factor, columns.edges, columns.length, dtype, inverse=inverse)
    workers = thread_count()
    chunks = -(-max(CHUNKS, rows // CHUNK) // workers) * workers  # equally many for each
    chunks = min(chunks, -(-rows // TILE))
    settings = None if search is None else Search.of(search, grids.importance, channels, dtype)
    source = rows_view(carrier(weight))
    _sweep(chunks, chunks, source, coupling, columns, settings, grids.grid.bounds(dtype), found)
    return found


def _cut(
    channels: int,
    group_of: NDArray[np.int64],
    group_size: int,
    search: RangeSearch | None,
    inverse: bool,
) -> Columns:
    """Cut the columns into panels and blocks; `group_size` is 0 if scales are given."""
    size, single = max(group_size, 1), search is not None
    edges, length = _panel_edges(channels, size), _block_length(size, single)
    within = 0 < group_size <= BLOCK and not single
    return Columns(edges, length, group_of, group_size, within, inverse)


def _panel_edges(channels: int, group_size: int) -> NDArray[np.int64]:
    """Return each panel's first column, and the end: a long group each, or about `BLOCK` columns."""
    width = group_size if group_size > BLOCK else BLOCK - BLOCK % group_size
    return np.append(np.arange(0, channels, width), channels)


def _block_length(group_size: int, single: bool) -> int:
    """Columns of a block: whole groups if they fit into one, else pieces of the one group.

    With `single`, no block has more than one group.
    """
    if group_size > BLOCK:
        return BLOCK
    return group_size if single else BLOCK - BLOCK % group_size


@task_kernel
def _sweep(counter, chunks, source, coupling, columns, search, bounds, found):
    """Quantize chunks of rows. Split: workers take chunks."""
    height, width = found.codes.shape
    units = -(-height // TILE)
    most = -(-units // chunks) * (TILE // LANES)
    real, wide = found.scales.dtype, columns.edges[1]
    # the last packed columns may reach past the panel
    panel = np.zeros((most, wide + COLUMNS, LANES), real)
    chunk = Rows(np.empty((most, width, LANES), real), panel, np.empty((most, wide, LANES), real))
    task = fetch_add(counter)
    while task < chunks:
        first = task * units // chunks * TILE
        count = min((task + 1) * units // chunks * TILE, height) - first
        for i in range(first, first + count):
            found.losses[i] = 0
        for p in range(len(columns.edges) - 1):
            _sweep_panel(p, first, count, source, coupling, columns, search, bounds, chunk, found)
        task = fetch_add(counter)


@inlined
def _sweep_panel(p, first, count, source, coupling, columns, search, bounds, chunk, found):
    """Quantize panel p of `count` rows from `first`, whose panels before it are done."""
    begin, end, length = columns.edges[p], columns.edges[p + 1], columns.length
    packed, top = packed_columns(coupling, columns.edges, p), np.int64(0)
    corners = panel_corners(coupling, columns.edges, p)
    row_panels = -(-count // LANES)
    _load(source, first, begin, end, count, chunk.history, chunk.panel)
    before = chunk.history[:row_panels, :begin]
    for start in range(0, end - begin, length):
        own = block_of(packed, start, length)
        add_product(before, own, top, chunk.panel[:, start:])
    for start in range(0, end - begin, length):
        stop = min(start + length, end - begin)
        own = block_of(packed, start, length)
        add_product(chunk.errors[:row_panels, :start], own, begin, chunk.panel[:, start:])
        size = columns.group_size
        opens = size > 0 and not columns.within and start % size == 0
        for lane in range(0, count, TILE):
            rows = first + lane, min(TILE, count - lane)
            one, other = lane // LANES, (lane + TILE) // LANES
            tile = Rows(chunk.history[one:other], chunk.panel[one:other], chunk.errors[one:other])
            if opens:
                group = tile.panel[:, start : start + size]
                find_scales(group, rows, (begin + start) // size, search, bounds, found)
            corner = corners[start // length]
            quantize_block(tile, corner, begin, start, stop, rows, columns, bounds, found)


@inlined
def _load(source, first, begin, end, count, original, panel):
    """Pack a panel's weights from row `first` on, into two places."""
    rows = np.zeros((LANES, end - begin), panel.dtype)
    for top in range(0, count, LANES):
        i = top // LANES
        pack_rows(source, first + top, min(LANES, count - top), begin, rows, panel[i])
        for j in range(end - begin):
            column, copy = panel[i, j], original[i, begin + j]
            for r in range(LANES):
                copy[r] = column[r]
