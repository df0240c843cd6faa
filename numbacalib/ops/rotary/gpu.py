"""GPU kernel of the rotary embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.launch import launch
from numbacalib.spec.decoder import rotated

THREADS = 4 if device.SIMULATED else 256


def rotate(tokens: Any, cos: Any, sin: Any) -> None:
    """See `numbacalib.ops.rotary.rotate`; tokens [S * T, H * D]."""
    launch(_rotate, tokens.shape[0], THREADS, carrier(tokens), cos, sin)


@cuda.jit
def _rotate(tokens, cos, sin):
    """One block a token, its threads every `THREADS`-th pair."""
    i = np.int64(cuda.blockIdx.x)
    half = cos.shape[1]
    position = i % cos.shape[0]
    for pair in range(cuda.threadIdx.x, tokens.shape[1] // 2, THREADS):
        j = pair % half
        left = pair // half * 2 * half + j
        right = left + half
        a, b = np.float32(widen(tokens[i, left])), np.float32(widen(tokens[i, right]))
        first, second = rotated(a, b, cos[position, j], sin[position, j])
        tokens[i, left] = narrow(first, tokens[i, left])
        tokens[i, right] = narrow(second, tokens[i, right])
