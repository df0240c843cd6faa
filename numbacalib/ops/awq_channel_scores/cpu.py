"""CPU kernels of the AWQ channel scores: two column reductions and a product."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime.columns import column_magnitude_max, column_power_means
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel

PART = 16384
"""Channels of a task of the product."""


def channel_scores(
    activations: NDArray, weights: NDArray, dtype: np.dtype, out: NDArray | None
) -> NDArray:
    """See `numbacalib.awq_channel_scores`; the split among threads is that of the reductions."""
    largest = column_magnitude_max(activations)
    scores = column_power_means(weights, 1, dtype, out)
    infinite = np.empty(-(-len(scores) // PART), np.bool_)
    _scale(carrier(largest), scores, infinite)
    if infinite.any():
        # An infinite activation times a zero weight is NaN, which the mean alone would not show.
        with np.errstate(invalid="ignore", over="ignore"):
            for j in np.flatnonzero(np.isinf(largest)):
                magnitudes = np.abs(weights[:, j].astype(dtype))
                scores[j] = np.mean(largest[j].astype(dtype) * magnitudes)
    return scores


@kernel
def _scale(largest, scores, infinite):
    """Multiply the scores, and find which parts have an infinite factor. Split: one task a part."""
    for part in prange(len(infinite)):
        # slices: an index that is a sum would be checked for being negative, one by one
        factors, own = largest[part * PART :][:PART], scores[part * PART :][:PART]
        found = 0
        for j in range(len(own)):
            factor = widen(factors[j])
            own[j] *= factor
            found += factor == np.inf
        infinite[part] = found > 0
