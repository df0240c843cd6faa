"""The search of the clipping on the CPU: batched products of the groups with their blocks of H."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.grid import cpu as grid_kernels
from numbacalib.ops.products.cpu import group_dots, product
from numbacalib.runtime import checks
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.grid import Grid, clipped_grid, group_indices


def clip_scales(
    matrix: NDArray, hessian: NDArray, group_size: int, grid: Grid, shares: NDArray
) -> tuple[NDArray, NDArray]:
    """See `numbacalib.ops.clip_search.clip_scales`."""
    rows, channels = matrix.shape
    groups = channels // group_size
    dtype = checks.result_dtype(matrix)
    grouped = matrix.astype(dtype, copy=False).reshape(rows, groups, group_size)
    lo, hi = grouped.min(axis=2, initial=0), grouped.max(axis=2, initial=0)
    corner = group_size * np.arange(groups)[:, None] + np.arange(group_size)
    blocks = hessian[corner[:, :, None], corner[:, None, :]].astype(dtype, copy=False)
    group_of = group_indices(channels, group_size)
    bounds = grid.bounds(dtype)

    scales, zeros = np.empty((2, rows, groups), dtype)
    found = np.empty_like(scales), np.empty_like(zeros)
    least, losses = np.full((rows, groups), np.inf), np.empty((rows, groups))
    for share in shares:
        _clipped_grids(len(scales), lo, hi, share, bounds, *found)
        codes = grid_kernels.encode(matrix, *found, group_of, grid)
        values = grid_kernels.decode(codes, *found, group_of, grid)
        errors = values.reshape(grouped.shape) - grouped
        for g in range(groups):
            own = errors[:, g]
            losses[:, g : g + 1] = group_dots(product(own, blocks[g]), own, group_size)
        better = losses < least
        for kept, new in zip((least, scales, zeros), (losses, *found), strict=True):
            kept[better] = new[better]
    return scales, zeros


@task_kernel
def _clipped_grids(counter, lo, hi, share, bounds, scales, zeros):
    """Split: workers take rows."""
    i = fetch_add(counter)
    while i < len(scales):
        for g in range(scales.shape[1]):
            scales[i, g], zeros[i, g] = clipped_grid(lo[i, g], hi[i, g], share, bounds)
        i = fetch_add(counter)
