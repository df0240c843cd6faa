"""CPU form of the AWQ channel scores: two column reductions, of which the second multiplies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.columns.cpu import largest_magnitudes, scaled_means
from numbacalib.runtime.half import infinity_bits, magnitude_bits


def channel_scores(
    activations: NDArray, weights: NDArray, dtype: np.dtype, out: NDArray | None
) -> NDArray:
    """See `numbacalib.awq_channel_scores`; the split among threads is that of the reductions."""
    largest = largest_magnitudes(activations)
    scores = scaled_means(weights, largest, dtype, out)
    bits, infinity = magnitude_bits(largest), infinity_bits(largest.dtype)
    if bits.max() >= infinity:
        # An infinite activation times a zero weight is NaN, which the mean alone would not show.
        with np.errstate(invalid="ignore", over="ignore"):
            for j in np.flatnonzero(bits == infinity):
                magnitudes = np.abs(weights[:, j].astype(dtype))
                scores[j] = np.mean(dtype.type(np.inf) * magnitudes)
    return scores
