"""GPU form of the Hessian update: tensor cores of `hopper` on capability 9.0, else cuBLAS.

Without CuPy, and for operands of different dtypes, it is a kernel of tiles.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numbacalib.ops.matrix.gpu import contiguous
from numbacalib.runtime import blas_gpu, device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.finite import require_finite
from numbacalib.runtime.finite_gpu import FiniteCheck
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import column_blocks, launch
from numbacalib.spec.hessian import updated

EDGE = device.sized(8, simulated=4)
"""A block is EDGE x EDGE threads, a thread EDGE x EDGE elements of its tile."""
TILE = EDGE * EDGE
THREADS = device.sized(256, simulated=4)
FEW_ROWS = 8
"""Fewer float32 rows do not go to `hopper`: a sum so short would show that its halves keep 22 bits of
each number."""


def rank_update(
    hessian: Any, x_block: Any, alpha: float, beta: float, dtype: np.dtype, out: Any
) -> Any:
    """See `numbacalib.gptq_hessian_update`."""
    out = device.empty(hessian.shape, dtype) if out is None else out
    before: Any = carrier(hessian)
    x: Any = carrier(x_block)
    if dtype == np.float32 and device.has_capability_9_0() and _has_long_sums(x):
        from numbacalib.ops.gptq_hessian_update import hopper

        check = FiniteCheck({"hessian": hessian}, upper=True)
        hopper.rank_update(before, x, alpha, beta, out, check.first)
        check.require()
    elif blas_gpu.has_libraries() and dtype in (x_block.dtype, np.float32):
        require_finite("hessian", hessian)
        update_by_blas(before, contiguous(x_block), alpha, beta, out)
    else:
        require_finite("hessian", hessian)
        tiles = -(-out.shape[0] // TILE)
        for first in range(0, len(x), blas_gpu.RUN):
            factors = dtype.type(alpha), dtype.type(beta)
            run = x[first : first + blas_gpu.RUN]
            launch(_tile_kernel(dtype), (tiles, tiles), (EDGE, EDGE), before, run, out, *factors)
            before, beta = out, 1.0
    return device.result(out)


def update_by_blas(hessian: Any, x: Any, alpha: float, beta: float, out: Any) -> None:
    """Add the whole product, and use one triangle for both: the other may be rounded differently."""
    blocks = column_blocks(out.shape, THREADS)
    launch(_begin, blocks, THREADS, hessian, out.dtype.type(beta), out)
    blas_gpu.add_moment(x, x, out, factor=alpha, keep=1.0)
    launch(_mirror, blocks, THREADS, out)


def _has_long_sums(x: Any) -> bool:
    """Return whether the sums of a float32 block are long enough, see `FEW_ROWS`; 16-bit ones are exact."""
    return x.dtype != np.float32 or len(x) >= FEW_ROWS


@cuda.jit
def _begin(hessian, beta, out):
    """Set a triangle to ``beta H``. Threads: one a column, blocks stride over the rows."""
    j = cuda.grid(1)
    if j < out.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), j + 1, cuda.gridDim.y):
            out[i, j] = beta * widen(hessian[i, j])


@cuda.jit
def _mirror(out):
    """Copy the upper triangle to the lower. Threads: one a column, blocks stride over the rows."""
    j = cuda.grid(1)
    if j < out.shape[1]:
        for i in range(j + 1 + np.int64(cuda.blockIdx.y), out.shape[0], cuda.gridDim.y):
            out[i, j] = out[j, i]


@functools.cache
def _tile_kernel(dtype: np.dtype) -> Any:
    real = dtype.type

    @cuda.jit
    def tiles(hessian, x, out, alpha, beta):
        """One block a tile on or above the diagonal, a thread every EDGE-th row and column of it."""
        row, column = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
        if row > column:
            return
        left = cuda.shared.array((EDGE, TILE), real)
        right = cuda.shared.array((EDGE, TILE), real)
        sums = cuda.local.array((EDGE, EDGE), real)
        totals = cuda.local.array((EDGE, EDGE), real)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        rows, size = x.shape
        for i in range(EDGE):
            for j in range(EDGE):
                sums[i, j] = totals[i, j] = real(0)
        for first in range(0, rows, EDGE):
            if first % TILE == 0:
                # long sums of similar rows would round in one direction: add few rows at a time
                for i in range(EDGE):
                    for j in range(EDGE):
                        totals[i, j] += sums[i, j]
                        sums[i, j] = real(0)
            for j in range(tx, TILE, EDGE):
                inside = first + ty < rows
                left[ty, j] = right[ty, j] = real(0)
                if inside and row + j < size:
                    left[ty, j] = widen(x[first + ty, row + j])
                if inside and column + j < size:
                    right[ty, j] = widen(x[first + ty, column + j])
            cuda.syncthreads()
            for k in range(EDGE):
                for i in range(EDGE):
                    for j in range(EDGE):
                        sums[i, j] += left[k, ty + EDGE * i] * right[k, tx + EDGE * j]
            cuda.syncthreads()
        for i in range(EDGE):
            for j in range(EDGE):
                r, c = row + ty + EDGE * i, column + tx + EDGE * j
                if r <= c and c < size:
                    total = totals[i, j] + sums[i, j]
                    value = updated(widen(hessian[r, c]), total, alpha, beta)
                    out[r, c] = value
                    out[c, r] = value

    return tiles
