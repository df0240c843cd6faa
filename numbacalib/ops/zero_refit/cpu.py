"""The refit of zeros on the CPU: products of BLAS for the matrices, one task a row for the search."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.ops.products.cpu import group_dots
from numbacalib.ops.scale_refit.cpu import (
    TILE_BYTES,
    centered_codes,
    solved_scales,
    squares_of_groups,
)
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel
from numbacalib.spec.scale_refit import same_sign
from numbacalib.spec.zero_refit import GroupMoments, fit_zeros, follow, lowers_loss_with_zeros


def refitted_zeros(
    codes: NDArray,
    zeros: NDArray,
    scales: NDArray,
    errors: NDArray,
    moments: GroupMoments,
    range_of_zeros: tuple[int, int],
) -> tuple[NDArray, NDArray]:
    """See `numbacalib.ops.zero_refit.refitted_zeros`."""
    rows, groups = scales.shape
    new_scales, new_zeros = np.empty_like(scales), np.empty_like(zeros)
    step = max(1, TILE_BYTES // (16 * groups * groups))
    for first in range(0, rows, step):
        own = slice(first, first + step)
        centered = centered_codes(codes[own], zeros[own], errors.dtype)
        systems = _systems(centered, errors[own], moments)
        grid = scales[own], zeros[own]
        solved = solved_scales(systems.matrices, systems.pulls, grid[0]), grid[1]
        _follow(*systems, *_in_carriers(grid), *_in_carriers(solved))
        free = _searched(systems, solved, range_of_zeros)
        _follow(*systems, *_in_carriers(solved), *_in_carriers(free))
        new_scales[own] = solved_scales(systems.matrices, systems.pulls, free[0])
        new_zeros[own] = free[1]
    return new_scales, new_zeros


class _Systems(NamedTuple):
    """``c H c^T``, ``c H u^T``, ``u H u^T``, ``c H e^T`` and ``u H e^T`` of rows: see `spec.zero_refit`."""

    matrices: NDArray
    mixed: NDArray
    ones: NDArray
    pulls: NDArray
    ones_pulls: NDArray


def _in_carriers(grid: tuple[NDArray, NDArray]) -> tuple[NDArray, NDArray]:
    return carrier(grid[0]), grid[1]


def _searched(
    systems: _Systems, grid: tuple[NDArray, NDArray], range_of_zeros: tuple[int, int]
) -> tuple[NDArray, NDArray]:
    """Scales and zeros of rows that lose less; those of before if none do."""
    scales, zeros = grid
    steps, moves = np.empty(scales.shape), np.empty(zeros.shape, np.int64)
    _fit(*systems, carrier(scales), zeros, *range_of_zeros, steps, moves)
    with np.errstate(over="ignore"):
        stored = carrier((scales.astype(np.float64) + steps).astype(scales.dtype))
    found = np.empty_like(scales), np.empty_like(zeros)
    _keep_better(*systems, carrier(scales), zeros, stored, steps, moves, *_in_carriers(found))
    return found


def _systems(centered: NDArray, errors: NDArray, moments: GroupMoments) -> _Systems:
    hessian, sums, ones = moments
    groups = sums.shape[1]
    size = len(sums) // groups
    mixed = np.empty((len(centered), groups, groups))
    for g in range(groups):
        own = slice(g * size, (g + 1) * size)
        mixed[:, g] = centered[:, own] @ sums[own]
    pulls = group_dots(centered, errors @ hessian, size)
    ones_pulls = (errors @ sums).astype(np.float64)
    return _Systems(squares_of_groups(centered, hessian, groups), mixed, ones, pulls, ones_pulls)


@kernel
def _fit(matrices, mixed, ones, pulls, ones_pulls, scales, zeros, least, most, steps, moves):
    """Split: one task a row."""
    groups = pulls.shape[1]
    for i in prange(len(pulls)):
        old, whole = np.empty(groups), np.empty(groups, np.int64)
        for g in range(groups):
            old[g], whole[g] = widen(scales[i, g]), zeros[i, g]
        system = matrices[i], mixed[i], ones, pulls[i], ones_pulls[i]
        fit_zeros(*system, old, whole, least, most, steps[i], moves[i])


@kernel
def _keep_better(
    matrices,
    mixed,
    ones,
    pulls,
    ones_pulls,
    scales,
    zeros,
    stored,
    steps,
    moves,
    new_scales,
    new_zeros,
):
    """Split: one task a row."""
    groups = pulls.shape[1]
    for i in prange(len(pulls)):
        old = np.empty(groups)
        same_signs = True
        for g in range(groups):
            old[g] = widen(scales[i, g])
            steps[i, g] = float(widen(stored[i, g])) - old[g]
            same_signs &= same_sign(float(widen(stored[i, g])), old[g])
        system = matrices[i], mixed[i], ones, pulls[i], ones_pulls[i]
        better = same_signs and lowers_loss_with_zeros(*system, old, steps[i], moves[i])
        for g in range(groups):
            new_scales[i, g] = stored[i, g] if better else scales[i, g]
            new_zeros[i, g] = zeros[i, g] + (moves[i, g] if better else 0)


@kernel
def _follow(matrices, mixed, ones, pulls, ones_pulls, scales, zeros, new_scales, new_zeros):
    """Split: one task a row."""
    groups = pulls.shape[1]
    for i in prange(len(pulls)):
        now, steps, moves = np.empty(groups), np.empty(groups), np.empty(groups, np.int64)
        for g in range(groups):
            now[g] = widen(new_scales[i, g])
            steps[g] = now[g] - widen(scales[i, g])
            moves[g] = np.int64(new_zeros[i, g]) - np.int64(zeros[i, g])
        follow(matrices[i], mixed[i], ones, pulls[i], ones_pulls[i], now, steps, moves)
