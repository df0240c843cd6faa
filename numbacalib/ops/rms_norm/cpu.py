"""CPU kernel of RMSNorm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.decoder import inverse_rms

LANES = 16
"""Partial sums, each over every 16th element: they vectorize, with the same order on every processor."""


def rms_norm(x: NDArray, weight: NDArray, eps: np.float32, dtype: np.dtype) -> NDArray:
    """See `numbacalib.ops.rms_norm.rms_norm`."""
    result = np.empty(x.shape, dtype)
    _normalize(len(x), rows_view(carrier(x)), rows_view(weight[None]), eps, carrier(result))
    return result


@task_kernel
def _normalize(counter, x, weight, eps, result):
    """Split: workers take rows."""
    columns = result.shape[1]
    i = fetch_add(counter)
    while i < len(x):
        parts = np.zeros(LANES, np.float32)
        whole = columns // LANES * LANES
        for begin in range(0, whole, LANES):
            for lane in range(LANES):
                value = np.float32(widen(x[i, begin + lane]))
                parts[lane] += value * value
        for j in range(whole, columns):
            value = np.float32(widen(x[i, j]))
            parts[j - whole] += value * value
        squares = np.float32(0)
        for lane in range(LANES):
            squares += parts[lane]
        inverse = inverse_rms(squares, columns, eps)
        for j in range(columns):
            value = np.float32(widen(x[i, j])) * inverse * weight[0, j]
            result[i, j] = narrow(value, result[i, j])
        i = fetch_add(counter)
