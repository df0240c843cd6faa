"""GPU kernels for magnitudes of weights in their groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import checks, device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.launch import launch
from numbacalib.spec.awq import magnitude

THREADS = device.sized(128, simulated=4)


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


@cuda.jit
def _group_peaks(weight, largest):
    """Threads: one a group."""
    index = cuda.grid(1)
    if index < largest.size:
        i, g = index // largest.shape[1], index % largest.shape[1]
        size = weight.shape[1] // largest.shape[1]
        peak = largest.dtype.type(0)
        for j in range(g * size, (g + 1) * size):
            peak = max(peak, magnitude(widen(weight[i, j])))
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
                total += magnitude(widen(weight[i, j])) / largest[i, g]
        sums[j] = total
