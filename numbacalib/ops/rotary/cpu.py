"""CPU kernel of the rotary embedding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.decoder import paired, rotated


def rotate(
    tokens: NDArray, size: int, cos: NDArray, sin: NDArray, interleaved: bool, first: int
) -> None:
    """See `numbacalib.ops.rotary.rotate`; tokens [S * T, H * size]."""
    _rotate(len(tokens), carrier(tokens), size, cos, sin, interleaved, first)


@task_kernel
def _rotate(counter, tokens, size, cos, sin, interleaved, first):
    """Split: workers take tokens."""
    half = cos.shape[1]
    i = fetch_add(counter)
    while i < len(tokens):
        token, c, s = tokens[i], cos[i % len(cos)], sin[i % len(cos)]
        for begin in range(first, len(token), size):
            head = token[begin : begin + 2 * half]
            for pair in range(half):
                left, right = paired(pair, half, interleaved)
                a, b = np.float32(widen(head[left])), np.float32(widen(head[right]))
                one, other = rotated(a, b, c[pair], s[pair])
                head[left] = narrow(one, head[left])
                head[right] = narrow(other, head[right])
        i = fetch_add(counter)
