"""The refit of zeros on a GPU: products of cuBLAS for the matrices, one thread a row for the search."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.ops.matrix.gpu import contiguous
from numbacalib.ops.scale_refit.gpu import (
    THREADS,
    TILE_BYTES,
    Moment,
    add_parts,
    centered_codes,
    repays_splitting,
    solve_scales,
    squares_and_pulls,
)
from numbacalib.runtime import device
from numbacalib.runtime.blas_gpu import multiply
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier
from numbacalib.runtime.launch import launch
from numbacalib.spec import zero_refit
from numbacalib.spec.zero_refit import GroupMoments, RowMoments

better_grid = device.in_kernels(zero_refit.better_grid)
follow_grid = device.in_kernels(zero_refit.follow_grid)


def refitted_zeros(
    codes: Any,
    zeros: Any,
    scales: Any,
    errors: Any,
    moments: GroupMoments,
    range_of_zeros: tuple[int, int],
) -> tuple[Any, Any]:
    """See `numbacalib.ops.zero_refit.refitted_zeros`."""
    rows, groups = scales.shape
    new_scales = device.empty(scales.shape, scales.dtype)
    new_zeros = device.empty(zeros.shape, zeros.dtype)
    hessian, sums, ones = map(contiguous, moments)
    paired = repays_splitting(zeros, len(hessian), hessian.dtype)
    given_moments = Moment.of(hessian, paired=paired), Moment.of(sums, paired=paired), ones
    step = max(1, TILE_BYTES // (12 * groups * groups))
    for first in range(0, rows, step):
        own = slice(first, first + step)
        given = codes[own], zeros[own], scales[own], errors[own]
        _refit_tile(*given, given_moments, range_of_zeros, (new_scales[own], new_zeros[own]))
    return device.result(new_scales), device.result(new_zeros)


def _refit_tile(
    codes: Any,
    zeros: Any,
    scales: Any,
    errors: Any,
    moments: tuple[Moment, Moment, Any],
    range_of_zeros: tuple[int, int],
    results: tuple[Any, Any],
) -> None:
    hessian, sums, ones = moments
    rows, groups = scales.shape
    size = codes.shape[1] // groups
    centered = centered_codes(codes, zeros, hessian.dtype)
    matrices, pulls = squares_and_pulls(centered, errors, hessian, groups)
    mixed = device.empty((groups, groups, rows), errors.dtype)
    ones_pulls = device.empty((groups, rows), errors.dtype)
    multiply(sums.whole, errors, ones_pulls, transposed=(True, True))
    for g in range(groups):
        own = slice(g * size, (g + 1) * size)
        add_parts([part[own] for part in sums.parts], centered[own], mixed[g])
    systems = matrices, mixed, ones, pulls, ones_pulls
    old, steps = (device.empty((groups, rows), np.float64) for _ in range(2))
    moves = device.empty((groups, rows), np.int64)
    solved, searched = (device.empty(scales.shape, scales.dtype) for _ in range(2))
    new_scales, new_zeros = results
    kept, free = (carrier(solved), zeros), (carrier(searched), new_zeros)
    blocks, scratch = -(-rows // THREADS), (old, steps, moves)
    solve_scales(matrices, pulls, scales, solved)
    launch(_follow, blocks, THREADS, *systems, carrier(scales), zeros, *kept, *scratch)
    launch(_fit, blocks, THREADS, *systems, *kept, *range_of_zeros, *scratch, *free)
    launch(_follow, blocks, THREADS, *systems, *kept, *free, *scratch)
    solve_scales(matrices, pulls, searched, new_scales)


@cuda.jit
def _fit(
    matrices,
    mixed,
    ones,
    pulls,
    ones_pulls,
    scales,
    zeros,
    least,
    most,
    old,
    steps,
    moves,
    new_scales,
    new_zeros,
):
    """Threads: one a row."""
    i = cuda.grid(1)
    if i >= pulls.shape[1]:
        return
    row = RowMoments(matrices[:, :, i], mixed[:, :, i], ones, pulls[:, i], ones_pulls[:, i])
    grid, found = (scales[i], zeros[i]), (new_scales[i], new_zeros[i])
    memory = steps[:, i], old[:, i]
    better_grid(row, grid, (least, most), found, memory, moves[:, i])


@cuda.jit
def _follow(
    matrices,
    mixed,
    ones,
    pulls,
    ones_pulls,
    scales,
    zeros,
    new_scales,
    new_zeros,
    now,
    steps,
    moves,
):
    """Threads: one a row."""
    i = cuda.grid(1)
    if i >= pulls.shape[1]:
        return
    row = RowMoments(matrices[:, :, i], mixed[:, :, i], ones, pulls[:, i], ones_pulls[:, i])
    grid, found = (scales[i], zeros[i]), (new_scales[i], new_zeros[i])
    memory = steps[:, i], now[:, i]
    follow_grid(row, grid, found, memory, moves[:, i])
