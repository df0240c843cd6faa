"""Magnitudes of channels on the CPU: the column reductions, and NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime import checks
from numbacalib.runtime.columns import column_magnitude_max, column_power_means

FLOAT32 = np.dtype(np.float32)


def channel_magnitudes(inputs: NDArray) -> tuple[NDArray, NDArray]:
    """See `numbacalib.ops.magnitudes.channel_magnitudes`."""
    mean = column_power_means(inputs, 1, FLOAT32)
    return mean, column_magnitude_max(inputs).astype(np.float32)


def relative_magnitudes(weight: NDArray, group_size: int) -> NDArray:
    """See `numbacalib.ops.magnitudes.relative_magnitudes`."""
    magnitude = np.abs(weight.astype(checks.result_dtype(weight), copy=False))
    groups = magnitude.reshape(len(weight), -1, group_size)
    largest = groups.max(axis=2, keepdims=True)
    return (groups / np.where(largest > 0, largest, 1)).sum(axis=0, dtype=np.float64).ravel()
