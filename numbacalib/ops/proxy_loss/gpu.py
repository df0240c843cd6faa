"""GPU kernels of the proxy loss and of traces: products whose elements are multiplied and added up."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from numbacalib.ops.columns import gpu as columns
from numbacalib.ops.columns.reductions_gpu import VALUES
from numbacalib.ops.matrix.gpu import contiguous
from numbacalib.runtime import checks, device
from numbacalib.runtime.blas_gpu import add_linear, has_libraries
from numbacalib.runtime.block_gpu import block_max, block_sum
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.launch import column_blocks, launch

THREADS = device.sized(128, simulated=4)
ROWS, COLUMNS = device.sized((16, 4), simulated=(2, 2))
"""Rows of a block, and columns of a thread."""
DEPTH = device.sized(32, simulated=4)
"""Columns of the errors that a block holds in shared memory."""
STRIP = THREADS * COLUMNS
FEW_ERRORS = 1 << 18
"""Fewer are multiplied in float32."""


def start_trace_of_errors(
    weight: Any, values: Any, hessian: Any, channel_scales: Any
) -> Callable[[], float]:
    """See `numbacalib.ops.proxy_loss.start_trace_of_errors`."""
    channels = weight.shape[1]
    if channel_scales is None:
        channel_scales = device.from_host(np.ones(channels, np.float32))
    errors = device.empty(weight.shape, np.float32)
    blocks = column_blocks(weight.shape, THREADS)
    source = carrier(weight)
    launch(_errors, blocks, THREADS, source, values, carrier(channel_scales), errors)
    by_blas = has_libraries() or not device.HAS_PTX  # the simulator's memory is the host's
    if hessian.dtype == np.float32 and by_blas:
        return start_trace_of_products(errors, hessian, errors)
    losses = group_losses(errors, hessian, channels)
    return _sum_of(columns.column_sums(losses, VALUES, np.float64(1)))


def start_trace_of_products(left: Any, moment: Any, right: Any) -> Callable[[], float]:
    """See `numbacalib.ops.proxy_loss.start_trace_of_products`: BLAS computes ``right moment^T``."""
    left, moment, right = map(contiguous, (left, moment, right))
    products = device.empty(right.shape, np.float32)
    if right.size < FEW_ERRORS:
        factors = device.from_host(np.ones(len(right), np.float32))
        add_linear(right, moment, products, keep=False)
    else:
        factors = _add_halves(right, moment, products)
    dots = device.empty((len(right),), np.float64)
    launch(_row_dots, len(right), THREADS, products, left, factors, dots)
    return _sum_of(dots)


def _sum_of(parts: Any) -> Callable[[], float]:
    """Start reading numbers; return a function that waits for their sum."""
    found = device.start_reading(parts)
    return lambda: float(found().sum())


def _add_halves(rows: Any, moment: Any, products: Any) -> Any:
    """Set `products` to ``rows moment^T`` on tensor cores, each row divided by its power of two.

    Those powers are returned. The moment is two float16 matrices, see `operands.split`, and the rows are
    one: their roundings are of either sign, and cancel in a trace of `FEW_ERRORS` or more.
    """
    factors = device.empty((len(rows),), np.float32)
    halves = device.empty(rows.shape, np.float16)
    if not device.HAS_PTX:
        parts, scales = [moment], device.from_host(np.ones(len(moment), np.float32))
    else:
        from numbacalib.ops.gptq_hessian_update.operands import split

        *pair, scales = split(moment)
        parts = [half.view(np.float16) for half in pair]
    launch(_halve, len(rows), THREADS, rows, scales, carrier(halves), factors)
    for keep, part in enumerate(parts):
        add_linear(halves, part, products, keep=bool(keep))
    return factors


def group_losses(errors: Any, hessian: Any, group_size: int) -> Any:
    """``d H_gg d^T`` of each row and group of errors [M, K], float64 [M, G * S].

    The loss of a long group comes in S parts, one a strip of its columns.
    """
    rows, channels = errors.shape
    strips = channels // group_size * -(-group_size // STRIP)
    losses = device.empty((rows, strips), np.float64)
    real: Any = checks.result_dtype(errors, hessian).type
    tiles = strips, -(-rows // ROWS)
    launch(_group_losses(real), tiles, THREADS, errors, carrier(hessian), group_size, losses)
    return losses


@cuda.jit
def _errors(weight, values, channel_scales, errors):
    """Threads: one a column, blocks stride over the rows."""
    j = cuda.grid(1)
    if j < errors.shape[1]:
        scale = np.float32(widen(channel_scales[j]))
        for i in range(np.int64(cuda.blockIdx.y), errors.shape[0], cuda.gridDim.y):
            errors[i, j] = (np.float32(widen(weight[i, j])) - values[i, j]) / scale


@cuda.jit
def _halve(rows, scales, halves, factors):
    """Write ``rows s**2`` as float16: a row times a power of two, whose inverse is its factor.

    The moment's columns are divided by ``s**2``, which is a power of two, too. One block a row, its
    threads every `THREADS`-th column.
    """
    shared = cuda.shared.array(THREADS, np.float32)
    i, thread = np.int64(cuda.blockIdx.x), cuda.threadIdx.x
    peak = np.float32(0)
    for j in range(thread, rows.shape[1], THREADS):
        peak = max(peak, abs(rows[i, j] * scales[j] * scales[j]))
    shared[thread] = peak
    peak = block_max(shared, thread)
    # float16 ends at 65504: the peak of the stored row lies at about 2**14
    factor = np.float32(1)
    if peak > 0:
        factor = np.float32(2.0 ** max(math.floor(math.log2(peak)) - 14, -126))
    for j in range(thread, rows.shape[1], THREADS):
        value = rows[i, j] * scales[j] * scales[j] / factor
        halves[i, j] = narrow(value, halves[i, j])
    if thread == 0:
        factors[i] = factor


@cuda.jit
def _row_dots(left, right, factors, dots):
    """``factors[i] * sum_j left[i, j] right[i, j]``: one block a row, threads every `THREADS`-th column."""
    parts = cuda.shared.array(THREADS, np.float64)
    i, thread = np.int64(cuda.blockIdx.x), cuda.threadIdx.x
    total = 0.0
    for j in range(thread, left.shape[1], THREADS):
        total += left[i, j] * right[i, j]
    parts[thread] = total
    total = block_sum(parts, thread)
    if thread == 0:
        dots[i] = total * factors[i]


@functools.cache
def _group_losses(real: type) -> Any:
    @cuda.jit
    def losses_of_groups(errors, hessian, group_size, losses):
        """Blocks: strip of a group, tile of rows. Threads: every `THREADS`-th column of the strip.

        Each sums ``t = d H`` for its columns and all rows of the tile, and then ``t * d``.
        """
        tile = cuda.shared.array((DEPTH, ROWS), real)
        shares = cuda.shared.array((ROWS, THREADS), np.float64)
        sums = cuda.local.array((ROWS, COLUMNS), real)
        thread = cuda.threadIdx.x
        strips = -(-group_size // STRIP)
        strip = np.int64(cuda.blockIdx.x)
        begin = strip // strips * group_size
        end = begin + group_size
        left = begin + strip % strips * STRIP + thread
        top = np.int64(cuda.blockIdx.y) * ROWS
        for r in range(ROWS):
            for c in range(COLUMNS):
                sums[r, c] = real(0)
        for first in range(begin, end, DEPTH):
            for index in range(thread, ROWS * DEPTH, THREADS):
                r, k = index // DEPTH, index % DEPTH
                inside = top + r < errors.shape[0] and first + k < end
                tile[k, r] = errors[top + r, first + k] if inside else real(0)
            cuda.syncthreads()
            for k in range(min(DEPTH, end - first)):
                for c in range(COLUMNS):
                    # a column past the group's end is read again, and not counted below
                    j = min(left + c * THREADS, end - 1)
                    element = real(widen(hessian[first + k, j]))
                    for r in range(ROWS):
                        sums[r, c] += tile[k, r] * element
            cuda.syncthreads()
        for r in range(ROWS):
            share = 0.0
            if top + r < errors.shape[0]:
                for c in range(COLUMNS):
                    j = left + c * THREADS
                    if j < end:
                        share += sums[r, c] * errors[top + r, j]
            shares[r, thread] = share
        cuda.syncthreads()
        for r in range(thread, ROWS, THREADS):
            if top + r < errors.shape[0]:
                total = 0.0
                for other in range(THREADS):
                    total += shares[r, other]
                losses[top + r, strip] = total

    return losses_of_groups
