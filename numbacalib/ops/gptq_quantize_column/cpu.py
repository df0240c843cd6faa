"""CPU kernels of GPTQ: matrix products between panels of columns, a compiled recurrence inside.

A panel is compensated for every column before it by one BLAS product, block by block inside the
panel by small ones, and column by column inside a block by the kernel. A group's scale is found
where all columns before it have been compensated for: groups up to a block long lie within one, longer
ones are a panel each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.ops.gptq_quantize_column import GroupedCodes
from numbacalib.ops.grid import cpu as grid_kernels
from numbacalib.ops.grid import group_indices
from numbacalib.ops.range_search import cpu as search_kernels
from numbacalib.runtime import checks
from numbacalib.runtime.blas import add_product, cholesky_lower, invert_triangle, product
from numbacalib.runtime.finite import require_finite
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel, scalar
from numbacalib.runtime.strides import rows_view
from numbacalib.spec.grid import Grid, code_of, group_scale, group_zero, stored_scale, value_of
from numbacalib.spec.range_search import RangeSearch

PANEL = 256
"""Columns between two products over the whole history."""
BLOCK = 128
"""Columns that the kernel walks with one tile of rows in the first-level cache."""
TILE = 64
"""Rows that the kernel walks together: several vectors of float32."""
STEP = 8
"""Columns whose errors reach the rest of a block in one pass; `_compensate_rest` has it unrolled."""


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
    ``D_{<p} (R_{<p, p} R_pp^-1)``. `history` holds E or D. The kernel finds scales of groups that
    lie within a block, unless they are to be searched for.
    """
    rows, channels = weight.shape
    dtype = checks.result_dtype(weight, factor)
    found = scales is None
    if scales is None or zeros is None:
        scales = np.empty((rows, int(group_of[-1]) + 1), dtype)
        zeros = np.empty_like(scales)
    codes = np.empty(weight.shape, np.uint8)
    losses = np.zeros(rows)
    history = np.empty((rows, channels), dtype)
    source = rows_view(carrier(weight))
    group_size = channels // scales.shape[1] if found else 1
    low, high, levels = grid.bounds(dtype)
    for begin, end in _panels(channels, group_size):
        diagonal = np.array(factor[begin:end, begin:end], dtype, order="C")
        coupling = _blas_operand(factor[:begin, begin:end], dtype)
        if not inverse:
            invert_triangle(diagonal, lower=False)
            coupling = product(coupling, diagonal)
        panel = np.empty((rows, end - begin), dtype)
        _load_columns(source, begin, panel)
        add_product(panel, history[:, :begin], coupling)
        errors = np.empty_like(panel)
        outside = found and (group_size > BLOCK or search is not None)
        for start, stop in _blocks(end - begin, group_size, search is not None):
            add_product(panel[:, start:stop], errors[:, :start], diagonal[:start, start:stop])
            if outside and start % group_size == 0:
                first = begin + start
                g = slice(first // group_size, first // group_size + 1)
                scales[:, g], zeros[:, g] = _group_scales(
                    panel[:, start : start + group_size],
                    grid,
                    search,
                    None if importance is None else importance[:, first : first + group_size],
                )
            _quantize_block(
                panel,
                diagonal,
                start,
                stop,
                begin,
                group_of,
                found and not outside,
                low,
                high,
                levels,
                grid.symmetric,
                grid.storage,
                scales,
                zeros,
                codes,
                errors,
                losses,
            )
        if inverse:
            history[:, begin:end] = errors
        else:
            _difference(source, begin, panel, history)
    return GroupedCodes(codes, scales, zeros, losses)


def _panels(channels: int, group_size: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns that hold whole groups: a long group each, or about `PANEL` columns."""
    width = group_size if group_size > BLOCK else PANEL - PANEL % group_size
    for begin in range(0, channels, width):
        yield begin, min(begin + width, channels)


def _blocks(width: int, group_size: int, single: bool) -> Iterator[tuple[int, int]]:
    """Ranges within a panel: whole groups if they fit into a block, else pieces of the one group.

    With `single`, no block has more than one group.
    """
    length = BLOCK if group_size > BLOCK else BLOCK - BLOCK % group_size
    if single:
        length = min(group_size, BLOCK)
    for start in range(0, width, length):
        yield start, min(start + length, width)


def _group_scales(
    group: NDArray, grid: Grid, search: RangeSearch | None, importance: NDArray | None
) -> tuple[NDArray, NDArray]:
    """Scales and zero points of one group [M, group_size], each [M, 1]."""
    if search is None:
        return grid_kernels.find_scales(group, group.shape[1], grid)
    return search_kernels.search_scales(group, group.shape[1], grid, search, importance)


def _blas_operand(block: NDArray, dtype: np.dtype) -> NDArray:
    """Return a block of the factor as BLAS takes it, copied only if its dtype or strides differ."""
    between_rows, between_columns = block.strides
    width = block.shape[1] * block.itemsize
    fits = between_columns == block.itemsize and between_rows >= width
    if block.dtype == dtype and fits and between_rows % block.itemsize == 0:
        return block
    return np.array(block, dtype, order="C")


def _upper_factor(h_inv: NDArray, dtype: np.dtype) -> NDArray:
    """Return ``U``: the argument if it is upper triangular, its factor if it is symmetric."""
    diagonal = np.diagonal(h_inv).astype(dtype)
    if not (diagonal > 0).all():
        j = int(np.argmin(diagonal > 0))
        raise ValueError(f"h_inv: expected a positive diagonal, got {diagonal[j]} at [{j}, {j}]")
    if not np.tril(h_inv, -1).any():
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


@kernel
def _load_columns(source, begin, panel):
    """Copy the panel's columns of the weight. Split: one task a row."""
    for i in prange(len(panel)):
        for j in range(panel.shape[1]):
            panel[i, j] = widen(source[i, begin + j])


@kernel
def _difference(source, begin, panel, history):
    """Store ``D = W - Q`` of the panel's columns. Split: one task a row."""
    for i in prange(len(panel)):
        for j in range(panel.shape[1]):
            history[i, begin + j] = widen(source[i, begin + j]) - panel[i, j]


@kernel
def _quantize_block(
    panel,
    factor,
    start,
    stop,
    begin,
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
    errors,
    losses,
):
    """Quantize columns `start` to `stop` of a panel that begins at column `begin` of the weight.

    `panel` holds compensated weights and receives values; `errors` receives ``-e``. Columns go in
    steps: compensation reaches the rest of the step at once and the rest of the block step by step,
    `STEP` columns in one pass over it. With `find`, a step ends where a group does, so that a group's
    scale is found from fully compensated weights. Split: one task a tile of rows, which lies transposed, so
    that the rows are the lanes of a vector.
    """
    rows = len(panel)
    width = stop - start
    for tile in prange(-(-rows // TILE)):
        first = tile * TILE
        count = min(TILE, rows - first)
        block = np.zeros((width, TILE), panel.dtype)
        error = np.zeros((width, TILE), panel.dtype)
        unsigned = np.zeros((width, TILE), np.uint8)
        scale = np.ones(TILE, panel.dtype)
        zero = np.zeros(TILE, panel.dtype)
        loss = np.zeros(TILE, panel.dtype)
        for r in range(count):
            for j in range(width):
                block[j, r] = panel[first + r, start + j]
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
                _find_tile_scales(block[step:last], levels, symmetric, storage, scale, zero)
                scales[first : first + count, group] = scale[:count]
                zeros[first : first + count, group] = zero[:count]
            for j in range(step, end):
                group = group_of[begin + start + j]
                if not find and (j == 0 or group != group_of[begin + start + j - 1]):
                    scale[:count] = scales[first : first + count, group]
                    zero[:count] = zeros[first : first + count, group]
                pivot = factor[start + j, start + j]
                _quantize_lanes(
                    block[j], scale, zero, low, high, pivot, error[j], unsigned[j], loss
                )
                for k in range(j + 1, end):
                    _compensate(block[k], error[j], factor[start + j, start + k])
            _compensate_rest(block, error, factor, start, step, end)
            step = end
        for r in range(count):
            losses[first + r] += loss[r]
            for j in range(width):
                panel[first + r, start + j] = block[j, r]
                errors[first + r, start + j] = error[j, r]
                codes[first + r, begin + start + j] = unsigned[j, r]


@scalar
def _find_tile_scales(group, levels, symmetric, storage, scale, zero):
    """Find each row's scale and zero point from a group's columns of a transposed tile."""
    lo, hi = np.zeros_like(scale), np.zeros_like(scale)
    for j in range(len(group)):
        for r in range(TILE):
            lo[r] = min(lo[r], group[j, r])
            hi[r] = max(hi[r], group[j, r])
    for r in range(TILE):
        scale[r] = stored_scale(group_scale(lo[r], hi[r], levels, symmetric), storage)
        zero[r] = group_zero(lo[r], scale[r], levels, symmetric)


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
def _compensate_rest(block, error, factor, start, step, end):
    """Add the errors of columns `step` to `end` to all columns after them, one pass for a full step."""
    if end - step < STEP:
        for k in range(end, len(block)):
            for j in range(step, end):
                _compensate(block[k], error[j], factor[start + j, start + k])
        return
    e0, e1, e2, e3 = error[step], error[step + 1], error[step + 2], error[step + 3]
    e4, e5, e6, e7 = error[step + 4], error[step + 5], error[step + 6], error[step + 7]
    for k in range(end, len(block)):
        weights = block[k]
        u0, u1 = factor[start + step, start + k], factor[start + step + 1, start + k]
        u2, u3 = factor[start + step + 2, start + k], factor[start + step + 3, start + k]
        u4, u5 = factor[start + step + 4, start + k], factor[start + step + 5, start + k]
        u6, u7 = factor[start + step + 6, start + k], factor[start + step + 7, start + k]
        for r in range(TILE):
            weights[r] += ((e0[r] * u0 + e1[r] * u1) + (e2[r] * u2 + e3[r] * u3)) + (
                (e4[r] * u4 + e5[r] * u5) + (e6[r] * u6 + e7[r] * u7)
            )
