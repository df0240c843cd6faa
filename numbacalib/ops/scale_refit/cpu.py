"""The refit on the CPU: products of BLAS for the matrices, and a kernel for the rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.products.cpu import group_dots
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.tasks import fetch_add
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
        centered = centered_codes(codes[own], zeros[own], errors.dtype)
        pulls = group_dots(centered, errors[own] @ hessian, codes.shape[1] // groups)
        matrices = squares_of_groups(centered, hessian, groups)
        found[own] = solved_scales(matrices, pulls, scales[own])
    return found


def solved_scales(matrices: NDArray, pulls: NDArray, scales: NDArray) -> NDArray:
    """Scales of rows that lose less, from what `spec.scale_refit` takes; the old ones if none do."""
    found = np.empty_like(scales)
    _refit_rows(len(pulls), matrices, pulls, carrier(scales), carrier(found))
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


@task_kernel
def _refit_rows(counter, matrices, pulls, scales, found):
    """Split: workers take rows."""
    rows, groups = pulls.shape
    steps, roots = np.empty(groups), np.empty(groups)
    i = fetch_add(counter)
    while i < rows:
        old, new = scales[i], found[i]
        solve_steps(matrices[i], pulls[i], steps, roots)
        same_signs = True
        for g in range(groups):
            scale = widen(old[g])
            wanted = scale + steps[g]
            new[g] = narrow(wanted if same_sign(wanted, scale) else float(scale), new[g])
            steps[g] = float(widen(new[g])) - float(scale)
            same_signs &= same_sign(widen(new[g]), scale)
        if not (same_signs and lowers_loss(matrices[i], pulls[i], steps)):
            for g in range(groups):
                new[g] = old[g]
        i = fetch_add(counter)
