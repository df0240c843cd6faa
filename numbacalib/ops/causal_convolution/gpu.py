"""GPU kernel of the causal convolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.launch import launch

THREADS = device.sized(256, simulated=4)


def convolve(tokens: Any, length: int, taps: Any, bias: Any) -> Any:
    """See `numbacalib.ops.causal_convolution.causal_convolution`; tokens [S * T, C]."""
    result = device.empty(tokens.shape, tokens.dtype)
    arrays = taps, bias, carrier(result)
    launch(_convolve, tokens.shape[0], THREADS, carrier(tokens), length, *arrays)
    return result


@cuda.jit
def _convolve(tokens, length, taps, bias, result):
    """One block a token, its threads every `THREADS`-th channel."""
    i = np.int64(cuda.blockIdx.x)
    last = taps.shape[1] - 1
    for c in range(cuda.threadIdx.x, tokens.shape[1], THREADS):
        total = bias[c]
        for w in range(max(0, last - i % length), last + 1):
            total += taps[c, w] * np.float32(widen(tokens[i - last + w, c]))
        result[i, c] = narrow(total, result[i, c])
