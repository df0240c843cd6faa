"""Kullback-Leibler divergence of one softmax from another, over a vocabulary that comes in parts.

With the logits p of the original and q of another model, their largest ones P and Q so far, and

    total_p = sum_v e^(p_v - P),  total_q = sum_v e^(q_v - Q),  pull = sum_v e^(p_v - P) (p_v - q_v),

the divergence ``sum_v softmax(p)_v (log softmax(p)_v - log softmax(q)_v)`` is

    pull / total_p - (P + log total_p) + (Q + log total_q).

Weights are those of `numbacalib.spec.decoder.weight_of`, float32 within 2 ulp, so that the result is within
about 1e-7; sums are float64, since the three terms nearly cancel.
"""

from __future__ import annotations

import math

from numbacalib.runtime.jit import scalar

LARGEST_P, LARGEST_Q, TOTAL_P, TOTAL_Q, PULL = range(5)
"""Rows of the state of a divergence."""


@scalar
def divergence(largest, totals, pull):
    """Return the divergence, in nats; `largest` and `totals` are pairs for p and q.

    It is negative only by rounding, and then 0; NaN stays NaN.
    """
    found = (
        pull / totals[0] - (largest[0] + math.log(totals[0])) + (largest[1] + math.log(totals[1]))
    )
    return 0.0 if found < 0 else found
