"""Operands of tensor-core products: float32 as two float16 matrices, 16-bit ones as they lie.

Each column is scaled by a power of two, which is exact, so that its largest magnitude lies between
2**13 and 2**15, and split: ``high`` is the nearest float16, ``low`` the nearest float16 to the rest.
Together they keep 22 bits of every element down to 2**-28 of the column's largest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from numbacalib.runtime import ptx
from numbacalib.runtime.half import widen
from numbacalib.runtime.workspace import Workspace

MAGNITUDE = np.int32(0x7FFFFFFF)
INFINITY = np.int32(0x7F800000)
THREADS = 128
SEGMENT_ROWS = 256


def split(x: Any, workspace: Workspace, stream: Any) -> tuple[Any, Any, Any]:
    """Return (high [B, K], low [B, K], scales [K]) of a float32 matrix.

    ``(high + low) * scales**2`` is the matrix. A column with a value that is not finite becomes zero
    and has scale 0: `add_nonfinite` is for those.
    """
    rows, columns = x.shape
    pairs = -(-columns // 8) * 4
    segments = -(-rows // SEGMENT_ROWS)
    peaks = workspace.array((segments, columns), np.int32)
    scales = workspace.array((columns,), np.float32)
    halves = workspace.array((2, rows, pairs), np.uint32)
    _peaks[(-(-columns // THREADS), segments), THREADS, stream](x, peaks)
    _split[(-(-pairs // THREADS), segments), THREADS, stream](x, peaks, scales, halves)
    high, low = (halves[part].view(np.uint16)[:, :columns] for part in range(2))
    return high, low, scales


def aligned(x: Any, workspace: Workspace, stream: Any) -> Any:
    """Return a 16-bit matrix whose rows start at multiples of 16 bytes: `x` itself if they do."""
    address = x.__cuda_array_interface__["data"][0]
    rows, columns = x.shape
    if x.strides[1] == 2 and x.strides[0] % 16 == 0 and x.strides[0] > 0 and address % 16 == 0:
        return x
    copy = workspace.array((rows, -(-columns // 8) * 8), x.dtype)
    _copy[(-(-columns // THREADS), min(rows, 32768)), THREADS, stream](x, copy)
    return copy[:, :columns]


@cuda.jit
def _peaks(x, peaks):
    """Largest magnitude, as bits, of each column of a segment. One thread a column and segment."""
    column = cuda.grid(1)
    if column < x.shape[1]:
        segment = types.int64(cuda.blockIdx.y)
        peak = np.int32(0)
        for row in range(segment * SEGMENT_ROWS, min((segment + 1) * SEGMENT_ROWS, x.shape[0])):
            peak = max(peak, x[row, column].view(np.int32) & MAGNITUDE)
        peaks[segment, column] = peak


@cuda.jit(device=True)
def _column_scale(peaks, column):
    """Return s: the column times ``s**-2`` has its peak between 2**13 and 2**15."""
    if column >= peaks.shape[1]:
        return np.float32(0)
    peak = np.int32(0)
    for segment in range(peaks.shape[0]):
        peak = max(peak, peaks[segment, column])
    if peak >= INFINITY:
        return np.float32(0)
    if peak == 0:
        return np.float32(1)
    # the bits of a float32 power of two are its exponent, biased by 127, and 23 zeros
    exponent = (types.int32(peak >> 23) - 127 - 14 + 1) >> 1
    exponent = max(exponent, types.int32(-63))
    return types.int32((exponent + 127) << 23).view(np.float32)


@cuda.jit
def _split(x, peaks, scales, halves):
    """Write both parts of two neighbouring columns. One thread two columns and a segment."""
    pair = cuda.grid(1)
    if pair >= halves.shape[2]:
        return
    segment = types.int64(cuda.blockIdx.y)
    left, right = 2 * pair, 2 * pair + 1
    left_scale, right_scale = _column_scale(peaks, left), _column_scale(peaks, right)
    if segment == 0 and left < scales.shape[0]:
        scales[left] = left_scale
    if segment == 0 and right < scales.shape[0]:
        scales[right] = right_scale
    left_factor = right_factor = np.float32(0)
    if left_scale > 0:
        left_factor = np.float32(1) / left_scale
    if right_scale > 0:
        right_factor = np.float32(1) / right_scale
    for row in range(segment * SEGMENT_ROWS, min((segment + 1) * SEGMENT_ROWS, x.shape[0])):
        a = b = np.float32(0)
        # a column of scale 0 may hold infinity: it is skipped, not multiplied
        if left_factor > 0:
            a = x[row, left] * left_factor * left_factor
        if right_factor > 0:
            b = x[row, right] * right_factor * right_factor
        high = ptx.pack_halves(a, b)
        halves[0, row, pair] = high
        a -= widen(types.uint16(high & 0xFFFF))
        b -= widen(types.uint16(high >> 16))
        halves[1, row, pair] = ptx.pack_halves(a, b)


@cuda.jit
def _copy(x, copy):
    """Copy a matrix of any strides. One thread a column, blocks stride over the rows."""
    column = cuda.grid(1)
    if column < x.shape[1]:
        for row in range(types.int64(cuda.blockIdx.y), x.shape[0], cuda.gridDim.y):
            copy[row, column] = x[row, column]
