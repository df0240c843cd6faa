"""CPU form of GPTQ: each thread walks all columns of a chunk of rows, and waits for no other thread.

Rows depend on the factor alone. So what couples the panels of columns is prepared once, and a chunk
goes from left to right on its own: a panel is compensated for every column before it by one product,
block by block inside the panel by small ones, and column by column inside a block by `quantize_block`.
A group's scale is found where all columns before it have been compensated for: groups up to a block
long lie within one, longer ones are a panel each.

A chunk lies transposed, so that its rows are the lanes of vectors, and in tiles, as
`numbacalib.runtime.tile_product` reads them.
"""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from numbacalib.ops.gptq_quantize_column.block_cpu import (
    BLOCK,
    TILE,
    find_scales,
    quantize_block,
)
from numbacalib.ops.gptq_quantize_column.coupling_cpu import (
    block_strips,
    couple_panels,
    panel_corners,
    panel_strips,
)
from numbacalib.ops.grid import cpu as grid_kernels
from numbacalib.runtime import checks
from numbacalib.runtime.blas import cholesky_lower
from numbacalib.runtime.finite import require_finite
from numbacalib.runtime.half import carrier
from numbacalib.runtime.jit import kernel, scalar
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import claim
from numbacalib.runtime.tile_product import COLUMNS, LANES, add_product, load_tile
from numbacalib.spec.gptq import GroupedCodes
from numbacalib.spec.grid import Grid, group_indices
from numbacalib.spec.range_search import RangeSearch

CHUNK = 256
"""About the rows of a chunk: what reads a panel's coupling while it lies in the second-level cache."""
CHUNKS = 8
"""Least chunks, of at least a `TILE`: fewer would leave threads waiting for the last."""
STRIP = 256
"""Rows that are looked at together for whether they are 0 below the diagonal."""


def quantize_columns(
    weight: NDArray,
    h_inv: NDArray,
    grid: Grid,
    group_size: int,
    dtype: np.dtype,
    out: tuple[NDArray, NDArray, NDArray] | None,
) -> tuple[NDArray, NDArray, NDArray]:
    """See `numbacalib.gptq_quantize_column`."""
    require_finite("weight", weight)
    require_finite("h_inv", h_inv)
    factor = _upper_factor(h_inv, dtype)
    group_of = group_indices(weight.shape[1], group_size)
    found = sweep(weight, factor, grid, group_of, None, None, inverse=True)
    if out is None:
        out = np.empty(weight.shape, dtype), found.scales, found.zeros
    else:
        np.copyto(out[1], found.scales)
        np.copyto(out[2], found.zeros)
    grid_kernels.decode(found.codes, found.scales, found.zeros, group_of, grid, out[0])
    return out


def sweep_runs(
    weight: NDArray,
    factors: NDArray,
    grid: Grid,
    group_of: NDArray,
    scales: NDArray | None,
    zeros: NDArray | None,
    search: RangeSearch | None,
    importance: NDArray | None,
) -> GroupedCodes:
    """See `numbacalib.ops.gptq_quantize_column.quantize_direct`: one run of rows after the other."""
    rows, count = len(weight), len(factors)
    found = []
    for e, factor in enumerate(factors):
        run = slice(e * rows // count, (e + 1) * rows // count)
        own = [None if array is None else array[run] for array in (scales, zeros)]
        errors = importance if importance is None or len(importance) == 1 else importance[run]
        found.append(
            sweep(
                weight[run],
                factor,
                grid,
                group_of[e],
                *own,
                inverse=False,
                search=search,
                importance=errors,
            )
        )
    if count == 1:
        return found[0]
    return GroupedCodes(*map(np.concatenate, zip(*found, strict=True)))


def sweep(
    weight: NDArray,
    factor: NDArray,
    grid: Grid,
    group_of: NDArray,
    scales: NDArray | None,
    zeros: NDArray | None,
    *,
    inverse: bool,
    search: RangeSearch | None = None,
    importance: NDArray | None = None,
) -> GroupedCodes:
    """Walk the columns from left to right.

    With `inverse`, `factor` is ``U`` of the inverse Hessian and a panel p is compensated by
    ``E_{<p} U_{<p, p}``; else it is ``R`` of the Hessian and the panel is compensated by
    ``D_{<p} (R_{<p, p} R_pp^-1)``.
    """
    rows, channels = weight.shape
    dtype = checks.result_dtype(weight, factor)
    found = scales is None
    if scales is None or zeros is None:
        scales = np.empty((rows, int(group_of[-1]) + 1), dtype)
        zeros = np.empty_like(scales)
    else:
        scales, zeros = scales.astype(dtype, copy=False), zeros.astype(dtype, copy=False)
    codes = np.empty(weight.shape, np.uint8)
    losses = np.empty(rows)
    group_size = channels // scales.shape[1] if found else 1
    edges = _panel_edges(channels, group_size)
    if importance is None:
        importance = np.ones((1, channels), dtype)
    length = _block_length(group_size, search is not None)
    coupling = couple_panels(factor, edges, length, dtype, inverse=inverse)
    workers = get_num_threads()
    chunks = -(-max(CHUNKS, rows // CHUNK) // workers) * workers  # as many for each
    _sweep(
        workers,
        rows_view(carrier(weight)),
        coupling,
        edges,
        inverse,
        group_of,
        group_size if found else 0,
        length,
        np.empty(0, dtype) if search is None else search.shares(dtype),
        np.float32(0 if search is None else search.norm),
        rows_view(carrier(importance)),
        *grid.bounds(dtype),
        grid.symmetric,
        grid.storage,
        min(chunks, -(-rows // TILE)),
        np.zeros(1, np.int64),
        scales,
        zeros,
        codes,
        losses,
    )
    return GroupedCodes(codes, scales, zeros, losses)


def _panel_edges(channels: int, group_size: int) -> NDArray[np.int64]:
    """Where panels begin, and the end: a long group each, or whole groups of about `BLOCK` columns."""
    width = group_size if group_size > BLOCK else BLOCK - BLOCK % group_size
    return np.append(np.arange(0, channels, width), channels)


def _block_length(group_size: int, single: bool) -> int:
    """Columns of a block: whole groups if they fit into one, else pieces of the one group.

    With `single`, no block has more than one group.
    """
    if group_size > BLOCK:
        return BLOCK
    return group_size if single else BLOCK - BLOCK % group_size


def _upper_factor(h_inv: NDArray, dtype: np.dtype) -> NDArray:
    """Return ``U``: the argument if it is upper triangular, its factor if it is symmetric."""
    diagonal = np.diagonal(h_inv).astype(dtype)
    if not (diagonal > 0).all():
        j = int(np.argmin(diagonal > 0))
        raise ValueError(f"h_inv: expected a positive diagonal, got {diagonal[j]} at [{j}, {j}]")
    if not any(_below_diagonal(h_inv, first).any() for first in range(0, len(h_inv), STRIP)):
        return h_inv
    asymmetry = np.abs(h_inv - h_inv.T).max() / diagonal.max()
    if asymmetry > np.sqrt(np.finfo(dtype).eps):
        raise ValueError(
            "h_inv: expected an upper triangular or a symmetric matrix, got one whose "
            f"asymmetry is {asymmetry:.2g} of its largest diagonal entry"
        )
    lower = np.array(h_inv, dtype, order="C")
    if minor := cholesky_lower(lower):
        raise ValueError(
            "h_inv: expected a positive definite matrix, got one whose leading minor of order "
            f"{minor} is not positive"
        )
    return np.ascontiguousarray(np.tril(lower).T)


def _below_diagonal(matrix: NDArray, first: int) -> NDArray:
    """Return a strip of rows up to the diagonal, with zeros from there on."""
    return np.tril(matrix[first : first + STRIP, : first + STRIP], first - 1)


@kernel
def _sweep(
    workers,
    source,
    coupling,
    edges,
    inverse,
    group_of,
    group_size,
    length,
    shares,
    norm,
    importance,
    low,
    high,
    levels,
    symmetric,
    storage,
    chunks,
    counter,
    scales,
    zeros,
    codes,
    losses,
):
    """Quantize chunks of rows. `group_size` is 0 where scales are given, `length` that of a block.

    `history` holds ``-E`` or ``D`` of the columns so far and the weights of those to come, `panel`
    compensated weights, `errors` its ``-e``: [tiles, columns, LANES] all three. Split: workers claim
    chunks.
    """
    rows, channels = codes.shape
    searching = len(shares) > 0
    within = 0 < group_size <= BLOCK and not searching  # groups lie within blocks
    units = -(-rows // TILE)
    most = -(-units // chunks) * (TILE // LANES)
    for _ in prange(min(workers, chunks)):
        history = np.empty((most, channels, LANES), scales.dtype)
        # a strip's last columns may lie behind the panel
        panel = np.zeros((most, edges[1] + COLUMNS, LANES), scales.dtype)
        errors = np.empty((most, edges[1], LANES), scales.dtype)
        task = claim(counter)
        while task < chunks:
            first = task * units // chunks * TILE
            count = min((task + 1) * units // chunks * TILE, rows) - first
            tiles = -(-count // LANES)
            for i in range(first, first + count):
                losses[i] = 0
            for p in range(len(edges) - 1):
                begin, end = edges[p], edges[p + 1]
                strips = panel_strips(coupling, edges, p)
                corners = panel_corners(coupling, edges, p)
                _load(source, first, begin, end, count, history, panel)
                for start in range(0, end - begin, length):
                    _compensate(history, begin, strips, 0, start, length, panel, tiles)
                for start in range(0, end - begin, length):
                    stop = min(start + length, end - begin)
                    _compensate(errors, start, strips, begin, start, length, panel, tiles)
                    for lane in range(0, count, TILE):
                        row, lanes = first + lane, min(TILE, count - lane)
                        own = slice(lane // LANES, (lane + TILE) // LANES)
                        if group_size and not within and start % group_size == 0:
                            find_scales(
                                panel[own, start : start + group_size],
                                (begin + start) // group_size,
                                row,
                                lanes,
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
                            )
                        quantize_block(
                            panel[own],
                            errors[own],
                            history[own],
                            inverse,
                            corners[start // length],
                            start,
                            stop,
                            begin,
                            row,
                            lanes,
                            group_of,
                            within,
                            low,
                            high,
                            levels,
                            symmetric,
                            storage,
                            scales,
                            zeros,
                            codes,
                            losses,
                        )
            task = claim(counter)


@scalar
def _load(source, first, begin, end, count, original, panel):
    """Transpose a panel's weights from row `first` on, into two places."""
    rows = np.zeros((LANES, end - begin), panel.dtype)
    for top in range(0, count, LANES):
        tile = top // LANES
        load_tile(source, first + top, min(LANES, count - top), begin, rows, panel[tile])
        for j in range(end - begin):
            column, copy = panel[tile, j], original[tile, begin + j]
            for r in range(LANES):
                copy[r] = column[r]


@scalar
def _compensate(left, depth, strips, top, start, length, panel, tiles):
    """Compensate the block from column `start` of a panel for `depth` columns, strips' rows from `top`."""
    count = block_strips(length)
    at = start // length * count
    add_product(left, depth, strips[at : at + count], top, panel[:, start:], tiles)
