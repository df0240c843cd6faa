"""GPU kernels for magnitudes of channels: the column reductions, and one of weights in their groups."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numbacalib.runtime import checks, columns_gpu, device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, magnitude_bits, widen
from numbacalib.runtime.launch import launch

THREADS = 4 if device.SIMULATED else 128


def channel_magnitudes(inputs: Any) -> tuple[Any, Any]:
    """See `numbacalib.ops.magnitudes.channel_magnitudes`."""
    source: Any = carrier(inputs)
    mean = columns_gpu.column_sums(source, columns_gpu.MAGNITUDES, np.float32(len(inputs)))
    bits: Any = magnitude_bits(inputs)
    how = columns_gpu.plan(bits)
    integer = np.int64 if bits.dtype.itemsize == 8 else np.int32
    peaks = device.empty((how.grid[1], inputs.shape[1]), integer)
    columns_gpu.reduce_rows(bits, how, columns_gpu.peaks(bits.dtype), peaks.dtype.type(1), peaks)
    peaks = columns_gpu.shortened(peaks, columns_gpu.larger)
    largest = device.empty((inputs.shape[1],), np.float32)
    blocks = -(-inputs.shape[1] // columns_gpu.TALL[0])
    launch(_largest(source.dtype.type, integer), blocks, columns_gpu.TALL, peaks, largest)
    return device.result(mean), device.result(largest)


def relative_magnitudes(weight: Any, group_size: int) -> Any:
    """See `numbacalib.ops.magnitudes.relative_magnitudes`."""
    rows, channels = weight.shape
    groups = channels // group_size
    largest = device.empty((rows, groups), checks.result_dtype(weight))
    sums = device.empty((channels,), np.float64)
    source = carrier(weight)
    launch(_group_peaks, -(-rows * groups // THREADS), THREADS, source, largest)
    launch(_relative_sums, -(-channels // THREADS), THREADS, source, largest, sums)
    return device.result(sums)


@functools.cache
def _largest(element: type, integer: type) -> Any:
    merged = columns_gpu.merger(columns_gpu.larger)
    value = columns_gpu.float_of(element)
    shape = columns_gpu.TALL[::-1]

    @cuda.jit
    def finish(peaks, largest):
        """Merge the segments of each channel. Threads: see `columns_gpu.merger`."""
        shared = cuda.shared.array(shape, integer)
        j = cuda.grid(2)[0]
        peak = merged(peaks, j, shared)
        if cuda.threadIdx.y == 0 and j < len(largest):
            largest[j] = value(peak)

    return finish


@cuda.jit
def _group_peaks(weight, largest):
    """Threads: one a group."""
    index = cuda.grid(1)
    if index < largest.size:
        i, g = index // largest.shape[1], index % largest.shape[1]
        size = weight.shape[1] // largest.shape[1]
        peak = largest.dtype.type(0)
        for j in range(g * size, (g + 1) * size):
            peak = max(peak, abs(widen(weight[i, j])))
        largest[i, g] = peak


@cuda.jit
def _relative_sums(weight, largest, sums):
    """Threads: one a column."""
    j = cuda.grid(1)
    if j < weight.shape[1]:
        g = j // (weight.shape[1] // largest.shape[1])
        total = 0.0
        for i in range(weight.shape[0]):
            if largest[i, g] > 0:
                total += abs(widen(weight[i, j])) / largest[i, g]
        sums[j] = total
