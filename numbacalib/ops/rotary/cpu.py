"""CPU kernel of the rotary embedding."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.jit import kernel
from numbacalib.spec.decoder import rotated


def rotate(tokens: NDArray, cos: NDArray, sin: NDArray) -> None:
    """See `numbacalib.ops.rotary.rotate`; tokens [S * T, H * D]."""
    _rotate(carrier(tokens), cos, sin)


@kernel
def _rotate(tokens, cos, sin):
    """Split: one task a token."""
    half = cos.shape[1]
    for i in prange(len(tokens)):
        token, c, s = tokens[i], cos[i % len(cos)], sin[i % len(cos)]
        for begin in range(0, len(token), 2 * half):
            left, right = token[begin : begin + half], token[begin + half : begin + 2 * half]
            for j in range(half):
                a, b = np.float32(widen(left[j])), np.float32(widen(right[j]))
                first, second = rotated(a, b, c[j], s[j])
                left[j] = narrow(first, left[j])
                right[j] = narrow(second, right[j])
