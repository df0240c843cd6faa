"""CPU form of the Hessian update: a packed product for the upper triangle, then a mirror."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.finite import require_finite
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.packed_product import add_square
from numbacalib.runtime.tasks import fetch_add

MIRROR_TILE = 64


def rank_update(
    hessian: NDArray,
    x_block: NDArray,
    alpha: float,
    beta: float,
    dtype: np.dtype,
    out: NDArray | None,
) -> NDArray:
    """See `numbacalib.gptq_hessian_update`."""
    require_finite("hessian", hessian)
    if out is None:
        out = np.empty(hessian.shape, dtype)
    if out is not hessian:
        np.copyto(out, hessian)
    add_square(out, x_block, alpha, beta)
    blocks = -(-len(out) // MIRROR_TILE)
    _mirror_upper(-(-blocks // 2), out)
    return out


@task_kernel
def _mirror_upper(counter, matrix):
    """Copy the upper triangle to the lower one. Split: workers take pairs of block rows.

    Through a buffer: rows that lie a power of two apart would evict each other from the cache.
    """
    size = len(matrix)
    blocks = -(-size // MIRROR_TILE)
    tile = np.empty((MIRROR_TILE, MIRROR_TILE), matrix.dtype)
    task = fetch_add(counter)
    while task < -(-blocks // 2):
        for block in (task, blocks - 1 - task):
            top, bottom = block * MIRROR_TILE, min((block + 1) * MIRROR_TILE, size)
            for left in range(0, bottom, MIRROR_TILE):
                for j in range(left, min(left + MIRROR_TILE, bottom)):
                    above = matrix[j, top:bottom]
                    for i in range(len(above)):
                        tile[j - left, i] = above[i]
                for i in range(top, bottom):
                    below = matrix[i, left : min(left + MIRROR_TILE, i)]
                    for j in range(len(below)):
                        below[j] = tile[j, i - top]
        task = fetch_add(counter)
