"""A draw from a softmax over a vocabulary that comes in parts.

Of scores s_v and independent exponential variates e_v, the entry with the largest ``s_v - log e_v`` is v
with the probability ``softmax(s)_v``: the Gumbel-max trick (Maddison et al. (2014), arXiv 1411.0030,
section 2). Here ``e_v = -log u_v``, with u_v from a counter of rows and entries, mixed by the finalizer of
SplitMix64 (Steele et al. (2014), doi 10.1145/2660193.2660195): a draw depends on its seed, row and scores
alone, whatever the parts and the threads.
"""

from __future__ import annotations

import math

import numpy as np

from numbacalib.runtime.jit import scalar

LARGEST, CHOSEN = range(2)
"""Rows of the state of a draw: the largest perturbed score so far, and its entry."""
ENTRY_BITS = np.uint64(32)
GAMMA = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@scalar
def uniform(seed, row, entry):
    """Return a number between 0 and 1, both excluded, of a row's entry."""
    counter = np.uint64(row) << ENTRY_BITS | np.uint64(entry)
    bits = np.uint64(seed) + GAMMA * (counter + np.uint64(1))
    bits = (bits ^ bits >> np.uint64(30)) * FIRST
    bits = (bits ^ bits >> np.uint64(27)) * SECOND
    bits = bits ^ bits >> np.uint64(31)
    # 52 bits and a half: the largest is not rounded to 1
    return (np.float64(bits >> np.uint64(12)) + 0.5) * 2.0**-52


@scalar
def perturbed(score, seed, row, entry):
    """``score - log e`` of a row's entry, float64."""
    return np.float64(score) - math.log(-math.log(uniform(seed, row, entry)))
