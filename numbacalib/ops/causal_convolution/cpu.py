"""CPU kernel of the causal convolution."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.jit import kernel


def convolve(tokens: NDArray, length: int, taps: NDArray, bias: NDArray) -> NDArray:
    """See `numbacalib.ops.causal_convolution.causal_convolution`; tokens [S * T, C]."""
    result = np.empty(tokens.shape, tokens.dtype)
    _convolve(carrier(tokens), length, np.ascontiguousarray(taps.T), bias, carrier(result))
    return result


@kernel
def _convolve(tokens, length, taps, bias, result):
    """Split: one task a token."""
    last = len(taps) - 1
    for i in prange(len(tokens)):
        sums = bias.copy()
        for w in range(max(0, last - i % length), last + 1):
            row, tap = tokens[i - last + w], taps[w]
            for c in range(len(sums)):
                sums[c] += tap[c] * np.float32(widen(row[c]))
        for c in range(len(sums)):
            result[i, c] = narrow(sums[c], result[i, c])
