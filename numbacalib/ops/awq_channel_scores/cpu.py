"""CPU kernels of the AWQ channel scores: two column reductions and a product."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.columns.cpu import magnitude_max, power_means
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.awq import channel_score

PART = 16384
"""Channels of a task of the product."""


def channel_scores(
    activations: NDArray, weights: NDArray, dtype: np.dtype, out: NDArray | None
) -> NDArray:
    """See `numbacalib.awq_channel_scores`; the split among threads is that of the reductions."""
    largest = magnitude_max(activations, dtype)
    scores = power_means(weights, 1, dtype, out)
    infinite = np.empty(-(-len(scores) // PART), np.bool_)
    _scale(len(infinite), largest, scores, infinite)
    if infinite.any():
        # An infinite activation times a zero weight is NaN, which the mean alone would not show.
        with np.errstate(invalid="ignore", over="ignore"):
            for j in np.flatnonzero(np.isinf(largest)):
                magnitudes = np.abs(weights[:, j].astype(dtype))
                scores[j] = np.mean(largest[j] * magnitudes)
    return scores


@task_kernel
def _scale(counter, largest, scores, infinite):
    """Multiply the scores, and find which parts have an infinite factor. Split: workers take parts."""
    part = fetch_add(counter)
    while part < len(infinite):
        # slices: an index that is a sum would be checked for being negative, one by one
        factors, own = largest[part * PART :][:PART], scores[part * PART :][:PART]
        found = 0
        for j in range(len(own)):
            own[j] = channel_score(factors[j], own[j])
            found += factors[j] == np.inf
        infinite[part] = found > 0
        part = fetch_add(counter)
