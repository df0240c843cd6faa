"""GPU kernel of the rotary embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.launch import launch
from numbacalib.spec.decoder import paired, rotated

THREADS = device.sized(256, simulated=4)


def rotate(tokens: Any, size: int, cos: Any, sin: Any, interleaved: bool, first: int) -> None:
    """See `numbacalib.ops.rotary.rotate`; tokens [S * T, H * size]."""
    options = size, cos, sin, interleaved, first
    launch(_rotate, tokens.shape[0], THREADS, carrier(tokens), *options)


@cuda.jit
def _rotate(tokens, size, cos, sin, interleaved, first):
    """One block a token, its threads every `THREADS`-th pair."""
    i = np.int64(cuda.blockIdx.x)
    half = cos.shape[1]
    position = i % cos.shape[0]
    for index in range(cuda.threadIdx.x, tokens.shape[1] // size * half, THREADS):
        pair, begin = index % half, first + index // half * size
        left, right = paired(pair, half, interleaved)
        left, right = begin + left, begin + right
        a, b = np.float32(widen(tokens[i, left])), np.float32(widen(tokens[i, right]))
        one, other = rotated(a, b, cos[position, pair], sin[position, pair])
        tokens[i, left] = narrow(one, tokens[i, left])
        tokens[i, right] = narrow(other, tokens[i, right])
