"""CPU kernel of the rotary embedding."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.jit import kernel
from numbacalib.spec.decoder import paired, rotated


def rotate(
    tokens: NDArray, size: int, cos: NDArray, sin: NDArray, interleaved: bool, first: int
) -> None:
    """See `numbacalib.ops.rotary.rotate`; tokens [S * T, H * size]."""
    _rotate(carrier(tokens), size, cos, sin, interleaved, first)


@kernel
def _rotate(tokens, size, cos, sin, interleaved, first):
    """Split: one task a token."""
    half = cos.shape[1]
    for i in prange(len(tokens)):
        token, c, s = tokens[i], cos[i % len(cos)], sin[i % len(cos)]
        for begin in range(first, len(token), size):
            head = token[begin : begin + 2 * half]
            for pair in range(half):
                left, right = paired(pair, half, interleaved)
                a, b = np.float32(widen(head[left])), np.float32(widen(head[right]))
                one, other = rotated(a, b, c[pair], s[pair])
                head[left] = narrow(one, head[left])
                head[right] = narrow(other, head[right])
