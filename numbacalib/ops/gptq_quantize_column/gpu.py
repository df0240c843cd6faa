"""GPU form of GPTQ: products between panels of columns, one kernel that walks a panel.

Rows are independent, so a thread block owns a tile of rows and walks the blocks of a panel from left to
right with no barrier across the grid. Both forms of the compensation have one formula here,

    W'_b = W_b + S_{<b} C_{<b, b},

the direct one with ``S = W - Q`` and ``C = R blockdiag(R_bb)^-1``, the one with the inverse Hessian's
factor U with ``S = (Q - W') / diag(U)`` and ``C = U``; inside a block the recurrence uses ``U_bb``, which
is ``R_bb^-1``.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import numpy as np

from numbacalib.ops.gptq_quantize_column.diagonal_gpu import (
    arrange,
    diagonal_blocks,
    inspect,
    measure_asymmetry,
    transpose,
)
from numbacalib.ops.gptq_quantize_column.sweep_gpu import quantize_kernel
from numbacalib.ops.gptq_quantize_column.tiles_gpu import (
    BLOCK,
    STEP,
    STEPS,
    THREADS,
    product_kernels,
    tile_count,
    tile_rows,
)
from numbacalib.ops.grid import gpu as grid_kernels
from numbacalib.ops.range_search import gpu as search_kernels
from numbacalib.runtime import blas_gpu, device
from numbacalib.runtime.half import carrier
from numbacalib.runtime.launch import column_blocks, launch
from numbacalib.runtime.pairs_gpu import Pair, add_products
from numbacalib.runtime.triangles_gpu import SMALL_TILE, invert_blocks
from numbacalib.spec.gptq import ColumnGrids, FactorLook, GroupedCodes
from numbacalib.spec.grid import Grid, group_indices

PANEL = device.sized(4 * BLOCK, simulated=3 * BLOCK)
"""Columns between two products over the whole history."""
FEW_ROWS, FEW_CHANNELS = 2048, device.sized(2 * PANEL, simulated=0)
"""Largest weight that is one panel: launching products takes the host longer than they save the device."""


def quantize_columns(
    weight: Any, factor: Any, grid: Grid, group_size: int, dtype: np.dtype, out: Any
) -> tuple[Any, Any, Any]:
    """See `numbacalib.gptq_quantize_column`; `factor` is ``U``, finite as the weight is."""
    factors = factor.reshape(1, *factor.shape)
    group_of = group_indices(weight.shape[1], group_size)
    found = _sweep(weight, factors, ColumnGrids(grid, group_of[None]), inverse=True)
    if out is None:
        out = device.empty(weight.shape, dtype), found.scales, found.zeros
    else:
        device.copy(found.scales, out[1])
        device.copy(found.zeros, out[2])
    grid_kernels.decode(found.codes, found.scales, found.zeros, group_of, grid, out[0])
    return tuple(device.result(array) for array in out)


def inspect_factor(matrix: Any, dtype: np.dtype) -> FactorLook:
    """See `numbacalib.ops.gptq_quantize_column.factor.upper_factor`."""
    size = len(matrix)
    factor = device.empty((size, size), dtype)
    findings = device.from_host(np.array([size, 0], np.int64))
    least = np.finfo(dtype).tiny
    launch(
        inspect,
        column_blocks((size, size), THREADS),
        THREADS,
        carrier(matrix),
        least,
        factor,
        findings,
    )
    bad, below = device.read(findings).tolist()
    if bad == size:
        return FactorLook(factor, None, None, not below)
    return FactorLook(factor, bad, device.read(factor[bad])[bad], False)


def asymmetry(look: FactorLook) -> float:
    """See `numbacalib.ops.gptq_quantize_column.factor.upper_factor`."""
    findings = device.zeros((2,), np.int64)
    launch(
        measure_asymmetry, column_blocks(look.matrix.shape, THREADS), THREADS, look.matrix, findings
    )
    largest, difference = device.read(findings).view(np.float64)
    return float(difference / largest)


def cholesky(look: FactorLook, dtype: np.dtype) -> tuple[Any, int]:
    """See `numbacalib.ops.gptq_quantize_column.factor.upper_factor`."""
    info = device.empty((1,), np.int32)
    blas_gpu.cholesky_upper(look.matrix, info)
    return look.matrix, int(device.read(info)[0])


def sweep_runs(weight: Any, factors: Any, grids: ColumnGrids) -> GroupedCodes:
    """See `numbacalib.ops.gptq_quantize_column.quantize_direct`."""
    return _sweep(weight, factors, grids, inverse=False)


def _sweep(weight: Any, factors: Any, grids: ColumnGrids, *, inverse: bool) -> GroupedCodes:
    """Walk the columns from left to right, with a factor for each of equal runs of rows."""
    rows, channels = weight.shape
    dtype = factors.dtype
    group_of, scales, zeros = grids.group_of, grids.scales, grids.zeros
    found = scales is None
    group_size = channels // (int(group_of[0, -1]) + 1) if found else BLOCK
    # a group whose scale the kernel cannot find is a panel of its own
    whole = found and (group_size > BLOCK or grids.search is not None)
    if found:
        scales = device.empty((rows, channels // group_size), dtype)
        zeros = device.empty(scales.shape, dtype)
    segment = group_size if whole else _segment(group_size)
    starts = _block_starts(channels, segment)
    columns = device.constant(starts)
    size = BLOCK if whole else group_size
    padded = -(-size // STEP) * STEP
    groups: Any = group_of
    if found and not whole:
        groups = size, padded
    elif isinstance(group_of, np.ndarray):
        groups = device.from_host(group_of)
    couplings, diagonals = _coupling(factors, columns, (size, padded), inverse)
    codes = device.empty((rows, channels), np.uint8)
    losses = device.empty((rows,), np.float64)
    history = device.empty((rows, channels), dtype)
    source = carrier(weight)
    across = column_blocks((-(-rows // 16), channels), THREADS)
    launch(product_kernels(dtype.type).start, across, THREADS, source, history, losses)
    quantize = quantize_kernel(dtype.type, found and not whole, not inverse)
    tiles = tile_count(rows, len(factors), dtype.type)
    bounds = grids.grid.bounds(dtype)
    stored = scales, zeros
    if not found or whole:
        turned = device.empty((2, *scales.shape[::-1]), dtype)
        stored = turned[0], turned[1]
    if not found:
        _turn(scales, zeros, *stored)
    results = *stored, codes, history, losses
    most = channels if rows <= FEW_ROWS and channels <= FEW_CHANNELS else PANEL
    panels = list(_panels(channels, segment, segment if whole else most))
    compensate = _compensate
    if (
        panels[1:]
        and dtype == np.float32
        and blas_gpu.has_libraries()
        and device.has_capability_9_0()
    ):
        compensate = _PairedHistory(couplings, history, panels[0][1]).compensate
    for begin, end in panels:
        blocks = columns, bisect_left(starts, begin), bisect_left(starts, end)
        if begin:
            compensate(couplings, begin, end, history)
        if whole:
            compensated = history
            if begin and not inverse and end - begin > BLOCK:
                compensated = _look_ahead(source, couplings, blocks, history)
            group = slice(begin // group_size, begin // group_size + 1)
            target = scales[:, group], zeros[:, group]
            _find_scales(compensated[:, begin:end], grids, begin, target)
            _turn(*target, *(array[group] for array in stored))
        operands = source, couplings, diagonals
        launch(quantize, tiles, THREADS, *operands, *blocks, groups, bounds, *results)
    return GroupedCodes(codes, scales, zeros, losses)


def _coupling(factors: Any, starts: Any, group: tuple[int, int], inverse: bool) -> tuple[Any, Any]:
    """Return each C [K, K], valid only to the right of the diagonal blocks, and the U_bb."""
    count, channels, _ = factors.shape
    real, blocks = factors.dtype.type, len(starts) - 1
    diagonal = device.empty((count, blocks, BLOCK, BLOCK), factors.dtype)
    couplings = factors
    if inverse:
        launch(diagonal_blocks, (blocks, count), THREADS, factors, starts, diagonal)
    else:
        couplings = device.empty(factors.shape, factors.dtype)
        grid = blocks, BLOCK // SMALL_TILE, count
        launch(invert_blocks(real, BLOCK), grid, SMALL_TILE * SMALL_TILE, factors, starts, diagonal)
        tiles = -(-channels // tile_rows(real)), blocks, count
        couple = product_kernels(real).couple
        launch(couple, tiles, THREADS, factors, diagonal, starts, couplings)
    arranged = device.empty((count, blocks, STEPS, BLOCK * STEP), factors.dtype)
    launch(arrange, (blocks, STEPS, count), THREADS, diagonal, starts, *group, arranged)
    return couplings, arranged


def _compensate(couplings: Any, begin: int, end: int, history: Any) -> None:
    """Add ``S_{<p} C_{<p, p}`` to panel p, columns `begin` to `end` of the history."""
    rows, channels = history.shape
    if blas_gpu.has_libraries():
        runs = history.reshape(len(couplings), -1, channels)
        left, right = runs[:, :, :begin], couplings[:, :begin, begin:end]
        blas_gpu.add_products(left, right, runs[:, :, begin:end])
        return
    real = history.dtype.type
    tiles = tile_count(rows, len(couplings), real), -(-(end - begin) // BLOCK)
    launch(product_kernels(real).compensate, tiles, THREADS, couplings, begin, end, history)


class _PairedHistory:
    """`_compensate` on tensor cores: a panel's S is split when the next panel is compensated."""

    def __init__(self, couplings: Any, history: Any, width: int) -> None:
        count, channels = len(couplings), history.shape[1]
        self._history = Pair.empty((count, len(history) // count, channels))
        self._couplings = Pair.empty((count, channels, width))
        self._split = 0

    def compensate(self, couplings: Any, begin: int, end: int, history: Any) -> None:
        """See `_compensate`; panels come from left to right."""
        runs = history.reshape(self._history.high.shape)
        self._history.columns(self._split, begin).fill(runs[:, :, self._split : begin])
        self._split = begin
        right = self._couplings.rows(0, begin).columns(0, end - begin)
        right.fill(couplings[:, :begin, begin:end])
        add_products(self._history.columns(0, begin), right, runs[:, :, begin:end])


def _find_scales(group: Any, grids: ColumnGrids, begin: int, target: tuple[Any, Any]) -> None:
    """Write the scales and zero points [M, 1] of the group that starts at column `begin`."""
    search, importance = grids.search, grids.importance
    if search is None:
        grid_kernels.find_scales_into(group, grids.grid, *target)
        return
    if importance is not None:
        importance = importance[:, begin : begin + group.shape[1]]
    search_kernels.search_scales_into(group, grids.grid, search, importance, *target)


def _turn(scales: Any, zeros: Any, turned_scales: Any, turned_zeros: Any) -> None:
    """Set arrays [G, M] to the transposes of scales and zero points [M, G]."""
    rows, groups = scales.shape
    arrays = scales, zeros, turned_scales, turned_zeros
    launch(transpose, (-(-rows // THREADS), groups), THREADS, *arrays)


def _look_ahead(source: Any, couplings: Any, blocks: tuple, history: Any) -> Any:
    """Return the weights of a long group, compensated for all columns before the group."""
    real = history.dtype.type
    compensated = device.empty(history.shape, history.dtype)
    tiles = tile_count(len(history), len(couplings), real)
    arguments = source, couplings, *blocks, history, compensated
    launch(product_kernels(real).look_ahead, tiles, THREADS, *arguments)
    return compensated


def _segment(group_size: int) -> int:
    """Columns of the groups that a block has positions for."""
    padded = -(-group_size // STEP) * STEP
    return BLOCK // padded * group_size


@functools.cache
def _block_starts(channels: int, segment: int) -> tuple[int, ...]:
    """First column of each block, and the end; no block reaches into two segments."""
    starts = [
        column
        for begin in range(0, channels, segment)
        for column in range(begin, min(begin + segment, channels), BLOCK)
    ]
    return *starts, channels


def _panels(channels: int, segment: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns: as many segments each as fit into `most` columns, one at least."""
    width = max(most // segment, 1) * segment
    for begin in range(0, channels, width):
        yield begin, min(begin + width, channels)
