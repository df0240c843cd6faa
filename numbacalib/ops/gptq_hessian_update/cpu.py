"""CPU form of the Hessian update: BLAS on tiles of one triangle, then a mirror of our own."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime.blas_tiles import add_square
from numbacalib.runtime.finite import require_finite
from numbacalib.runtime.half import carrier, widen_block
from numbacalib.runtime.jit import kernel
from numbacalib.runtime.strides import rows_view

CHUNK_ELEMENTS = 1 << 22
"""Elements of x_block that are converted at a time: 16 MiB of float32, whatever its length."""
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
    if x_block.dtype == dtype and (x_block.flags.c_contiguous or x_block.flags.f_contiguous):
        add_square(out, x_block, alpha, beta)
    else:
        for part in _converted_chunks(x_block, dtype):
            add_square(out, part, alpha, beta)
            beta = 1.0
    mirror_upper(out)
    return out


def _converted_chunks(x_block: NDArray, dtype: np.dtype):
    """Yield runs of rows of `x_block` as C-contiguous `dtype`, in one buffer of bounded size."""
    rows, channels = x_block.shape
    length = min(rows, max(256, CHUNK_ELEMENTS // channels))
    buffer = np.empty((length, channels), dtype)
    source = rows_view(carrier(x_block))
    for first in range(0, rows, length):
        part = buffer[: min(length, rows - first)]
        widen_rows(source[first : first + len(part)], part)
        yield part


@kernel
def widen_rows(source, target):
    """Split: one task a row. `target` has the wider type and the width that counts."""
    for n in prange(len(target)):
        widen_block(source, n, 0, target[n : n + 1])


@kernel
def mirror_upper(matrix):
    """Copy the upper triangle to the lower one. Split: one task two block rows of tiles, as long together.

    Through a buffer: rows that lie a power of two apart would evict each other from the cache.
    """
    size = len(matrix)
    blocks = -(-size // MIRROR_TILE)
    for task in prange(-(-blocks // 2)):
        tile = np.empty((MIRROR_TILE, MIRROR_TILE), matrix.dtype)
        for block in (np.int64(task), blocks - 1 - task):  # prange counts in another type
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
