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
from numbacalib.runtime.blas import cholesky_lower, invert_triangle
from numbacalib.runtime.finite import require_finite
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel, scalar
from numbacalib.runtime.strides import rows_view
from numbacalib.spec.grid import Grid, code_of, group_scale, group_zero, stored_scale, value_of

PANEL = 512
"""Columns between two products over the whole history."""
BLOCK = 128
"""Columns that the kernel walks with one tile of rows in the first-level cache."""
TILE = 32
"""Rows that the kernel walks together: a few vector registers of float32."""


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
    factor = _upper_factor(np.asarray(h_inv, dtype))
    group_of = group_indices(weight.shape[1], group_size)
    found = sweep(weight, factor, grid, group_of, None, None, inverse=True)
    if out is None:
        out = np.empty(weight.shape, dtype), found.scales, found.zeros
    else:
        np.copyto(out[1], found.scales)
        np.copyto(out[2], found.zeros)
    grid_kernels.decode(found.codes, found.scales, found.zeros, group_of, grid, out[0])
    return out


def sweep(
    weight: NDArray,
    factor: NDArray,
    grid: Grid,
    group_of: NDArray,
    scales: NDArray | None,
    zeros: NDArray | None,
    *,
    inverse: bool,
) -> GroupedCodes:
    """Walk the columns from left to right.

    With `inverse`, `factor` is ``U`` of the inverse Hessian and a panel p is compensated by
    ``E_{<p} U_{<p, p}``; else it is ``R`` of the Hessian and the panel is compensated by
    ``D_{<p} (R_{<p, p} R_pp^-1)``. `history` holds E or D.
    """
    rows, channels = weight.shape
    dtype = factor.dtype
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
        diagonal = np.array(factor[begin:end, begin:end], order="C")
        coupling = factor[:begin, begin:end]
        if not inverse:
            invert_triangle(diagonal, lower=False)
            coupling = coupling @ diagonal
        panel = history[:, :begin] @ coupling
        _add_columns(source, begin, panel)
        errors = np.empty_like(panel)
        whole = found and group_size > BLOCK
        if whole:
            group = slice(begin // group_size, begin // group_size + 1)
            scales[:, group], zeros[:, group] = grid_kernels.find_scales(panel, end - begin, grid)
        for start, stop in _blocks(end - begin, group_size):
            if start:
                panel[:, start:stop] += errors[:, :start] @ diagonal[:start, start:stop]
            _quantize_block(
                panel,
                diagonal,
                start,
                stop,
                begin,
                group_of,
                found and not whole,
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


def _blocks(width: int, group_size: int) -> Iterator[tuple[int, int]]:
    """Ranges within a panel: whole groups if they fit into a block, else pieces of the one group."""
    length = BLOCK if group_size > BLOCK else BLOCK - BLOCK % group_size
    for start in range(0, width, length):
        yield start, min(start + length, width)


def _upper_factor(h_inv: NDArray) -> NDArray:
    """Return ``U``: the argument if it is upper triangular, its factor if it is symmetric."""
    diagonal = np.diagonal(h_inv)
    if not (diagonal > 0).all():
        j = int(np.argmin(diagonal > 0))
        raise ValueError(f"h_inv: expected a positive diagonal, got {diagonal[j]} at [{j}, {j}]")
    if not np.tril(h_inv, -1).any():
        return h_inv
    asymmetry = np.abs(h_inv - h_inv.T).max() / diagonal.max()
    if asymmetry > np.sqrt(np.finfo(h_inv.dtype).eps):
        raise ValueError(
            "h_inv: expected an upper triangular or a symmetric matrix, got one whose "
            f"asymmetry is {asymmetry:.2g} of its largest diagonal entry"
        )
    lower = np.array(h_inv, order="C")
    if minor := cholesky_lower(lower):
        raise ValueError(
            "h_inv: expected a positive definite matrix, got one whose leading minor of order "
            f"{minor} is not positive"
        )
    return np.ascontiguousarray(np.tril(lower).T)


@kernel
def _add_columns(source, begin, panel):
    """Add the panel's columns of the weight. Split: one task a row."""
    for i in prange(len(panel)):
        for j in range(panel.shape[1]):
            panel[i, j] += widen(source[i, begin + j])


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

    `panel` holds compensated weights and receives values; `errors` receives ``-e``. Split: one task
    a tile of rows, which lies transposed, so that the rows are the lanes of a vector.
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
        loss = np.zeros(TILE, np.float64)
        for r in range(count):
            for j in range(width):
                block[j, r] = panel[first + r, start + j]
        for j in range(width):
            column = begin + start + j
            group = group_of[column]
            if j == 0 or group != group_of[column - 1]:
                if find:
                    last = j
                    while last < width and group_of[begin + start + last] == group:
                        last += 1
                    _find_tile_scales(block, j, last, levels, symmetric, storage, scale, zero)
                    for r in range(count):
                        scales[first + r, group] = scale[r]
                        zeros[first + r, group] = zero[r]
                else:
                    for r in range(count):
                        scale[r] = scales[first + r, group]
                        zero[r] = zeros[first + r, group]
            pivot = factor[start + j, start + j]
            for r in range(TILE):
                weight = block[j, r]
                code = code_of(weight, scale[r], zero[r], low, high)
                value = value_of(code, scale[r], zero[r])
                e = (value - weight) / pivot
                block[j, r] = value
                error[j, r] = e
                loss[r] += e * e
                unsigned[j, r] = np.uint8(code - low)
            for k in range(j + 1, width):
                u = factor[start + j, start + k]
                for r in range(TILE):
                    block[k, r] += error[j, r] * u
        for r in range(count):
            losses[first + r] += loss[r]
            for j in range(width):
                panel[first + r, start + j] = block[j, r]
                errors[first + r, start + j] = error[j, r]
                codes[first + r, begin + start + j] = unsigned[j, r]


@scalar
def _find_tile_scales(block, begin, end, levels, symmetric, storage, scale, zero):
    """Find each row's scale and zero point from columns `begin` to `end` of a transposed tile."""
    for r in range(TILE):
        lo = levels - levels
        hi = levels - levels
        for j in range(begin, end):
            lo = min(lo, block[j, r])
            hi = max(hi, block[j, r])
        scale[r] = stored_scale(group_scale(lo, hi, levels, symmetric), storage)
        zero[r] = group_zero(lo, scale[r], levels, symmetric)
