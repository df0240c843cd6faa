"""Operands of tensor-core products: float32 as two float16 matrices.

Each column of a float32 matrix is scaled by a power of two, which is exact, so that its largest
magnitude lies between 2**13 and 2**15, and split: ``high`` is the nearest float16, ``low`` the nearest
float16 to the rest. Together they keep 22 bits of every element down to 2**-28 of the column's largest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.cuda import types

from numbacalib.ops.columns import gpu as columns
from numbacalib.ops.columns.reductions_gpu import larger
from numbacalib.runtime import device, ptx
from numbacalib.runtime.device import DeviceArray, cuda
from numbacalib.runtime.half import widen
from numbacalib.runtime.launch import launch

INFINITY = np.int32(0x7F800000)
"""Bits of float32's infinity."""
THREADS = 128
SPLIT_ROWS, BATCH = 32, 8
"""Rows of a thread that splits, and of one batch of its reads."""
SHARED = columns.TALL[::-1]


def split(x: Any) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    """Return (high [B, K], low [B, K], scales [K]) of a float32 matrix.

    ``(high + low) * scales**2`` is the matrix. A column with a value that is not finite becomes zero
    and has scale 0; the caller has to add its part of a product.
    """
    scales = scales_of(columns.magnitude_peaks(x))
    halves = empty_halves(x.shape)
    split_into(x, scales, halves)
    high, low = parts_of(halves, x.shape[1])
    return high, low, scales


def scales_of(peaks: Any) -> DeviceArray:
    """Return scales [K] for the largest magnitude of each column of [S, K], given as bits."""
    scales = device.empty((peaks.shape[1],), np.float32)
    launch(_scales, -(-len(scales) // columns.TALL[0]), columns.TALL, peaks, scales)
    return scales


def empty_halves(shape: tuple[int, int]) -> DeviceArray:
    """Allocate both parts of a matrix, one below the other, two columns in a word."""
    rows, width = shape
    return device.empty((2 * rows, -(-width // 8) * 4), np.uint32)


def split_into(x: Any, scales: DeviceArray, halves: DeviceArray) -> None:
    """Split a float32 matrix [B, K] by scales [K] into `empty_halves`."""
    grid = -(-halves.shape[1] // THREADS), -(-len(x) // SPLIT_ROWS)
    launch(_split, grid, THREADS, x, scales, halves)


def parts_of(halves: DeviceArray, width: int) -> list[DeviceArray]:
    """Return the high and the low part [B, width] of `halves` that `split_into` filled."""
    rows, words = len(halves) // 2, halves.shape[1]
    places = halves.address, halves.address + 4 * words * rows
    kind = (rows, width), np.dtype(np.uint16), halves, (4 * words, 2)
    return [DeviceArray(place, *kind) for place in places]


_largest = columns.merger(larger)


@cuda.jit
def _scales(peaks, scales):
    """Find s: the column times ``s**-2`` has its peak between 2**13 and 2**15.

    Threads: see `columns.merger`.
    """
    shared = cuda.shared.array(SHARED, types.int32)
    column = cuda.grid(2)[0]
    peak = _largest(peaks, column, shared)
    if cuda.threadIdx.y == 0 and column < scales.shape[0]:
        # the bits of a float32 power of two are its exponent, biased by 127, and 23 zeros
        exponent = (types.int32(peak >> 23) - 127 - 14 + 1) >> 1
        scale = types.int32((exponent + 127) << 23).view(np.float32)
        if peak == 0:
            scale = np.float32(1)
        if peak >= INFINITY:
            scale = np.float32(0)
        scales[column] = scale


@cuda.jit(device=True)
def _factor(scales, column):
    """Return a column's factor, applied twice since its square may not be representable; or 0."""
    if column < scales.shape[0] and scales[column] > 0:
        return np.float32(1) / scales[column]
    return np.float32(0)


@cuda.jit(device=True)
def _scaled(value, factor):
    """Scaled element. With factor 0, infinity and NaN become 0, too."""
    return value * factor * factor if factor > 0 else np.float32(0)


@cuda.jit
def _split(x, scales, halves):
    """Write both parts, one below the other. One thread two neighbouring columns of a few rows."""
    pair = cuda.grid(1)
    if pair >= halves.shape[1]:
        return
    rows, columns = x.shape
    left, right = min(2 * pair, columns - 1), min(2 * pair + 1, columns - 1)
    left_factor, right_factor = _factor(scales, 2 * pair), _factor(scales, 2 * pair + 1)
    values = cuda.local.array((BATCH, 2), types.float32)
    segment = types.int64(cuda.blockIdx.y)
    for first in range(segment * SPLIT_ROWS, min((segment + 1) * SPLIT_ROWS, rows), BATCH):
        # several reads before the first write, so that they overlap
        for k in range(BATCH):
            row = min(first + k, rows - 1)
            values[k, 0], values[k, 1] = x[row, left], x[row, right]
        for k in range(BATCH):
            a, b = _scaled(values[k, 0], left_factor), _scaled(values[k, 1], right_factor)
            high = ptx.pack_halves(a, b)
            a -= widen(types.uint16(high & 0xFFFF))
            b -= widen(types.uint16(high >> 16))
            if first + k < rows:
                halves[first + k, pair] = high
                halves[rows + first + k, pair] = ptx.pack_halves(a, b)
