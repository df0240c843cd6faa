"""GPU kernels of the AWQ channel scores: two column reductions in one launch, then a product."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numbacalib.ops.columns import gpu as columns
from numbacalib.ops.columns import reductions_gpu as reductions
from numbacalib.ops.columns.gpu import Plan
from numbacalib.runtime import device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, magnitude_bits, widen
from numbacalib.runtime.launch import launch
from numbacalib.spec.awq import channel_score, magnitude

SHARED = columns.TALL[::-1]


def channel_scores(activations: Any, weights: Any, dtype: np.dtype, out: Any) -> Any:
    """See `numbacalib.awq_channel_scores`."""
    channels = activations.shape[1]
    out = device.empty((channels,), dtype) if out is None else out
    bits, source = magnitude_bits(activations), carrier(weights)
    integer = np.int64 if bits.dtype.itemsize == 8 else np.int32
    plans = columns.plan(bits), columns.plan(source)
    peaks = device.empty((plans[0].grid[1], channels), integer)
    sums = device.empty((plans[1].grid[1], channels), dtype)
    _reduce(bits, source, plans, peaks, sums)
    peaks = columns.shortened(peaks, reductions.larger)
    sums = columns.shortened(sums, reductions.add)
    element: Any = carrier(activations).dtype.type
    real: Any = dtype.type
    kernel = _scores(element, real)
    blocks = -(-channels // columns.TALL[0])
    launch(kernel, blocks, columns.TALL, peaks, sums, source, out)
    return device.result(out)


def _reduce(bits: Any, source: Any, plans: tuple[Plan, Plan], peaks: Any, sums: Any) -> None:
    """Set `peaks` and `sums` to the reductions of each segment of activations and weights.

    One launch for both where their blocks have one shape: no multiprocessor waits in between.
    """
    first, second = plans
    kinds = reductions.peaks(bits.dtype), reductions.MAGNITUDES
    ones = peaks.dtype.type(1), sums.dtype.type(1)
    if first.threads != second.threads or first.grid[0] != second.grid[0]:
        columns.reduce_rows(bits, first, kinds[0], ones[0], peaks)
        columns.reduce_rows(source, second, kinds[1], ones[1], sums)
        return
    reducers = tuple(
        (*how[:4], kind, partial.dtype.type)
        for how, kind, partial in zip(plans, kinds, (peaks, sums), strict=True)
    )
    grid = first.grid[0], first.grid[1] + second.grid[1]
    arguments = bits, first.segment_rows, source, second.segment_rows, peaks, sums
    launch(_both(*reducers), grid, first.threads, *arguments)


@functools.cache
def _both(first: tuple, second: tuple) -> Any:
    reduce_peaks = columns.segment_reducer(*first)
    reduce_sums = columns.segment_reducer(*second)
    integer, real = first[-1], second[-1]
    shapes = tuple(columns.shared_shape(threads, width) for threads, width, *_ in (first, second))
    peak_shape, sum_shape = shapes

    @cuda.jit
    def both(bits, bits_rows, weights, weights_rows, peaks, sums):
        """Blocks: strip, segment of the activations or past those of the weights."""
        shared_peaks = cuda.shared.array(peak_shape, integer)
        shared_sums = cuda.shared.array(sum_shape, real)
        segment = np.int64(cuda.blockIdx.y)
        if segment < len(peaks):
            reduce_peaks(bits, segment, bits_rows, integer(1), peaks, shared_peaks)
        else:
            segment -= len(peaks)
            reduce_sums(weights, segment, weights_rows, real(1), sums, shared_sums)

    return both


@functools.cache
def _scores(element: type, real: type) -> Any:
    value = reductions.float_of(element)
    integer = np.int64 if element == np.float64 else np.int32
    largest = columns.merger(reductions.larger)
    summed = columns.merger(reductions.add)

    @cuda.jit
    def scores(peaks, sums, weights, out):
        """Merge the segments of each channel and multiply. Threads: see `columns.merger`."""
        shared_peaks = cuda.shared.array(SHARED, integer)
        shared_sums = cuda.shared.array(SHARED, real)
        j = cuda.grid(2)[0]
        peak = largest(peaks, j, shared_peaks)
        total = summed(sums, j, shared_sums)
        if cuda.threadIdx.y > 0 or j >= len(out):
            return
        scale = real(value(peak))
        if math.isinf(scale):
            # An infinite activation times a zero weight is NaN, which the mean alone would not show.
            total = real(0)
            for i in range(len(weights)):
                total += channel_score(scale, magnitude(real(widen(weights[i, j]))))
            scale = real(1)
        out[j] = channel_score(scale, total / real(len(weights)))

    return scores
