"""The search of the clipping on the CPU: for a group of some rows, all shares before the next group.

Errors, their product with the group's block of H and its dot products with the errors stay in the cache.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime import checks
from numbacalib.runtime.half import carrier, widen_block
from numbacalib.runtime.jit import scalar, task_kernel
from numbacalib.runtime.packing import pack
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import fetch_add
from numbacalib.runtime.tile_product import COLUMNS, LANES, add_product
from numbacalib.spec.grid import Grid, clipped_grid, code_of, value_of

ROWS = 120 // COLUMNS * COLUMNS
"""Rows of a task: whole column panels."""


def clip_scales(
    matrix: NDArray, hessian: NDArray, group_size: int, grid: Grid, shares: NDArray
) -> tuple[NDArray, NDArray]:
    """See `numbacalib.ops.clip_search.clip_scales`."""
    rows, channels = matrix.shape
    groups = channels // group_size
    dtype = checks.result_dtype(matrix)
    scales, zeros = np.empty((2, rows, groups), dtype)
    blocks = _packed_blocks(hessian, group_size, dtype)
    given = rows_view(carrier(matrix)), blocks, shares, grid.bounds(dtype)
    _search(groups * -(-rows // ROWS), *given, scales, zeros)
    return scales, zeros


def _packed_blocks(hessian: NDArray, size: int, dtype: np.dtype) -> NDArray:
    """Blocks of the groups as row panels, [G, panels, size, `LANES`], with zeros after the last column."""
    groups, panels = len(hessian) // size, -(-size // LANES)
    packed = np.zeros((groups, panels, size, LANES), dtype)
    for g in range(groups):
        own = slice(g * size, (g + 1) * size)
        for p in range(panels):
            part = hessian[own, own][:, p * LANES : (p + 1) * LANES]
            packed[g, p, :, : part.shape[1]] = part
    return packed


@task_kernel
def _search(counter, matrix, blocks, shares, bounds, scales, zeros):
    """Split: workers take a group of `ROWS` rows."""
    rows, groups = scales.shape
    panels, size = blocks.shape[1:3]
    strips = -(-rows // ROWS)
    weights, errors = np.empty((ROWS, size), scales.dtype), np.empty((ROWS, size), scales.dtype)
    packed = np.empty((ROWS // COLUMNS, size, COLUMNS), scales.dtype)
    sums = np.empty((panels, ROWS, LANES), scales.dtype)
    found = np.empty((2, ROWS), scales.dtype)
    least, parts = np.empty(ROWS), np.empty(LANES)
    nothing = scales.dtype.type(0)  # a literal 0 would make float64 of the range
    task = fetch_add(counter)
    while task < groups * strips:
        g, top = task // strips, task % strips * ROWS
        height = min(ROWS, rows - top)
        own = packed[: -(-height // COLUMNS)]
        widen_block(matrix, top, g * size, weights[:height])
        least[:] = np.inf
        for share in shares:
            for i in range(height):
                lo, hi = min(weights[i].min(), nothing), max(weights[i].max(), nothing)
                found[0, i], found[1, i] = clipped_grid(lo, hi, share, bounds)
                _set_errors(weights[i], found[0, i], found[1, i], bounds, errors[i])
            pack(errors.reshape(-1), 0, (size, 1), height, COLUMNS, own)
            sums[:] = 0
            add_product(blocks[g], own, np.int64(0), sums)
            for i in range(height):
                parts[:] = 0
                for p in range(panels):
                    _add_products(errors[i, p * LANES : (p + 1) * LANES], sums[p, i], parts)
                loss = parts.sum()
                if loss < least[i]:
                    least[i] = loss
                    scales[top + i, g], zeros[top + i, g] = found[0, i], found[1, i]
        task = fetch_add(counter)


@scalar
def _set_errors(weights, scale, zero, bounds, errors):
    """Set `errors` to those of a group's weights on a grid."""
    for j in range(len(weights)):
        weight = weights[j]
        errors[j] = value_of(code_of(weight, scale, zero, bounds), scale, zero) - weight


@scalar
def _add_products(left, right, parts):
    """Add the products of two runs, of which the first may be shorter, to partial sums of float64."""
    for j in range(len(left)):
        parts[j] += float(left[j]) * float(right[j])
