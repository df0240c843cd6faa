"""The refit of zeros on the CPU: products of BLAS for the matrices, one task a row for the search."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.ops.products.cpu import group_dots
from numbacalib.ops.scale_refit.cpu import TILE_BYTES, centered_codes, squares_of_groups
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel
from numbacalib.spec.scale_refit import same_sign
from numbacalib.spec.zero_refit import GroupMoments, fit_zeros, lowers_loss_with_zeros


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
        grids = carrier(scales[own]), zeros[own]
        steps, moves = np.empty(scales[own].shape), np.empty(zeros[own].shape, np.int64)
        _fit(*systems, moments.ones, *grids, *range_of_zeros, steps, moves)
        with np.errstate(over="ignore"):
            stored = carrier((scales[own].astype(np.float64) + steps).astype(scales.dtype))
        results = carrier(new_scales[own]), new_zeros[own]
        _keep_better(*systems, moments.ones, *grids, stored, steps, moves, *results)
    return new_scales, new_zeros


def _systems(
    centered: NDArray, errors: NDArray, moments: GroupMoments
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """``c H c^T``, ``c H u^T`` [M, G, G], ``c H e^T`` and ``u H e^T`` [M, G] of `spec.zero_refit`."""
    hessian, sums, _ = moments
    groups = sums.shape[1]
    size = len(sums) // groups
    mixed = np.empty((len(centered), groups, groups))
    for g in range(groups):
        own = slice(g * size, (g + 1) * size)
        mixed[:, g] = centered[:, own] @ sums[own]
    pulls = group_dots(centered, errors @ hessian, size)
    ones_pulls = (errors @ sums).astype(np.float64)
    return squares_of_groups(centered, hessian, groups), mixed, pulls, ones_pulls


@kernel
def _fit(matrices, mixed, pulls, ones_pulls, ones, scales, zeros, least, most, steps, moves):
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
    pulls,
    ones_pulls,
    ones,
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
