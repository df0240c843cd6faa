"""CPU kernel of LayerNorm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.decoder import inverse_rms

LANES = 16
"""Partial sums, each over every 16th element: see `numbacalib.ops.rms_norm.cpu`."""


def layer_norm(
    x: NDArray, weight: NDArray, bias: NDArray | None, eps: np.float32, dtype: np.dtype
) -> NDArray:
    """See `numbacalib.ops.layer_norm.layer_norm`; matrices."""
    result = np.empty(x.shape, dtype)
    if bias is None:
        bias = np.zeros((1, x.shape[1]), np.float32)
    arrays = rows_view(carrier(x)), rows_view(weight), rows_view(bias)
    _normalize(len(x), *arrays, eps, carrier(result))
    return result


@task_kernel
def _normalize(counter, x, weight, bias, eps, result):
    """Split: workers take rows."""
    columns = result.shape[1]
    i = fetch_add(counter)
    while i < len(x):
        parts = np.zeros(LANES, np.float32)
        whole = columns // LANES * LANES
        for begin in range(0, whole, LANES):
            for lane in range(LANES):
                parts[lane] += np.float32(widen(x[i, begin + lane]))
        for j in range(whole, columns):
            parts[j - whole] += np.float32(widen(x[i, j]))
        mean = np.float32(0)
        for lane in range(LANES):
            mean += parts[lane]
            parts[lane] = np.float32(0)
        mean /= np.float32(columns)
        for begin in range(0, whole, LANES):
            for lane in range(LANES):
                value = np.float32(widen(x[i, begin + lane])) - mean
                parts[lane] += value * value
        for j in range(whole, columns):
            value = np.float32(widen(x[i, j])) - mean
            parts[j - whole] += value * value
        squares = np.float32(0)
        for lane in range(LANES):
            squares += parts[lane]
        inverse = inverse_rms(squares, columns, eps)
        row, other = weight[i % len(weight)], bias[i % len(bias)]
        for j in range(columns):
            value = (np.float32(widen(x[i, j])) - mean) * inverse * row[j] + other[j]
            result[i, j] = narrow(value, result[i, j])
        i = fetch_add(counter)
