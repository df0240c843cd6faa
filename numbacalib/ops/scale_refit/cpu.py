"""The refit on the CPU: products of BLAS for the matrices, one task a row for their solution."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.ops.products.cpu import group_dots
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel
from numbacalib.spec.scale_refit import lowers_loss, solve_steps

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
    (rows, groups), channels = scales.shape, codes.shape[1]
    size = channels // groups
    centered = codes.astype(errors.dtype)
    centered.reshape(rows, groups, size)[:] -= zeros[:, :, None]
    pulls = group_dots(centered, errors @ hessian, size)
    matrices = np.empty((rows, groups, groups))
    for g in range(groups):
        own, left = slice(g * size, (g + 1) * size), g * size
        products = centered[:, own] @ hessian[own, left:]
        matrices[:, g, g:] = group_dots(products, centered[:, left:], size)
    candidates = np.empty((rows, groups), np.float32)
    _solve(matrices, pulls, carrier(scales), candidates)
    with np.errstate(over="ignore"):
        stored = candidates.astype(scales.dtype)
    _keep_better(matrices, pulls, carrier(scales), carrier(stored), carrier(found))


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
            candidates[i, g] = wanted if wanted > 0 else scale


@kernel
def _keep_better(matrices, pulls, scales, stored, found):
    """Split: one task a row."""
    groups = pulls.shape[1]
    for i in prange(len(pulls)):
        steps = np.empty(groups)
        positive = True
        for g in range(groups):
            steps[g] = float(widen(stored[i, g])) - float(widen(scales[i, g]))
            positive &= widen(stored[i, g]) > 0
        better = positive and lowers_loss(matrices[i], pulls[i], steps)
        for g in range(groups):
            found[i, g] = stored[i, g] if better else scales[i, g]
