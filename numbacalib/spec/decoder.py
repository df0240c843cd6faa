"""Elementwise formulas of a decoder, those beside its matrix products, in float32.

RMSNorm: Zhang and Sennrich (2019), arXiv 1910.07467, equation 4. Rotary embedding: Su et al. (2021),
arXiv 2104.09864, equation 34, with the halves of a head as pairs, as Hugging Face orders them. SwiGLU:
Shazeer (2020), arXiv 2002.05202, equation 6. Softmax by parts: Milakov and Gimelshein (2018), arXiv
1805.02867, algorithm 3.
"""

from __future__ import annotations

import math

import numpy as np

from numbacalib.runtime.jit import scalar
from numbacalib.spec.exponential import exp


@scalar
def inverse_rms(squares, count, eps):
    """``1 / sqrt(squares / count + eps)``, what a vector with this sum of squares is multiplied by."""
    return np.float32(1) / np.float32(math.sqrt(squares / np.float32(count) + eps))


@scalar
def rotated(first, second, cos, sin):
    """Both numbers of a pair, turned by an angle."""
    return first * cos - second * sin, second * cos + first * sin


@scalar
def gated(gate, up):
    """``silu(gate) * up``."""
    return gate / (np.float32(1) + exp(-gate)) * up


@scalar
def first_key(query, window):
    """The earliest position that a query sees; a window of 0 is none."""
    return max(0, query - window + 1) if window > 0 else 0


@scalar
def weight_of(score, largest):
    """A score's part of a softmax whose largest score so far is this: ``exp(score - largest)``."""
    return exp(score - largest)


@scalar
def negative_log_likelihood(score, largest, total):
    """``-log softmax`` of a score, where `total` is the sum of all weights."""
    return largest + np.float32(math.log(total)) - score
