"""The refit on the CPU: products of BLAS for the matrices, one task a row for their solution."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.ops.products.cpu import group_dots
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel
from numbacalib.spec.scale_refit import lowers_loss, same_sign, solve_steps

TILE_BYTES = 1 << 27
"""Bytes of the matrices of rows that are solved together."""


def refitted_scales(
    codes: NDArray, zeros: NDArray, scales: NDArray, errors: NDArray, hessian: NDArray
) -> NDArray:
    """See `numbacalib.ops.scale_refit.refitted_scales`."""
    rows, groups = scales.shape
    found = np.empty_like(scales)
    step = max(1, TILE_BYTES // (8 * groups * groups))
    for first in range(0, rows, step):
        own = slice(first, first + step)
        given = codes[own], zeros[own], scales[own], errors[own]
        _refit_tile(*given, hessian, found[own])
    return found


def _refit_tile(
    codes: NDArray,
    zeros: NDArray,
    scales: NDArray,
    errors: NDArray,
    hessian: NDArray,
    found: NDArray,
) -> None:
    groups = scales.shape[1]
    centered = centered_codes(codes, zeros, errors.dtype)
    pulls = group_dots(centered, errors @ hessian, codes.shape[1] // groups)
    found[:] = solved_scales(squares_of_groups(centered, hessian, groups), pulls, scales)


def solved_scales(matrices: NDArray, pulls: NDArray, scales: NDArray) -> NDArray:
    """Scales of rows that lose less, from what `spec.scale_refit` takes; those of before if none do."""
    candidates, found = np.empty(scales.shape, np.float32), np.empty_like(scales)
    _solve(matrices, pulls, carrier(scales), candidates)
    with np.errstate(over="ignore"):
        stored = candidates.astype(scales.dtype)
    _keep_better(matrices, pulls, carrier(scales), carrier(stored), carrier(found))
    return found


def centered_codes(codes: NDArray, zeros: NDArray, dtype: np.dtype) -> NDArray:
    """Codes less the zeros of their groups, [M, K]."""
    rows, groups = zeros.shape
    centered: NDArray = codes.astype(dtype)
    centered.reshape(rows, groups, -1)[:] -= zeros[:, :, None]
    return centered


def squares_of_groups(centered: NDArray, hessian: NDArray, groups: int) -> NDArray:
    """``c_g H c_h^T`` for each row, float64 [M, G, G]: the upper triangle, diagonal included."""
    rows, channels = centered.shape
    size = channels // groups
    matrices = np.empty((rows, groups, groups))
    for g in range(groups):
        own, left = slice(g * size, (g + 1) * size), g * size
        products = centered[:, own] @ hessian[own, left:]
        matrices[:, g, g:] = group_dots(products, centered[:, left:], size)
    return matrices


@kernel
def _solve(matrices, pulls, scales, candidates):
    """Split: one task a row."""
    groups = pulls.shape[1]
    for i in prange(len(pulls)):
        steps, roots = np.empty(groups), np.empty(groups)
        solve_steps(matrices[i], pulls[i], steps, roots)
        for g in range(groups):
            scale = widen(scales[i, g])
            wanted = scale + steps[g]
            candidates[i, g] = wanted if same_sign(wanted, scale) else scale


@kernel
def _keep_better(matrices, pulls, scales, stored, found):
    """Split: one task a row."""
    groups = pulls.shape[1]
    for i in prange(len(pulls)):
        steps = np.empty(groups)
        same_signs = True
        for g in range(groups):
            steps[g] = float(widen(stored[i, g])) - float(widen(scales[i, g]))
            same_signs &= same_sign(widen(stored[i, g]), widen(scales[i, g]))
        better = same_signs and lowers_loss(matrices[i], pulls[i], steps)
        for g in range(groups):
            found[i, g] = stored[i, g] if better else scales[i, g]
