"""CPU kernel of the causal convolution."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.tasks import fetch_add


def convolve(tokens: NDArray, length: int, taps: NDArray, bias: NDArray) -> NDArray:
    """See `numbacalib.ops.causal_convolution.causal_convolution`; tokens [S * T, C]."""
    result = np.empty(tokens.shape, tokens.dtype)
    _convolve(
        len(tokens), carrier(tokens), length, np.ascontiguousarray(taps.T), bias, carrier(result)
    )
    return result


@task_kernel
def _convolve(counter, tokens, length, taps, bias, result):
    """Split: workers take tokens."""
    last = len(taps) - 1
    i = fetch_add(counter)
    while i < len(tokens):
        sums = bias.copy()
        for w in range(max(0, last - i % length), last + 1):
            row, tap = tokens[i - last + w], taps[w]
            for c in range(len(sums)):
                sums[c] += tap[c] * np.float32(widen(row[c]))
        for c in range(len(sums)):
            result[i, c] = narrow(sums[c], result[i, c])
        i = fetch_add(counter)
