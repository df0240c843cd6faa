"""The gated delta rule, a linear attention whose memory is a matrix, in float32.

Yang, Kautz and Hatamizadeh (2024), arXiv 2412.06464, equation 10: with a key k, a value v, a decay a and a
rate b of each token, a head's memory M [D, V] becomes

    M <- a M;   M <- M + k b (v - M^T k)^T

and a query q reads ``M^T q``. The decay is that of Mamba 2 (Dao and Gu (2024), arXiv 2405.21060,
section 7.1), which writes without a correction, ``M <- M + k b v^T``, at the rate that its decay also uses.
"""

from __future__ import annotations

from numbacalib.runtime.jit import scalar
from numbacalib.spec.activations import sigmoid, softplus
from numbacalib.spec.exponential import exp

NORM_EPS = 1e-6
"""Added to the sum of squares of queries and keys when they are normalized to length 1."""


@scalar
def decay_of(score, slope_log, bias):
    """Factor of a memory at a token: ``exp(-exp(slope_log) softplus(score + bias))``."""
    return exp(-exp(slope_log) * softplus(score + bias))


@scalar
def rate_of(score, bias, corrects):
    """Rate of writing: the sigmoid of its own score, or with Mamba 2 the softplus of the decay's score."""
    return sigmoid(score) if corrects else softplus(score + bias)


@scalar
def correction(value, known, rate):
    """Correction that is written for a key, for which the memory so far has `known`."""
    return rate * (value - known)
