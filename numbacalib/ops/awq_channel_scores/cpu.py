"""CPU kernels of the AWQ channel scores: two column reductions and a product."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.columns import column_magnitude_max, column_power_sums


def channel_scores(
    activations: NDArray, weights: NDArray, dtype: np.dtype, out: NDArray | None
) -> NDArray:
    """See `numbacalib.awq_channel_scores`; the split among threads is that of the reductions."""
    scale = column_magnitude_max(activations).astype(dtype)
    mean_weight = column_power_sums(weights, 1, dtype) / dtype.type(len(weights))
    with np.errstate(invalid="ignore", over="ignore"):
        scores = np.multiply(scale, mean_weight, out=out)
        # An infinite activation times a zero weight is NaN, which the mean alone would not show.
        for j in np.flatnonzero(np.isinf(scale)):
            scores[j] = np.mean(scale[j] * np.abs(weights[:, j].astype(dtype)))
    return scores
