"""The refit on the CPU: products for the matrices, and a kernel for the rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.products.cpu import group_dots, product
from numbacalib.runtime.half import carrier
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.scale_refit import refit_row

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
        pulls = group_dots(centered, product(errors[own], hessian), codes.shape[1] // groups)
        matrices = squares_of_groups(centered, hessian, groups)
        _refit_rows(len(pulls), matrices, pulls, carrier(scales[own]), carrier(found[own]))
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
        products = product(centered[:, own], hessian[own, left:])
        matrices[:, g, g:] = group_dots(products, centered[:, left:], size)
    return matrices


@task_kernel
def _refit_rows(counter, matrices, pulls, scales, found):
    """Split: workers take rows."""
    rows, groups = pulls.shape
    memory = np.empty(groups), np.empty(groups)
    i = fetch_add(counter)
    while i < rows:
        refit_row(matrices[i], pulls[i], scales[i], found[i], memory)
        i = fetch_add(counter)
