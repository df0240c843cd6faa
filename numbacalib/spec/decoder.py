"""Elementwise formulas of a decoder, in float32.

RMSNorm: Zhang and Sennrich (2019), arXiv 1910.07467, equation 4. LayerNorm: Ba et al. (2016), arXiv
1607.06450, equation 3. Rotary embedding: Su et al. (2021), arXiv 2104.09864, equation 34. Softmax by
parts: Milakov and Gimelshein (2018), arXiv 1805.02867, algorithm 3. Soft caps: Gemma 2 (2024), arXiv
2408.00118, section 2.
"""

from __future__ import annotations

import math

import numpy as np

from numbacalib.runtime.jit import scalar
from numbacalib.spec.exponential import exp

LOWEST = np.float32(-3e38)
"""Below any score but finite, since a difference of infinities is NaN."""


@scalar
def inverse_rms(squares, count, eps):
    """``1 / sqrt(squares / count + eps)``, the factor of a vector with this sum of squares."""
    return np.float32(1) / np.float32(math.sqrt(squares / np.float32(count) + eps))


@scalar
def rotated(first, second, cos, sin):
    """Both numbers of a pair, rotated by an angle."""
    return first * cos - second * sin, second * cos + first * sin


@scalar
def paired(pair, half, interleaved):
    """The dimensions of a head that rotate together: ``i`` and ``i + half``, or neighbours."""
    return (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)


@scalar
def capped(score, cap):
    """``cap * tanh(score / cap)`` with ``tanh(y) = 1 - 2 / (1 + exp(2 y))``; unchanged for a cap of 0."""
    if cap == np.float32(0):
        return score
    return cap - np.float32(2) * cap / (np.float32(1) + exp(np.float32(2) * (score / cap)))


@scalar
def first_key(query, window):
    """The earliest position that a query sees; a window of 0 means no window."""
    return max(0, query - window + 1) if window > 0 else 0


@scalar
def weight_of(score, largest):
    """Unnormalized softmax weight of a score, ``exp(score - largest)``, with the largest score so far."""
    return exp(score - largest)


@scalar
def negative_log_likelihood(score, largest, total):
    """``-log softmax`` of a score, where `total` is the sum of all weights."""
    return largest + np.float32(math.log(total)) - score
